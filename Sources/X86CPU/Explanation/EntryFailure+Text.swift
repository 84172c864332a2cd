// SPDX-License-Identifier: Apache-2.0
//
// Texts for each rule of VM entry in a report: its fields, the wrong bits, and the section of SDM
// volume 3 that states it. A test fails for a rule without a row.

import X86

struct EntryRuleText: Sendable {
  typealias WrongBits = @Sendable (EntryChecks, UInt64) -> UInt64

  let section: String
  /// The wrong one first. For segment registers, ES's fields stand for all.
  private let own: [VMCSField]
  /// The wrong bits of the first field's value; 0: the field as a whole.
  let wrong: WrongBits

  fileprivate init(_ section: String, _ fields: [VMCSField], _ wrong: @escaping WrongBits) {
    self.section = "SDM volume 3, \"\(section)\""
    own = fields
    self.wrong = wrong
  }

  /// The fields for a failed check.
  func fields(_ subject: RuleSubject) -> [VMCSField] {
    switch subject {
    case .rule: return own
    case .field(let field): return [field]
    case .register(let register):
      let step = UInt32(register.rawValue) &* 2
      return own.map { VMCSField(rawValue: $0.rawValue &+ step) }
    }
  }
}

extension EntryFailure {
  /// The manual's section, for reports.
  package var section: String { text.section }

  var text: EntryRuleText { Self.texts[self] ?? Self.unknown }

  /// Whether the table has a row for the rule.
  package var hasText: Bool { Self.texts[self] != nil }

  private static let unknown = EntryRuleText("VM Entries", []) { _, _ in 0 }

  private static let texts = Dictionary(uniqueKeysWithValues: rows)

  private static let rows =
    controls + virtualization + hostState + guestRegisters + guestSegments + guestRest

  // MARK: Wrong bits

  private typealias Row = (EntryFailure, EntryRuleText)

  private static func row(
    _ rule: EntryFailure, _ section: String, _ fields: VMCSField...,
    wrong: @escaping EntryRuleText.WrongBits = { _, _ in 0 }
  ) -> Row {
    (rule, EntryRuleText(section, fields, wrong))
  }

  /// The bits of a mask.
  private static func mask(_ bits: UInt64) -> EntryRuleText.WrongBits { { _, _ in bits } }

  /// The bits of a mask that are set.
  private static func ones(_ bits: UInt64) -> EntryRuleText.WrongBits {
    { _, value in value & bits }
  }

  /// Bits of a control field that must be 0 and are not, or must be 1.
  private static func capability(_ capability: ControlCapability) -> EntryRuleText.WrongBits {
    { _, value in
      value & ~UInt64(capability.allowed) | ~value & UInt64(capability.required)
    }
  }

  /// Bits of a control register that differ from VMX operation's fixed values.
  private static func fixed(_ zeros: UInt64, _ ones: UInt64) -> EntryRuleText.WrongBits {
    { _, value in value & ~zeros | ~value & ones }
  }

  private static let beyondPhysical = ~((UInt64(1) << CPU.physicalAddressBits) &- 1)

  // MARK: The rows

  private static let execution = "VM-Execution Control Fields"
  private static let exits = "VM-Exit Control Fields"
  private static let entries = "VM-Entry Control Fields"

