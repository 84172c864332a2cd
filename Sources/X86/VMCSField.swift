// SPDX-License-Identifier: Apache-2.0
//
// VMCS fields by their encodings (SDM volume 3, appendix "Field Encoding in VMCS").
//
//     bit 0        access: 0 the whole field, 1 the high half of a 64-bit field
//     bits 9:1     index
//     bits 11:10   area: control, read-only data, guest state, host state
//     bits 14:13   width: 16, 64, 32 bits, natural
//
//     VMCSField.guestRIP == VMCSField(.guestState, .natural, index: 15)      // 0x681E
//
// The fields are computed, so that their uses are constants in other modules, too.

public struct VMCSField: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

  public enum Area: UInt32, Sendable {
    case control = 0
    case readOnlyData = 1
    case guestState = 2
    case hostState = 3
  }

  public enum Width: UInt32, Sendable {
    case bits16 = 0
    case bits64 = 1
    case bits32 = 2
    case natural = 3
  }

  @inlinable public init(_ area: Area, _ width: Width, index: UInt32) {
    rawValue = index << 1 | area.rawValue << 10 | width.rawValue << 13
  }

  /// All four values have a case, in both enumerations.
  @inlinable public var area: Area { unsafe Area(rawValue: rawValue >> 10 & 3).unsafelyUnwrapped }
  @inlinable public var width: Width {
    unsafe Width(rawValue: rawValue >> 13 & 3).unsafelyUnwrapped
  }
  @inlinable public var index: UInt32 { rawValue >> 1 & 0x1FF }
  /// The encoding names the high half of a 64-bit field.
  @inlinable public var isHigh: Bool { rawValue & 1 != 0 }
  /// The high half of this 64-bit field, as a field of its own.
  @inlinable public var high: Self { Self(rawValue: rawValue | 1) }
  /// The highest index among the fields below; reported in IA32_VMX_VMCS_ENUM.
  @inlinable public static var highestIndex: UInt32 { 25 }
}

// MARK: 16-bit control fields

extension VMCSField {
  @inlinable public static var vpid: Self { Self(rawValue: 0x0000) }
  @inlinable public static var postedInterruptVector: Self { Self(rawValue: 0x0002) }
  @inlinable public static var eptpIndex: Self { Self(rawValue: 0x0004) }
}

// MARK: 16-bit guest-state fields

extension VMCSField {
  @inlinable public static var guestESSelector: Self { Self(rawValue: 0x0800) }
  @inlinable public static var guestCSSelector: Self { Self(rawValue: 0x0802) }
  @inlinable public static var guestSSSelector: Self { Self(rawValue: 0x0804) }
  @inlinable public static var guestDSSelector: Self { Self(rawValue: 0x0806) }
  @inlinable public static var guestFSSelector: Self { Self(rawValue: 0x0808) }
  @inlinable public static var guestGSSelector: Self { Self(rawValue: 0x080A) }
  @inlinable public static var guestLDTRSelector: Self { Self(rawValue: 0x080C) }
  @inlinable public static var guestTRSelector: Self { Self(rawValue: 0x080E) }
  @inlinable public static var guestInterruptStatus: Self { Self(rawValue: 0x0810) }
  @inlinable public static var pmlIndex: Self { Self(rawValue: 0x0812) }
}

// MARK: 16-bit host-state fields

extension VMCSField {
  @inlinable public static var hostESSelector: Self { Self(rawValue: 0x0C00) }
  @inlinable public static var hostCSSelector: Self { Self(rawValue: 0x0C02) }
  @inlinable public static var hostSSSelector: Self { Self(rawValue: 0x0C04) }
  @inlinable public static var hostDSSelector: Self { Self(rawValue: 0x0C06) }
  @inlinable public static var hostFSSelector: Self { Self(rawValue: 0x0C08) }
  @inlinable public static var hostGSSelector: Self { Self(rawValue: 0x0C0A) }
  @inlinable public static var hostTRSelector: Self { Self(rawValue: 0x0C0C) }
}

// MARK: 64-bit control fields

