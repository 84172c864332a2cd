// SPDX-License-Identifier: Apache-2.0
//
// Register numbers as instructions encode them. A raw value is always below the number of
// registers.

/// A general-purpose register, by its number in an instruction's encoding.
public struct GeneralRegister: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  @inlinable public static var rax: Self { Self(rawValue: 0) }
  @inlinable public static var rcx: Self { Self(rawValue: 1) }
  @inlinable public static var rdx: Self { Self(rawValue: 2) }
  @inlinable public static var rbx: Self { Self(rawValue: 3) }
  @inlinable public static var rsp: Self { Self(rawValue: 4) }
  @inlinable public static var rbp: Self { Self(rawValue: 5) }
  @inlinable public static var rsi: Self { Self(rawValue: 6) }
  @inlinable public static var rdi: Self { Self(rawValue: 7) }
  @inlinable public static var r8: Self { Self(rawValue: 8) }
  @inlinable public static var r9: Self { Self(rawValue: 9) }
  @inlinable public static var r10: Self { Self(rawValue: 10) }
  @inlinable public static var r11: Self { Self(rawValue: 11) }
  @inlinable public static var r12: Self { Self(rawValue: 12) }
  @inlinable public static var r13: Self { Self(rawValue: 13) }
  @inlinable public static var r14: Self { Self(rawValue: 14) }
  @inlinable public static var r15: Self { Self(rawValue: 15) }
}

/// A segment register, by its number in an instruction's encoding; LDTR and TR follow.
public enum SegmentRegister: UInt8, Sendable, CaseIterable {
  case es = 0
  case cs = 1
  case ss = 2
  case ds = 3
  case fs = 4
  case gs = 5
  case ldtr = 6
  case tr = 7
}
