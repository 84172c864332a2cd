// SPDX-License-Identifier: Apache-2.0
//
// RFLAGS: its bits, and the groups that instructions treat alike.

/// The RFLAGS register (SDM volume 1, "EFLAGS Register").
public struct RFLAGS: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var cf: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var fixed: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var pf: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var af: Self { Self(rawValue: 1 << 4) }
  @inlinable public static var zf: Self { Self(rawValue: 1 << 6) }
  @inlinable public static var sf: Self { Self(rawValue: 1 << 7) }
  @inlinable public static var tf: Self { Self(rawValue: 1 << 8) }
  @inlinable public static var `if`: Self { Self(rawValue: 1 << 9) }
  @inlinable public static var df: Self { Self(rawValue: 1 << 10) }
  @inlinable public static var of: Self { Self(rawValue: 1 << 11) }
  @inlinable public static var iopl: Self { Self(rawValue: 3 << 12) }
  @inlinable public static var nt: Self { Self(rawValue: 1 << 14) }
  @inlinable public static var rf: Self { Self(rawValue: 1 << 16) }
  @inlinable public static var vm: Self { Self(rawValue: 1 << 17) }
  @inlinable public static var ac: Self { Self(rawValue: 1 << 18) }
  @inlinable public static var vif: Self { Self(rawValue: 1 << 19) }
  @inlinable public static var vip: Self { Self(rawValue: 1 << 20) }
  @inlinable public static var id: Self { Self(rawValue: 1 << 21) }

  /// The six flags that arithmetic writes.
  @inlinable public static var arithmetic: Self { [.cf, .pf, .af, .zf, .sf, .of] }
  /// All existing flags; other bits read as 0 (`fixed` as 1).
  @inlinable public static var all: Self {
    [
      .arithmetic, .fixed, .tf, .if, .df, .iopl, .nt, .rf, .vm, .ac, .vif, .vip, .id,
    ]
  }
  /// The position of the I/O privilege level.
  @inlinable public static var ioplShift: UInt64 { 12 }
}
