// SPDX-License-Identifier: Apache-2.0
//
// Which arithmetic flags an instruction reads and writes. `writes` are those that it certainly
// gives a value that does not depend on the old one; `touches` says that it changes the host's
// flags at all. Flags that the manuals leave undefined count as written, except where processors
// keep them.

import X86CPU
import X86Decoder

struct FlagSet: OptionSet {
  var rawValue: UInt8
  static let cf = Self(rawValue: 1)
  static let pf = Self(rawValue: 2)
  static let af = Self(rawValue: 4)
  static let zf = Self(rawValue: 8)
  static let sf = Self(rawValue: 16)
  static let of = Self(rawValue: 32)
  static let all = Self(rawValue: 63)

  /// What a condition (0 to 15 as encoded) looks at.
  init(condition: UInt8) {
    switch condition >> 1 {
    case 0: self = .of
    case 1: self = .cf
    case 2: self = .zf
    case 3: self = [.cf, .zf]
    case 4: self = .sf
    case 5: self = .pf
    case 6: self = [.sf, .of]
    default: self = [.zf, .sf, .of]
    }
  }

  init(rawValue: UInt8) { self.rawValue = rawValue }
}

struct FlagEffect {
  var reads: FlagSet = []
  var writes: FlagSet = []
  var touches = false

  static let none = FlagEffect()

  static func sets(_ writes: FlagSet, reads: FlagSet = []) -> FlagEffect {
    FlagEffect(reads: reads, writes: writes, touches: true)
  }

  /// Of an instruction that is lowered.
  init(_ i: Instruction) {
    switch i.mnemonic {
    case .add, .sub, .cmp, .neg, .and, .or, .xor, .test, .mul, .imul, .popcnt, .andn, .blsi, .blsr,
      .blsmsk, .bzhi, .bextr, .cmpxchg, .xadd:
      self = .sets(.all)
    case .adc, .sbb: self = .sets(.all, reads: .cf)
    case .inc, .dec: self = .sets([.pf, .af, .zf, .sf, .of])
    case .bt, .bts, .btr, .btc: self = .sets(.cf)
    case .bsf, .bsr: self = .sets(.zf)
    case .cmpxchg8b, .cmpxchg16b: self = .sets(.zf)
    case .clc, .stc: self = .sets(.cf)
    case .cmc: self = .sets(.cf, reads: .cf)
    case .lahf: self = FlagEffect(reads: FlagSet.all.subtracting(.of))
    case .sahf: self = .sets(FlagSet.all.subtracting(.of))
    case .tzcnt, .lzcnt: self = .sets([.cf, .zf])
    case .adcx: self = .sets(.cf, reads: .cf)
    case .adox: self = .sets(.of, reads: .of)
    case .shl, .shr, .sar: self = FlagEffect(shift: i, writes: .all, reads: [])
    case .rol, .ror: self = FlagEffect(shift: i, writes: [.cf, .of], reads: [])
    case .rcl, .rcr: self = FlagEffect(shift: i, writes: [.cf, .of], reads: .cf)
    case .shld, .shrd: self = FlagEffect(shift: i, writes: .all, reads: [])
    case .loope, .loopne: self = FlagEffect(reads: .zf)
    case .fcmovb, .fcmovnb: self = FlagEffect(reads: .cf)
    case .fcmove, .fcmovne: self = FlagEffect(reads: .zf)
    case .fcmovbe, .fcmovnbe: self = FlagEffect(reads: [.cf, .zf])
    case .fcmovu, .fcmovnu: self = FlagEffect(reads: .pf)
    default:
      self = .none
      if i.attributes.contains(.vector) && i.writesHostFlags { self = .sets(.all) }
      if let condition = i.condition { reads = FlagSet(condition: condition) }
    }
  }

  init(reads: FlagSet = [], writes: FlagSet = [], touches: Bool = false) {
    self.reads = reads
    self.writes = writes
    self.touches = touches
  }

  /// A shift or rotate by 0 changes nothing; one by CL may be by 0.
  private init(shift i: Instruction, writes: FlagSet, reads: FlagSet) {
    let last = i.operands[Int(i.operandCount) - 1]
    if last.kind == .general {
      self = .sets([], reads: reads)
      return
    }
    let count = last.kind == .immediate && i.encoding.immediateLength > 0 ? Int(i.immediate) : 1
    let masked = count & (i.operandSize == 8 ? 63 : 31)
    self = masked == 0 ? FlagEffect(reads: reads) : .sets(writes, reads: reads)
  }
}

extension Instruction {
  /// The condition of Jcc, SETcc and CMOVcc as encoded.
  var condition: UInt8? {
    let first: Mnemonic
    switch mnemonic.rawValue {
    case Mnemonic.jo.rawValue...Mnemonic.jnle.rawValue: first = .jo
    case Mnemonic.seto.rawValue...Mnemonic.setnle.rawValue: first = .seto
    case Mnemonic.cmovo.rawValue...Mnemonic.cmovnle.rawValue: first = .cmovo
    default: return nil
    }
    return UInt8(truncatingIfNeeded: mnemonic.rawValue &- first.rawValue)
  }

  /// A jump that looks at RCX.
  var isCountedJump: Bool {
    switch mnemonic {
    case .loop, .loope, .loopne, .jcxz: true
    default: false
    }
  }

  var isConditionalJump: Bool {
    mnemonic.rawValue >= Mnemonic.jo.rawValue && mnemonic.rawValue <= Mnemonic.jnle.rawValue
  }
}
