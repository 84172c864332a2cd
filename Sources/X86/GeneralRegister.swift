// SPDX-License-Identifier: Apache-2.0

/// A general-purpose register, by its number in an instruction's encoding.
public struct GeneralRegister: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let rax = Self(rawValue: 0)
  public static let rcx = Self(rawValue: 1)
  public static let rdx = Self(rawValue: 2)
  public static let rbx = Self(rawValue: 3)
  public static let rsp = Self(rawValue: 4)
  public static let rbp = Self(rawValue: 5)
  public static let rsi = Self(rawValue: 6)
  public static let rdi = Self(rawValue: 7)
  public static let r8 = Self(rawValue: 8)
  public static let r9 = Self(rawValue: 9)
  public static let r10 = Self(rawValue: 10)
  public static let r11 = Self(rawValue: 11)
  public static let r12 = Self(rawValue: 12)
  public static let r13 = Self(rawValue: 13)
  public static let r14 = Self(rawValue: 14)
  public static let r15 = Self(rawValue: 15)
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
