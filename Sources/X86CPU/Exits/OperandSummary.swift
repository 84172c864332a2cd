// SPDX-License-Identifier: Apache-2.0
//
// An instruction's operands in one word, for exits that report them. It depends only on the
// instruction's bytes, so lowering stores it in the micro-op's `immediate`, which these
// instructions do not use.
//
//     t[.lgdt] = OperandSummary.rule { ... }
//     throw c.exitWithOperands(.lgdt, i)
//
//     1:0 scale   6:3 r/m register   9:7 address size   10 r/m is a register   12:11 operand size
//     17:15 segment   21:18 index   22 no index   26:23 base   27 no base   31:28 reg register

import X86
import X86Decoder

package struct OperandSummary: RawRepresentable, Hashable, Sendable {
  package var rawValue: UInt32
  @inline(__always) package init(rawValue: UInt32) { self.rawValue = rawValue }
  @inline(__always) package init() { rawValue = 0 }

  private static let isRegister: UInt32 = 1 << 10
  private static let noIndex: UInt32 = 1 << 22
  private static let noBase: UInt32 = 1 << 27

  package init(_ i: Instruction) {
    let place = i.memoryOperand ?? (i.mnemonic == .vmwrite ? 1 : 0)
    let other = place == 0 ? 1 : 0
    var value = Self.sizeCode(i.addressSize) << 7
    // LGDT and its kin have a fixed operand size; the field reports the attribute.
    let isTable = [.sgdt, .sidt, .lgdt, .lidt].contains(i.mnemonic)
    value |= (isTable ? (i.hasWordOperandSize ? 0 : 1) : Self.sizeCode(i.operandSize)) << 11
    value |= UInt32(i.segment.rawValue & 7) << 15
    if i.memoryOperand == nil {
      if i.operandCount > place { value |= UInt32(i.operands[place].number & 15) << 3 }
      value |= Self.isRegister
    } else {
      let isThere = i.index != Instruction.noRegister
      value |= isThere ? UInt32(i.scale & 3) | UInt32(i.index & 15) << 18 : Self.noIndex
      let hasBase = i.base != Instruction.noRegister && i.base != Instruction.ripRegister
      value |= hasBase ? UInt32(i.base & 15) << 23 : Self.noBase
    }
    if i.operandCount > other, i.operands[other].kind == .general {
      value |= UInt32(i.operands[other].number & 15) << 28
    }
    rawValue = value
  }

  /// 0, 1, 2 for 16, 32, 64 bits.
  private static func sizeCode(_ bytes: UInt8) -> UInt32 { bytes == 8 ? 2 : bytes == 4 ? 1 : 0 }

  // MARK: Parts

  package static let addressSizeMask: UInt32 = 7 << 7
  package static let operandSizeMask: UInt32 = 3 << 11
  package static let segmentMask: UInt32 = 7 << 15
  /// Scale, address size, segment, index, base.
  package static let memoryMask: UInt32 = 0x0FFF_8383
  package static let registerMask: UInt32 = 0xF << 3
  /// A register as r/m operand, and the bit that says so.
  package static let placeMask = registerMask | isRegister

  @inline(__always) package var isRegister: Bool { rawValue & Self.isRegister != 0 }
  /// The r/m operand's register.
  package var register: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 3 & 15) }
  /// The reg operand's register.
  package var otherRegister: UInt32 { rawValue >> 28 }
  /// 2, 4 or 8 bytes.
  package var addressSize: UInt8 { 2 << UInt8(truncatingIfNeeded: rawValue >> 7 & 3) }
  package var segment: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 15 & 7) }
  /// Of the memory operand; nil where it has none.
  var base: Int? {
    rawValue & Self.noBase != 0 ? nil : Int(truncatingIfNeeded: rawValue >> 23 & 15)
  }
  var index: Int? {
    rawValue & Self.noIndex != 0 ? nil : Int(truncatingIfNeeded: rawValue >> 18 & 15)
  }
  /// By which the index is shifted.
  var scale: UInt64 { UInt64(rawValue & 3) }

  // MARK: Lowering

  /// A rule with one handler, whose micro-op carries the summary.
  package static func rule(_ handler: @escaping Handler) -> LoweringRule {
    .custom { instruction, op, _ in
      op.pointee.immediate = UInt64(OperandSummary(instruction).rawValue)
      return handler
    }
  }

  /// The summary that lowering stored in a micro-op.
  @inline(__always) package init(of i: MicroOpPointer) {
    rawValue = UInt32(truncatingIfNeeded: i.pointee.immediate)
  }
}

extension CPU {
  /// Of the memory operand of an instruction that exited.
  ///
  /// - Parameter displacement: as the exit's record has it.
  func linearAddress(_ operands: OperandSummary, displacement: UInt64) -> UInt64 {
    let offset = offset(operands, displacement: displacement)
    let segment = SegmentRegister(rawValue: operands.segment) ?? .ds
    let linear =
      is64Bit && segment != .fs && segment != .gs
      ? offset : self.segment(segment).pointee.base &+ offset
    return is64Bit ? linear : linear & 0xFFFF_FFFF
  }
}

extension CPU {
  /// The memory operand's offset in its segment.
  func offset(_ operands: OperandSummary, displacement: UInt64) -> UInt64 {
    var offset = displacement
    if let base = operands.base { offset &+= gpr[base] }
    if let index = operands.index { offset &+= gpr[index] &<< operands.scale }
    switch operands.addressSize {
    case 2: offset &= 0xFFFF
    case 4: offset &= 0xFFFF_FFFF
    default: break
    }
    return offset
  }
}

extension Instruction {
  /// The operand-size attribute is 16 bits, whatever the operands' own sizes (LGDT, LIDT).
  package var hasWordOperandSize: Bool {
    mode != .bits64 && (mode == .bits16) != prefixes.contains(.operandSize)
  }
}
