// SPDX-License-Identifier: Apache-2.0
//
// Which arithmetic flags are undefined where, along the instructions of a block: undefined flags
// may differ between executors, so nobody in a block may look at them, and they are not compared at
// its end. What is undefined after one instruction is in `UndefinedResults`; here is what passes
// through.

import X86
import X86Decoder

enum FlagFlow {
  static let all = RFLAGS.arithmetic.rawValue
  private static let cf = RFLAGS.cf.rawValue
  private static let pf = RFLAGS.pf.rawValue
  private static let zf = RFLAGS.zf.rawValue
  private static let sf = RFLAGS.sf.rawValue
  private static let of = RFLAGS.of.rawValue

  /// Flags whose values the instruction depends on.
  static func reads(_ i: Instruction) -> UInt64 {
    if let condition = condition(i) { return flags(condition) }
    switch i.mnemonic {
    case .adc, .sbb, .rcl, .rcr, .cmc, .adcx: return cf
    case .adox: return of
    case .lahf: return all & ~of
    case .loope, .loopne: return zf
    case .fcmovb, .fcmovnb: return cf
    case .fcmove, .fcmovne: return zf
    case .fcmovbe, .fcmovnbe: return cf | zf
    case .fcmovu, .fcmovnu: return pf
    default: return i.attributes.contains(.readsFlags) ? all : 0
    }
  }

  /// Flags that are undefined after the instruction, where `before` were before it.
  static func undefined(after i: Instruction, _ before: UInt64) -> UInt64 {
    if isShift(i) { return shifted(i, before) }
    return before & kept(i) | UndefinedResults.always[i.mnemonic, default: 0]
  }

  /// Flags that keep their values, or may.
  private static func kept(_ i: Instruction) -> UInt64 {
    switch i.mnemonic {
    case .add, .sub, .cmp, .and, .or, .xor, .test, .adc, .sbb, .neg, .xadd, .cmpxchg, .popcnt, .mul,
      .imul, .div, .idiv, .andn, .blsi, .blsr, .blsmsk, .bzhi, .bextr, .bsf, .bsr, .tzcnt, .lzcnt,
      .comiss, .comisd, .ucomiss, .ucomisd, .vcomiss, .vcomisd, .vucomiss, .vucomisd, .ptest,
      .vptest, .vtestps, .vtestpd, .kortestb, .kortestw, .kortestd, .kortestq, .ktestb, .ktestw,
      .ktestd, .ktestq:
      return 0
    case .inc, .dec: return cf
    case .stc, .clc, .cmc, .adcx: return all & ~cf
    case .adox: return all & ~of
    case .bt, .bts, .btr, .btc: return all & ~cf
    case .sahf: return of
    case .fcomi, .fcomip, .fucomi, .fucomip: return all & ~(cf | pf | zf)
    // String compares may make no iteration.
    default: return all
    }
  }

  // MARK: Shifts

  private static func isShift(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .rol, .ror, .rcl, .rcr, .shl, .shr, .sar, .shld, .shrd: true
    default: false
    }
  }

  private static func shifted(_ i: Instruction, _ before: UInt64) -> UInt64 {
    let last = i.operands[Int(i.operandCount) - 1]
    var registers = Registers()
    if last.kind == .general {
      // By CL: 0 keeps all flags, and 31 leaves as many undefined as any other count.
      registers.gpr[1] = 31
      return before | UndefinedResults.flags(i, registers)
    }
    let isOne = i.encoding.immediateLength == 0
    let count = isOne ? 1 : UInt64(bitPattern: i.immediate) & (i.operandSize == 8 ? 63 : 31)
    if count == 0 { return before }
    switch i.mnemonic {
    case .rol, .ror, .rcl, .rcr: return before & ~(cf | of) | (count == 1 ? 0 : of)
    default: return UndefinedResults.flags(i, registers)
    }
  }

  // MARK: Conditions

  /// The condition of Jcc, SETcc and CMOVcc as encoded.
  private static func condition(_ i: Instruction) -> UInt8? {
    for first in [Mnemonic.jo, .seto, .cmovo] {
      let number = i.mnemonic.rawValue &- first.rawValue
      if number < 16 { return UInt8(number) }
    }
    return nil
  }

  private static func flags(_ condition: UInt8) -> UInt64 {
    switch condition >> 1 {
    case 0: of
    case 1: cf
    case 2: zf
    case 3: cf | zf
    case 4: sf
    case 5: pf
    case 6: sf | of
    default: zf | sf | of
    }
  }
}
