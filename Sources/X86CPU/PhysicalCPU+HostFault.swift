// SPDX-License-Identifier: Apache-2.0
//
// Guest memory that disappears without a call that we intercept: another process truncates the
// file, or a raw system call unmaps it. The next access raises a signal of the host's. It is cut
// off (GuardedCall), and guest code ends at the instruction that made it.
//
//     guest code          an exit as if kicked, and `takeHostFault` has the address
//     emulate             `EmulationResult.vanished`
//     switchTask          false
//
// Why it is sound to leave frames as they are says GuardedCall. Code that is to be decoded is
// copied with GuardedCopy, as references are held around it, and ends guest code by a VM exit.
//
// RIP and registers are those before the instruction, as after an instruction that threw: every
// access that may fault comes before the first change of the state. In translated code, where the
// state is in the host's registers, the signal's handler first has the instruction go the way of an
// access that the TLB has no answer for (`NativeFaultSite`): its handler then meets the same.
//
// What the TLB and EPT know of the memory stays: the hypervisor makes it anew.

import Host
import X86

/// A guest's access in translated code: from `position` on, until the next site's, and where its
/// way out of line begins. Both from the start of the code memory.
package struct NativeFaultSite {
  package var position: UInt32
  package var target: UInt32

  package init(position: UInt32, target: UInt32) {
    self.position = position
    self.target = target
  }
}

/// All sites in order of position, for a signal's handler, which takes no lock and holds no
/// reference.
package struct NativeFaultSites {
  private let start: UInt
  private let size: UInt
  private let sites: UnsafeMutablePointer<NativeFaultSite>?
  private let count: Int

  /// - Parameters:
  ///   - start: of the code memory, `size` bytes long.
  package init(
    start: UInt = 0, size: UInt = 0, sites: UnsafeMutablePointer<NativeFaultSite>? = nil,
    count: Int = 0
  ) {
    self.start = start
    self.size = size
    self.sites = sites
    self.count = count
  }

  /// Whether an address is in the code memory.
  func contains(_ address: UInt) -> Bool { address &- start < size }

  /// Where the instruction at an address goes on that faulted; 0 where it is no guest's access.
  func target(_ address: UInt) -> UInt { find(address).target }

  /// The same, with the address from which faults are that access's.
  func find(_ address: UInt) -> (target: UInt, site: UInt) {
    let position = address &- start
    guard position < size, let sites else { return (0, 0) }
    var low = 0
    var high = count
    while low < high {
      let middle = (low &+ high) / 2
      if UInt(sites[middle].position) <= position { low = middle &+ 1 } else { high = middle }
    }
    if low == 0 { return (0, 0) }
    let site = sites[low &- 1]
    return (start &+ UInt(site.target), start &+ UInt(site.position))
  }
}

private let redirection: GuardedCall.Redirection = { raw, address in
  withUnsafePointer(to: &CPU(raw).s.pointee.native.faultSites) { $0.pointee.target(address) }
}

private let guestCode: GuardedCall.Function = { raw in
  let cpu = CPU(raw)
  if cpu.s.pointee.mustLoadPDPTEs, !cpu.loadPDPTEsAtEntry() { return }
  if cpu.owner.openEvents() { cpu.runGuest() }
}

private let emulation: GuardedCall.Function = { raw in
  let cpu = CPU(raw)
  cpu.owner.emulationResult = cpu.emulateOne()
}

/// What `emulateTaskSwitch` is called with, and what it throws.
private struct TaskSwitchCall {
  var cpu: CPU
  var selector: UInt16
  var source: TaskSwitchSource
  var returnRIP: UInt64
  var errorCode: UInt32?
  var exception: GuestException?
}

private let taskSwitch: GuardedCall.Function = { raw in
  let call = raw.assumingMemoryBound(to: TaskSwitchCall.self)
  do throws(GuestException) {
    try call.pointee.cpu.emulateTaskSwitch(
      selector: call.pointee.selector, source: call.pointee.source,
      returnRIP: call.pointee.returnRIP, errorCode: call.pointee.errorCode)
  } catch {
    call.pointee.exception = error
  }
}

