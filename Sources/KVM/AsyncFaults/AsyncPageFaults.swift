// SPDX-License-Identifier: Apache-2.0
//
// Asynchronous page faults (Linux, "MSR_KVM_ASYNC_PF_EN"). When a guest touches a page that its
// host must first bring in, it gets a #PF with a token in CR2 and can schedule another task; an
// interrupt with the token announces the page.
//
//     touch      flags = 1, #PF, CR2 = token    -> a thread brings the page in (PageArrivals)
//     arrival    token, interrupt               -> the guest resumes the task that waits for it
//     ACK        the token's field is free      -> the next arrival
//
// If no #PF can be delivered (guest kernel without `Enable.always`, paging off), the vCPU halts
// until the page or an interrupt arrives. So interrupt handlers run meanwhile, unlike during a wait
// in the access. With interrupts disabled the vCPU waits in the access.
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
    /// Also while the guest is in its kernel.
    static let always: UInt64 = 1 << 1
    /// For a nested hypervisor.
    static let asVMExit: UInt64 = 1 << 2
    /// An interrupt announces arrivals.
    static let byInterrupt: UInt64 = 1 << 3
    static let reserved: UInt64 = 3 << 4
    static let flags: UInt64 = 0x3F
  }

  static let notPresent: UInt32 = 1
  private static let tokenOffset: UInt64 = 4
  /// The token that wakes all waiting tasks.
  static let broadcast: UInt32 = .max
  static let mostOutstanding = 64

  var enable: UInt64 = 0
  /// MSR_KVM_ASYNC_PF_INT: the vector.
  var interrupt: UInt64 = 0
  private var lastNumber: UInt32 = 0
  /// Pages not yet there, with the token that the guest has; 0 if it got none.
  var outstanding: [UInt64: UInt32] = [:]
  var arrivals: PageArrivals?
  /// The vCPU halts until a page arrives.
  var isHalted = false
  /// A page that a thread could not bring in.
  var failedPage: UInt64?

  var isEnabled: Bool {
    let bits = Enable.enabled | Enable.byInterrupt
    return enable & bits == bits
  }
  var address: UInt64 { enable & ~Enable.flags }
  var tokenAddress: UInt64 { address &+ Self.tokenOffset }

  /// Never 0, which means "none".
  mutating func makeToken(_ id: UInt32) -> UInt32 {
    lastNumber = lastNumber &+ 1
    if lastNumber &<< 12 == 0 { lastNumber = 1 }
    return lastNumber &<< 12 | id & 0xFFF
  }

  /// Forgets outstanding pages.
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
    // The guest may wait for pages from before, as after a migration: let it retry all.
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
    // The machine closes it before it releases this vCPU.
    let arrivals = PageArrivals { [unowned(unsafe) self] in unsafe self.request(.pageArrival) }
    paravirtual.faults.arrivals = arrivals
    return arrivals
  }
}

// MARK: - Faults

extension VirtualCPU {
  /// Maps the page that the guest touched; `mapped` also if an arrival will announce it.
  func mapTouched(_ address: UInt64, writing: Bool) -> MachineMemory.Mapping {
    let mayWait = paravirtual.faults.isEnabled && canFaultLater(address & Page.mask)
    let mapping = memory.map(address, writing: writing, mayWait: mayWait)
    guard case .waits(let host) = mapping else { return mapping }
    return startFault(address & Page.mask, host: host)
      ? .mapped : memory.map(address, writing: writing)
  }

  /// The instruction at RIP can be interrupted, and interrupts are enabled.
  private func canFaultLater(_ page: UInt64) -> Bool {
    apic != nil && events.hasNone && runState.completion == .none
      && !smm.isActive && isInterruptAllowed && paravirtual.faults.failedPage != page
  }

  /// False if the vCPU must wait for the page in its access.
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
  /// Announces pages to the guest, one for each token that it has acknowledged.
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

  /// The guest has acknowledged the last token.
  private var canTakeArrival: Bool {
    guard paravirtual.faults.isEnabled else { return true }
    return unsafe apic?.state.withLock { $0.mode != .disabled && $0.isSoftwareEnabled } == true
      && machine.memory.load(paravirtual.faults.tokenAddress, as: UInt32.self) == 0
  }

  /// Whether an event wakes a vCPU that halts for a page.
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
