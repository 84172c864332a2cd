// SPDX-License-Identifier: Apache-2.0
//
// Virtual interrupts and virtual NMIs, which are pending in the VMCB until the guest takes them
// (APM volume 2, "Virtual Interrupts", "NMI Virtualization"). For the loop between instructions
// they are windows (`InterceptSet.interruptWindow`, `nmiWindow`), at which the event is delivered
// or, with the VINTR intercept, exits.

import X86

extension CPU {
  /// Opens or closes the window after a change of the virtual interrupt, the virtual TPR or the
  /// intercepts.
  func updateVirtualEvents() {
    var word = s.pointee.virtualInterrupt
    word.tpr = UInt8(truncatingIfNeeded: s.pointee.cr8)
    var set = s.pointee.intercepts.set.subtracting(.windows)
    if word.isDeliverable { set.insert(.interruptWindow) }
    if word.isNMIEnabled, word.isNMIPending, word.isGIFOpen { set.insert(.nmiWindow) }
    s.pointee.intercepts.set = set
  }

  /// Takes a virtual interrupt: the guest's interrupts are enabled and one is pending.
  ///
  /// - Returns: false on an exit.
  func takeVirtualInterrupt() -> Bool {
    if s.pointee.intercepts.set.contains(.virtualInterrupt) {
      _ = exit(.interruptWindow)
      return false
    }
    let vector = s.pointee.virtualInterrupt.vector
    s.pointee.virtualInterrupt.rawValue &= ~VirtualInterrupt.pendingBit
    updateVirtualEvents()
    s.pointee.activity = ActivityState.active
    return deliverWaiting(GuestEvent(.externalInterrupt, vector: vector))
  }

  /// Takes a virtual NMI: NMIs are unblocked and one is pending.
  ///
  /// - Returns: false on an exit.
  func takeVirtualNMI() -> Bool {
    s.pointee.virtualInterrupt.rawValue &= ~VirtualInterrupt.nmiPendingBit
    updateVirtualEvents()
    s.pointee.activity = ActivityState.active
    return deliverWaiting(.nmi)
  }

  /// Delivers an event. At VM entry guest code has not begun yet: the CPU enters it for the
  /// delivery, whose accesses are the guest's.
  func deliverWaiting(_ event: GuestEvent) -> Bool {
    let owner = owner
    let isInGuest = owner.isInGuestCode
    if !isInGuest { owner.enterGuestCode() }
    defer { if !isInGuest { owner.leaveGuestCode() } }
    if !deliver(event, returnRIP: s.pointee.rip) { return false }
    if s.pointee.slow & SlowReason.monitorTrap == 0 { return true }
    _ = exit(.monitorTrap)
    return false
  }
}
