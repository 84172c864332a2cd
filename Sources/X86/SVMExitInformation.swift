// SPDX-License-Identifier: Apache-2.0
//
// The layouts of EVENTINJ, EXITINTINFO and of EXITINFO1 and EXITINFO2 by exit code, and of segment
// attributes (APM volume 2, "Event Injection", "EXITINTINFO", "Instruction Intercepts"). The
// processor encodes them and the hypervisor decodes them by the same types.
//
//     let event = SVMEvent(.externalInterrupt, vector: 0x30)
//     GuestEvent(event, instructionLength: 0)     // the same interrupt

/// EVENTINJ and EXITINTINFO:
///
///     7:0 vector   10:8 type   11 there is an error code   31 valid   63:32 error code
public struct SVMEvent: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  public enum EventType: UInt64, Sendable {
    case externalInterrupt = 0
    case nmi = 2
    /// A fault or trap; those of INT3, INTO and INT1 as well.
    case exception = 3
    /// INT n.
    case softwareInterrupt = 4
  }

  @inlinable public static var validBit: UInt64 { 1 << 31 }
  @inlinable public static var errorCodeBit: UInt64 { 1 << 11 }

  @inlinable public init(_ type: EventType, vector: UInt8, errorCode: UInt32? = nil) {
    rawValue = UInt64(vector) | type.rawValue << 8 | Self.validBit
    if let errorCode { rawValue |= Self.errorCodeBit | UInt64(errorCode) << 32 }
  }

  @inlinable public init(_ event: GuestEvent) {
    let type: EventType =
      switch event.kind {
      case .externalInterrupt: .externalInterrupt
      case .nmi: .nmi
      case .hardwareException, .softwareException, .privilegedSoftwareException: .exception
      case .softwareInterrupt: .softwareInterrupt
      }
    self.init(type, vector: event.vector, errorCode: event.errorCode)
  }

  @inlinable public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue) }
  /// nil if the value is reserved.
  @inlinable public var type: EventType? { EventType(rawValue: rawValue >> 8 & 7) }
  @inlinable public var hasErrorCode: Bool { rawValue & Self.errorCodeBit != 0 }
  @inlinable public var isValid: Bool { rawValue & Self.validBit != 0 }
  @inlinable public var errorCode: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) }

  /// It returns to the instruction after the one that raised it: INT n, INT3, INTO.
  @inlinable public var isOfInstruction: Bool {
    type == .softwareInterrupt || type == .exception && GuestEvent.isSoftware(vector)
  }
}

extension GuestEvent {
  /// nil if the event is not valid or of a reserved type.
  ///
  /// - Parameters:
  ///   - event: in a VMCB's format.
  ///   - instructionLength: used if an instruction raised the event.
  @inlinable public init?(_ event: SVMEvent, instructionLength: @autoclosure () -> UInt32) {
    guard event.isValid, let type = event.type else { return nil }
    let kind: Kind =
      switch type {
      case .externalInterrupt: .externalInterrupt
      case .nmi: .nmi
      case .exception: event.isOfInstruction ? .softwareException : .hardwareException
      case .softwareInterrupt: .softwareInterrupt
      }
    // The vector of an NMI is ignored (APM volume 2, "Event Injection").
    let vector = kind == .nmi ? ExceptionVector.nmi.rawValue : event.vector
    self.init(kind, vector: vector, errorCode: event.hasErrorCode ? event.errorCode : nil)
    if isOfInstruction { self.instructionLength = instructionLength() }
  }
}