  private static let controls: [Row] = [
    row(.pinControls, execution, .pinBasedControls, wrong: capability(VMXCapabilities.pin)),
    row(.primaryControls, execution, .primaryControls, wrong: capability(VMXCapabilities.primary)),
    row(
      .secondaryControls, execution, .secondaryControls,
      wrong: capability(VMXCapabilities.secondary)),
    row(.cr3TargetCount, execution, .cr3TargetCount),
    row(.ioBitmapAddress, execution, .ioBitmapA, .ioBitmapB),
    row(.msrBitmapAddress, execution, .msrBitmap),
    row(
      .virtualNMIsWithoutNMIExiting, execution, .pinBasedControls,
      wrong: mask(UInt64(PinControls.virtualNMIs))),
    row(
      .nmiWindowWithoutVirtualNMIs, execution, .primaryControls, .pinBasedControls,
      wrong: mask(UInt64(PrimaryControls.nmiWindowExiting))),
    row(.zeroVPID, execution, .vpid, .secondaryControls),
    row(.eptMemoryType, execution, .eptPointer, wrong: mask(EPTPointer.memoryTypeMask)),
    row(.eptWalkLength, execution, .eptPointer, wrong: mask(EPTPointer.levelsMask)),
    row(
      .eptPointerReserved, execution, .eptPointer,
      wrong: ones(EPTPointer.reserved | ~((UInt64(1) << VMXCapabilities.hostAddressWidth) &- 1))),
    row(
      .unrestrictedGuestWithoutEPT, execution, .secondaryControls,
      wrong: mask(UInt64(SecondaryControls.unrestrictedGuest))),
    row(.zeroTSCMultiplier, execution, .tscMultiplier, .secondaryControls),
    row(.exitControls, exits, .exitControls, wrong: capability(VMXCapabilities.exit)),
    row(
      .saveTimerWithoutTimer, exits, .exitControls, .pinBasedControls,
      wrong: mask(UInt64(ExitControls.savePreemptionTimer))),
    row(.exitMSRStoreAddress, exits, .exitMSRStoreAddress, .exitMSRStoreCount),
    row(.exitMSRLoadAddress, exits, .exitMSRLoadAddress, .exitMSRLoadCount),
    row(.entryControls, entries, .entryControls, wrong: capability(VMXCapabilities.entry)),
    row(.injectionType, entries, .entryInterruptionInfo, wrong: mask(7 << 8)),
    row(.injectionVector, entries, .entryInterruptionInfo, wrong: mask(0xFF)),
    row(.injectionErrorCodeValid, entries, .entryInterruptionInfo, wrong: mask(1 << 11)),
    row(.injectionReserved, entries, .entryInterruptionInfo, wrong: ones(0x7FFF_F000)),
    row(
      .injectionErrorCode, entries, .entryExceptionErrorCode, .entryInterruptionInfo,
      wrong: ones(0xFFFF_0000)),
    row(.injectionLength, entries, .entryInstructionLength, .entryInterruptionInfo),
    row(.entryMSRLoadAddress, entries, .entryMSRLoadAddress, .entryMSRLoadCount),
  ]

  private static let virtualization: [Row] = [
    row(.virtualAPICAddress, execution, .virtualAPICAddress, .primaryControls),
    row(
      .tprThresholdReserved, execution, .tprThreshold, wrong: ones(0xFFFF_FFF0)),
    row(.tprThresholdAboveTPR, execution, .tprThreshold, .virtualAPICAddress),
    row(.apicAccessAddress, execution, .apicAccessAddress, .secondaryControls),
    row(
      .x2APICWithAPICAccesses, execution, .secondaryControls,
      wrong: mask(UInt64(SecondaryControls.virtualizeAPICAccesses))),
    row(
      .apicFeaturesWithoutTPRShadow, execution, .secondaryControls, .primaryControls,
      wrong: ones(
        UInt64(
          SecondaryControls.virtualizeX2APIC | SecondaryControls.apicRegisterVirtualization
            | SecondaryControls.virtualInterruptDelivery))),
    row(
      .deliveryWithoutInterruptExiting, execution, .secondaryControls, .pinBasedControls,
      wrong: mask(UInt64(SecondaryControls.virtualInterruptDelivery))),
    row(
      .postedWithoutDelivery, execution, .pinBasedControls, .secondaryControls,
      wrong: mask(UInt64(PinControls.postedInterrupts))),
    row(
      .postedWithoutAcknowledge, execution, .pinBasedControls, .exitControls,
      wrong: mask(UInt64(PinControls.postedInterrupts))),
    row(
      .postedInterruptVector, execution, .postedInterruptVector, wrong: ones(0xFF00)),
    row(.postedInterruptDescriptor, execution, .postedInterruptDescriptor),
    row(
      .pmlWithoutEPT, execution, .secondaryControls,
      wrong: mask(UInt64(SecondaryControls.enablePML))),
    row(.pmlAddress, execution, .pmlAddress, .secondaryControls),
    row(
      .modeBasedExecuteWithoutEPT, execution, .secondaryControls,
      wrong: mask(UInt64(SecondaryControls.modeBasedExecute))),
    row(
      .vmFunctionControls, execution, .vmFunctionControls,
      wrong: ones(~VMXCapabilities.vmFunctions)),
    row(
      .eptpSwitchingWithoutEPT, execution, .vmFunctionControls, .secondaryControls,
      wrong: mask(VMFunctions.eptpSwitching)),
    row(.eptpListAddress, execution, .eptpListAddress, .vmFunctionControls),
    row(.vmreadBitmapAddress, execution, .vmreadBitmap, .secondaryControls),
    row(.vmwriteBitmapAddress, execution, .vmwriteBitmap, .secondaryControls),
    row(
      .virtualizationExceptionAddress, execution, .virtualizationExceptionInfo,
      .secondaryControls),
  ]

