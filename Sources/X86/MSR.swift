// SPDX-License-Identifier: Apache-2.0

/// Model-specific registers, by the names of SDM volume 4, "Architectural MSRs".
public struct MSR: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
  @inlinable init(_ rawValue: UInt32) { self.rawValue = rawValue }

  public static let p5MCAddress = Self(0x0)
  public static let p5MCType = Self(0x1)
  public static let monitorFilterSize = Self(0x6)
  public static let timeStampCounter = Self(0x10)
  public static let platformID = Self(0x17)
  public static let apicBase = Self(0x1B)
  public static let featureControl = Self(0x3A)
  public static let tscAdjust = Self(0x3B)
  public static let specCtrl = Self(0x48)
  public static let predCmd = Self(0x49)
  public static let biosUpdateTrigger = Self(0x79)
  public static let biosSignatureID = Self(0x8B)
  public static let platformInfo = Self(0xCE)
  public static let mtrrCap = Self(0xFE)
  public static let archCapabilities = Self(0x10A)
  public static let flushCmd = Self(0x10B)
  public static let miscFeaturesEnables = Self(0x140)
  public static let sysenterCS = Self(0x174)
  public static let sysenterESP = Self(0x175)
  public static let sysenterEIP = Self(0x176)
  public static let mcgCap = Self(0x179)
  public static let mcgStatus = Self(0x17A)
  public static let miscEnable = Self(0x1A0)
  public static let debugctl = Self(0x1D9)
  /// IA32_MTRR_PHYSBASE0; the mask follows, then the next pair.
  public static let mtrrPhysBase0 = Self(0x200)
  public static let mtrrFix64K00000 = Self(0x250)
  public static let mtrrFix16K80000 = Self(0x258)
  public static let mtrrFix16KA0000 = Self(0x259)
  /// The first of eight; the others follow.
  public static let mtrrFix4KC0000 = Self(0x268)
  public static let pat = Self(0x277)
  public static let mtrrDefType = Self(0x2FF)
  /// IA32_MC0_CTL; STATUS, ADDR and MISC follow, then the next bank.
  public static let mc0Ctl = Self(0x400)
  public static let vmxBasic = Self(0x480)
  /// The last VMX capability MSR.
  public static let vmxExitControls2 = Self(0x493)
  public static let tscDeadline = Self(0x6E0)
  /// The first of 256 x2APIC registers.
  public static let x2APICFirst = Self(0x800)
  public static let x2APICTPR = Self(0x808)
  public static let x2APICLast = Self(0x8FF)
  public static let xss = Self(0xDA0)
  public static let efer = Self(0xC000_0080)
  public static let star = Self(0xC000_0081)
  public static let lstar = Self(0xC000_0082)
  public static let cstar = Self(0xC000_0083)
  public static let fmask = Self(0xC000_0084)
  public static let fsBase = Self(0xC000_0100)
  public static let gsBase = Self(0xC000_0101)
  public static let kernelGSBase = Self(0xC000_0102)
  public static let tscAux = Self(0xC000_0103)
}
