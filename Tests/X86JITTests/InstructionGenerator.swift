// SPDX-License-Identifier: Apache-2.0
//
// Random integer instructions: random bytes after a known opcode, kept where the decoder agrees. A
// block keeps account of the flags that are undefined after it. Where an instruction would look at
// an undefined flag, or depend on one, the generator puts a TEST before it.

import X86
import X86CPU
import X86Decoder

struct InstructionGenerator {
  /// Three in four instructions are SSE or AVX.
  var isVector = false
  var mode = CodeMode.bits64

  struct Program {
    var bytes: [UInt8] = []
    var text: [String] = []
    /// Bits of RFLAGS whose values at the end the manuals leave open.
    var undefinedFlags: UInt64 = 0
    /// The same before the instructions at these offsets, for blocks that end early.
    var undefinedBefore: [Int: UInt64] = [:]
  }

  private static let cf: UInt64 = 1, pf: UInt64 = 4, af: UInt64 = 0x10, zf: UInt64 = 0x40
  private static let sf: UInt64 = 0x80, of: UInt64 = 0x800, all: UInt64 = 0x8D5

  /// Opcodes (with escapes) that have a ModRM byte.
  private static let withModRM: [[UInt8]] =
    [
      0x00, 0x01, 0x02, 0x03, 0x08, 0x09, 0x0A, 0x0B, 0x10, 0x11, 0x12, 0x13, 0x18, 0x19, 0x1A,
      0x1B, 0x20, 0x21, 0x22, 0x23, 0x28, 0x29, 0x2A, 0x2B, 0x30, 0x31, 0x32, 0x33, 0x38, 0x39,
      0x3A, 0x3B, 0x63, 0x69, 0x6B, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A,
      0x8B, 0x8D, 0xC0, 0xC1, 0xC6, 0xC7, 0xD0, 0xD1, 0xD2, 0xD3, 0xF6, 0xF7, 0xFE, 0xFF,
    ].map { [$0] }
    + ([
      0x1F, 0xA3, 0xA4, 0xA5, 0xAB, 0xAC, 0xAD, 0xAF, 0xB0, 0xB1, 0xB3, 0xB6, 0xB7, 0xBA, 0xBB,
      0xBC, 0xBD, 0xBE, 0xBF, 0xC0, 0xC1, 0xB8,
    ] + Array(0x40...0x4F) + Array(0x90...0x9F))
    .map { [0x0F, $0] }
  /// Opcodes without.
  private static let plain: [[UInt8]] =
    ([
      0x04, 0x05, 0x0C, 0x0D, 0x14, 0x15, 0x1C, 0x1D, 0x24, 0x25, 0x2C, 0x2D, 0x34, 0x35, 0x3C,
      0x3D, 0x68, 0x6A, 0x90, 0x98, 0x99, 0xA8, 0xA9, 0xC9, 0xF5, 0xF8, 0xF9, 0x9E, 0x9F, 0x9C,
    ]
    + Array(0x50...0x5F) + Array(0xB0...0xBF) + Array(0x91...0x97)).map { [$0] }
    + Array(0xC8...0xCF).map { [0x0F, $0] }
  /// (map, opcode, pp) of BMI1 and BMI2.
  private static let vex: [(UInt8, UInt8, UInt8)] = [
    (2, 0xF2, 0), (2, 0xF3, 0), (2, 0xF7, 0), (2, 0xF5, 0), (2, 0xF5, 2), (2, 0xF5, 3),
    (2, 0xF6, 3), (2, 0xF7, 1), (2, 0xF7, 2), (2, 0xF7, 3), (3, 0xF0, 3),
  ]

  /// A block of up to 20 instructions that ends with HLT; one in four has a forward jump in it.
  func block(_ random: inout SplitMix) -> Program {
    var program = Program()
    let count = Int.random(in: 1...20, using: &random)
    for _ in 0..<count {
      var bytes = candidate(&random)
      // The rest of the longest instruction.
      bytes += (0..<12).map { _ in UInt8.random(in: 0...255, using: &random) }
      guard let i = decode(bytes), isWanted(i) else { continue }
      append(i, Array(bytes.prefix(Int(i.length))), to: &program)
      if Int.random(in: 0..<8, using: &random) == 0 { appendJump(&random, to: &program) }
    }
    program.bytes.append(0xF4)
    return program
  }

