// SPDX-License-Identifier: Apache-2.0
//
// A row's operands, with their immediates.

import X86

extension DecodeState {
  mutating func readOperands() throws(DecodeError) {
    let count = unsafe row.pointee.operandCount
    out.operandCount = count
    guard count != 0 else { return }
    let before = position
    let specs = unsafe row.pointee.operands
    out.operands[0] = try operand(specs.0)
    if count > 1 { out.operands[1] = try operand(specs.1) }
    if count > 2 { out.operands[2] = try operand(specs.2) }
    if count > 3 { out.operands[3] = try operand(specs.3) }
    out.encoding.immediateLength = UInt8(truncatingIfNeeded: position &- before)
    if flags.contains(.distinct) { try checkDistinct() }
  }

  private mutating func operand(_ spec: OperandSpec) throws(DecodeError) -> Operand {
    let modRM = out.encoding.modRM
    switch spec.method {
    case .regGeneral:
      guard highReg == 0 else { throw .invalidOpcode }
      return general(modRM >> 3 & 7 | extendReg, spec)
    case .rmGeneral:
      return isMemory ? memory(spec) : general(modRM & 7 | extendBase, spec)
    case .rmGeneralOnly:
      guard !isMemory else { throw .invalidOpcode }
      return general(modRM & 7 | extendBase, spec)
    case .memory:
      guard isMemory else { throw .invalidOpcode }
      return memory(spec)
    case .immediate, .immediate2, .relative, .farPointer, .offset:
      return try immediate(spec)
    case .opcodeGeneral: return general(opcode & 7 | extendBase, spec)
    case .accumulator: return register(.general, 0, spec)
    case .counter: return register(.general, 1, spec)
    case .data: return register(.general, 2, spec)
    case .one:
      out.immediate = 1
      return register(.immediate, 0, spec)
    default: return try otherOperand(spec)
    }
  }

  private mutating func otherOperand(_ spec: OperandSpec) throws(DecodeError) -> Operand {
    let reg = out.encoding.modRM >> 3 & 7
    let rm = out.encoding.modRM & 7
    switch spec.method {
    case .regVector: return vector(reg | extendReg | highReg, spec)
    case .rmVector:
      return isMemory ? memory(spec) : vector(rm | extendBase | highRM, spec)
    case .vvvvVector: return vector(out.encoding.vvvv, spec)
    case .immediateVector:
      let value = try byte()
      out.immediate = Int64(value)
      return vector(value >> 4 & (is64 ? 15 : 7), spec)
    case .regMMX: return register(.mmx, reg, spec)
    case .rmMMX: return isMemory ? memory(spec) : register(.mmx, rm, spec)
    case .rmX87: return register(.x87, rm, spec)
    case .topX87: return register(.x87, 0, spec)
    case .vector0: return vector(0, spec)
    case .stringSource: return register(.memory, 6, spec)
    case .stringDestination: return register(.memory, 7, spec)
    case .fixedSegment: return register(.segment, spec.number, spec)
    case .vvvvGeneral:
      guard out.encoding.vvvv < 16 else { throw .invalidOpcode }
      return register(.general, out.encoding.vvvv, spec)
    default: return try specialOperand(spec)
    }
  }

  private mutating func specialOperand(_ spec: OperandSpec) throws(DecodeError) -> Operand {
    let reg = out.encoding.modRM >> 3 & 7 | extendReg | highReg
    switch spec.method {
    case .regSegment:
      // REX.R is ignored; CS cannot be loaded.
      let number = reg & 7
      guard number < 6, !(number == 1 && spec.access.contains(.write)) else {
        throw .invalidOpcode
      }
      return register(.segment, number, spec)
    case .regControl:
      guard [0, 2, 3, 4, 8].contains(reg) else { throw .invalidOpcode }
      // AMD's LOCK MOV CR0.
      return register(.control, out.prefixes.contains(.lock) ? 8 : reg, spec)
    case .regDebug:
      guard reg < 8 else { throw .invalidOpcode }
      return register(.debug, reg, spec)
    case .regMask:
      guard reg < 8 else { throw .invalidOpcode }
      return register(.mask, reg, spec)
    case .vvvvMask:
      guard out.encoding.vvvv < 8 else { throw .invalidOpcode }
      return register(.mask, out.encoding.vvvv, spec)
    case .rmMask:
      return isMemory ? memory(spec) : register(.mask, out.encoding.modRM & 7, spec)
    default: throw .invalidOpcode
    }
  }

  private var isMemory: Bool {
    out.encoding.modRM < 0xC0 && !flags.contains(.registerOnly)
  }

  @inline(__always)
  private func register(_ kind: Operand.Kind, _ number: UInt8, _ spec: OperandSpec) -> Operand {
    Operand(kind, number: number, size: width(spec.width), access: spec.access)
  }

