// SPDX-License-Identifier: Apache-2.0
//
// The part of an entry between loading guest state and the first guest instruction (SDM volume 3,
// "Event Injection" and "Special Features of VM Entry"; APM volume 2, "Event Injection"): the
// injected event, then all that is due at this instruction boundary.

import X86

extension PhysicalCPU {
  /// - Returns: false on a VM exit.
  @inline(__always) func openEvents() -> Bool {
    let s = cpu.s
    let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
    var slow = s.pointee.slow & ~(SlowReason.interruptShadow | SlowReason.monitorTrap)
    if s.pointee.interruptibility & shadows != 0 { slow |= SlowReason.interruptShadow }
    if cpu.intercepts(.monitorTrap) { slow |= SlowReason.monitorTrap }
    s.pointee.slow = slow
    if let event = s.pointee.injection {
      let isInGuest = inject(event)
      s.pointee.injection = nil
      if !isInGuest { return false }
    }
    if s.pointee.virtualAPIC.features.rawValue != 0, !cpu.openVirtualAPIC() { return false }
    if cpu.intercepts(.windows) || s.pointee.pendingDebug != 0 || s.pointee.deadline != .max {
      return cpu.processEvents()
    }
    return true
  }

  private func inject(_ event: GuestEvent) -> Bool {
    let s = cpu.s
    s.pointee.activity = ActivityState.active
    s.pointee.interruptibility &=
      ~(Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS)
    s.pointee.slow &= ~SlowReason.interruptShadow
    var returnRIP = s.pointee.rip
    if event.isOfInstruction {
      returnRIP &+= UInt64(event.instructionLength)
      if !cpu.is64Bit { returnRIP &= 0xFFFF_FFFF }
    } else {
      // An interrupt or exception supersedes pending debug exceptions.
      s.pointee.pendingDebug = 0
    }
    enterGuestCode()
    let delivered = cpu.deliver(event, returnRIP: returnRIP)
    leaveGuestCode()
    if !delivered { return false }
    if s.pointee.slow & SlowReason.monitorTrap != 0 {
      _ = cpu.exit(.monitorTrap)
      return false
    }
    return true
  }
}