  private func decode(_ bytes: [UInt8]) -> Instruction? {
    bytes.withUnsafeBytes { try? Decoder.decode($0, mode: mode) }
  }

  private func candidate(_ random: inout SplitMix) -> [UInt8] {
    if isVector && Int.random(in: 0..<4, using: &random) != 0 { return vectorCandidate(&random) }
    let choice = Int.random(in: 0..<10, using: &random)
    if choice == 0 { return vexCandidate(&random) }
    var bytes: [UInt8] = []
    if Int.random(in: 0..<16, using: &random) == 0 { bytes.append(0xF0) }
    if Int.random(in: 0..<8, using: &random) == 0 { bytes.append(0x66) }
    if Int.random(in: 0..<24, using: &random) == 0 { bytes.append(0x67) }
    if Int.random(in: 0..<24, using: &random) == 0 { bytes.append(0x65) }
    if mode == .bits32 {
      if Int.random(in: 0..<16, using: &random) == 0 { bytes.append(0x64) }
      if let short = shortForm(choice, &random) { return bytes + short }
    }
    let table = choice < 8 ? Self.withModRM : Self.plain
    let opcode = table[Int.random(in: 0..<table.count, using: &random)]
    if opcode.count == 2 && opcode[1] >= 0xB8 && opcode[1] <= 0xBD && choice & 1 == 0 {
      bytes.append(0xF3)
    }
    if mode == .bits64 && Int.random(in: 0..<4, using: &random) != 0 {
      bytes.append(UInt8.random(in: 0x40...0x4F, using: &random))
    }
    bytes += opcode
    if choice < 8 { bytes += modRM(&random) }
    return bytes
  }

  private func vectorCandidate(_ random: inout SplitMix) -> [UInt8] {
    let opcode = UInt8.random(in: 0...255, using: &random)
    let map = [1, 1, 1, 2, 2, 3][Int.random(in: 0..<6, using: &random)] as UInt8
    let prefix = UInt8.random(in: 0...3, using: &random)
    if Int.random(in: 0..<2, using: &random) == 0 {
      let high = UInt8.random(in: 0...7, using: &random) << 5
      let second = UInt8.random(in: 0...255, using: &random) & 0xFC | prefix
      let none = Int.random(in: 0..<2, using: &random) == 0 ? second | 0x78 : second
      return [0xC4, high | map, none, opcode] + modRM(&random)
    }
    var bytes = [[], [0x66], [0xF3], [0xF2]][Int(prefix)] as [UInt8]
    if mode == .bits64 && Int.random(in: 0..<3, using: &random) != 0 {
      bytes.append(UInt8.random(in: 0x40...0x4F, using: &random))
    }
    return bytes + [[0x0F], [0x0F, 0x38], [0x0F, 0x3A]][Int(map) - 1] + [opcode] + modRM(&random)
  }

  /// INC and DEC of one byte, the other number of 80, and MOV of the accumulator and the data at an
  /// offset: what 64-bit code does not have.
  private func shortForm(_ choice: Int, _ random: inout SplitMix) -> [UInt8]? {
    switch choice {
    case 1: return [UInt8.random(in: 0x40...0x4F, using: &random)]
    case 3: return [0x82] + modRM(&random)
    case 4:
      let opcodes: [UInt8] = [
        0x06, 0x0E, 0x16, 0x1E, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x62, 0x8C, 0xC8, 0xD4, 0xD5,
        0xD6,
        0xD7,
      ]
      return [opcodes[Int.random(in: 0..<opcodes.count, using: &random)]] + modRM(&random)
    case 2:
      let low = UInt8.random(in: 0...255, using: &random)
      return [UInt8.random(in: 0xA0...0xA3, using: &random), low, 0x08, 0x04, 0]
    default: return nil
    }
  }

  private func vexCandidate(_ random: inout SplitMix) -> [UInt8] {
    let (map, opcode, prefix) = Self.vex[Int.random(in: 0..<Self.vex.count, using: &random)]
    let high = UInt8.random(in: 0...7, using: &random) << 5
    var second = UInt8.random(in: 0...255, using: &random) & 0xF8 | prefix
    if opcode == 0xF0 { second |= 0x78 }
    return [0xC4, high | map, second, opcode] + modRM(&random)
  }

