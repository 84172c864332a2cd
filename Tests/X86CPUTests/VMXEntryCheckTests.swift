// SPDX-License-Identifier: Apache-2.0
//
// Each rule of VM entry by a VMCS that breaks only it.

import Support
import Testing
import X86
import X86CPU

/// The guest whose VMCS is broken.
enum ValidGuest: String, Sendable {
  case longMode = "64-bit guest"
  case pae = "32-bit guest with PAE paging"
  case virtual8086 = "virtual-8086 guest"
  /// Its VM-entry MSR-load area has an entry for an MSR that does not exist.
  case msrArea = "64-bit guest with a bad MSR-load area"
  case virtualAPIC = "64-bit guest with a virtual-APIC page of zeros"
  case linkedShadow = "64-bit guest whose VMCS link pointer is a shadow VMCS's"
  case linkedCurrent = "64-bit guest whose VMCS link pointer is its own VMCS's"

  func prepare(_ m: VMXMachine) {
    switch self {
    case .longMode: break
    case .pae: VMXEntryCheckTests.makePAE(m.processor)
    case .virtual8086: VMXEntryCheckTests.makeVirtual8086(m.processor)
    case .msrArea:
      // A page of zeros but for the VMCS's revision, which is no MSR's number.
      m.processor.vmwrite(.entryMSRLoadAddress, m.makePage().address)
    case .virtualAPIC:
      m.processor.vmwrite(.virtualAPICAddress, m.makePage().address)
      m.processor.vmwrite(
        .primaryControls,
        m.processor.vmread(.primaryControls) | UInt64(PrimaryControls.useTPRShadow))
    case .linkedShadow:
      let linked = m.makePage()
      linked.base.storeBytes(
        of: VMXCapabilities.revision | VMCSLayout.shadowIndicator, as: UInt32.self)
      m.processor.vmwrite(.vmcsLinkPointer, linked.address)
    case .linkedCurrent: m.processor.vmwrite(.vmcsLinkPointer, m.vmcs.address)
    }
  }
}

/// Field writes that turn the valid VMCS into one that breaks `rule`.
struct BrokenRule: Sendable, CustomTestStringConvertible {
  var rule: EntryFailure
  var guest = ValidGuest.longMode
  var writes: [(VMCSField, UInt64)]
  var clear: [(VMCSField, UInt64)] = []
  var set: [(VMCSField, UInt64)] = []
  var testDescription: String { rule.rawValue }

  init(
    _ rule: EntryFailure, _ writes: [(VMCSField, UInt64)] = [],
    set: [(VMCSField, UInt64)] = [], clear: [(VMCSField, UInt64)] = [],
    of guest: ValidGuest = .longMode
  ) {
    self.rule = rule
    self.guest = guest
    self.writes = writes
    self.set = set
    self.clear = clear
  }

  func apply(_ p: PhysicalCPU) {
    for (field, bits) in clear { p.vmwrite(field, p.vmread(field) & ~bits) }
    for (field, bits) in set { p.vmwrite(field, p.vmread(field) | bits) }
    for (field, value) in writes { p.vmwrite(field, value) }
  }
}

private func bits(_ value: UInt32) -> UInt64 { UInt64(value) }
private func injected(
  _ type: InterruptionInfo.EventType, _ vector: UInt8, code: Bool = false
) -> (VMCSField, UInt64) {
  (
    .entryInterruptionInfo,
    UInt64(InterruptionInfo(type, vector: vector, hasErrorCode: code).rawValue)
  )
}
private let unrestrictedOff: (VMCSField, UInt64) = (
  .secondaryControls, bits(SecondaryControls.unrestrictedGuest)
)

@Suite struct VMXEntryCheckTests {
  @Test func theUnbrokenVMCSEnters() throws {
    let m = try VMXMachine()
    m.processor.kick()
    #expect(try m.processor.vmlaunch() == .externalInterrupt)
    #expect(m.processor.vmxEntryFailure == nil)
  }

