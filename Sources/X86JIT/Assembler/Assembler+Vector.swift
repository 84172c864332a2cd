// SPDX-License-Identifier: Apache-2.0
//
// Moves of whole vector and mask registers between the host's registers and the state, and a test
// of a byte in memory.

import X86CPU

extension Assembler {
  package enum Direction: UInt8, Sendable { case load = 0, store = 1 }

  /// VMOVUPS of 16, 32 or 64 bytes between a register and a field of the CPUState. Registers from
  /// 16 on, and 64 bytes, are encoded by EVEX.
  package mutating func vectorMove(
    _ number: UInt8, width: UInt8, _ direction: Direction, offset: Int
  ) {
    let displacement = offset &- Place.stateBias
    let high = number >> 3 & 1
    if width == 64 || number >= 16 {
      let length: UInt8 = width == 64 ? 2 : width == 32 ? 1 : 0
      emit(0x62, 0x61 | (high ^ 1) << 7 | (number >> 4 ^ 1) << 4, 0x7C, 0x08 | length << 5)
      byte(0x10 | direction.rawValue)
      stackOperand(number, displacement, unit: Int(width))
      return
    }
    emit(0xC5, 0x78 | (high ^ 1) << 7 | (width == 32 ? 4 : 0), 0x10 | direction.rawValue)
    stackOperand(number, displacement, unit: 1)
  }

  /// VZEROUPPER.
  package mutating func zeroUpper() { emit(0xC5, 0xF8, 0x77) }

  /// KMOVQ, or KMOVW where the host has no wide masks.
  package mutating func maskMove(
    _ number: UInt8, wide: Bool, _ direction: Direction, offset: Int
  ) {
    emit(0xC4, 0xE1, wide ? 0xF8 : 0x78, 0x90 | direction.rawValue)
    stackOperand(number, offset &- Place.stateBias, unit: 1)
  }

  /// ModRM, SIB and displacement of [RSP + displacement], in units that a short one counts in.
  private mutating func stackOperand(_ register: UInt8, _ displacement: Int, unit: Int) {
    let scaled = displacement / unit
    if displacement % unit == 0 && scaled >= -128 && scaled <= 127 {
      emit(0x44 | (register & 7) << 3, 0x24)
      byte(UInt8(truncatingIfNeeded: scaled))
    } else {
      emit(0x84 | (register & 7) << 3, 0x24)
      int32(Int32(truncatingIfNeeded: displacement))
    }
  }

  package mutating func testByte(_ place: Place, _ mask: UInt8) {
    var form = Form(0xF6)
    form.forceREX = place.register != nil
    emit(form, reg: 0, rm: place)
    byte(mask)
  }
}