  private static let hostRegisters = "Checks on Host Control Registers, MSRs, and SSP"
  private static let hostSegments = "Checks on Host Segment and Descriptor-Table Registers"
  private static let hostSize = "Checks Related to Address-Space Size"

  private static let hostState: [Row] = [
    row(
      .hostCR0, hostRegisters, .hostCR0,
      wrong: fixed(VMXCapabilities.cr0Fixed1, VMXCapabilities.cr0Fixed0)),
    row(
      .hostCR4, hostRegisters, .hostCR4,
      wrong: fixed(VMXCapabilities.cr4Fixed1, VMXCapabilities.cr4Fixed0)),
    row(.hostCR3, hostRegisters, .hostCR3, wrong: ones(beyondPhysical)),
    row(.hostSysenter, hostRegisters, .hostSysenterESP, .hostSysenterEIP),
    row(.hostPAT, hostRegisters, .hostPAT),
    row(.hostEFERReserved, hostRegisters, .hostEFER, wrong: ones(~EntryChecks.eferBits)),
    row(
      .hostEFERMode, hostRegisters, .hostEFER, .exitControls,
      wrong: mask(EFER([.lma, .lme]).rawValue)),
    row(
      .hostSelector, hostSegments, .hostESSelector, .hostCSSelector, .hostSSSelector,
      .hostDSSelector, .hostFSSelector, .hostGSSelector, .hostTRSelector, wrong: ones(7)),
    row(
      .hostNullSelector, hostSegments, .hostCSSelector, .hostSSSelector, .hostTRSelector),
    row(
      .hostBase, hostSegments, .hostFSBase, .hostGSBase, .hostGDTRBase, .hostIDTRBase,
      .hostTRBase),
    row(
      .hostAddressSpaceSize, hostSize, .exitControls,
      wrong: mask(UInt64(ExitControls.hostAddressSpaceSize))),
    row(.hostPAE, hostSize, .hostCR4, wrong: mask(CR4.pae.rawValue)),
    row(.hostRIP, hostSize, .hostRIP),
  ]

  private static let registers =
    "Checks on Guest Control Registers, Debug Registers, and MSRs"

  private static let guestRegisters: [Row] = [
    row(.guestCR0, registers, .guestCR0) { checks, value in
      let free = checks.isUnrestricted ? CR0([.pe, .pg]).rawValue : 0
      return value & ~VMXCapabilities.cr0Fixed1 | ~value & VMXCapabilities.cr0Fixed0 & ~free
    },
    row(.guestPagingWithoutProtection, registers, .guestCR0, wrong: mask(CR0.pe.rawValue)),
    row(
      .guestCR4, registers, .guestCR4,
      wrong: fixed(VMXCapabilities.cr4Fixed1, VMXCapabilities.cr4Fixed0)),
    row(
      .guestDebugControl, registers, .guestDebugControl, wrong: ones(~EntryChecks.debugControlBits)),
    row(.guestLongModeWithoutPaging, registers, .entryControls, .guestCR0, .guestCR4) { _, _ in
      UInt64(EntryControls.ia32eModeGuest)
    },
    row(
      .guestPCIDEOutsideLongMode, registers, .guestCR4, .entryControls,
      wrong: mask(CR4.pcide.rawValue)),
    row(.guestCR3, registers, .guestCR3, wrong: ones(beyondPhysical)),
    row(.guestDR7, registers, .guestDR7, wrong: ones(0xFFFF_FFFF << 32)),
    row(.guestSysenter, registers, .guestSysenterESP, .guestSysenterEIP),
    row(.guestPAT, registers, .guestPAT),
    row(.guestEFERReserved, registers, .guestEFER, wrong: ones(~EntryChecks.eferBits)),
    row(
      .guestEFERMode, registers, .guestEFER, .entryControls, .guestCR0,
      wrong: mask(EFER([.lma, .lme]).rawValue)),
  ]

  private static let segments = "Checks on Guest Segment Registers"
  private static let tables = "Checks on Guest Descriptor-Table Registers"