  static let controls: [BrokenRule] = [
    BrokenRule(.pinControls, clear: [(.pinBasedControls, 2)]),
    BrokenRule(.pinControls, set: [(.pinBasedControls, 1 << 8)]),
    BrokenRule(.primaryControls, clear: [(.primaryControls, 2)]),
    BrokenRule(
      .primaryControls, set: [(.primaryControls, bits(PrimaryControls.tertiaryControls))]),
    BrokenRule(
      .secondaryControls, set: [(.secondaryControls, bits(SecondaryControls.subPageWrite))]),
    BrokenRule(.cr3TargetCount, [(.cr3TargetCount, 5)]),
    BrokenRule(
      .ioBitmapAddress, [(.ioBitmapA, 0x1008), (.ioBitmapB, 0x2000)],
      set: [(.primaryControls, bits(PrimaryControls.useIOBitmaps))]),
    BrokenRule(
      .msrBitmapAddress, [(.msrBitmap, 1 << 50)],
      set: [(.primaryControls, bits(PrimaryControls.useMSRBitmaps))]),
    BrokenRule(
      .virtualNMIsWithoutNMIExiting, clear: [(.pinBasedControls, bits(PinControls.nmiExiting))]),
    BrokenRule(
      .nmiWindowWithoutVirtualNMIs,
      set: [(.primaryControls, bits(PrimaryControls.nmiWindowExiting))],
      clear: [(.pinBasedControls, bits(PinControls.virtualNMIs))]),
    BrokenRule(.zeroVPID, [(.vpid, 0)]),
    BrokenRule(.eptMemoryType, set: [(.eptPointer, 1)]),
    BrokenRule(.eptWalkLength, clear: [(.eptPointer, 1 << 3)]),
    BrokenRule(.eptWalkLength, set: [(.eptPointer, 5 << 3)]),
    BrokenRule(.eptPointerReserved, set: [(.eptPointer, 1 << 7)]),
    BrokenRule(
      .unrestrictedGuestWithoutEPT,
      clear: [(.secondaryControls, bits(SecondaryControls.enableEPT))]),
    BrokenRule(
      .zeroTSCMultiplier, set: [(.secondaryControls, bits(SecondaryControls.useTSCScaling))]),
    BrokenRule(.exitControls, clear: [(.exitControls, 1)]),
    BrokenRule(
      .saveTimerWithoutTimer, set: [(.exitControls, bits(ExitControls.savePreemptionTimer))]),
    BrokenRule(.exitMSRStoreAddress, [(.exitMSRStoreCount, 1), (.exitMSRStoreAddress, 8)]),
    BrokenRule(
      .exitMSRLoadAddress, [(.exitMSRLoadCount, 2), (.exitMSRLoadAddress, 1 << 47 - 16)]),
    BrokenRule(.entryControls, clear: [(.entryControls, 1)]),
    BrokenRule(.injectionType, [(.entryInterruptionInfo, 0x8000_0100)]),
    BrokenRule(.injectionVector, [injected(.nmi, 3)]),
    BrokenRule(.injectionVector, [injected(.hardwareException, 32)]),
    BrokenRule(.injectionVector, [injected(.otherEvent, 1)]),
    BrokenRule(.injectionErrorCodeValid, [injected(.hardwareException, 13)]),
    BrokenRule(.injectionErrorCodeValid, [injected(.hardwareException, 6, code: true)]),
    BrokenRule(.injectionErrorCodeValid, [injected(.softwareInterrupt, 13, code: true)]),
    BrokenRule(
      .injectionReserved, [(.entryInterruptionInfo, 0x8000_1020), (.guestRFLAGS, 0x202)]),
    BrokenRule(
      .injectionErrorCode,
      [injected(.hardwareException, 13, code: true), (.entryExceptionErrorCode, 0x10000)]),
    BrokenRule(
      .injectionLength, [injected(.softwareInterrupt, 0x80), (.entryInstructionLength, 16)]),
    BrokenRule(.entryMSRLoadAddress, [(.entryMSRLoadCount, 1), (.entryMSRLoadAddress, 1)]),
  ]

