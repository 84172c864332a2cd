// SPDX-License-Identifier: Apache-2.0
//
// Checks on guest RIP and RFLAGS, and on guest non-register state.

import X86

extension EntryChecks {
  private var rflags: RFLAGS { RFLAGS(rawValue: cpu.s.pointee.rflags) }
  private var injects: InterruptionInfo.EventType? { injection.isValid ? injection.type : nil }

  func checkRIPAndRFLAGS() throws(EntryFailure) {
    let rip = cpu.s.pointee.rip
    if isLongModeGuest && cpu.segment(.cs).pointee.rights.isLong {
      try require(Self.isCanonical(rip), .guestRIP)
    } else {
      try require(rip >> 32 == 0, .guestRIP)
    }
    try require(
      rflags.rawValue & ~RFLAGS.all.rawValue == 0 && rflags.contains(.fixed),
      .guestRFLAGSReserved)
    if isLongModeGuest || cpu.s.pointee.cr0 & CR0.pe.rawValue == 0 {
      try require(!rflags.contains(.vm), .guestRFLAGSVM)
    }
    if injects == .externalInterrupt { try require(rflags.contains(.if), .guestRFLAGSIF) }
  }

  func checkActivity() throws(EntryFailure) {
    let activity = cpu.s.pointee.activity
    if activity == ActivityState.active { return }
    try require(activity <= ActivityState.waitForSIPI, .activityState)
    if activity == ActivityState.hlt {
      try require(cpu.segment(.ss).pointee.rights.dpl == 0, .haltAboveRing0)
    }
    try require(cpu.s.pointee.interruptibility & Self.shadows == 0, .inactiveWithBlocking)
    if injection.isValid { try require(wakes(activity), .injectionWhileInactive) }
  }

  /// Whether the activity state allows the injected event.
  private func wakes(_ activity: UInt32) -> Bool {
    let isMachineCheck =
      injects == .hardwareException && injection.vector == ExceptionVector.machineCheck.rawValue
    switch activity {
    case ActivityState.hlt:
      let isDebug =
        injects == .hardwareException && injection.vector == ExceptionVector.debug.rawValue
      return injects == .externalInterrupt || injects == .nmi || injects == .otherEvent
        || isMachineCheck || isDebug
    case ActivityState.shutdown: return injects == .nmi || isMachineCheck
    default: return false
    }
  }

  private static let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS

  func checkInterruptibility() throws(EntryFailure) {
    let blocking = cpu.s.pointee.interruptibility
    try require(blocking >> 4 == 0, .interruptibilityReserved)
    try require(blocking & Self.shadows != Self.shadows, .blockingBySTIAndMovSS)
    if blocking & Interruptibility.blockingBySTI != 0 {
      try require(rflags.contains(.if), .blockingBySTIWithoutIF)
    }
    switch injects {
    case .externalInterrupt: try require(blocking & Self.shadows == 0, .injectionUnderBlocking)
    case .nmi:
      try require(blocking & Interruptibility.blockingByMovSS == 0, .injectionUnderBlocking)
    default: break
    }
    try require(blocking & Interruptibility.blockingBySMI == 0, .blockingBySMI)
    if injects == .nmi && pin & PinControls.virtualNMIs != 0 {
      try require(blocking & Interruptibility.blockingByNMI == 0, .nmiUnderBlocking)
    }
  }

  func checkPendingDebugExceptions() throws(EntryFailure) {
    let pending = cpu.s.pointee.pendingDebug
    try require(pending & ~0x1_500F == 0, .pendingDebugReserved)
    let held =
      cpu.s.pointee.interruptibility & Self.shadows != 0
      || cpu.s.pointee.activity == ActivityState.hlt
    if !held { return }
    let traps = entry & EntryControls.loadDebugControls != 0 ? page(.guestDebugControl) : 0
    let steps = rflags.contains(.tf) && traps & Self.branchTrapFlag == 0
    try require((pending & PendingDebug.singleStep != 0) == steps, .pendingDebugSingleStep)
  }

  func checkLinkPointer() throws(EntryFailure) {
    let pointer = page(.vmcsLinkPointer)
    if pointer == .max { return }
    let base = PhysicalCPU.region(pointer)
    try require(base != nil, .vmcsLinkPointer)
    guard let base, readsMemory else { return }
    let header = VMCSHeader(base: base)
    try require(header.revision == VMCSLayout.revision, .vmcsLinkPointer)
    try require(
      header.isShadow == (secondary & SecondaryControls.vmcsShadowing != 0), .vmcsLinkShadow)
    try require(base != unit.pointee.current, .vmcsLinkIsCurrent)
  }
}