extension VMCSField {
  @inlinable public static var ioBitmapA: Self { Self(rawValue: 0x2000) }
  @inlinable public static var ioBitmapB: Self { Self(rawValue: 0x2002) }
  @inlinable public static var msrBitmap: Self { Self(rawValue: 0x2004) }
  @inlinable public static var exitMSRStoreAddress: Self { Self(rawValue: 0x2006) }
  @inlinable public static var exitMSRLoadAddress: Self { Self(rawValue: 0x2008) }
  @inlinable public static var entryMSRLoadAddress: Self { Self(rawValue: 0x200A) }
  @inlinable public static var executiveVMCSPointer: Self { Self(rawValue: 0x200C) }
  @inlinable public static var pmlAddress: Self { Self(rawValue: 0x200E) }
  @inlinable public static var tscOffset: Self { Self(rawValue: 0x2010) }
  @inlinable public static var virtualAPICAddress: Self { Self(rawValue: 0x2012) }
  @inlinable public static var apicAccessAddress: Self { Self(rawValue: 0x2014) }
  @inlinable public static var postedInterruptDescriptor: Self { Self(rawValue: 0x2016) }
  @inlinable public static var vmFunctionControls: Self { Self(rawValue: 0x2018) }
  @inlinable public static var eptPointer: Self { Self(rawValue: 0x201A) }
  @inlinable public static var eoiExitBitmap0: Self { Self(rawValue: 0x201C) }
  @inlinable public static var eoiExitBitmap1: Self { Self(rawValue: 0x201E) }
  @inlinable public static var eoiExitBitmap2: Self { Self(rawValue: 0x2020) }
  @inlinable public static var eoiExitBitmap3: Self { Self(rawValue: 0x2022) }
  @inlinable public static var eptpListAddress: Self { Self(rawValue: 0x2024) }
  @inlinable public static var vmreadBitmap: Self { Self(rawValue: 0x2026) }
  @inlinable public static var vmwriteBitmap: Self { Self(rawValue: 0x2028) }
  @inlinable public static var virtualizationExceptionInfo: Self { Self(rawValue: 0x202A) }
  @inlinable public static var xssExitingBitmap: Self { Self(rawValue: 0x202C) }
  @inlinable public static var enclsExitingBitmap: Self { Self(rawValue: 0x202E) }
  @inlinable public static var tscMultiplier: Self { Self(rawValue: 0x2032) }
}

// MARK: 64-bit read-only data fields

extension VMCSField {
  @inlinable public static var guestPhysicalAddress: Self { Self(rawValue: 0x2400) }
}

// MARK: 64-bit guest-state fields

extension VMCSField {
  @inlinable public static var vmcsLinkPointer: Self { Self(rawValue: 0x2800) }
  @inlinable public static var guestDebugControl: Self { Self(rawValue: 0x2802) }
  @inlinable public static var guestPAT: Self { Self(rawValue: 0x2804) }
  @inlinable public static var guestEFER: Self { Self(rawValue: 0x2806) }
  @inlinable public static var guestPerfGlobalControl: Self { Self(rawValue: 0x2808) }
  @inlinable public static var guestPDPTE0: Self { Self(rawValue: 0x280A) }
  @inlinable public static var guestPDPTE1: Self { Self(rawValue: 0x280C) }
  @inlinable public static var guestPDPTE2: Self { Self(rawValue: 0x280E) }
  @inlinable public static var guestPDPTE3: Self { Self(rawValue: 0x2810) }
}

// MARK: 64-bit host-state fields

extension VMCSField {
  @inlinable public static var hostPAT: Self { Self(rawValue: 0x2C00) }
  @inlinable public static var hostEFER: Self { Self(rawValue: 0x2C02) }
  @inlinable public static var hostPerfGlobalControl: Self { Self(rawValue: 0x2C04) }
}

// MARK: 32-bit control fields

