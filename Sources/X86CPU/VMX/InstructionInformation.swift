// SPDX-License-Identifier: Apache-2.0
//
// The VM-exit instruction-information field (SDM volume 3, "Information for VM Exits Due to
// Instruction Execution"). Which operands it reports depends on the instruction.
//
//     bits 1:0    scaling                bits 17:15  segment register
//     bits 6:3    Reg1                   bits 21:18  index register, bit 22: none
//     bits 9:7    address size           bits 26:23  base register, bit 27: none
//     bit  10     register, not memory   bits 31:28  Reg2 or identity
//     bits 12:11  operand size (per instruction)
//
// The parts in common with `OperandSummary` have the same bit positions.

import X86

enum InstructionInformation {
  static func of(_ operands: OperandSummary, _ cause: ExitCause) -> UInt32 {
    let memory = operands.rawValue & OperandSummary.memoryMask
    switch cause {
    case .sgdt: return table(operands, identity: 0)
    case .sidt: return table(operands, identity: 1)
    case .lgdt: return table(operands, identity: 2)
    case .lidt: return table(operands, identity: 3)
    case .sldt: return place(operands)
    case .str: return place(operands) | 1 << 28
    case .lldt: return place(operands) | 2 << 28
    case .ltr: return place(operands) | 3 << 28
    case .invept, .invpcid, .invvpid: return memory | operands.otherRegister << 28
    case .vmread, .vmwrite: return place(operands) | operands.otherRegister << 28
    case .rdrand, .rdseed:
      return operands.rawValue & (OperandSummary.registerMask | OperandSummary.operandSizeMask)
    case .vmclear, .vmptrld, .vmptrst, .vmxon, .xsaves, .xrstors: return memory
    case .ioInstruction:
      return operands.rawValue & (OperandSummary.addressSizeMask | OperandSummary.segmentMask)
    default: return 0
    }
  }

  private static func table(_ operands: OperandSummary, identity: UInt32) -> UInt32 {
    let kept = OperandSummary.memoryMask | OperandSummary.operandSizeMask
    return operands.rawValue & kept | identity << 28
  }

  /// A register operand (Reg1) or memory.
  private static func place(_ operands: OperandSummary) -> UInt32 {
    operands.rawValue
      & (operands.isRegister ? OperandSummary.placeMask : OperandSummary.memoryMask)
  }
}