  private static let tprShadow: (VMCSField, UInt64) = (
    .primaryControls, bits(PrimaryControls.useTPRShadow)
  )
  private static func secondary(_ control: UInt32) -> (VMCSField, UInt64) {
    (.secondaryControls, bits(control))
  }
  private static let eptOff: [(VMCSField, UInt64)] = [
    (.secondaryControls, bits(SecondaryControls.enableEPT | SecondaryControls.unrestrictedGuest))
  ]
  /// Any page will do that is none.
  private static let misaligned: UInt64 = 0x7008

  static let virtualization: [BrokenRule] = [
    BrokenRule(.virtualAPICAddress, [(.virtualAPICAddress, misaligned)], set: [tprShadow]),
    BrokenRule(
      .apicAccessAddress, [(.apicAccessAddress, misaligned)],
      set: [secondary(SecondaryControls.virtualizeAPICAccesses)]),
    BrokenRule(
      .x2APICWithAPICAccesses, [(.apicAccessAddress, 0x7000)],
      set: [
        secondary(
          SecondaryControls.virtualizeAPICAccesses | SecondaryControls.virtualizeX2APIC)
      ], of: .virtualAPIC),
    BrokenRule(
      .apicFeaturesWithoutTPRShadow, set: [secondary(SecondaryControls.virtualizeX2APIC)]),
    BrokenRule(
      .apicFeaturesWithoutTPRShadow,
      set: [secondary(SecondaryControls.apicRegisterVirtualization)]),
    BrokenRule(
      .apicFeaturesWithoutTPRShadow,
      set: [secondary(SecondaryControls.virtualInterruptDelivery)]),
    BrokenRule(
      .postedWithoutDelivery, [(.postedInterruptDescriptor, 0x7000)],
      set: [
        (.pinBasedControls, bits(PinControls.postedInterrupts)),
        (.exitControls, bits(ExitControls.acknowledgeInterrupt)),
      ]),
    BrokenRule(
      .pmlWithoutEPT, [(.pmlAddress, 0x7000)], set: [secondary(SecondaryControls.enablePML)],
      clear: eptOff),
    BrokenRule(
      .pmlAddress, [(.pmlAddress, misaligned)], set: [secondary(SecondaryControls.enablePML)]),
    BrokenRule(
      .modeBasedExecuteWithoutEPT, set: [secondary(SecondaryControls.modeBasedExecute)],
      clear: eptOff),
    BrokenRule(
      .vmFunctionControls, [(.vmFunctionControls, 2)],
      set: [secondary(SecondaryControls.enableVMFunctions)]),
    BrokenRule(
      .eptpSwitchingWithoutEPT, [(.vmFunctionControls, 1), (.eptpListAddress, 0x7000)],
      set: [secondary(SecondaryControls.enableVMFunctions)], clear: eptOff),
    BrokenRule(
      .eptpListAddress, [(.vmFunctionControls, 1), (.eptpListAddress, misaligned)],
      set: [secondary(SecondaryControls.enableVMFunctions)]),
    BrokenRule(
      .vmreadBitmapAddress, [(.vmreadBitmap, misaligned), (.vmwriteBitmap, 0x7000)],
      set: [secondary(SecondaryControls.vmcsShadowing)]),
    BrokenRule(
      .vmwriteBitmapAddress, [(.vmreadBitmap, 0x7000), (.vmwriteBitmap, 1 << 50)],
      set: [secondary(SecondaryControls.vmcsShadowing)]),
    BrokenRule(
      .virtualizationExceptionAddress, [(.virtualizationExceptionInfo, misaligned)],
      set: [secondary(SecondaryControls.eptViolationVE)]),
  ]

