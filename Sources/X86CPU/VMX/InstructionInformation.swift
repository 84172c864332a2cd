// SPDX-License-Identifier: Apache-2.0
//
// The VM-exit instruction-information field (SDM volume 3, "Information for VM Exits Due to
// Instruction Execution"). It depends on the instruction's bytes alone, so lowering computes it and
// leaves it in the micro-op's `immediate`, which none of these instructions uses.
//
//     t[.lgdt] = InstructionInformation.rule(.descriptorTable(identity: 2)) { ... }
//     throw c.exitWithInformation(.gdtrOrIDTRAccess, i)
//
//     bits 1:0    scaling                bits 17:15  segment register
//     bits 6:3    Reg1                   bits 21:18  index register, bit 22: none
//     bits 9:7    address size           bits 26:23  base register, bit 27: none
//     bit  10     register, not memory   bits 31:28  Reg2 or identity
//     bits 12:11  operand size (per instruction)

import X86
import X86Decoder

package enum InstructionInformation {
  package enum Format: Sendable {
    /// LGDT, LIDT, SGDT, SIDT: identity 2, 3, 0, 1.
    case descriptorTable(identity: UInt32)
    /// LLDT, LTR, SLDT, STR: identity 2, 3, 0, 1.
    case selector(identity: UInt32)
    /// VMCLEAR, VMPTRLD, VMPTRST, VMXON, XSAVES, XRSTORS.
    case memory
    /// INVEPT, INVPCID, INVVPID: register operand 0, memory operand 1.
    case invalidate
    /// VMREAD (operand 0 register or memory, operand 1 field) and VMWRITE (the other way round).
    case field
    /// RDRAND, RDSEED.
    case random
    /// INS, OUTS.
    case string
  }

  /// A rule with one handler, whose micro-op carries the information.
  package static func rule(_ format: Format, _ handler: @escaping Handler) -> LoweringRule {
    .custom { instruction, op, _ in
      op.pointee.immediate = UInt64(of(instruction, format))
      return handler
    }
  }

  /// The information that `rule` has left in a micro-op.
  package static func value(_ i: MicroOpPointer) -> UInt32 {
    UInt32(truncatingIfNeeded: i.pointee.immediate)
  }

  /// The field's value for an instruction.
  package static func of(_ i: Instruction, _ format: Format) -> UInt32 {
    switch format {
    case .descriptorTable(let identity):
      return address(i) | (i.hasWordOperandSize ? 0 : 1 << 11) | identity << 28
    case .selector(let identity):
      return place(i, 0) | identity << 28
    case .memory:
      return address(i)
    case .invalidate:
      return address(i) | UInt32(i.operands[0].number) << 28
    case .field:
      let isRead = i.mnemonic == .vmread
      return place(i, isRead ? 0 : 1) | UInt32(i.operands[isRead ? 1 : 0].number) << 28
    case .random:
      let size: UInt32 = i.operandSize == 8 ? 2 : i.operandSize == 4 ? 1 : 0
      return UInt32(i.operands[0].number) << 3 | size << 11
    case .string:
      return addressSize(i) | UInt32(i.segment.rawValue) << 15
    }
  }

  /// An operand that is a register (Reg1) or memory.
  private static func place(_ i: Instruction, _ operand: Int) -> UInt32 {
    if i.operands[operand].kind == .memory { return address(i) }
    return UInt32(i.operands[operand].number & 15) << 3 | 1 << 10
  }

  private static func addressSize(_ i: Instruction) -> UInt32 {
    (i.addressSize == 8 ? 2 : i.addressSize == 4 ? 1 : 0) << 7
  }

  private static func address(_ i: Instruction) -> UInt32 {
    var value = addressSize(i) | UInt32(i.segment.rawValue) << 15
    if i.index == Instruction.noRegister {
      value |= 1 << 22
    } else {
      value |= UInt32(i.scale & 3) | UInt32(i.index & 15) << 18
    }
    let hasBase = i.base != Instruction.noRegister && i.base != Instruction.ripRegister
    return value | (hasBase ? UInt32(i.base & 15) << 23 : 1 << 27)
  }
}

extension Instruction {
  /// The operand-size attribute is 16 bits, whatever the operands' own sizes (LGDT, LIDT).
  package var hasWordOperandSize: Bool {
    mode != .bits64 && (mode == .bits16) != prefixes.contains(.operandSize)
  }
}
