// SPDX-License-Identifier: Apache-2.0
//
// Sets of arithmetic flags, as in rows of the opcode table: `fw` and `fr`, followed by the first
// letters of the flags, or alone for all six.
//
//     fwpazso          INC: PF, AF, ZF, SF, OF
//     fwc frc          CMC: CF from CF

public struct FlagSet: OptionSet, Sendable, Hashable {
  public var rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
  public static let cf = Self(rawValue: 1)
  public static let pf = Self(rawValue: 2)
  public static let af = Self(rawValue: 4)
  public static let zf = Self(rawValue: 8)
  public static let sf = Self(rawValue: 16)
  public static let of = Self(rawValue: 32)
  public static let all = Self(rawValue: 63)

  /// The flags that a condition (0 to 15 as encoded) tests.
  @inlinable public init(condition: UInt8) {
    switch condition >> 1 & 7 {
    case 0: self = .of
    case 1: self = .cf
    case 2: self = .zf
    case 3: self = [.cf, .zf]
    case 4: self = .sf
    case 5: self = .pf
    case 6: self = [.sf, .of]
    default: self = [.zf, .sf, .of]
    }
  }

  /// A flag by its first letter.
  init?(letter: UInt8) {
    switch Unicode.Scalar(letter) {
    case "c": self = .cf
    case "p": self = .pf
    case "a": self = .af
    case "z": self = .zf
    case "s": self = .sf
    case "o": self = .of
    default: return nil
    }
  }
}