  /// With a virtual-APIC page, which is zero.
  static let virtualAPIC: [BrokenRule] = [
    BrokenRule(.tprThresholdReserved, [(.tprThreshold, 0x10)], of: .virtualAPIC),
    BrokenRule(.tprThresholdAboveTPR, [(.tprThreshold, 1)], of: .virtualAPIC),
    BrokenRule(
      .deliveryWithoutInterruptExiting,
      set: [secondary(SecondaryControls.virtualInterruptDelivery)],
      clear: [(.pinBasedControls, bits(PinControls.externalInterruptExiting))], of: .virtualAPIC),
    BrokenRule(
      .postedWithoutAcknowledge, [(.postedInterruptDescriptor, 0x7000)],
      set: [
        secondary(SecondaryControls.virtualInterruptDelivery),
        (.pinBasedControls, bits(PinControls.postedInterrupts)),
      ], of: .virtualAPIC),
    BrokenRule(
      .postedInterruptVector,
      [(.postedInterruptVector, 0x100), (.postedInterruptDescriptor, 0x7000)],
      set: [
        secondary(SecondaryControls.virtualInterruptDelivery),
        (.pinBasedControls, bits(PinControls.postedInterrupts)),
        (.exitControls, bits(ExitControls.acknowledgeInterrupt)),
      ], of: .virtualAPIC),
    BrokenRule(
      .postedInterruptDescriptor, [(.postedInterruptDescriptor, 0x7020)],
      set: [
        secondary(SecondaryControls.virtualInterruptDelivery),
        (.pinBasedControls, bits(PinControls.postedInterrupts)),
        (.exitControls, bits(ExitControls.acknowledgeInterrupt)),
      ], of: .virtualAPIC),
  ]

  @Test(arguments: virtualization) func virtualizationFailsWithError7(
    _ broken: BrokenRule
  ) throws {
    try expectFail(broken, .invalidControlFields)
  }

  @Test(arguments: virtualAPIC) func virtualAPICFailsWithError7(_ broken: BrokenRule) throws {
    try expectFail(broken, .invalidControlFields)
  }

  /// The link pointer's VMCS: an ordinary one with shadowing, a shadow VMCS without, the current.
  @Test(arguments: [true, false]) func linkedVMCSIsOfItsKind(_ isShadowing: Bool) throws {
    let m = try VMXMachine()
    let p = m.processor
    let linked = m.makePage()
    let bitmap = m.makePage()
    if isShadowing {
      p.vmwrite(.vmreadBitmap, bitmap.address)
      p.vmwrite(.vmwriteBitmap, bitmap.address)
      p.vmwrite(
        .secondaryControls,
        p.vmread(.secondaryControls) | bits(SecondaryControls.vmcsShadowing))
    } else {
      linked.base.storeBytes(
        of: VMXCapabilities.revision | VMCSLayout.shadowIndicator, as: UInt32.self)
    }
    p.vmwrite(.vmcsLinkPointer, linked.address)
    #expect(try p.vmlaunch() == .invalidGuestState)
    #expect(p.vmxEntryFailure == .vmcsLinkShadow)
    #expect(p.vmread(.exitQualification) == 4)
    if isShadowing { return }
    p.vmwrite(.vmcsLinkPointer, m.vmcs.address)
    #expect(try p.vmlaunch() == .invalidGuestState)
    #expect(p.vmxEntryFailure == .vmcsLinkIsCurrent)
  }

  @Test(arguments: controls) func controlFailsWithError7(_ broken: BrokenRule) throws {
    try expectFail(broken, .invalidControlFields)
  }

