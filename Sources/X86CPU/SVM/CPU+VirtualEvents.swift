// SPDX-License-Identifier: Apache-2.0
//
// Virtual interrupts and virtual NMIs: what waits in the VMCB until the guest takes it (APM volume
// 2, "Virtual Interrupts", "NMI Virtualization"). To the loop between instructions they are windows
// (`InterceptSet.interruptWindow`, `nmiWindow`), at which the event is delivered, or, by the
// intercept VINTR, exits.

import X86

extension CPU {
  /// After a change of the virtual interrupt, the virtual TPR or the intercepts: whether there is a
  /// window to wait for.
  func updateVirtualEvents() {
    var word = s.pointee.virtualInterrupt
    word.tpr = UInt8(truncatingIfNeeded: s.pointee.cr8)
    var set = s.pointee.intercepts.set.subtracting(.windows)
    if word.isDeliverable { set.insert(.interruptWindow) }
    if word.isNMIEnabled, word.isNMIPending, word.isGIFOpen { set.insert(.nmiWindow) }
    s.pointee.intercepts.set = set
  }

  /// The guest takes interrupts, and one waits.
  ///
  /// - Returns: false where it ended in an exit.
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

  /// The guest takes NMIs, and a virtual one waits.
  ///
  /// - Returns: false where it ended in an exit.
  func takeVirtualNMI() -> Bool {
    s.pointee.virtualInterrupt.rawValue &= ~VirtualInterrupt.nmiPendingBit
    updateVirtualEvents()
    s.pointee.activity = ActivityState.active
    return deliverWaiting(.nmi)
  }

  /// At VM entry guest code has not begun yet: what the delivery writes to is then the guest's for
  /// its time.
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
