// SPDX-License-Identifier: Apache-2.0
//
// Asynchronous page faults (Linux, "MSR_KVM_ASYNC_PF_EN"): a guest that touches a page which its
// host has to bring first is told so by a #PF with a token in CR2, and runs something else; an
// interrupt tells it when the page with that token is there.
//
//     touch      flags = 1, #PF, CR2 = token    -> a thread brings the page (PageArrivals)
//     arrival    token, interrupt               -> the guest goes on with whoever waited
//     ACK        the place of the token is free -> the next arrival
//
// Where a #PF cannot be delivered (in the kernel of a guest that did not ask for that, without
// paging) the vCPU halts until the page or an interrupt comes, which is better than waiting in the
// access: an interrupt's handler runs meanwhile. With interrupts disabled it waits in the access.
//
//     structure:  u32 flags   u32 token   56 bytes

import CHost
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

struct AsyncPageFaults: Sendable {
  /// MSR_KVM_ASYNC_PF_EN.
  enum Enable {
    static let enabled: UInt64 = 1 << 0
    /// Also where the guest is in its kernel.
    static let always: UInt64 = 1 << 1
    /// To the hypervisor in the guest.
    static let asVMExit: UInt64 = 1 << 2
    /// Arrivals are told by an interrupt.
    static let byInterrupt: UInt64 = 1 << 3
    static let reserved: UInt64 = 3 << 4
    static let flags: UInt64 = 0x3F
  }

  static let notPresent: UInt32 = 1
  private static let tokenOffset: UInt64 = 4
  /// A token that says that everything is there.
  static let broadcast: UInt32 = .max
  static let mostOutstanding = 64

  var enable: UInt64 = 0
  /// MSR_KVM_ASYNC_PF_INT: the vector.
  var interrupt: UInt64 = 0
  private var lastNumber: UInt32 = 0
  /// The pages that are out, with the token that the guest knows; 0: it was not told.
  var outstanding: [UInt64: UInt32] = [:]
  var arrivals: PageArrivals?
  /// The vCPU stands still for a page.
  var isHalted = false
  /// A page that a thread could not bring.
  var failedPage: UInt64?

  var isEnabled: Bool {
    let bits = Enable.enabled | Enable.byInterrupt
    return enable & bits == bits
  }
  var address: UInt64 { enable & ~Enable.flags }
  var tokenAddress: UInt64 { address &+ Self.tokenOffset }

  /// Never 0, which is "none".
  mutating func makeToken(_ id: UInt32) -> UInt32 {
    lastNumber = lastNumber &+ 1
    if lastNumber &<< 12 == 0 { lastNumber = 1 }
    return lastNumber &<< 12 | id & 0xFFF
  }

  /// Forgets what is out.
  mutating func clear() {
    arrivals?.close()
    arrivals = nil
    outstanding = [:]
    isHalted = false
    failedPage = nil
  }
}

// MARK: - MSRs

extension VirtualCPU {
  /// MSR_KVM_ASYNC_PF_EN.
  func writeAsyncFaultMSR(_ value: UInt64) -> Bool {
    typealias Enable = AsyncPageFaults.Enable
    guard value & (Enable.reserved | Enable.asVMExit) == 0,
      value & Enable.byInterrupt == 0 || hasParavirtual(ParavirtualFeature.asyncFaultInterrupt)
    else { return false }
    guard apic != nil else { return value == 0 }
    var new = paravirtual.faults
    new.enable = value
    guard new.isEnabled else {
      paravirtual.faults.enable = value
      paravirtual.faults.clear()
      return true
    }
    guard unsafe machine.memory.isReadable(new.address, count: 64) else { return false }
    paravirtual.faults.enable = value
    unsafe machine.watchPresence()
    // Whatever the guest waits for from before, as after a migration, is to be tried again.
    arrivals.add(PageArrival(page: nil))
    return true
  }

  /// MSR_KVM_ASYNC_PF_INT.
  func writeAsyncFaultVector(_ value: UInt64) -> Bool {
    guard value >> 8 == 0, apic != nil || value == 0 else { return false }
    paravirtual.faults.interrupt = value
    return true
  }