/// EXITINFO1 of IN, OUT, INS and OUTS; EXITINFO2 is the RIP behind the instruction:
///
///     0 IN   2 string   3 REP   6:4 size, one bit each   9:7 address size, one bit each
///     12:10 segment   31:16 port
public struct SVMPortInfo: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// - Parameters:
  ///   - size: 1, 2 or 4.
  ///   - addressSize: 2, 4 or 8.
  ///   - isInput: IN or INS.
  ///   - isString: INS or OUTS.
  ///   - isRepeated: with REP.
  ///   - segment: of the memory operand of OUTS.
  ///   - port: the first accessed one.
  @inlinable public init(
    size: Int, addressSize: Int, isInput: Bool, isString: Bool = false, isRepeated: Bool = false,
    segment: SegmentRegister = .ds, port: UInt16
  ) {
    let width = UInt64(truncatingIfNeeded: size) & 7
    let address = UInt64(truncatingIfNeeded: addressSize >> 1) & 7
    let kinds: UInt64 = (isInput ? 1 : 0) | (isString ? 1 << 2 : 0) | (isRepeated ? 1 << 3 : 0)
    rawValue =
      kinds | width << 4 | address << 7 | UInt64(segment.rawValue & 7) << 10 | UInt64(port) << 16
  }

  @inlinable public var isInput: Bool { rawValue & 1 != 0 }
  @inlinable public var isString: Bool { rawValue & 1 << 2 != 0 }
  @inlinable public var isRepeated: Bool { rawValue & 1 << 3 != 0 }
  /// Size of one access in bytes.
  @inlinable public var size: UInt8 {
    let bits = UInt8(truncatingIfNeeded: rawValue >> 4 & 7)
    return bits & 1 != 0 ? 1 : bits & 2 != 0 ? 2 : 4
  }
  /// Size of an address in bytes: 2, 4 or 8.
  @inlinable public var addressSize: Int {
    rawValue & 1 << 7 != 0 ? 2 : rawValue & 1 << 8 != 0 ? 4 : 8
  }
  /// Of the memory operand of OUTS.
  @inlinable public var segment: SegmentRegister {
    SegmentRegister(rawValue: UInt8(truncatingIfNeeded: rawValue >> 10 & 7)) ?? .ds
  }
  @inlinable public var port: UInt16 { UInt16(truncatingIfNeeded: rawValue >> 16) }
}

/// EXITINFO1 of an access to a control register, by the decode assist:
///
///     3:0 general register   63 the instruction is a MOV
public struct SVMControlRegisterInfo: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
  @inlinable public init(general: UInt8) { rawValue = 1 << 63 | UInt64(general & 15) }

  @inlinable public var isMove: Bool { rawValue >> 63 != 0 }
  @inlinable public var general: UInt8 { UInt8(truncatingIfNeeded: rawValue & 15) }
}

/// EXITINFO2 of a task switch, whose EXITINFO1 is the selector:
///
///     31:0 error code   36 IRET   38 far jump   44 there is an error code   48 RFLAGS.RF
public struct SVMTaskSwitchInfo: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public init(_ source: TaskSwitchSource, errorCode: UInt32?, resumeFlag: Bool) {
    var value = errorCode.map { UInt64($0) | 1 << 44 } ?? 0
    if source == .interruptReturn { value |= 1 << 36 }
    if source == .jump { value |= 1 << 38 }
    if resumeFlag { value |= 1 << 48 }
    rawValue = value
  }

  /// - Parameter interrupts: an event was being delivered (EXITINTINFO) through a task gate.
  @inlinable public func source(interrupts: Bool) -> TaskSwitchSource {
    if rawValue & 1 << 36 != 0 { return .interruptReturn }
    if rawValue & 1 << 38 != 0 { return .jump }
    return interrupts ? .interrupt : .call
  }
}

extension SegmentAccessRights {
  /// A segment's attributes in the format of a VMCB: bits 55:52 and 47:40 of its descriptor. It has
  /// no bit for "unusable": such a segment is not present.
  @inlinable public init(vmcb attributes: UInt16) {
    let bits = UInt32(attributes)
    let rights = bits & 0xFF | (bits & 0xF00) << 4
    self.init(rawValue: rights & Self.presentBit != 0 ? rights : rights | Self.unusableBit)
  }

  @inlinable public var vmcbAttributes: UInt16 {
    let bits = rawValue & 0xFF | rawValue >> 4 & 0xF00
    return UInt16(truncatingIfNeeded: isUnusable ? bits & ~Self.presentBit : bits)
  }
}
