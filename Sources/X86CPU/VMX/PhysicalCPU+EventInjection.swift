// SPDX-License-Identifier: Apache-2.0
//
// What a VM entry does between loading guest state and the first guest instruction (SDM volume 3,
// "Event Injection" and "Special Features of VM Entry"): the injected event, then whatever is due
// at this instruction boundary.

import X86

extension PhysicalCPU {
  /// - Returns: false where it ended in a VM exit.
  @inline(__always) func openEvents() -> Bool {
    let s = cpu.s
    let primary = s.pointee.vmx.primary
    let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
    var slow = s.pointee.slow & ~(SlowReason.interruptShadow | SlowReason.monitorTrap)
    if s.pointee.interruptibility & shadows != 0 { slow |= SlowReason.interruptShadow }
    if primary & PrimaryControls.monitorTrapFlag != 0 { slow |= SlowReason.monitorTrap }
    s.pointee.slow = slow
    let event = InterruptionInfo(rawValue: vmx.pointee.page32(.entryInterruptionInfo))
    if event.isValid, !inject(event) { return false }
    let windows = PrimaryControls.interruptWindowExiting | PrimaryControls.nmiWindowExiting
    if primary & windows != 0 || s.pointee.pendingDebug != 0
      || vmx.pointee.timerDeadline != .max
    {
      return cpu.processEvents()
    }
    return true
  }

  private func inject(_ event: InterruptionInfo) -> Bool {
    let s = cpu.s
    s.pointee.activity = ActivityState.active
    if event.type == .otherEvent {
      _ = cpu.exit(.monitorTrapFlag)
      return false
    }
    s.pointee.interruptibility &=
      ~(Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS)
    s.pointee.slow &= ~SlowReason.interruptShadow
    var returnRIP = s.pointee.rip
    switch event.type {
    case .softwareInterrupt, .softwareException, .privilegedSoftwareException:
      returnRIP &+= vmx.pointee.page(.entryInstructionLength)
      if !cpu.is64Bit { returnRIP &= 0xFFFF_FFFF }
    default:
      // An interrupt or exception supersedes debug exceptions that were pending.
      s.pointee.pendingDebug = 0
    }
    enterGuestCode()
    s.pointee.isInjecting = true
    let delivered = cpu.deliver(
      event, errorCode: vmx.pointee.page32(.entryExceptionErrorCode), returnRIP: returnRIP)
    s.pointee.isInjecting = false
    leaveGuestCode()
    if !delivered { return false }
    if s.pointee.slow & SlowReason.monitorTrap != 0 {
      _ = cpu.exit(.monitorTrapFlag)
      return false
    }
    return true
  }
}