  /// A vector register is at least 16 bytes, however few of them the instruction uses.
  private func vector(_ number: UInt8, _ spec: OperandSpec) -> Operand {
    Operand(.vector, number: number, size: max(width(spec.width), 16), access: spec.access)
  }

  /// Without REX the byte registers 4 to 7 are AH, CH, DH and BH.
  @inline(__always)
  private func general(_ number: UInt8, _ spec: OperandSpec) -> Operand {
    let size = width(spec.width)
    let isHigh = size == 1 && number & 0xFC == 4 && rexByte == 0 && space < OpcodeSpace.vex
    let name = isHigh ? number &+ 12 : number
    return Operand(.general, number: name, size: size, access: spec.access)
  }

  private mutating func memory(_ spec: OperandSpec) -> Operand {
    var size = width(spec.width)
    if out.attributes.contains(.broadcast) {
      out.encoding.broadcastWidth = size
      size = flags.contains(.broadcast8) ? 8 : 4
    }
    var number: UInt8 = 0
    if flags.contains(.vsib) { number = out.encoding.vectorLength }
    if flags.contains(.vsibHalf) { number = max(out.encoding.vectorLength / 2, 16) }
    return Operand(.memory, number: number, size: size, access: spec.access)
  }

  /// A gather's destination, mask and index registers must differ: all of VEX, and EVEX's
  /// destination and index.
  private func checkDistinct() throws(DecodeError) {
    guard out.operands[0].kind == .vector else { return }
    let destination = out.operands[0].number
    guard destination != out.index else { throw .invalidOpcode }
    guard out.operandCount == 3 else { return }
    let mask = out.operands[2].number
    guard mask != out.index, mask != destination else { throw .invalidOpcode }
  }
}

// MARK: Immediates and widths

extension DecodeState {
  private mutating func immediate(_ spec: OperandSpec) throws(DecodeError) -> Operand {
    switch spec.method {
    case .immediate:
      out.immediate = try immediateValue(spec.width)
      let size = spec.width == .atMost4 ? out.operandSize : width(spec.width)
      return Operand(.immediate, number: 0, size: size, access: spec.access)
    case .immediate2:
      out.immediate2 = UInt16(try byte())
      return register(.immediate2, 0, spec)
    case .relative:
      out.immediate = try spec.width == .byte ? signed(Int8.self) : signedByOperandSize()
      return Operand(.relative, number: 0, size: out.operandSize, access: .read)
    case .farPointer:
      out.immediate =
        try out.operandSize == 2
        ? signed(Int16.self) & 0xFFFF : signed(Int32.self) & 0xFFFF_FFFF
      out.immediate2 = UInt16(truncatingIfNeeded: try signed(Int16.self))
      return Operand(.farPointer, number: 0, size: out.operandSize &+ 2, access: .read)
    default:
      switch out.addressSize {
      case 2: out.displacement = try signed(Int16.self) & 0xFFFF
      case 4: out.displacement = try signed(Int32.self) & 0xFFFF_FFFF
      default: out.displacement = try signed(Int64.self)
      }
      return register(.memory, 0, spec)
    }
  }

  private mutating func immediateValue(_ width: OperandWidth) throws(DecodeError) -> Int64 {
    switch width {
    case .byte: return Int64(try byte())
    case .signedByte, .extendedByte: return try signed(Int8.self)
    case .word: return try signed(Int16.self) & 0xFFFF
    case .operandSize where out.operandSize == 8: return try signed(Int64.self)
    default: return try signedByOperandSize()
    }
  }

  private mutating func signedByOperandSize() throws(DecodeError) -> Int64 {
    try out.operandSize == 2 ? signed(Int16.self) : signed(Int32.self)
  }

  /// The width in bytes; 0 if nothing is accessed or it is more than 255.
  func width(_ width: OperandWidth) -> UInt8 {
    switch width {
    case .none: 0
    case .byte, .signedByte: 1
    case .word: 2
    case .double: 4
    case .quad: 8
    case .ten: 10
    case .octo: 16
    case .double16: 32
    case .line: 64
    case .operandSize, .extendedByte: out.operandSize
    case .atMost4: min(out.operandSize, 4)
    case .atLeast4: out.operandSize == 8 && is64 ? 8 : 4
    default: derivedWidth(width)
    }
  }

  private func derivedWidth(_ width: OperandWidth) -> UInt8 {
    let vector = out.encoding.vectorLength
    switch width {
    case .vector: return vector
    case .half: return vector / 2
    case .quarter: return vector / 4
    case .eighth: return vector / 8
    case .duplicate: return vector == 16 ? 8 : vector
    case .native: return is64 ? 8 : 4
    case .addressSize: return out.addressSize
    case .table: return is64 ? 10 : 6
    case .far: return out.operandSize &+ 2
    case .pair: return out.operandSize &* 2
    case .environment: return out.operandSize == 2 ? 14 : 28
    case .state: return out.operandSize == 2 ? 94 : 108
    default: return 0
    }
  }
}