  static let host: [BrokenRule] = [
    BrokenRule(.hostCR0, clear: [(.hostCR0, CR0.ne.rawValue)]),
    BrokenRule(.hostCR4, clear: [(.hostCR4, CR4.vmxe.rawValue)]),
    BrokenRule(.hostCR4, set: [(.hostCR4, 1 << 40)]),
    BrokenRule(.hostCR3, [(.hostCR3, 1 << 52)]),
    BrokenRule(.hostSysenter, [(.hostSysenterEIP, 1 << 60)]),
    BrokenRule(.hostPAT, [(.hostPAT, 2)]),
    BrokenRule(.hostEFERReserved, set: [(.hostEFER, 1 << 1)]),
    BrokenRule(.hostEFERMode, clear: [(.hostEFER, EFER.lma.rawValue)]),
    BrokenRule(.hostSelector, [(.hostDSSelector, 3)]),
    BrokenRule(.hostNullSelector, [(.hostTRSelector, 0)]),
    BrokenRule(.hostBase, [(.hostGSBase, 1 << 60)]),
    BrokenRule(
      .hostAddressSpaceSize,
      [(.hostEFER, 1), (.hostSSSelector, 0x10)],
      clear: [(.exitControls, bits(ExitControls.hostAddressSpaceSize))]),
    BrokenRule(.hostPAE, clear: [(.hostCR4, CR4.pae.rawValue)]),
    BrokenRule(.hostRIP, [(.hostRIP, 1 << 60)]),
  ]

  @Test(arguments: host) func hostStateFailsWithError8(_ broken: BrokenRule) throws {
    try expectFail(broken, .invalidHostState)
  }

  private func expectFail(
    _ broken: BrokenRule, _ error: VMXInstructionError
  ) throws {
    let m = try VMXMachine()
    broken.guest.prepare(m)
    broken.apply(m.processor)
    #expect(throws: VMXError.failValid(error)) { try m.processor.vmlaunch() }
    #expect(m.processor.vmxEntryFailure == broken.rule)
    // It is not launched, and stays broken.
    #expect(throws: VMXError.failValid(error)) { try m.processor.vmlaunch() }
  }

