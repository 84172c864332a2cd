// SPDX-License-Identifier: Apache-2.0
//
// ModRM, SIB and displacement of a memory operand.

import X86

extension DecodeState {
  mutating func readAddress() throws(DecodeError) {
    setDisplacementUnit()
    if out.addressSize == 2 {
      // "VSIB addressing needs a SIB byte, which 16-bit addressing has not": #UD.
      guard flags.isDisjoint(with: [.vsib, .vsibHalf]) else { throw .invalidOpcode }
      try readAddress16()
    } else {
      try readAddress32()
    }
  }

  /// "Compressed displacement (disp8*N) support in EVEX": N is the size of the access, or of one
  /// element of it.
  private mutating func setDisplacementUnit() {
    guard space >= OpcodeSpace.evex else { return }
    let explicit = UInt8(truncatingIfNeeded: flags.rawValue >> RowFlags.displacementShift)
    if explicit != 0 {
      displacementUnit = explicit
    } else if out.attributes.contains(.broadcast) {
      displacementUnit = flags.contains(.broadcast8) ? 8 : 4
    } else {
      displacementUnit = memoryWidth()
    }
  }

  private func memoryWidth() -> UInt8 {
    let operands = unsafe row.pointee.operands
    if operands.0.method.isRM { return width(operands.0.width) }
    if operands.1.method.isRM { return width(operands.1.width) }
    if operands.2.method.isRM { return width(operands.2.width) }
    return width(operands.3.width)
  }

  private mutating func readAddress16() throws(DecodeError) {
    let modRM = out.encoding.modRM
    let mod = modRM >> 6
    let rm = modRM & 7
    // bx+si, bx+di, bp+si, bp+di, si, di, bp, bx as nibbles.
    let bases: UInt32 = 0x3576_5533
    let indexes: UInt32 = 0xFFFF_7676
    out.base = UInt8(truncatingIfNeeded: bases >> (UInt32(rm) &* 4) & 0xF)
    let index = UInt8(truncatingIfNeeded: indexes >> (UInt32(rm) &* 4) & 0xF)
    if index != 0xF { out.index = index }
    if mod == 0 && rm == 6 {
      out.base = Instruction.noRegister
      out.displacement = try signed(Int16.self)
    } else if mod == 1 {
      out.displacement = try signed(Int8.self) &* Int64(displacementUnit)
    } else if mod == 2 {
      out.displacement = try signed(Int16.self)
    }
    if out.base == 5 && !overridden { out.segment = .ss }
  }

  private mutating func readAddress32() throws(DecodeError) {
    let mod = out.encoding.modRM >> 6
    let rm = out.encoding.modRM & 7
    var noBase = false
    if rm == 4 {
      noBase = try readSIB(mod: mod)
    } else {
      guard flags.isDisjoint(with: [.vsib, .vsibHalf]) else { throw .invalidOpcode }
      out.base = rm | extendBase
      if mod == 0 && rm == 5 {
        noBase = true
        out.base = is64 ? Instruction.ripRegister : Instruction.noRegister
      }
    }
    if mod == 1 {
      out.displacement = try signed(Int8.self) &* Int64(displacementUnit)
    } else if mod == 2 || noBase {
      out.displacement = try signed(Int32.self)
    }
    if (out.base == 4 || out.base == 5) && !overridden { out.segment = .ss }
  }

  /// Returns whether a 32-bit displacement replaces the base.
  private mutating func readSIB(mod: UInt8) throws(DecodeError) -> Bool {
    let sib = try byte()
    out.scale = sib >> 6
    let index = sib >> 3 & 7 | extendIndex
    if !flags.isDisjoint(with: [.vsib, .vsibHalf]) {
      out.index = index | highIndex
    } else if index != 4 {
      out.index = index
    }
    if sib & 7 == 5 && mod == 0 { return true }
    out.base = sib & 7 | extendBase
    return false
  }
}
