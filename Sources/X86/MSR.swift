// SPDX-License-Identifier: Apache-2.0
//
// The numbers of model-specific registers.

/// Model-specific registers, by the names of SDM volume 4, "Architectural MSRs".
public struct MSR: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
  @inlinable init(_ rawValue: UInt32) { self.rawValue = rawValue }

  @inlinable public static var p5MCAddress: Self { Self(0x0) }
  @inlinable public static var p5MCType: Self { Self(0x1) }
  @inlinable public static var monitorFilterSize: Self { Self(0x6) }
  @inlinable public static var timeStampCounter: Self { Self(0x10) }
  @inlinable public static var platformID: Self { Self(0x17) }
  @inlinable public static var apicBase: Self { Self(0x1B) }
  @inlinable public static var smiCount: Self { Self(0x34) }
  @inlinable public static var smBase: Self { Self(0x9E) }
  @inlinable public static var featureControl: Self { Self(0x3A) }
  @inlinable public static var tscAdjust: Self { Self(0x3B) }
  @inlinable public static var specCtrl: Self { Self(0x48) }
  @inlinable public static var predCmd: Self { Self(0x49) }
  @inlinable public static var biosUpdateTrigger: Self { Self(0x79) }
  @inlinable public static var biosSignatureID: Self { Self(0x8B) }
  @inlinable public static var platformInfo: Self { Self(0xCE) }
  @inlinable public static var mtrrCap: Self { Self(0xFE) }
  @inlinable public static var archCapabilities: Self { Self(0x10A) }
  @inlinable public static var flushCmd: Self { Self(0x10B) }
  @inlinable public static var miscFeaturesEnables: Self { Self(0x140) }
  @inlinable public static var sysenterCS: Self { Self(0x174) }
  @inlinable public static var sysenterESP: Self { Self(0x175) }
  @inlinable public static var sysenterEIP: Self { Self(0x176) }
  @inlinable public static var mcgCap: Self { Self(0x179) }
  @inlinable public static var mcgStatus: Self { Self(0x17A) }
  @inlinable public static var mcgControl: Self { Self(0x17B) }
  @inlinable public static var miscEnable: Self { Self(0x1A0) }
  @inlinable public static var powerControl: Self { Self(0x1FC) }
  @inlinable public static var performanceCapabilities: Self { Self(0x345) }
  @inlinable public static var debugctl: Self { Self(0x1D9) }
  /// IA32_MTRR_PHYSBASE0; the mask follows, then the next pair.
  @inlinable public static var mtrrPhysBase0: Self { Self(0x200) }
  @inlinable public static var mtrrFix64K00000: Self { Self(0x250) }
  @inlinable public static var mtrrFix16K80000: Self { Self(0x258) }
  @inlinable public static var mtrrFix16KA0000: Self { Self(0x259) }
  /// The first of eight; the others follow.
  @inlinable public static var mtrrFix4KC0000: Self { Self(0x268) }
  @inlinable public static var pat: Self { Self(0x277) }
  @inlinable public static var mtrrDefType: Self { Self(0x2FF) }
  /// IA32_MC0_CTL; STATUS, ADDR and MISC follow, then the next bank.
  @inlinable public static var mc0Ctl2: Self { Self(0x280) }
  @inlinable public static var mc0Ctl: Self { Self(0x400) }
  @inlinable public static var vmxBasic: Self { Self(0x480) }
  @inlinable public static var vmxPinControls: Self { Self(0x481) }
  @inlinable public static var vmxPrimaryControls: Self { Self(0x482) }
  @inlinable public static var vmxExitControls: Self { Self(0x483) }
  @inlinable public static var vmxEntryControls: Self { Self(0x484) }
  @inlinable public static var vmxMisc: Self { Self(0x485) }
  @inlinable public static var vmxCR0Fixed0: Self { Self(0x486) }
  @inlinable public static var vmxCR0Fixed1: Self { Self(0x487) }
  @inlinable public static var vmxCR4Fixed0: Self { Self(0x488) }
  @inlinable public static var vmxCR4Fixed1: Self { Self(0x489) }
  @inlinable public static var vmxVMCSEnum: Self { Self(0x48A) }
  @inlinable public static var vmxSecondaryControls: Self { Self(0x48B) }
  @inlinable public static var vmxEPTVPIDCap: Self { Self(0x48C) }
  @inlinable public static var vmxTruePinControls: Self { Self(0x48D) }
  @inlinable public static var vmxTruePrimaryControls: Self { Self(0x48E) }
  @inlinable public static var vmxTrueExitControls: Self { Self(0x48F) }
  @inlinable public static var vmxTrueEntryControls: Self { Self(0x490) }
  @inlinable public static var vmxVMFunc: Self { Self(0x491) }
  /// The last VMX capability MSR.
  @inlinable public static var vmxExitControls2: Self { Self(0x493) }
  @inlinable public static var tscDeadline: Self { Self(0x6E0) }
  /// The first of 256 x2APIC registers.
  @inlinable public static var x2APICFirst: Self { Self(0x800) }
  @inlinable public static var x2APICTPR: Self { Self(0x808) }
  @inlinable public static var x2APICLast: Self { Self(0x8FF) }
  @inlinable public static var xss: Self { Self(0xDA0) }
  @inlinable public static var efer: Self { Self(0xC000_0080) }
  @inlinable public static var star: Self { Self(0xC000_0081) }
  @inlinable public static var lstar: Self { Self(0xC000_0082) }
  @inlinable public static var cstar: Self { Self(0xC000_0083) }
  @inlinable public static var fmask: Self { Self(0xC000_0084) }
  @inlinable public static var fsBase: Self { Self(0xC000_0100) }
  @inlinable public static var gsBase: Self { Self(0xC000_0101) }
  @inlinable public static var kernelGSBase: Self { Self(0xC000_0102) }
  @inlinable public static var tscAux: Self { Self(0xC000_0103) }

  // SVM's (APM volume 2, "SVM Related MSRs", "TSC Ratio MSR").
  @inlinable public static var tscRatio: Self { Self(0xC000_0104) }
  @inlinable public static var vmcr: Self { Self(0xC001_0114) }
  @inlinable public static var hostSaveArea: Self { Self(0xC001_0117) }
}