  static let guest: [BrokenRule] = [
    BrokenRule(.guestCR0, clear: [(.guestCR0, CR0.ne.rawValue)]),
    BrokenRule(.guestCR0, set: [(.guestCR0, 1 << 32)]),
    BrokenRule(
      .guestCR0, clear: [unrestrictedOff, (.guestCR0, CR0.pg.rawValue | CR0.pe.rawValue)]),
    BrokenRule(.guestPagingWithoutProtection, clear: [(.guestCR0, CR0.pe.rawValue)]),
    BrokenRule(.guestCR4, clear: [(.guestCR4, CR4.vmxe.rawValue)]),
    BrokenRule(.guestCR4, set: [(.guestCR4, 1 << 15)]),
    BrokenRule(.guestDebugControl, [(.guestDebugControl, 1 << 20)]),
    BrokenRule(.guestLongModeWithoutPaging, clear: [(.guestCR4, CR4.pae.rawValue)]),
    BrokenRule(
      .guestPCIDEOutsideLongMode, set: [(.guestCR4, CR4.pcide.rawValue)], of: .pae),
    BrokenRule(.guestCR3, [(.guestCR3, 1 << 52)]),
    BrokenRule(.guestDR7, [(.guestDR7, 1 << 32)]),
    BrokenRule(.guestSysenter, [(.guestSysenterESP, 1 << 60)]),
    BrokenRule(.guestPAT, [(.guestPAT, 0x0300)]),
    BrokenRule(.guestEFERReserved, set: [(.guestEFER, 1 << 12)]),
    BrokenRule(.guestEFERMode, clear: [(.guestEFER, EFER.lma.rawValue)]),
    BrokenRule(.guestEFERMode, clear: [(.guestEFER, EFER.lme.rawValue)]),
    BrokenRule(.guestSelectorTI, [(.guestTRSelector, 4)]),
    BrokenRule(.guestSelectorTI, [(.guestLDTRSelector, 4), (.guestLDTRAccessRights, 0x82)]),
    BrokenRule(
      .guestSSRPL,
      [
        (.guestSSSelector, 0x13), (.guestSSAccessRights, 0xC0F3), (.guestCSAccessRights, 0xA09F),
      ], clear: [unrestrictedOff]),
    BrokenRule(.guestSegmentBase, [(.guestFSBase, 1 << 60)]),
    BrokenRule(.guestSegmentBase, [(.guestCSBase, 1 << 32)]),
    BrokenRule(.guestSegmentBase, [(.guestDSBase, 1 << 32)]),
    BrokenRule(.guestSegmentBase, [(.guestTRBase, 1 << 60)]),
    BrokenRule(.guestSegmentType, [(.guestCSAccessRights, 0xA097)]),
    BrokenRule(.guestSegmentType, [(.guestCSAccessRights, 0xC093)], clear: [unrestrictedOff]),
    BrokenRule(.guestSegmentType, [(.guestSSAccessRights, 0xC09B)]),
    BrokenRule(.guestSegmentType, [(.guestDSAccessRights, 0xC092)]),
    BrokenRule(.guestSegmentType, [(.guestTRAccessRights, 0x83)]),
    BrokenRule(.guestSegmentType, [(.guestLDTRAccessRights, 0x8B)]),
    BrokenRule(.guestSegmentS, [(.guestESAccessRights, 0xC083)]),
    BrokenRule(.guestSegmentS, [(.guestTRAccessRights, 0x9B)]),
    BrokenRule(.guestSegmentDPL, [(.guestCSAccessRights, 0xA0FB)]),
    BrokenRule(.guestSegmentDPL, [(.guestSSAccessRights, 0xC0F3)], clear: [unrestrictedOff]),
    BrokenRule(.guestSegmentDPL, [(.guestDSSelector, 0x13)], clear: [unrestrictedOff]),
    BrokenRule(.guestSegmentNotPresent, [(.guestGSAccessRights, 0xC013)]),
    BrokenRule(.guestSegmentReserved, [(.guestGSAccessRights, 0xC193)]),
    BrokenRule(.guestSegmentReserved, [(.guestDSAccessRights, 0x2_C093)]),
    BrokenRule(.guestCSLongAndBig, [(.guestCSAccessRights, 0xE09B)]),
    BrokenRule(.guestSegmentGranularity, [(.guestDSAccessRights, 0x4093)]),
    BrokenRule(.guestSegmentGranularity, [(.guestDSLimit, 0x1000)]),
    BrokenRule(.guestTRUnusable, [(.guestTRAccessRights, 0x1_008B)]),
    BrokenRule(.guestDescriptorTableBase, [(.guestGDTRBase, 1 << 60)]),
    BrokenRule(.guestDescriptorTableLimit, [(.guestIDTRLimit, 0x1_0000)]),
    BrokenRule(.guestRIP, [(.guestRIP, 1 << 60)]),
    BrokenRule(.guestRIP, [(.guestRIP, 1 << 32), (.guestCSAccessRights, 0xC09B)]),
    BrokenRule(.guestRFLAGSReserved, [(.guestRFLAGS, 0)]),
    BrokenRule(.guestRFLAGSReserved, [(.guestRFLAGS, 0xA)]),
    BrokenRule(.guestRFLAGSReserved, [(.guestRFLAGS, 1 << 63 | 2)]),
    BrokenRule(.guestRFLAGSIF, [injected(.externalInterrupt, 0x20)]),
    BrokenRule(.activityState, [(.guestActivityState, 4)]),
    BrokenRule(
      .haltAboveRing0,
      [
        (.guestActivityState, 1), (.guestSSAccessRights, 0xC0F3),
        (.guestCSAccessRights, 0xA0FB),
      ]),
    BrokenRule(
      .inactiveWithBlocking,
      [(.guestActivityState, 1), (.guestInterruptibility, 1), (.guestRFLAGS, 0x202)]),
    BrokenRule(
      .injectionWhileInactive, [(.guestActivityState, 3), injected(.nmi, 2)]),
    BrokenRule(
      .injectionWhileInactive, [(.guestActivityState, 1), injected(.hardwareException, 6)]),
    BrokenRule(.interruptibilityReserved, [(.guestInterruptibility, 1 << 5)]),
    BrokenRule(
      .blockingBySTIAndMovSS, [(.guestInterruptibility, 3), (.guestRFLAGS, 0x202)]),
    BrokenRule(.blockingBySTIWithoutIF, [(.guestInterruptibility, 1)]),
    BrokenRule(
      .injectionUnderBlocking,
      [(.guestInterruptibility, 2), (.guestRFLAGS, 0x202), injected(.externalInterrupt, 0x20)]),
    BrokenRule(.injectionUnderBlocking, [(.guestInterruptibility, 2), injected(.nmi, 2)]),
    BrokenRule(.blockingBySMI, [(.guestInterruptibility, 4)]),
    BrokenRule(.nmiUnderBlocking, [(.guestInterruptibility, 8), injected(.nmi, 2)]),
    BrokenRule(.pendingDebugReserved, [(.guestPendingDebugExceptions, 1 << 13)]),
    BrokenRule(
      .pendingDebugSingleStep, [(.guestInterruptibility, 2), (.guestRFLAGS, 0x102)]),
    BrokenRule(
      .pendingDebugSingleStep,
      [(.guestInterruptibility, 2), (.guestPendingDebugExceptions, 1 << 14)]),
    BrokenRule(.vmcsLinkPointer, [(.vmcsLinkPointer, 0x123)]),
  ]

