// SPDX-License-Identifier: Apache-2.0
//
// Checks on VMX controls: a failure is VMfailValid with error 7.

import X86

extension EntryChecks {
  /// - Parameter dirty: the changed groups; a change of event injection alone checks only that.
  func checkControls(_ dirty: VMCSGroups) throws(EntryFailure) {
    if dirty.contains(.controls) {
      try checkExecutionControls()
      try checkAddressSpaceControls()
      try checkExitControls()
      try require(limits.entry.allows(entry), .entryControls)
    }
    if injection.isValid { try checkInjection() }
    if dirty.contains(.controls) {
      try checkMSRArea(.entryMSRLoadCount, .entryMSRLoadAddress, .entryMSRLoadAddress)
    }
  }

  private func checkExecutionControls() throws(EntryFailure) {
    try require(limits.pin.allows(pin), .pinControls)
    try require(limits.primary.allows(primary), .primaryControls)
    try require(limits.secondary.allows(secondary), .secondaryControls)
    try require(page(.cr3TargetCount) <= limits.cr3TargetCount, .cr3TargetCount)
    if primary & PrimaryControls.useIOBitmaps != 0 {
      for field in [VMCSField.ioBitmapA, .ioBitmapB] {
        try require(isPage(page(field)), .ioBitmapAddress, at: .field(field))
      }
    }
    if primary & PrimaryControls.useMSRBitmaps != 0 {
      try require(isPage(page(.msrBitmap)), .msrBitmapAddress)
    }
    if primary & PrimaryControls.useTPRShadow != 0 { try checkTPRShadow() }
    if pin & PinControls.nmiExiting == 0 {
      try require(pin & PinControls.virtualNMIs == 0, .virtualNMIsWithoutNMIExiting)
    }
    if pin & PinControls.virtualNMIs == 0 {
      try require(primary & PrimaryControls.nmiWindowExiting == 0, .nmiWindowWithoutVirtualNMIs)
    }
    try checkAPICVirtualization()
  }

  private func checkAddressSpaceControls() throws(EntryFailure) {
    if secondary & SecondaryControls.enableVPID != 0 {
      try require(page(.vpid) != 0, .zeroVPID)
    }
    if secondary & SecondaryControls.enableEPT != 0 {
      let pointer = page(.eptPointer)
      let offered = limits.eptVPID
      try require(VMXCapabilities.allows(eptMemoryType: pointer, of: offered), .eptMemoryType)
      try require(VMXCapabilities.allows(eptLevels: pointer, of: offered), .eptWalkLength)
      let flags = VMXCapabilities.hasAccessedDirty(offered) ? 0 : EPTPointer.accessedDirty
      try require(
        pointer & (EPTPointer.reserved | flags) == 0 && isPage(pointer & Page.mask),
        .eptPointerReserved)
    }
    try checkPaging()
    if secondary & SecondaryControls.useTSCScaling != 0 {
      try require(page(.tscMultiplier) != 0, .zeroTSCMultiplier)
    }
  }

  private func checkExitControls() throws(EntryFailure) {
    try require(limits.exit.allows(exit), .exitControls)
    if pin & PinControls.preemptionTimer == 0 {
      try require(exit & ExitControls.savePreemptionTimer == 0, .saveTimerWithoutTimer)
    }
    try checkMSRArea(.exitMSRStoreCount, .exitMSRStoreAddress, .exitMSRStoreAddress)
    try checkMSRArea(.exitMSRLoadCount, .exitMSRLoadAddress, .exitMSRLoadAddress)
  }

  private func checkMSRArea(
    _ count: VMCSField, _ address: VMCSField, _ rule: EntryFailure
  ) throws(EntryFailure) {
    let count = page(count)
    if count == 0 { return }
    let start = page(address)
    let last = start &+ count &* 16 &- 1
    try require(
      start & 0xF == 0 && isAddress(start) && last >> limits.addressWidth == 0, rule)
  }

  // MARK: Event injection

  private func checkInjection() throws(EntryFailure) {
    try require(injection.type != nil, .injectionType)
    guard let type = injection.type else { return }
    let vector = injection.vector
    switch type {
    case .nmi: try require(vector == 2, .injectionVector)
    case .hardwareException: try require(vector < 32, .injectionVector)
    case .otherEvent: try require(vector == 0, .injectionVector)
    default: break
    }
    let cr0 = limits.isGuests ? page(.guestCR0) : cpu.s.pointee.cr0
    let isReal = isUnrestricted && cr0 & CR0.pe.rawValue == 0
    let hasCode = type == .hardwareException && Self.hasErrorCode(vector) && !isReal
    try require(injection.hasErrorCode == hasCode, .injectionErrorCodeValid)
    try require(injection.rawValue & 0x7FFF_F000 == 0, .injectionReserved)
    if hasCode { try require(page(.entryExceptionErrorCode) >> 16 == 0, .injectionErrorCode) }
    switch type {
    case .softwareInterrupt, .privilegedSoftwareException, .softwareException:
      try require(page(.entryInstructionLength) <= 15, .injectionLength)
    default: break
    }
  }

  static func hasErrorCode(_ vector: UInt8) -> Bool {
    switch ExceptionVector(rawValue: vector) {
    case .doubleFault, .invalidTSS, .segmentNotPresent, .stackFault, .generalProtection,
      .pageFault, .alignmentCheck:
      true
    default: false
    }
  }
}
