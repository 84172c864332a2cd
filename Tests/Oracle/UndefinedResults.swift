// SPDX-License-Identifier: Apache-2.0
//
// What the manuals leave undefined, and so is not compared: flags by mnemonic and operands (SDM
// volume 2, "Flags Affected" of each instruction). Everything that is not listed here is compared.

import X86
import X86Decoder

package enum UndefinedResults {
  private static let cf = RFLAGS.cf.rawValue
  private static let pf = RFLAGS.pf.rawValue
  private static let af = RFLAGS.af.rawValue
  private static let zf = RFLAGS.zf.rawValue
  private static let sf = RFLAGS.sf.rawValue
  private static let of = RFLAGS.of.rawValue

  /// Flags that are undefined after every execution.
  package static let always: [Mnemonic: UInt64] = [
    .and: af, .or: af, .xor: af, .test: af,
    .mul: sf | zf | af | pf, .imul: sf | zf | af | pf,
    .div: cf | of | sf | zf | af | pf, .idiv: cf | of | sf | zf | af | pf,
    .bt: of | sf | af | pf, .bts: of | sf | af | pf, .btr: of | sf | af | pf,
    .btc: of | sf | af | pf,
    .bsf: cf | of | sf | af | pf, .bsr: cf | of | sf | af | pf,
    .lzcnt: of | sf | af | pf, .tzcnt: of | sf | af | pf,
    .andn: af | pf, .bextr: af | sf | pf, .blsi: af | pf, .blsmsk: af | pf, .blsr: af | pf,
    .bzhi: af | pf,
  ]

  /// Flags that the instruction leaves undefined from this state.
  package static func flags(_ i: Instruction, _ r: Registers) -> UInt64 {
    if let mask = always[i.mnemonic] { return mask }
    let bits = UInt64(i.operandSize) * 8
    switch i.mnemonic {
    case .rol, .ror, .rcl, .rcr:
      // "The OF flag is defined only for the 1-bit rotates".
      let count = shiftCount(i, r)
      return count == 1 || count == 0 ? 0 : of
    case .shl, .shr, .sar:
      let count = shiftCount(i, r)
      if count == 0 { return 0 }
      // "The CF flag ... is undefined for SHL and SHR instructions where the count is greater
      // than or equal to the size (in bits) of the destination operand."
      let carry = i.mnemonic != .sar && count >= bits ? cf : 0
      return af | carry | (count == 1 ? 0 : of)
    case .shld, .shrd:
      let count = shiftCount(i, r)
      if count == 0 { return 0 }
      if count > bits { return RFLAGS.arithmetic.rawValue }
      return af | (count == 1 ? 0 : of)
    default: return 0
    }
  }

  /// Whether the destination is undefined: SHLD and SHRD by more than its size.
  package static func isDestinationUndefined(_ i: Instruction, _ r: Registers) -> Bool {
    (i.mnemonic == .shld || i.mnemonic == .shrd) && shiftCount(i, r) > UInt64(i.operandSize) * 8
  }

  private static func shiftCount(_ i: Instruction, _ r: Registers) -> UInt64 {
    let last = i.operands[Int(i.operandCount) - 1]
    let count = last.kind == .general ? r.gpr[1] : UInt64(bitPattern: i.immediate)
    return count & (i.operandSize == 8 ? 63 : 31)
  }
}