extension VMCSField {
  @inlinable public static var pinBasedControls: Self { Self(rawValue: 0x4000) }
  @inlinable public static var primaryControls: Self { Self(rawValue: 0x4002) }
  @inlinable public static var exceptionBitmap: Self { Self(rawValue: 0x4004) }
  @inlinable public static var pageFaultErrorCodeMask: Self { Self(rawValue: 0x4006) }
  @inlinable public static var pageFaultErrorCodeMatch: Self { Self(rawValue: 0x4008) }
  @inlinable public static var cr3TargetCount: Self { Self(rawValue: 0x400A) }
  @inlinable public static var exitControls: Self { Self(rawValue: 0x400C) }
  @inlinable public static var exitMSRStoreCount: Self { Self(rawValue: 0x400E) }
  @inlinable public static var exitMSRLoadCount: Self { Self(rawValue: 0x4010) }
  @inlinable public static var entryControls: Self { Self(rawValue: 0x4012) }
  @inlinable public static var entryMSRLoadCount: Self { Self(rawValue: 0x4014) }
  @inlinable public static var entryInterruptionInfo: Self { Self(rawValue: 0x4016) }
  @inlinable public static var entryExceptionErrorCode: Self { Self(rawValue: 0x4018) }
  @inlinable public static var entryInstructionLength: Self { Self(rawValue: 0x401A) }
  @inlinable public static var tprThreshold: Self { Self(rawValue: 0x401C) }
  @inlinable public static var secondaryControls: Self { Self(rawValue: 0x401E) }
  @inlinable public static var pleGap: Self { Self(rawValue: 0x4020) }
  @inlinable public static var pleWindow: Self { Self(rawValue: 0x4022) }
  @inlinable public static var notifyWindow: Self { Self(rawValue: 0x4024) }
}

// MARK: 32-bit read-only data fields

extension VMCSField {
  @inlinable public static var vmInstructionError: Self { Self(rawValue: 0x4400) }
  @inlinable public static var exitReason: Self { Self(rawValue: 0x4402) }
  @inlinable public static var exitInterruptionInfo: Self { Self(rawValue: 0x4404) }
  @inlinable public static var exitInterruptionErrorCode: Self { Self(rawValue: 0x4406) }
  @inlinable public static var idtVectoringInfo: Self { Self(rawValue: 0x4408) }
  @inlinable public static var idtVectoringErrorCode: Self { Self(rawValue: 0x440A) }
  @inlinable public static var exitInstructionLength: Self { Self(rawValue: 0x440C) }
  @inlinable public static var exitInstructionInfo: Self { Self(rawValue: 0x440E) }
}

// MARK: 32-bit guest-state fields

extension VMCSField {
  @inlinable public static var guestESLimit: Self { Self(rawValue: 0x4800) }
  @inlinable public static var guestCSLimit: Self { Self(rawValue: 0x4802) }
  @inlinable public static var guestSSLimit: Self { Self(rawValue: 0x4804) }
  @inlinable public static var guestDSLimit: Self { Self(rawValue: 0x4806) }
  @inlinable public static var guestFSLimit: Self { Self(rawValue: 0x4808) }
  @inlinable public static var guestGSLimit: Self { Self(rawValue: 0x480A) }
  @inlinable public static var guestLDTRLimit: Self { Self(rawValue: 0x480C) }
  @inlinable public static var guestTRLimit: Self { Self(rawValue: 0x480E) }
  @inlinable public static var guestGDTRLimit: Self { Self(rawValue: 0x4810) }
  @inlinable public static var guestIDTRLimit: Self { Self(rawValue: 0x4812) }
  @inlinable public static var guestESAccessRights: Self { Self(rawValue: 0x4814) }
  @inlinable public static var guestCSAccessRights: Self { Self(rawValue: 0x4816) }
  @inlinable public static var guestSSAccessRights: Self { Self(rawValue: 0x4818) }
  @inlinable public static var guestDSAccessRights: Self { Self(rawValue: 0x481A) }
  @inlinable public static var guestFSAccessRights: Self { Self(rawValue: 0x481C) }
  @inlinable public static var guestGSAccessRights: Self { Self(rawValue: 0x481E) }
  @inlinable public static var guestLDTRAccessRights: Self { Self(rawValue: 0x4820) }
  @inlinable public static var guestTRAccessRights: Self { Self(rawValue: 0x4822) }
  @inlinable public static var guestInterruptibility: Self { Self(rawValue: 0x4824) }
  @inlinable public static var guestActivityState: Self { Self(rawValue: 0x4826) }
  @inlinable public static var guestSMBASE: Self { Self(rawValue: 0x4828) }
  @inlinable public static var guestSysenterCS: Self { Self(rawValue: 0x482A) }
  @inlinable public static var preemptionTimerValue: Self { Self(rawValue: 0x482E) }
}

// MARK: 32-bit host-state field

extension VMCSField {
  @inlinable public static var hostSysenterCS: Self { Self(rawValue: 0x4C00) }
}

// MARK: Natural-width control fields

