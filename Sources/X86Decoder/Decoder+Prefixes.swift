// SPDX-License-Identifier: Apache-2.0
//
// Prefixes and opcode bytes: everything before ModRM.

import X86

extension DecodeState {
  /// Legacy prefixes and REX. The last of F2 and F3, and of the segment overrides, counts; a REX
  /// byte counts only right before the opcode.
  mutating func readPrefixes() throws(DecodeError) {
    while true {
      let byte = try peek()
      switch byte {
      case 0x66: out.prefixes.insert(.operandSize)
      case 0x67: out.prefixes.insert(.addressSize)
      case 0xF0: out.prefixes.insert(.lock)
      case 0xF2: setRepeat(.repne)
      case 0xF3: setRepeat(.rep)
      case 0x26: override(.es)
      case 0x2E: override(.cs)
      case 0x36: override(.ss)
      case 0x3E: override(.ds)
      case 0x64: override(.fs)
      case 0x65: override(.gs)
      case 0x40...0x4F where is64:
        rexByte = byte
        position &+= 1
        continue
      default:
        finishPrefixes()
        return
      }
      rexByte = 0
      position &+= 1
    }
  }

  private mutating func setRepeat(_ prefix: Instruction.Prefixes) {
    out.prefixes.remove([.rep, .repne])
    out.prefixes.insert(prefix)
  }

  /// In 64-bit mode the overrides of segments without a base are ignored.
  private mutating func override(_ segment: SegmentRegister) {
    out.prefixes.insert(.segmentOverride)
    if is64 && segment != .fs && segment != .gs { return }
    out.segment = segment
    overridden = true
  }

  private mutating func finishPrefixes() {
    out.encoding.prefixLength = UInt8(truncatingIfNeeded: position)
    if rexByte != 0 {
      out.encoding.prefixLength &-= 1
      out.encoding.rex = rexByte
      out.prefixes.insert(.rex)
      w = rexByte & 8 != 0
      if w { out.prefixes.insert(.rexW) }
      extendReg = (rexByte & 4) << 1
      extendIndex = (rexByte & 2) << 2
      extendBase = (rexByte & 1) << 3
    }
    if out.prefixes.contains(.rep) {
      mandatory = 2
    } else if out.prefixes.contains(.repne) {
      mandatory = 3
    } else if out.prefixes.contains(.operandSize) {
      mandatory = 1
    }
    let narrow = out.prefixes.contains(.addressSize)
    switch out.mode {
    case .bits16: out.addressSize = narrow ? 4 : 2
    case .bits32: out.addressSize = narrow ? 2 : 4
    case .bits64: out.addressSize = narrow ? 4 : 8
    }
  }

  /// The opcode byte after its escapes. VEX and EVEX begin with opcodes of other instructions,
  /// which outside 64-bit mode they still are with a memory operand.
  mutating func readOpcode() throws(DecodeError) {
    let first = try byte()
    switch first {
    case 0x0F: try readEscape()
    case 0xC5 where try isVEX(): try readVEX2()
    case 0xC4 where try isVEX(): try readVEX3()
    case 0x62 where try isVEX(): try readEVEX()
    default:
      opcode = first
      out.encoding.opcodeOffset = UInt8(truncatingIfNeeded: position &- 1)
      out.encoding.opcode = first
    }
  }

  private func isVEX() throws(DecodeError) -> Bool {
    if is64 { return true }
    return try peek() >= 0xC0
  }

  private mutating func readEscape() throws(DecodeError) {
    opcode = try byte()
    space = 1
    if opcode == 0x38 || opcode == 0x3A {
      space = opcode == 0x38 ? 2 : 3
      opcode = try byte()
    }
    finishOpcode(map: space)
  }

  private mutating func finishOpcode(map: Int) {
    out.encoding.opcodeOffset = UInt8(truncatingIfNeeded: position &- 1)
    out.encoding.opcode = opcode
    out.encoding.map = Instruction.Encoding.Map(rawValue: UInt8(truncatingIfNeeded: map)) ?? .map0F
  }
}

// MARK: VEX and EVEX

extension DecodeState {
  /// "#UD: any VEX-encoded instruction with a LOCK, 66H, F2H, F3H or REX prefix."
  private mutating func beginVEX() throws(DecodeError) {
    let forbidden: Instruction.Prefixes = [.operandSize, .lock, .rep, .repne, .rex]
    guard out.prefixes.isDisjoint(with: forbidden) else { throw .invalidOpcode }
    out.attributes.insert(.avx)
    out.encoding.prefixLength = UInt8(truncatingIfNeeded: position &- 1)
  }

  private mutating func readVEX2() throws(DecodeError) {
    try beginVEX()
    let payload = try byte()
    out.prefixes.insert(.vex)
    try finishVEX(map: 1, extensions: ~payload >> 5 & 4, payload: payload & 0x7F)
  }

  private mutating func readVEX3() throws(DecodeError) {
    try beginVEX()
    let first = try byte()
    let payload = try byte()
    let map = Int(first & 0x1F)
    guard map >= 1 && map <= 3 else { throw .invalidOpcode }
    out.prefixes.insert(.vex)
    try finishVEX(map: map, extensions: ~first >> 5, payload: payload)
  }

  /// `extensions`: R, X, B as bits 2, 1, 0; `payload`: W vvvv L pp.
  private mutating func finishVEX(
    map: Int, extensions: UInt8, payload: UInt8
  ) throws(DecodeError) {
    space = OpcodeSpace.vex &+ map
    setVector(extensions: extensions, payload: payload)
    vectorBits = UInt32(payload >> 2 & 1)
    out.encoding.vectorLength = 16 << UInt8(truncatingIfNeeded: vectorBits)
    opcode = try byte()
    finishOpcode(map: map)
  }

  /// The common part of VEX and EVEX: W, vvvv, pp and the register extensions.
  private mutating func setVector(extensions: UInt8, payload: UInt8) {
    out.encoding.vexW = payload & 0x80 != 0
    w = out.encoding.vexW
    mandatory = Int(payload & 3)
    out.encoding.vvvv = ~payload >> 3 & 0xF
    unusedVVVV = out.encoding.vvvv
    guard is64 else {
      out.encoding.vvvv &= 7
      return
    }
    out.encoding.rex = extensions | (w ? 8 : 0)
    extendReg = (extensions & 4) << 1
    extendIndex = (extensions & 2) << 2
    extendBase = (extensions & 1) << 3
  }

  private mutating func readEVEX() throws(DecodeError) {
    try beginVEX()
    let first = try byte()
    let second = try byte()
    let third = try byte()
    let map = Int(first & 7)
    guard first & 8 == 0, second & 4 != 0, map >= 1 && map <= 3 else { throw .invalidOpcode }
    out.prefixes.insert(.evex)
    space = OpcodeSpace.evex &+ map
    setVector(extensions: ~first >> 5, payload: second)
    vectorBits = UInt32(third >> 5 & 3)
    out.encoding.evexMask = third & 7
    out.encoding.evexZeroing = third & 0x80 != 0
    out.encoding.evexB = third & 0x10 != 0
    let highVector = ~third << 1 & 0x10
    if is64 {
      highReg = ~first & 0x10
      highRM = (extendIndex & 8) << 1
      highIndex = highVector
      out.encoding.vvvv |= highVector
      out.encoding.rex |= highReg | highVector << 1
    } else if highVector != 0 {
      throw .invalidOpcode
    }
    out.encoding.vectorLength = 16 << UInt8(truncatingIfNeeded: min(vectorBits, 2))
    opcode = try byte()
    finishOpcode(map: map)
  }
}