  private var arrivals: PageArrivals {
    if let arrivals = paravirtual.faults.arrivals { return arrivals }
    // Closed by the machine before it lets go of this vCPU.
    let arrivals = PageArrivals { [unowned(unsafe) self] in unsafe self.request(.pageArrival) }
    paravirtual.faults.arrivals = arrivals
    return arrivals
  }
}

// MARK: - Faults

extension VirtualCPU {
  /// Maps the page that the guest touched; `mapped` too where it is told to wait for it.
  func mapTouched(_ address: UInt64, writing: Bool) -> MachineMemory.Mapping {
    let mayWait = paravirtual.faults.isEnabled && canFaultLater(address & Page.mask)
    let mapping = memory.map(address, writing: writing, mayWait: mayWait)
    guard case .waits(let host) = mapping else { return mapping }
    return startFault(address & Page.mask, host: host)
      ? .mapped : memory.map(address, writing: writing)
  }

  /// The instruction at RIP can be left as it is, and an interrupt would be taken there.
  private func canFaultLater(_ page: UInt64) -> Bool {
    apic != nil && events.hasNone && runState.completion == .none
      && !smm.isActive && isInterruptAllowed && paravirtual.faults.failedPage != page
  }

  /// Whether the vCPU need not wait for the page in its access.
  private func startFault(_ page: UInt64, host: UInt64) -> Bool {
    if paravirtual.faults.outstanding[page] != nil {
      paravirtual.faults.isHalted = true
      return true
    }
    guard paravirtual.faults.outstanding.count < AsyncPageFaults.mostOutstanding else {
      return false
    }
    do throws(Errno) { try arrivals.bring(page, host: host) } catch { return false }
    paravirtual.faults.outstanding[page] = 0
    if canTellGuest, store(AsyncPageFaults.notPresent, at: paravirtual.faults.address) {
      let token = paravirtual.faults.makeToken(id)
      paravirtual.faults.outstanding[page] = token
      raise(GuestException(.pageFault, code: 0))
      events.payload = UInt64(token)
    } else {
      paravirtual.faults.isHalted = true
    }
    return true
  }

  private var canTellGuest: Bool {
    let isUser = cpu.cpl != 0
    return (isUser || paravirtual.faults.enable & AsyncPageFaults.Enable.always != 0)
      && backend[.cr0] & CR0.pg.rawValue != 0
  }

  private func store(_ value: UInt32, at address: UInt64) -> Bool {
    unsafe writeMemory(address, count: 4, in: machine.memory) {
      $0.storeBytes(of: value, as: UInt32.self)
    }
  }
}

// MARK: - Arrivals

extension VirtualCPU {
  /// Tells the guest of pages that have come, as far as it can be told.
  func takeArrivals() {
    paravirtual.faults.isHalted = false
    while canTakeArrival, let arrival = paravirtual.faults.arrivals?.take() {
      var token = AsyncPageFaults.broadcast
      if let page = arrival.page {
        token = paravirtual.faults.outstanding.removeValue(forKey: page) ?? 0
        paravirtual.faults.failedPage = arrival.isFailed ? page : nil
      }
      if token != 0, paravirtual.faults.isEnabled, store(token, at: paravirtual.faults.tokenAddress)
      {
        let vector = UInt8(truncatingIfNeeded: paravirtual.faults.interrupt)
        accept(InterruptMessage(destination: id, vector: vector))
      }
    }
  }

  /// The guest has taken the last token.
  private var canTakeArrival: Bool {
    guard paravirtual.faults.isEnabled else { return true }
    return unsafe apic?.state.withLock { $0.mode != .disabled && $0.isSoftwareEnabled } == true
      && machine.memory.load(paravirtual.faults.tokenAddress, as: UInt32.self) == 0
  }

  /// Whether a vCPU that stands still for a page has something else to do.
  func wakesFromFault() -> Bool {
    guard
      hasPendingInterrupt || isSMIDeliverable
        || mailbox.hasNMI
    else { return false }
    paravirtual.faults.isHalted = false
    events.mustCheck = true
    return true
  }
}