extension VMCSField {
  @inlinable public static var cr0Mask: Self { Self(rawValue: 0x6000) }
  @inlinable public static var cr4Mask: Self { Self(rawValue: 0x6002) }
  @inlinable public static var cr0ReadShadow: Self { Self(rawValue: 0x6004) }
  @inlinable public static var cr4ReadShadow: Self { Self(rawValue: 0x6006) }
  @inlinable public static var cr3Target0: Self { Self(rawValue: 0x6008) }
  @inlinable public static var cr3Target1: Self { Self(rawValue: 0x600A) }
  @inlinable public static var cr3Target2: Self { Self(rawValue: 0x600C) }
  @inlinable public static var cr3Target3: Self { Self(rawValue: 0x600E) }
}

// MARK: Natural-width read-only data fields

extension VMCSField {
  @inlinable public static var exitQualification: Self { Self(rawValue: 0x6400) }
  @inlinable public static var ioRCX: Self { Self(rawValue: 0x6402) }
  @inlinable public static var ioRSI: Self { Self(rawValue: 0x6404) }
  @inlinable public static var ioRDI: Self { Self(rawValue: 0x6406) }
  @inlinable public static var ioRIP: Self { Self(rawValue: 0x6408) }
  @inlinable public static var guestLinearAddress: Self { Self(rawValue: 0x640A) }
}

// MARK: Natural-width guest-state fields

extension VMCSField {
  @inlinable public static var guestCR0: Self { Self(rawValue: 0x6800) }
  @inlinable public static var guestCR3: Self { Self(rawValue: 0x6802) }
  @inlinable public static var guestCR4: Self { Self(rawValue: 0x6804) }
  @inlinable public static var guestESBase: Self { Self(rawValue: 0x6806) }
  @inlinable public static var guestCSBase: Self { Self(rawValue: 0x6808) }
  @inlinable public static var guestSSBase: Self { Self(rawValue: 0x680A) }
  @inlinable public static var guestDSBase: Self { Self(rawValue: 0x680C) }
  @inlinable public static var guestFSBase: Self { Self(rawValue: 0x680E) }
  @inlinable public static var guestGSBase: Self { Self(rawValue: 0x6810) }
  @inlinable public static var guestLDTRBase: Self { Self(rawValue: 0x6812) }
  @inlinable public static var guestTRBase: Self { Self(rawValue: 0x6814) }
  @inlinable public static var guestGDTRBase: Self { Self(rawValue: 0x6816) }
  @inlinable public static var guestIDTRBase: Self { Self(rawValue: 0x6818) }
  @inlinable public static var guestDR7: Self { Self(rawValue: 0x681A) }
  @inlinable public static var guestRSP: Self { Self(rawValue: 0x681C) }
  @inlinable public static var guestRIP: Self { Self(rawValue: 0x681E) }
  @inlinable public static var guestRFLAGS: Self { Self(rawValue: 0x6820) }
  @inlinable public static var guestPendingDebugExceptions: Self { Self(rawValue: 0x6822) }
  @inlinable public static var guestSysenterESP: Self { Self(rawValue: 0x6824) }
  @inlinable public static var guestSysenterEIP: Self { Self(rawValue: 0x6826) }
}

// MARK: Natural-width host-state fields

extension VMCSField {
  @inlinable public static var hostCR0: Self { Self(rawValue: 0x6C00) }
  @inlinable public static var hostCR3: Self { Self(rawValue: 0x6C02) }
  @inlinable public static var hostCR4: Self { Self(rawValue: 0x6C04) }
  @inlinable public static var hostFSBase: Self { Self(rawValue: 0x6C06) }
  @inlinable public static var hostGSBase: Self { Self(rawValue: 0x6C08) }
  @inlinable public static var hostTRBase: Self { Self(rawValue: 0x6C0A) }
  @inlinable public static var hostGDTRBase: Self { Self(rawValue: 0x6C0C) }
  @inlinable public static var hostIDTRBase: Self { Self(rawValue: 0x6C0E) }
  @inlinable public static var hostSysenterESP: Self { Self(rawValue: 0x6C10) }
  @inlinable public static var hostSysenterEIP: Self { Self(rawValue: 0x6C12) }
  @inlinable public static var hostRSP: Self { Self(rawValue: 0x6C14) }
  @inlinable public static var hostRIP: Self { Self(rawValue: 0x6C16) }
}