  /// Registers, or memory with a short displacement, or the data by RIP or by its address.
  private func modRM(_ random: inout SplitMix) -> [UInt8] {
    let byte = UInt8.random(in: 0...255, using: &random)
    switch Int.random(in: 0..<4, using: &random) {
    case 0: return [byte | 0xC0]
    case 1: return [byte & 0x38 | 5, 0x10, 0x08, mode == .bits64 ? 2 : 4, 0]
    case 2: return [byte & 0x3F | 0x40]
    default: return [byte]
    }
  }

  private func isWanted(_ i: Instruction) -> Bool {
    if i.attributes.contains(.vector) {
      return isVector && !i.usesMMX && i.attributes.isDisjoint(with: [.x87, .mmx, .vsib])
    }
    if i.attributes.contains(.notForOracle) && i.mnemonic != .popf { return false }
    switch i.mnemonic {
    case .call, .jmp, .callFar, .jmpFar, .ret, .ud2, .xabort, .xbegin, .div, .idiv: return false
    case .pop, .mov, .lea, .movzx, .movsx, .movsxd, .xchg: return true
    // The result is undefined where the count is beyond the width.
    case .shld, .shrd: return i.operandSize > 2
    default: return i.attributes.isDisjoint(with: [.branch, .serializes, .vector])
    }
  }

  // MARK: Flags

  private func append(_ i: Instruction, _ bytes: [UInt8], to program: inout Program) {
    // AF is undefined most of the time; only LAHF and PUSHF look at it.
    let looksAtAF = i.mnemonic == .lahf || i.mnemonic == .pushf
    if looksAtAF && program.undefinedFlags != 0 { return }
    if i.attributes.contains(.readsFlags) && program.undefinedFlags & ~Self.af != 0 {
      program.bytes += [0x48, 0x85, 0xE4]
      program.text.append("test rsp, rsp")
      program.undefinedFlags = Self.af
    }
    program.undefinedBefore[program.bytes.count] = program.undefinedFlags
    program.bytes += bytes
    program.text.append("\(Disassembler.text(i, at: 0))")
    if i.attributes.contains(.writesFlags) {
      program.undefinedFlags = undefined(i) | program.undefinedFlags & keeps(i)
    }
  }

  /// Flags that keep their values, or may.
  private func keeps(_ i: Instruction) -> UInt64 {
    switch i.mnemonic {
    case .inc, .dec: Self.cf
    case .rol, .ror, .rcl, .rcr, .shl, .shr, .sar, .shld, .shrd: Self.all
    case .stc, .clc, .cmc: Self.all & ~Self.cf
    case .bt, .bts, .btr, .btc: Self.all & ~Self.cf
    case .bsf, .bsr, .cmpxchg8b, .cmpxchg16b, .arpl: Self.all & ~Self.zf
    case .tzcnt, .lzcnt: Self.all & ~(Self.zf | Self.cf)
    case .sahf: Self.of
    default: 0
    }
  }

  private func undefined(_ i: Instruction) -> UInt64 {
    switch i.mnemonic {
    case .and, .or, .xor, .test: Self.af
    case .mul, .imul: Self.sf | Self.zf | Self.af | Self.pf
    case .shl, .shr, .sar: Self.af | Self.of | (i.operandSize < 4 ? Self.cf : 0)
    case .shld, .shrd: i.operandSize == 2 ? Self.all : Self.af | Self.of
    case .rol, .ror, .rcl, .rcr: Self.of
    case .bt, .bts, .btr, .btc: Self.all & ~(Self.cf | Self.zf)
    case .bsf, .bsr: Self.all & ~Self.zf
    case .tzcnt, .lzcnt: Self.all & ~(Self.zf | Self.cf)
    case .andn, .bzhi, .blsi, .blsr, .blsmsk: Self.af | Self.pf
    case .bextr: Self.all & ~(Self.zf | Self.cf | Self.of)
    default: 0
    }
  }

  /// A short conditional jump over the next instruction's first byte would be chaos: it goes to the
  /// next instruction, so that a block ends and flags cross the edge.
  private func appendJump(_ random: inout SplitMix, to program: inout Program) {
    if program.undefinedFlags & ~Self.af != 0 {
      program.bytes += [0xEB, 0x00]
      program.text.append("jmp +0")
      return
    }
    let condition = UInt8.random(in: 0...15, using: &random)
    program.bytes += [0x70 | condition, 0x03, 0x48, 0xFF, 0xC0]  // over inc rax
    program.text.append("jcc \(condition) over inc rax")
    program.undefinedFlags |= Self.af
  }
}
