// SPDX-License-Identifier: Apache-2.0
//
// Selects the event that the next entry delivers, in the processor's order: an event whose delivery
// was interrupted, an exception, an NMI, an interrupt. An entry delivers one event; for further
// ones a window exit is requested.

import CHost
import InterruptChips
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  /// Whether interrupts can be delivered at this instruction.
  var isInterruptAllowed: Bool {
    if let nested, let answer = nested.allowsInterrupts { return answer }
    return unsafe cpu.s.pointee.rflags & RFLAGS.if.rawValue != 0
      && backend[.interruptibility]
        & UInt64(Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS) == 0
  }

  /// The previous instruction's debug trap is pending. It precedes interrupts: an entry that
  /// injects one would lose it.
  var hasPendingTrap: Bool {
    unsafe cpu.s.pointee.pendingDebug & PendingDebug.causes != 0
      && backend[.interruptibility] & UInt64(Interruptibility.blockingByMovSS) == 0
  }

  /// An interrupt of sufficient priority is pending.
  var hasPendingInterrupt: Bool {
    guard let apic else { return events.queuedInterrupt != nil }
    if isPICRequesting || events.queuedInterrupt != nil,
      apic.state.withLock({ $0.acceptsExternalInterrupts })
    {
      return true
    }
    return apic.state.withLock { $0.hasDeliverableInterrupt }
  }

  private var isPICRequesting: Bool {
    unsafe machine.interrupts?.isPICRequesting.load(ordering: .sequentiallyConsistent) ?? false
  }

  /// The vector to deliver; the chip takes it as accepted.
  func takeInterrupt() -> UInt8? {
    guard let apic else { return events.takeQueuedInterrupt() }
    if events.queuedInterrupt != nil, apic.state.withLock({ $0.acceptsExternalInterrupts }) {
      return events.takeQueuedInterrupt()
    }
    if isPICRequesting, apic.state.withLock({ $0.acceptsExternalInterrupts }) {
      return unsafe machine.interrupts?.acknowledgePIC()
    }
    return apic.state.withLock { $0.acceptHighest() }
  }

  /// Called last before an entry.
  func injectEvents() {
    // An instruction in emulation comes first: its exit is imminent.
    if runState.completion == .emulation { return }
    var isTaken = injectException()
    guard events.mustCheck else { return }
    if debug.blocksInterrupts || nested?.holdsEvents == true { return }
    events.mustCheck = false
    if isSMIDeliverable { deliverSMI(after: isTaken) }
    if mailbox.hasNMI { injectNMI(&isTaken) }
    injectInterrupt(isTaken)
    if paravirtual.eoi.isEnabled { offerEOI() }
  }

  /// Whether an event was queued for the entry.
  private func injectException() -> Bool {
    guard let event = events.takeInterrupted() ?? events.takeException(cpu) else { return false }
    inject(event)
    return true
  }

  /// Real mode has no error codes, and a VM entry that would deliver one fails (SDM volume 3,
  /// "VM-Entry Control Fields").
  private func inject(_ event: GuestEvent) {
    var event = event
    if backend[.cr0] & CR0.pe.rawValue == 0 { event.errorCode = nil }
    backend.inject(event)
  }

  private func injectNMI(_ isTaken: inout Bool) {
    // It comes to L1, by an exit: now, or when L2 takes NMIs again and exits for whatever.
    if nested?.exitsOnNMI == true { return backend.setNMIWindow(false) }
    let blocking = UInt64(
      Interruptibility.blockingByNMI | Interruptibility.blockingBySTI
        | Interruptibility.blockingByMovSS)
    let state = backend[.interruptibility]
    if state & UInt64(Interruptibility.blockingByNMI) != 0 { mailbox.latchOneNMI() }
    if !isTaken, !hasPendingTrap, state & blocking == 0 {
      isTaken = true
      backend.inject(.nmi)
      mailbox.takeNMI()
    }
    let more = mailbox.hasNMI
    backend.setNMIWindow(more)
    if more { events.mustCheck = true }
  }

  private func injectInterrupt(_ isTaken: Bool) {
    // They come to L1, by an exit.
    if nested?.exitsOnInterrupt == true { return backend.setInterruptWindow(false) }
    let clientWaits =
      unsafe hasClientPIC && run.pointee.request_interrupt_window != 0 && acceptsClientInterrupts
    guard hasPendingInterrupt else {
      backend.setInterruptWindow(clientWaits)
      return
    }
    if !isTaken, isInterruptAllowed, !hasPendingTrap, let vector = takeInterrupt() {
      backend.inject(GuestEvent(.externalInterrupt, vector: vector))
      backend.setInterruptWindow(clientWaits || hasPendingInterrupt)
    } else {
      backend.setInterruptWindow(true)
    }
  }

  /// Raises an exception of the instruction at RIP.
  func raise(_ exception: GuestException) { events.raise(exception) }

  /// Whether the client may inject an interrupt now.
  var isReadyForInjection: Bool {
    guard hasClientPIC else { return true }
    guard isInterruptAllowed, events.queuedInterrupt == nil, events.hasNone else { return false }
    return acceptsClientInterrupts
  }

  /// Whether our local APIC, if there is one, accepts the client's interrupts.
  private var acceptsClientInterrupts: Bool {
    apic?.state.withLock { $0.acceptsExternalInterrupts } ?? true
  }
}