extension PhysicalCPU {
  /// The address, in this process, of memory that was not there when guest code was left; nil where
  /// it was left for another reason. Once for each such exit.
  package func takeHostFault() -> UInt? {
    defer { hostFault = nil }
    return hostFault
  }

  package var hasHostFault: Bool { hostFault != nil }

  /// From VM entry's events to a VM exit.
  func runGuarded() {
    crashRecord.pointee.enter()
    var frame = GuardedCall.Frame(redirection)
    if !GuardedCall.call(&frame, guestCode, cpu.raw) { leaveCutOff(frame.fault) }
    let cause = cpu.s.pointee.exit.cause
    crashRecord.pointee.leave(reason: UInt32(cause.rawValue), rip: cpu.s.pointee.rip)
  }

  /// Executes the instruction at RIP; see `emulate`.
  func emulateGuarded() -> EmulationResult {
    var frame = GuardedCall.Frame(redirection)
    if !GuardedCall.call(&frame, emulation, cpu.raw) { leaveCutOff(frame.fault) }
    return hasHostFault ? .vanished : emulationResult
  }

  /// `CPU.emulateTaskSwitch`.
  ///
  /// - Returns: false where memory was not there; some of the switch may have happened.
  package func switchTask(
    selector: UInt16, source: TaskSwitchSource, returnRIP: UInt64, errorCode: UInt32?
  ) throws(GuestException) -> Bool {
    var call = TaskSwitchCall(
      cpu: cpu, selector: selector, source: source, returnRIP: returnRIP, errorCode: errorCode)
    var frame = GuardedCall.Frame()
    let isDone = withUnsafeMutablePointer(to: &call) {
      GuardedCall.call(&frame, taskSwitch, UnsafeMutableRawPointer($0))
    }
    if !isDone {
      leaveCutOff(frame.fault)
      return false
    }
    if let exception = call.exception { throw exception }
    return true
  }

  /// Code that was to be decoded has gone: guest code ends before it, as where an access is cut
  /// off.
  func codeVanished(_ address: UInt) -> GuestException {
    hostFault = address
    return cpu.exit(.externalInterrupt)
  }

  /// Makes the state whole after guest code was cut off, and records the exit. What frames that are
  /// gone would have restored is restored here.
  private func leaveCutOff(_ address: UInt) {
    let s = cpu.s
    leaveGuestCode()
    if s.pointee.native.isSearching {
      s.pointee.native.isSearching = false
      cpu.flagImage = s.pointee.hostFlags
    }
    if let op = s.pointee.running {
      s.pointee.running = nil
      if s.pointee.native.isCalling {
        s.pointee.native.isCalling = false
        translator?.leaveHandler(s.pointee.native.callInformation)
      }
      if let stack = s.pointee.keptStack {
        cpu.gpr[4] = stack.rsp
        cpu.gpr[5] = stack.rbp
      }
      if s.pointee.keepsX87 { cpu.restoreX87() }
      s.pointee.rip = cpu.currentRIP(op)
    }
    s.pointee.keptStack = nil
    s.pointee.keepsX87 = false
    releaseSplitLock()
    _ = cpu.exit(.externalInterrupt)
    if let event = s.pointee.injection {
      s.pointee.injection = nil
      cpu.noteInterrupted(event, length: UInt8(truncatingIfNeeded: event.instructionLength))
    }
    // Banks and modes that were changed for a moment.
    cpu.updateMode()
    hostFault = address
  }
}

extension CPU {
  /// Runs the body of a handler that changes RSP or RBP before it has made all its accesses: where
  /// it ends early they are as they were.
  func keepingStack(_ body: () throws(GuestException) -> Void) throws(GuestException) {
    let (rsp, rbp) = (gpr[4], gpr[5])
    s.pointee.keptStack = (rsp, rbp)
    defer { s.pointee.keptStack = nil }
    do throws(GuestException) {
      try body()
    } catch {
      gpr[4] = rsp
      gpr[5] = rbp
      throw error
    }
  }
}