  @Test(arguments: guest) func guestStateFailsWithExit33(_ broken: BrokenRule) throws {
    try expectExit33(broken)
  }

  /// A guest in 32-bit protected mode with PAE paging, and one in virtual-8086 mode.
  static let pae: [BrokenRule] = [
    BrokenRule(.guestPDPTE, [(.guestPDPTE2, 0x1003)], of: .pae)
  ]
  static let virtual8086: [BrokenRule] = [
    BrokenRule(.guestSegmentBase, [(.guestESBase, 0x123)], of: .virtual8086),
    BrokenRule(.guestVirtual8086Limit, [(.guestESLimit, 0xFFF)], of: .virtual8086),
    BrokenRule(.guestVirtual8086Rights, [(.guestESAccessRights, 0x93)], of: .virtual8086),
    BrokenRule(.guestRFLAGSVM, clear: [(.guestCR0, CR0([.pe, .pg]).rawValue)], of: .virtual8086),
  ]
  static let msrs: [BrokenRule] = [
    BrokenRule(.msrLoading, [(.entryMSRLoadCount, 1)], of: .msrArea)
  ]
  static let links: [BrokenRule] = [
    BrokenRule(.vmcsLinkShadow, of: .linkedShadow),
    BrokenRule(.vmcsLinkIsCurrent, of: .linkedCurrent),
  ]
  static var all: [BrokenRule] {
    controls + virtualization + virtualAPIC + host + guest + pae + virtual8086 + msrs + links
  }

  @Test(arguments: links) func linkPointerFailsWithExit33(_ broken: BrokenRule) throws {
    try expectExit33(broken)
  }

  @Test(arguments: pae) func paeGuestFailsWithExit33(_ broken: BrokenRule) throws {
    try expectExit33(broken)
  }

  @Test(arguments: virtual8086) func virtual8086GuestFailsWithExit33(
    _ broken: BrokenRule
  ) throws {
    try expectExit33(broken)
  }

