// SPDX-License-Identifier: Apache-2.0
//
// Guest memory that vanishes without a call that we intercept: another process truncates the file,
// or a raw system call unmaps it. The next access raises a host signal. GuardedCall aborts it, and
// guest code stops at the instruction that made the access.
//
//     guest code          an exit as if kicked, and `takeHostFault` has the address
//     emulate             `EmulationResult.vanished`
//     switchTask          false
//
// GuardedCall explains why abandoned frames are safe. Code for decoding is copied with GuardedCopy,
// because references are held around it, and a failure stops guest code by a VM exit.
//
// RIP and registers are those before the instruction, as after an instruction that threw: every
// access that may fault precedes the first change of the state. In translated code, with state in
// host registers, the signal handler first sends the instruction to its TLB miss path
// (`NativeFaultSite`); the instruction's handler then faults in the same way.
//
// TLB and EPT entries of the memory stay: the hypervisor rebuilds them.

import Host
import X86

/// A guest access in translated code: from `position` up to the next site, with the start of its
/// out-of-line path. Both are offsets in the code memory.
package struct NativeFaultSite {
  package var position: UInt32
  package var target: UInt32

  package init(position: UInt32, target: UInt32) {
    self.position = position
    self.target = target
  }
}

/// All sites in order of position, for signal handlers: needs no lock and no reference counting.
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

  /// Where to continue after a fault at an address; 0 if the instruction there is no guest access.
  func target(_ address: UInt) -> UInt {
    let position = address &- start
    guard position < size, let sites else { return 0 }
    var low = 0
    var high = count
    while low < high {
      let middle = (low &+ high) / 2
      if UInt(sites[middle].position) <= position { low = middle &+ 1 } else { high = middle }
    }
    return low == 0 ? 0 : start &+ UInt(sites[low &- 1].target)
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

/// Arguments and result of `emulateTaskSwitch`.
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
  /// The address, in this process, of the vanished memory that stopped guest code; nil if it exited
  /// for another reason. Resets it.
  package func takeHostFault() -> UInt? {
    defer { hostFault = nil }
    return hostFault
  }

  package var hasHostFault: Bool { hostFault != nil }

  /// Runs from VM entry's events to a VM exit.
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
  /// - Returns: false if memory had vanished; the switch may be partly done.
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

  /// Code to be decoded has vanished: guest code stops before it, as after an aborted access.
  func codeVanished(_ address: UInt) -> GuestException {
    hostFault = address
    return cpu.exit(.externalInterrupt)
  }

  /// Makes the state complete after guest code was aborted, and records the exit. Restores what the
  /// abandoned frames would have restored.
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
    // Temporary changes of banks and modes.
    cpu.updateMode()
    hostFault = address
  }
}

extension CPU {
  /// Runs the body of a handler that changes RSP or RBP before its last access: restores them if
  /// the body throws.
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
