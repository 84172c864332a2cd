// SPDX-License-Identifier: Apache-2.0

/// The RFLAGS register (SDM volume 1, "EFLAGS Register").
public struct RFLAGS: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public static let cf = Self(rawValue: 1 << 0)
  public static let fixed = Self(rawValue: 1 << 1)
  public static let pf = Self(rawValue: 1 << 2)
  public static let af = Self(rawValue: 1 << 4)
  public static let zf = Self(rawValue: 1 << 6)
  public static let sf = Self(rawValue: 1 << 7)
  public static let tf = Self(rawValue: 1 << 8)
  public static let `if` = Self(rawValue: 1 << 9)
  public static let df = Self(rawValue: 1 << 10)
  public static let of = Self(rawValue: 1 << 11)
  public static let iopl = Self(rawValue: 3 << 12)
  public static let nt = Self(rawValue: 1 << 14)
  public static let rf = Self(rawValue: 1 << 16)
  public static let vm = Self(rawValue: 1 << 17)
  public static let ac = Self(rawValue: 1 << 18)
  public static let vif = Self(rawValue: 1 << 19)
  public static let vip = Self(rawValue: 1 << 20)
  public static let id = Self(rawValue: 1 << 21)

  /// The six flags that arithmetic writes.
  public static let arithmetic: Self = [.cf, .pf, .af, .zf, .sf, .of]
  /// Every flag that exists; other bits read as 0 (`fixed` as 1).
  public static let all: Self = [
    .arithmetic, .fixed, .tf, .if, .df, .iopl, .nt, .rf, .vm, .ac, .vif, .vip, .id,
  ]
  /// The position of the I/O privilege level.
  public static let ioplShift: UInt64 = 12
}
