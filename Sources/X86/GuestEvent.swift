// SPDX-License-Identifier: Apache-2.0
//
// An event for delivery to a guest: injected by the hypervisor, or interrupted by an exit. It is
// vendor-neutral; `InterruptionInfo` is VT-x's format, and the two convert here.
//
//     let event = GuestEvent(exception: 14, errorCode: 2, instructionLength: 0)
//     InterruptionInfo(event).hasErrorCode     // true

/// An interrupt, an NMI or an exception.
public struct GuestEvent: Hashable, Sendable {
  public enum Kind: UInt8, Hashable, Sendable {
    case externalInterrupt
    case nmi
    case hardwareException
    /// INT n.
    case softwareInterrupt
    /// INT1.
    case privilegedSoftwareException
    /// INT3 and INTO.
    case softwareException
  }

  public var kind: Kind
  public var vector: UInt8
  public var errorCode: UInt32?
  /// Length in bytes of the instruction that raised it, for software events.
  public var instructionLength: UInt32

  @inlinable public init(
    _ kind: Kind, vector: UInt8, errorCode: UInt32? = nil, instructionLength: UInt32 = 0
  ) {
    self.kind = kind
    self.vector = vector
    self.errorCode = errorCode
    self.instructionLength = instructionLength
  }

  /// An exception.
  ///
  /// - Parameters:
  ///   - vector: 0 to 31.
  ///   - errorCode: nil: the exception has none.
  ///   - instructionLength: of the instruction that raised it, if it is a software exception.
  @inlinable public init(exception vector: UInt8, errorCode: UInt32?, instructionLength: UInt32) {
    let isSoftware = Self.isSoftware(vector)
    self.init(
      isSoftware ? .softwareException : .hardwareException, vector: vector, errorCode: errorCode,
      instructionLength: isSoftware ? instructionLength : 0)
  }

  @inlinable public static var nmi: Self { Self(.nmi, vector: ExceptionVector.nmi.rawValue) }

  /// #BP and #OF: raised by instructions, so their length is needed.
  @inlinable public static func isSoftware(_ vector: UInt8) -> Bool {
    vector == ExceptionVector.breakpoint.rawValue || vector == ExceptionVector.overflow.rawValue
  }

  /// An instruction raised it: it returns to the next instruction.
  @inlinable public var isOfInstruction: Bool {
    switch kind {
    case .externalInterrupt, .nmi, .hardwareException: false
    case .softwareInterrupt, .privilegedSoftwareException, .softwareException: true
    }
  }
}

extension InterruptionInfo {
  @inlinable public init(_ event: GuestEvent) {
    self.init(
      EventType(event.kind), vector: event.vector, hasErrorCode: event.errorCode != nil)
  }
}

extension InterruptionInfo.EventType {
  @inlinable public init(_ kind: GuestEvent.Kind) {
    self =
      switch kind {
      case .externalInterrupt: .externalInterrupt
      case .nmi: .nmi
      case .hardwareException: .hardwareException
      case .softwareInterrupt: .softwareInterrupt
      case .privilegedSoftwareException: .privilegedSoftwareException
      case .softwareException: .softwareException
      }
  }
}

extension GuestEvent.Kind {
  /// nil for an "other event", the monitor trap flag's, which is not an event of the guest.
  @inlinable public init?(_ type: InterruptionInfo.EventType) {
    switch type {
    case .externalInterrupt: self = .externalInterrupt
    case .nmi: self = .nmi
    case .hardwareException: self = .hardwareException
    case .softwareInterrupt: self = .softwareInterrupt
    case .privilegedSoftwareException: self = .privilegedSoftwareException
    case .softwareException: self = .softwareException
    case .otherEvent: return nil
    }
  }
}

extension GuestEvent {
  /// nil if the information is not valid, or not of a guest's event.
  ///
  /// - Parameters:
  ///   - info: in VT-x's format.
  ///   - errorCode: used if the information says that there is one.
  ///   - instructionLength: used if an instruction raised the event.
  @inlinable public init?(
    _ info: InterruptionInfo, errorCode: @autoclosure () -> UInt32,
    instructionLength: @autoclosure () -> UInt32
  ) {
    guard info.isValid, let type = info.type, let kind = Kind(type) else { return nil }
    self.init(
      kind, vector: info.vector, errorCode: info.hasErrorCode ? errorCode() : nil)
    if isOfInstruction { self.instructionLength = instructionLength() }
  }
}