  private static let guestSegments: [Row] = [
    row(.guestSelectorTI, segments, .guestESSelector, wrong: mask(4)),
    row(.guestSSRPL, segments, .guestSSSelector, .guestCSSelector, wrong: mask(3)),
    row(.guestSegmentBase, segments, .guestESBase, .guestESSelector),
    row(.guestVirtual8086Limit, segments, .guestESLimit),
    row(.guestVirtual8086Rights, segments, .guestESAccessRights),
    row(.guestSegmentType, segments, .guestESAccessRights, wrong: mask(0xF)),
    row(
      .guestSegmentS, segments, .guestESAccessRights,
      wrong: mask(UInt64(SegmentAccessRights.codeOrDataBit))),
    row(.guestSegmentDPL, segments, .guestESAccessRights, wrong: mask(3 << 5)),
    row(
      .guestSegmentNotPresent, segments, .guestESAccessRights,
      wrong: mask(UInt64(SegmentAccessRights.presentBit))),
    row(.guestSegmentReserved, segments, .guestESAccessRights, wrong: ones(0xFFFE_0F00)),
    row(
      .guestCSLongAndBig, segments, .guestCSAccessRights,
      wrong: mask(UInt64(SegmentAccessRights.longBit | SegmentAccessRights.bigBit))),
    row(
      .guestSegmentGranularity, segments, .guestESAccessRights, .guestESLimit,
      wrong: mask(UInt64(SegmentAccessRights.granularityBit))),
    row(
      .guestTRUnusable, segments, .guestTRAccessRights,
      wrong: mask(UInt64(SegmentAccessRights.unusableBit))),
    row(.guestDescriptorTableBase, tables, .guestGDTRBase, .guestIDTRBase),
    row(
      .guestDescriptorTableLimit, tables, .guestGDTRLimit, .guestIDTRLimit,
      wrong: ones(0xFFFF_0000)),
  ]

  private static let pointers = "Checks on Guest RIP, RFLAGS, and SSP"
  private static let rest = "Checks on Guest Non-Register State"

  private static let guestRest: [Row] = [
    row(.guestRIP, pointers, .guestRIP, .guestCSAccessRights),
    row(.guestRFLAGSReserved, pointers, .guestRFLAGS) { _, value in
      value & ~RFLAGS.all.rawValue | ~value & RFLAGS.fixed.rawValue
    },
    row(
      .guestRFLAGSVM, pointers, .guestRFLAGS, .guestCR0, .entryControls,
      wrong: mask(RFLAGS.vm.rawValue)),
    row(
      .guestRFLAGSIF, pointers, .guestRFLAGS, .entryInterruptionInfo,
      wrong: mask(RFLAGS.if.rawValue)),
    row(.activityState, rest, .guestActivityState),
    row(.haltAboveRing0, rest, .guestActivityState, .guestSSAccessRights),
    row(.inactiveWithBlocking, rest, .guestActivityState, .guestInterruptibility),
    row(.injectionWhileInactive, rest, .entryInterruptionInfo, .guestActivityState),
    row(
      .interruptibilityReserved, rest, .guestInterruptibility, wrong: ones(0xFFFF_FFF0)),
    row(.blockingBySTIAndMovSS, rest, .guestInterruptibility, wrong: mask(3)),
    row(.blockingBySTIWithoutIF, rest, .guestInterruptibility, .guestRFLAGS, wrong: mask(1)),
    row(.injectionUnderBlocking, rest, .entryInterruptionInfo, .guestInterruptibility),
    row(.blockingBySMI, rest, .guestInterruptibility, wrong: mask(4)),
    row(.nmiUnderBlocking, rest, .entryInterruptionInfo, .guestInterruptibility),
    row(
      .pendingDebugReserved, rest, .guestPendingDebugExceptions, wrong: ones(~UInt64(0x1_500F))),
    row(
      .pendingDebugSingleStep, rest, .guestPendingDebugExceptions, .guestRFLAGS,
      .guestInterruptibility, wrong: mask(PendingDebug.singleStep)),
    row(.vmcsLinkPointer, rest, .vmcsLinkPointer),
    row(.vmcsLinkIsCurrent, rest, .vmcsLinkPointer),
    row(.vmcsLinkShadow, rest, .vmcsLinkPointer, .secondaryControls),
    row(
      .guestPDPTE, "Checks on Guest Page-Directory-Pointer-Table Entries", .guestPDPTE0,
      .guestPDPTE1, .guestPDPTE2, .guestPDPTE3),
    row(
      .msrLoading, "Loading MSRs", .entryMSRLoadAddress, .entryMSRLoadCount, .exitQualification),
  ]
}
