// SPDX-License-Identifier: Apache-2.0
//
// Exceptions: vectors, and the one-word error that aborts an instruction.

/// The vectors that the architecture defines (SDM volume 3, "Exception and Interrupt Vectors").
public enum ExceptionVector: UInt8, Sendable {
  case divideError = 0
  case debug = 1
  case nmi = 2
  case breakpoint = 3
  case overflow = 4
  case boundRange = 5
  case invalidOpcode = 6
  case deviceNotAvailable = 7
  case doubleFault = 8
  case coprocessorOverrun = 9
  case invalidTSS = 10
  case segmentNotPresent = 11
  case stackFault = 12
  case generalProtection = 13
  case pageFault = 14
  case x87FloatingPoint = 16
  case alignmentCheck = 17
  case machineCheck = 18
  case simdFloatingPoint = 19
  case virtualization = 20
  case controlProtection = 21
}

/// Why an instruction was aborted before it changed architectural state.
///
/// Most are exceptions for the guest. `vmExit` is not: the processor must exit non-root operation,
/// and the thrower has already recorded the exit information. The value is one word, so that a
/// throw costs no more than a return.
///
///     bits 7:0    vector
///     bit  8      an error code is delivered
///     bit  9      VM exit: not an exception of the guest
///     bits 63:32  error code
public struct GuestException: Error, Hashable, Sendable {
  public var rawValue: UInt64

  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// An exception without an error code.
  @inlinable public init(_ vector: ExceptionVector) {
    rawValue = UInt64(vector.rawValue)
  }

  /// An exception with an error code.
  @inlinable public init(_ vector: ExceptionVector, code: UInt32) {
    rawValue = UInt64(vector.rawValue) | 1 << 8 | UInt64(code) << 32
  }

  @inlinable public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue) }
  @inlinable public var hasErrorCode: Bool { rawValue & 1 << 8 != 0 }
  @inlinable public var errorCode: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) }
  @inlinable public var isVMExit: Bool { rawValue & 1 << 9 != 0 }

  /// Exit non-root operation; the exit information is already recorded.
  @inlinable public static var vmExit: Self { Self(rawValue: 1 << 9) }
  @inlinable public static var invalidOpcode: Self { Self(.invalidOpcode) }
  @inlinable public static var deviceNotAvailable: Self { Self(.deviceNotAvailable) }
  @inlinable public static var divideError: Self { Self(.divideError) }
  /// #GP(0).
  @inlinable public static var generalProtection: Self { Self(.generalProtection, code: 0) }
  /// #SS(0).
  @inlinable public static var stackFault: Self { Self(.stackFault, code: 0) }

  /// #GP with a selector (or other) error code.
  @inlinable public static func generalProtection(_ code: UInt32) -> Self {
    Self(.generalProtection, code: code)
  }
}

/// The error code of a page fault (SDM volume 3, "Page-Fault Exceptions").
public struct PageFaultCode: OptionSet, Sendable, Hashable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

  @inlinable public static var present: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var write: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var user: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var reserved: Self { Self(rawValue: 1 << 3) }
  @inlinable public static var instructionFetch: Self { Self(rawValue: 1 << 4) }
  @inlinable public static var protectionKey: Self { Self(rawValue: 1 << 5) }
}
