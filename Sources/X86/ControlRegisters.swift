// SPDX-License-Identifier: Apache-2.0
//
// Control, extended-control and debug registers: their bits, and the values of reserved bits.

/// CR0 (SDM volume 3, "Control Registers").
public struct CR0: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var pe: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var mp: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var em: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var ts: Self { Self(rawValue: 1 << 3) }
  @inlinable public static var et: Self { Self(rawValue: 1 << 4) }
  @inlinable public static var ne: Self { Self(rawValue: 1 << 5) }
  @inlinable public static var wp: Self { Self(rawValue: 1 << 16) }
  @inlinable public static var am: Self { Self(rawValue: 1 << 18) }
  @inlinable public static var nw: Self { Self(rawValue: 1 << 29) }
  @inlinable public static var cd: Self { Self(rawValue: 1 << 30) }
  @inlinable public static var pg: Self { Self(rawValue: 1 << 31) }
}

/// CR4 (SDM volume 3, "Control Registers").
public struct CR4: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var vme: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var pvi: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var tsd: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var de: Self { Self(rawValue: 1 << 3) }
  @inlinable public static var pse: Self { Self(rawValue: 1 << 4) }
  @inlinable public static var pae: Self { Self(rawValue: 1 << 5) }
  @inlinable public static var mce: Self { Self(rawValue: 1 << 6) }
  @inlinable public static var pge: Self { Self(rawValue: 1 << 7) }
  @inlinable public static var pce: Self { Self(rawValue: 1 << 8) }
  @inlinable public static var osfxsr: Self { Self(rawValue: 1 << 9) }
  @inlinable public static var osxmmexcpt: Self { Self(rawValue: 1 << 10) }
  @inlinable public static var umip: Self { Self(rawValue: 1 << 11) }
  @inlinable public static var la57: Self { Self(rawValue: 1 << 12) }
  @inlinable public static var vmxe: Self { Self(rawValue: 1 << 13) }
  @inlinable public static var smxe: Self { Self(rawValue: 1 << 14) }
  @inlinable public static var fsgsbase: Self { Self(rawValue: 1 << 16) }
  @inlinable public static var pcide: Self { Self(rawValue: 1 << 17) }
  @inlinable public static var osxsave: Self { Self(rawValue: 1 << 18) }
  @inlinable public static var smep: Self { Self(rawValue: 1 << 20) }
  @inlinable public static var smap: Self { Self(rawValue: 1 << 21) }
  @inlinable public static var pke: Self { Self(rawValue: 1 << 22) }
  @inlinable public static var cet: Self { Self(rawValue: 1 << 23) }
  @inlinable public static var pks: Self { Self(rawValue: 1 << 24) }
}

/// IA32_EFER (SDM volume 4, "Architectural MSRs").
public struct EFER: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var sce: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var lme: Self { Self(rawValue: 1 << 8) }
  @inlinable public static var lma: Self { Self(rawValue: 1 << 10) }
  @inlinable public static var nxe: Self { Self(rawValue: 1 << 11) }
  @inlinable public static var svme: Self { Self(rawValue: 1 << 12) }
  @inlinable public static var lmsle: Self { Self(rawValue: 1 << 13) }
  @inlinable public static var ffxsr: Self { Self(rawValue: 1 << 14) }
}

/// XCR0, the extended-state components that software has enabled.
public struct XCR0: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var x87: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var sse: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var avx: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var opmask: Self { Self(rawValue: 1 << 5) }
  @inlinable public static var zmmHi256: Self { Self(rawValue: 1 << 6) }
  @inlinable public static var hi16ZMM: Self { Self(rawValue: 1 << 7) }
  @inlinable public static var pkru: Self { Self(rawValue: 1 << 9) }
  /// The three AVX-512 components, which are enabled together or not at all.
  @inlinable public static var avx512: Self { [.opmask, .zmmHi256, .hi16ZMM] }
}

/// DR6, the debug status register.
public struct DR6: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var b0: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var b1: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var b2: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var b3: Self { Self(rawValue: 1 << 3) }
  @inlinable public static var bd: Self { Self(rawValue: 1 << 13) }
  @inlinable public static var bs: Self { Self(rawValue: 1 << 14) }
  @inlinable public static var bt: Self { Self(rawValue: 1 << 15) }
  /// The value after reset: every reserved bit that reads as 1.
  @inlinable public static var initial: Self { Self(rawValue: 0xFFFF_0FF0) }
}

/// DR7, the debug control register.
public struct DR7: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var le: Self { Self(rawValue: 1 << 8) }
  @inlinable public static var ge: Self { Self(rawValue: 1 << 9) }
  @inlinable public static var gd: Self { Self(rawValue: 1 << 13) }
  /// The value after reset.
  @inlinable public static var initial: Self { Self(rawValue: 0x400) }
  /// L0 to G3: any breakpoint enabled.
  @inlinable public static var anyEnabled: Self { Self(rawValue: 0xFF) }
}
