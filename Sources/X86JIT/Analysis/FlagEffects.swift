// SPDX-License-Identifier: Apache-2.0
//
// Which arithmetic flags a lowered instruction reads and writes: what its row of the opcode table
// says, less what a count of 0 leaves alone. `touches` says that it changes the host's flags at
// all.

import X86CPU
import X86Decoder

struct FlagEffect {
  var reads: FlagSet = []
  var writes: FlagSet = []
  var touches = false

  static let none = FlagEffect()

  init(reads: FlagSet = [], writes: FlagSet = [], touches: Bool = false) {
    self.reads = reads
    self.writes = writes
    self.touches = touches
  }

  /// Of an instruction that is lowered and leaves its flags in the host's.
  init(_ i: Instruction) {
    reads = i.flagsRead
    writes = i.flagsWritten
    touches = i.attributes.contains(.writesFlags)
    if i.attributes.contains(.countDecides) { takeCount(i) }
  }

  /// A shift or rotation by 0 changes nothing; one by CL may be by 0.
  private mutating func takeCount(_ i: Instruction) {
    let last = i.operands[Int(i.operandCount) - 1]
    if last.kind == .general {
      writes = []
      return
    }
    let count = last.kind == .immediate && i.encoding.immediateLength > 0 ? Int(i.immediate) : 1
    if count & (i.operandSize == 8 ? 63 : 31) == 0 {
      writes = []
      touches = false
    }
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
