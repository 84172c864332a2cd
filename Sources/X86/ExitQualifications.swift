// SPDX-License-Identifier: Apache-2.0
//
// The layouts of exit qualifications (SDM volume 3, "Exit Qualification"). The processor encodes
// them and the hypervisor decodes them by the same types, so that neither has bit numbers of its
// own. Any value can be decoded: every property is defined for all bits.
//
//     let io = IOQualification(size: 1, isInput: false, port: 0x3F8)
//     IOQualification(rawValue: io.rawValue).port == 0x3F8

/// An I/O instruction:
///
///     2:0 size - 1   3 IN   4 string   5 REP   6 port is an immediate   31:16 port
public struct IOQualification: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public init(
    size: Int, isInput: Bool, isString: Bool = false, isRepeated: Bool = false,
    isImmediate: Bool = false, port: UInt16
  ) {
    rawValue =
      UInt64(truncatingIfNeeded: size &- 1) & 7 | (isInput ? 1 << 3 : 0) | (isString ? 1 << 4 : 0)
      | (isRepeated ? 1 << 5 : 0) | (isImmediate ? 1 << 6 : 0) | UInt64(port) << 16
  }

  /// Size of one access in bytes.
  @inlinable public var size: UInt8 { UInt8(truncatingIfNeeded: rawValue & 7) &+ 1 }
  @inlinable public var isInput: Bool { rawValue & 1 << 3 != 0 }
  @inlinable public var isString: Bool { rawValue & 1 << 4 != 0 }
  @inlinable public var isRepeated: Bool { rawValue & 1 << 5 != 0 }
  @inlinable public var isImmediate: Bool { rawValue & 1 << 6 != 0 }
  @inlinable public var port: UInt16 { UInt16(truncatingIfNeeded: rawValue >> 16) }
}

/// An access to a control register:
///
///     3:0 register   5:4 access   6 LMSW from memory   11:8 general register   31:16 LMSW's source
public struct ControlRegisterQualification: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public enum Access: UInt64, Sendable {
    case movTo = 0
    case movFrom = 1
    case clts = 2
    case lmsw = 3
  }

  /// MOV to or from a control register, or CLTS, which has CR0 and no general register.
  @inlinable public init(_ access: Access, register: UInt8 = 0, general: UInt8 = 0) {
    rawValue = UInt64(register & 15) | access.rawValue << 4 | UInt64(general & 15) << 8
  }

  @inlinable public init(lmsw source: UInt16, fromMemory: Bool) {
    rawValue = Access.lmsw.rawValue << 4 | (fromMemory ? 1 << 6 : 0) | UInt64(source) << 16
  }

  @inlinable public var register: UInt8 { UInt8(truncatingIfNeeded: rawValue & 15) }
  @inlinable public var access: Access { Access(rawValue: rawValue >> 4 & 3) ?? .movTo }
  @inlinable public var isFromMemory: Bool { rawValue & 1 << 6 != 0 }
  @inlinable public var general: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 8 & 15) }
  @inlinable public var source: UInt16 { UInt16(truncatingIfNeeded: rawValue >> 16) }
}

/// MOV to or from a debug register:
///
///     2:0 register   4 the debug register is read   11:8 general register
public struct DebugRegisterQualification: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public init(register: UInt8, isRead: Bool, general: UInt8) {
    rawValue = UInt64(register & 7) | (isRead ? 1 << 4 : 0) | UInt64(general & 15) << 8
  }

  @inlinable public var register: UInt8 { UInt8(truncatingIfNeeded: rawValue & 7) }
  @inlinable public var isRead: Bool { rawValue & 1 << 4 != 0 }
  @inlinable public var general: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 8 & 15) }
}

/// A task switch:
///
///     15:0 selector of the TSS   31:30 source
public struct TaskSwitchQualification: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public init(selector: UInt16, source: TaskSwitchSource) {
    rawValue = UInt64(selector) | source.rawValue << 30
  }

  @inlinable public var selector: UInt16 { UInt16(truncatingIfNeeded: rawValue) }
  @inlinable public var source: TaskSwitchSource {
    TaskSwitchSource(rawValue: rawValue >> 30 & 3) ?? .call
  }
}

/// The source of a task switch.
public enum TaskSwitchSource: UInt64, Sendable {
  case call = 0
  case interruptReturn = 1
  case jump = 2
  /// A task gate in the IDT.
  case interrupt = 3

  /// The old task stays busy, and the new one links back to it.
  @inlinable public var nests: Bool { self == .call || self == .interrupt }
}

/// An EPT violation:
///
///     0 read   1 write   2 fetch   5:3 rights that EPT gives   7 the linear address is valid
///     6 with mode-based execute control: EPT lets user-mode addresses be executed
///     8 the access was to the translated address, not to a paging structure
///     11:9 of that, what the guest's tables say: user page, writable, not executable
///     12 NMIs were unblocked by the IRET that it fell into
public struct EPTViolationQualification: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var read: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var write: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var fetch: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var linearIsValid: Self { Self(rawValue: 1 << 7) }
  @inlinable public static var isTranslated: Self { Self(rawValue: 1 << 8) }
  @inlinable public static var nmiUnblocking: Self { Self(rawValue: 1 << 12) }
  @inlinable public static var userExecute: Self { Self(rawValue: 1 << 6) }
  @inlinable public static var isUserPage: Self { Self(rawValue: 1 << 9) }
  @inlinable public static var isWritablePage: Self { Self(rawValue: 1 << 10) }
  @inlinable public static var isNotExecutablePage: Self { Self(rawValue: 1 << 11) }

  /// - Parameter entry: the rights bits of the EPT entry, 0 if there is none.
  @inlinable public static func rights(_ entry: UInt64) -> Self {
    Self(rawValue: (entry & EPTEntry.rightsMask) << 3)
  }
}

/// An access to the APIC-access page:
///
///     11:0 offset in the page   15:12 kind
public struct APICAccessQualification: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public enum Kind: UInt64, Sendable {
    case read = 0
    case write = 1
    case fetch = 2
    /// During event delivery.
    case delivery = 3
    /// By a guest-physical address, during event delivery.
    case physicalDelivery = 10
    /// By a guest-physical address, during an instruction's fetch or execution.
    case physical = 15
  }

  @inlinable public init(_ kind: Kind, offset: UInt16) {
    rawValue = UInt64(offset & 0xFFF) | kind.rawValue << 12
  }

  @inlinable public var kind: Kind? { Kind(rawValue: rawValue >> 12 & 15) }
  @inlinable public var offset: UInt16 { UInt16(truncatingIfNeeded: rawValue & 0xFFF) }
}

/// A notify exit:
///
///     0 the guest's state is lost   12 NMIs were unblocked by the IRET that it fell into
public struct NotifyQualification: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var contextIsInvalid: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var nmiUnblocking: Self { Self(rawValue: 1 << 12) }
}
