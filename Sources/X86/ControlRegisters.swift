// SPDX-License-Identifier: Apache-2.0

/// CR0 (SDM volume 3, "Control Registers").
public struct CR0: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let pe = Self(rawValue: 1 << 0)
  public static let mp = Self(rawValue: 1 << 1)
  public static let em = Self(rawValue: 1 << 2)
  public static let ts = Self(rawValue: 1 << 3)
  public static let et = Self(rawValue: 1 << 4)
  public static let ne = Self(rawValue: 1 << 5)
  public static let wp = Self(rawValue: 1 << 16)
  public static let am = Self(rawValue: 1 << 18)
  public static let nw = Self(rawValue: 1 << 29)
  public static let cd = Self(rawValue: 1 << 30)
  public static let pg = Self(rawValue: 1 << 31)
}

/// CR4 (SDM volume 3, "Control Registers").
public struct CR4: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let vme = Self(rawValue: 1 << 0)
  public static let pvi = Self(rawValue: 1 << 1)
  public static let tsd = Self(rawValue: 1 << 2)
  public static let de = Self(rawValue: 1 << 3)
  public static let pse = Self(rawValue: 1 << 4)
  public static let pae = Self(rawValue: 1 << 5)
  public static let mce = Self(rawValue: 1 << 6)
  public static let pge = Self(rawValue: 1 << 7)
  public static let pce = Self(rawValue: 1 << 8)
  public static let osfxsr = Self(rawValue: 1 << 9)
  public static let osxmmexcpt = Self(rawValue: 1 << 10)
  public static let umip = Self(rawValue: 1 << 11)
  public static let la57 = Self(rawValue: 1 << 12)
  public static let vmxe = Self(rawValue: 1 << 13)
  public static let smxe = Self(rawValue: 1 << 14)
  public static let fsgsbase = Self(rawValue: 1 << 16)
  public static let pcide = Self(rawValue: 1 << 17)
  public static let osxsave = Self(rawValue: 1 << 18)
  public static let smep = Self(rawValue: 1 << 20)
  public static let smap = Self(rawValue: 1 << 21)
  public static let pke = Self(rawValue: 1 << 22)
  public static let cet = Self(rawValue: 1 << 23)
  public static let pks = Self(rawValue: 1 << 24)
}

/// IA32_EFER (SDM volume 4, "Architectural MSRs").
public struct EFER: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let sce = Self(rawValue: 1 << 0)
  public static let lme = Self(rawValue: 1 << 8)
  public static let lma = Self(rawValue: 1 << 10)
  public static let nxe = Self(rawValue: 1 << 11)
  public static let svme = Self(rawValue: 1 << 12)
  public static let lmsle = Self(rawValue: 1 << 13)
  public static let ffxsr = Self(rawValue: 1 << 14)
}

/// XCR0, the extended-state components that software has enabled.
public struct XCR0: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let x87 = Self(rawValue: 1 << 0)
  public static let sse = Self(rawValue: 1 << 1)
  public static let avx = Self(rawValue: 1 << 2)
  public static let opmask = Self(rawValue: 1 << 5)
  public static let zmmHi256 = Self(rawValue: 1 << 6)
  public static let hi16ZMM = Self(rawValue: 1 << 7)
  public static let pkru = Self(rawValue: 1 << 9)
  /// The three AVX-512 components, which are enabled together or not at all.
  public static let avx512: Self = [.opmask, .zmmHi256, .hi16ZMM]
}

/// DR6, the debug status register.
public struct DR6: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let b0 = Self(rawValue: 1 << 0)
  public static let b1 = Self(rawValue: 1 << 1)
  public static let b2 = Self(rawValue: 1 << 2)
  public static let b3 = Self(rawValue: 1 << 3)
  public static let bd = Self(rawValue: 1 << 13)
  public static let bs = Self(rawValue: 1 << 14)
  public static let bt = Self(rawValue: 1 << 15)
  /// The value after reset: every reserved bit that reads as 1.
  public static let initial = Self(rawValue: 0xFFFF_0FF0)
}

/// DR7, the debug control register.
public struct DR7: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let le = Self(rawValue: 1 << 8)
  public static let ge = Self(rawValue: 1 << 9)
  public static let gd = Self(rawValue: 1 << 13)
  /// The value after reset.
  public static let initial = Self(rawValue: 0x400)
  /// L0 to G3: any breakpoint enabled.
  public static let anyEnabled = Self(rawValue: 0xFF)
}