  @Test(arguments: msrs) func anMSRAreaFailsWithExit34(_ broken: BrokenRule) throws {
    let m = try VMXMachine()
    broken.guest.prepare(m)
    broken.apply(m.processor)
    #expect(try m.processor.vmlaunch() == .msrLoading)
    #expect(m.processor.vmxEntryFailure == broken.rule)
    #expect(m.processor.vmread(.exitReason) == 0x8000_0022)
    #expect(m.processor.vmread(.exitQualification) == 1)
  }

  @Test(arguments: [true, false]) func otherModesEnter(_ isPAE: Bool) throws {
    let m = try VMXMachine()
    if isPAE { Self.makePAE(m.processor) } else { Self.makeVirtual8086(m.processor) }
    m.processor.kick()
    #expect(try m.processor.vmlaunch() == .externalInterrupt)
    #expect(m.cpu.cpl == (isPAE ? 0 : 3))
  }

  static func makePAE(_ p: PhysicalCPU) {
    p.vmwrite(.entryControls, p.vmread(.entryControls) & ~bits(EntryControls.ia32eModeGuest))
    p.vmwrite(.guestEFER, 0)
    p.vmwrite(.guestCSAccessRights, 0xC09B)
    p.vmwrite(.guestPDPTE0, 0x11001)
    for field in [VMCSField.guestPDPTE1, .guestPDPTE2, .guestPDPTE3] { p.vmwrite(field, 0) }
  }

  static func makeVirtual8086(_ p: PhysicalCPU) {
    makePAE(p)
    p.vmwrite(.guestRFLAGS, RFLAGS([.vm, .fixed]).rawValue)
    for n in UInt32(0)..<6 {
      p.vmwrite(VMCSField(rawValue: VMCSField.guestESSelector.rawValue + n * 2), 0)
      p.vmwrite(VMCSField(rawValue: VMCSField.guestESLimit.rawValue + n * 2), 0xFFFF)
      p.vmwrite(VMCSField(rawValue: VMCSField.guestESAccessRights.rawValue + n * 2), 0xF3)
    }
  }

  private func expectExit33(_ broken: BrokenRule) throws {
    let m = try VMXMachine()
    let p = m.processor
    broken.guest.prepare(m)
    broken.apply(p)
    #expect(try p.vmlaunch() == .invalidGuestState)
    #expect(p.vmxEntryFailure == broken.rule)
    #expect(p.vmread(.exitReason) == 0x8000_0021)
    #expect(p.vmread(.exitQualification) == broken.rule.qualification)
    // The injection stays valid, the launch state clear.
    let info = broken.writes.last { $0.0 == .entryInterruptionInfo }?.1 ?? 0
    #expect(p.vmread(.entryInterruptionInfo) == info)
    #expect(throws: VMXError.failValid(.vmresumeNonLaunched)) { try p.vmresume() }
  }

  /// Only what changed is checked again, but all that depends on it.
  @Test func changesAfterAnExitAreChecked() throws {
    let m = try VMXMachine()
    let p = m.processor
    p.kick()
    try p.vmlaunch()
    p.vmwrite(.guestRFLAGS, 0x8002)
    #expect(try p.vmresume() == .invalidGuestState)
    #expect(p.vmxEntryFailure == .guestRFLAGSReserved)
    p.vmwrite(.guestRFLAGS, 2)
    p.vmwrite(.entryControls, p.vmread(.entryControls) & ~bits(EntryControls.ia32eModeGuest))
    #expect(try p.vmresume() == .invalidGuestState)
    #expect(p.vmxEntryFailure == .guestEFERMode)
    p.vmwrite(.entryControls, p.vmread(.entryControls) | bits(EntryControls.ia32eModeGuest))
    p.vmwrite(.primaryControls, p.vmread(.primaryControls) | 1 << 2)
    p.vmwrite(.guestRFLAGS, 0x202)
    #expect(try p.vmresume() == .interruptWindow)
    p.vmwrite(.primaryControls, p.vmread(.primaryControls) & ~(1 << 2))
    p.kick()
    #expect(try p.vmresume() == .externalInterrupt)
  }
}
