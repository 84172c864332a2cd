// SPDX-License-Identifier: Apache-2.0
//
// Selects the row of the opcode table, and checks the rules for the whole instruction.

import X86

extension DecodeState {
  /// Finds the row, sets all that it determines except the operands, and reads ModRM with its SIB
  /// and displacement. Leaves the row in `row`.
  mutating func readRow() throws(DecodeError) {
    let table = OpcodeTable.shared
    let index = OpcodeTable.headIndex(space: space, opcode: opcode, prefix: mandatory)
    var head = unsafe table.heads[index]
    guard head.count != 0 || head.flags & OpcodeHead.group != 0 else { throw .invalidOpcode }
    var state = conditionState()
    if head.flags & OpcodeHead.hasModRM != 0 {
      let modRM = try byte()
      out.encoding.hasModRM = true
      out.encoding.modRM = modRM
      state |= UInt32(modRM)
      if modRM >= 0xC0 { state |= Condition.register }
    }
    if head.flags & OpcodeHead.group != 0 {
      let form: Int = state & Condition.register != 0 ? 8 : 0
      head = unsafe table.heads[Int(head.start) &+ form &+ Int(state >> 3 & 7)]
    }
    var entry = unsafe table.lists + Int(head.start)
    let end = unsafe entry + Int(head.count)
    while unsafe entry < end {
      let row = unsafe table.rows + Int(entry.pointee)
      if unsafe (state ^ row.pointee.condition) & row.pointee.conditionMask == 0 {
        return try unsafe apply(row)
      }
      unsafe entry += 1
    }
    throw .invalidOpcode
  }

  private mutating func conditionState() -> UInt32 {
    var size: UInt32 = (out.mode == .bits16) == out.prefixes.contains(.operandSize) ? 1 : 0
    var state = vectorBits << Condition.lengthShift
    if is64 {
      state |= Condition.mode64
      if extendBase != 0 { state |= Condition.rexB }
      if w && space < OpcodeSpace.vex { size = 2 }
    }
    if w { state |= Condition.w }
    return state | size << Condition.sizeShift
  }

  private mutating func apply(_ row: UnsafePointer<OpcodeRow>) throws(DecodeError) {
    unsafe self.row = row
    flags = unsafe row.pointee.flags
    out.mnemonic = unsafe row.pointee.mnemonic
    out.feature = unsafe row.pointee.feature
    unsafe out.attributes.formUnion(row.pointee.attributes)
    out.flagsRead = unsafe row.pointee.flagsRead
    out.flagsWritten = unsafe row.pointee.flagsWritten
    out.encoding.mandatoryPrefix = UInt8(truncatingIfNeeded: mandatory)
    out.encoding.lengthBits = UInt8(truncatingIfNeeded: vectorBits)
    setOperandSize()
    if space >= OpcodeSpace.vex { try checkVEX() } else { out.encoding.vectorLength = 16 }
    if out.encoding.hasModRM {
      let isMemory = out.encoding.modRM < 0xC0 && !flags.contains(.registerOnly)
      if space >= OpcodeSpace.evex { try checkEVEX(isMemory: isMemory) }
      if isMemory { try readAddress() }
    }
    if out.prefixes.contains(.lock) { try checkLock() }
  }

  /// Effective operand size: the mode's, then 66, then REX.W, then the row's rule.
  private mutating func setOperandSize() {
    var size: UInt8 = (out.mode == .bits16) == out.prefixes.contains(.operandSize) ? 4 : 2
    if is64 {
      if w {
        size = 8
      } else if flags.contains(.default64) {
        size = out.prefixes.contains(.operandSize) ? 2 : 8
      }
      if flags.contains(.force64) { size = 8 }
    }
    if flags.contains(.native) { size = is64 ? 8 : 4 }
    if flags.contains(.atMost4) && size == 8 { size = 4 }
    if flags.contains(.byteSize) { size = 1 }
    out.operandSize = size
  }

  /// LOCK needs a row that allows it and memory as the destination.
  private func checkLock() throws(DecodeError) {
    // AMD's other encoding of CR8; execution checks whether the processor has it.
    let encoding = out.encoding
    let isCR0 = encoding.modRM >> 3 & 7 == 0 && encoding.rex & 4 == 0
    if out.mnemonic == .movControl && isCR0 { return }
    let isMemory = out.encoding.hasModRM && out.encoding.modRM < 0xC0
    guard out.attributes.contains(.lockable), isMemory else { throw .invalidOpcode }
  }

  private mutating func checkVEX() throws(DecodeError) {
    if !flags.contains(.usesVVVV) {
      // With a vector index V' belongs to the index.
      let ownsHigh = flags.isDisjoint(with: [.vsib, .vsibHalf])
      guard unusedVVVV == 0, !ownsHigh || out.encoding.vvvv & 0x10 == 0 else {
        throw .invalidOpcode
      }
    }
    if flags.contains(.scalar) { out.encoding.vectorLength = 16 }
    if flags.contains(.integer256) && out.encoding.vectorLength == 32 { out.feature = .avx2 }
  }

  private mutating func checkEVEX(isMemory: Bool) throws(DecodeError) {
    let encoding = out.encoding
    if encoding.evexMask == 0 {
      guard !flags.contains(.maskRequired), !encoding.evexZeroing else { throw .invalidOpcode }
    } else {
      guard flags.contains(.mask) else { throw .invalidOpcode }
    }
    if encoding.evexZeroing {
      let stores = unsafe isMemory && row.pointee.operands.0.method.isRM
      guard flags.contains(.zeroing), !stores else { throw .invalidOpcode }
    }
    if encoding.evexB {
      if isMemory {
        guard !flags.isDisjoint(with: [.broadcast4, .broadcast8]) else { throw .invalidOpcode }
        out.attributes.insert(.broadcast)
      } else if flags.contains(.rounding) {
        out.attributes.insert([.embeddedRounding, .suppressExceptions])
      } else if flags.contains(.suppress) {
        out.attributes.insert(.suppressExceptions)
      } else {
        throw .invalidOpcode
      }
    }
    try setEVEXLength(isMemory: isMemory)
  }

  /// L'L is the vector length, unless the b bit with registers makes it the rounding mode.
  private mutating func setEVEXLength(isMemory: Bool) throws(DecodeError) {
    if out.encoding.evexB && !isMemory {
      out.encoding.vectorLength = flags.contains(.scalar) ? 16 : 64
      return
    }
    guard vectorBits != 3, !(vectorBits == 0 && flags.contains(.not128)) else {
      throw .invalidOpcode
    }
    if flags.contains(.scalar) {
      out.encoding.vectorLength = 16
    } else if out.encoding.vectorLength < 64 {
      out.attributes.insert(.vectorLength)
    }
  }
}

extension OperandMethod {
  /// Whether the operand is in ModRM.rm.
  var isRM: Bool {
    switch self {
    case .rmGeneral, .rmVector, .rmMMX, .rmMask, .memory: true
    default: false
    }
  }
}
