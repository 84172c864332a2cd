// SPDX-License-Identifier: Apache-2.0
//
// Random vector and x87 instructions with integer instructions among them, whose flags are all
// defined. Bytes are random; the decoder says which are instructions.

import X86
import X86Decoder

struct VectorGenerator {
  struct Program {
    var bytes: [UInt8] = []
    var text: [String] = []
  }

  /// add eax, ecx; adc rdx, [rip...]; sub [rsi], r12d; cmp r13, rbx; inc r14; mov rdi, r15; setb;
  /// cmovz; jumps over an instruction; moves; CLD; PUSHF and POP.
  private static let integers: [[UInt8]] = [
    [0x01, 0xC8], [0x48, 0x13, 0x15, 0x10, 0x08, 0x02, 0], [0x44, 0x29, 0x26], [0x49, 0x39, 0xDD],
    [0x49, 0xFF, 0xC6], [0x4C, 0x89, 0xFF], [0x0F, 0x92, 0xC2], [0x48, 0x0F, 0x44, 0xC3],
    [0x74, 0x02, 0x01, 0xC8], [0x72, 0x03, 0x49, 0xFF, 0xC6], [0x4D, 0x89, 0xE1],
    [0x8B, 0x06], [0x48, 0x89, 0x1E], [0xFC, 0x90], [0x9C, 0x58],
  ]

  /// A block of up to 16 instructions that ends with HLT; some repeat themselves first.
  func block(_ random: inout SplitMix) -> Program {
    var program = Program()
    let style = Int.random(in: 0..<16, using: &random)
    for _ in 0..<Int.random(in: 1...16, using: &random) {
      if Int.random(in: 0..<6, using: &random) == 0 {
        let bytes = Self.integers[Int.random(in: 0..<Self.integers.count, using: &random)]
        // CLD and PUSHF are left to handlers: blocks that repeat are without.
        if style < 6 && (bytes[0] == 0x9C || bytes[0] == 0xFC) { continue }
        program.bytes += bytes
        program.text.append("integer \(bytes)")
        continue
      }
      var bytes = candidate(style, &random)
      bytes += (0..<10).map { _ in UInt8.random(in: 0...255, using: &random) }
      let decoded = bytes.withUnsafeBytes { try? Decoder.decode($0, mode: .bits64) }
      guard let i = decoded, isWanted(i, &random) else { continue }
      program.bytes += bytes.prefix(Int(i.length))
      program.text.append("\(Disassembler.text(i, at: 0))")
    }
    if style < 6 {
      // dec dword [counter]; jnz to the start
      program.bytes += [0xFF, 0x0C, 0x25, 0x00, 0x60, 0x04, 0x00, 0x0F, 0x85]
      let distance = UInt32(bitPattern: Int32(-(program.bytes.count + 4)))
      for shift in [0, 8, 16, 24] as [UInt32] {
        program.bytes.append(UInt8(truncatingIfNeeded: distance >> shift))
      }
      program.text.append("loop")
    }
    program.bytes.append(0xF4)
    return program
  }

  private func isWanted(_ i: Instruction, _ random: inout SplitMix) -> Bool {
    guard i.attributes.contains(.vector) || i.attributes.contains(.x87) else { return false }
    switch i.mnemonic {
    // They store the pointers that translated code does not keep.
    case .fnstenv, .fnsave: return false
    case .ldmxcsr, .vldmxcsr, .fldenv, .frstor: return Int.random(in: 0..<4, using: &random) == 0
    default: return i.attributes.isDisjoint(with: [.vsib, .notForOracle])
    }
  }

  private func candidate(_ style: Int, _ random: inout SplitMix) -> [UInt8] {
    func byte() -> UInt8 { UInt8.random(in: 0...255, using: &random) }
    var kind = Int.random(in: 0..<8, using: &random)
    // Some blocks are of one kind.
    if style & 3 == 1 { kind = 0 }
    if style & 3 == 2 { kind = 6 }
    let opcode = byte()
    switch kind {
    case 0, 1, 2:
      var bytes = [[], [0x66], [0xF3], [0xF2]][Int.random(in: 0..<4, using: &random)] as [UInt8]
      if Int.random(in: 0..<24, using: &random) == 0 { bytes.insert(0x67, at: 0) }
      if Int.random(in: 0..<3, using: &random) != 0 { bytes.append(0x40 | byte() & 15) }
      let maps: [[UInt8]] = [[0x0F], [0x0F], [0x0F, 0x38], [0x0F, 0x3A]]
      bytes += maps[Int.random(in: 0..<4, using: &random)]
      return bytes + [opcode] + modRM(&random)
    case 3:
      let map = UInt8.random(in: 1...3, using: &random)
      let v: UInt8 = Int.random(in: 0..<3, using: &random) == 0 ? 0x78 : byte() & 0x78
      let first: [UInt8] = [0xC4, byte() & 0xE0 | map, byte() & 0x87 | v]
      return first + [opcode] + modRM(&random)
    case 4, 5:
      let map = UInt8.random(in: 1...3, using: &random)
      let v: UInt8 = Int.random(in: 0..<3, using: &random) == 0 ? 0x78 : byte() & 0x78
      let last: UInt8 = Int.random(in: 0..<2, using: &random) == 0 ? byte() : byte() & 0x60 | 8
      let first: [UInt8] = [0x62, byte() & 0xF0 | map, byte() & 0x83 | v | 4, last]
      return first + [opcode] + modRM(&random)
    default:
      if Int.random(in: 0..<24, using: &random) == 0 { return [0x9B] }
      return [0xD8 | byte() & 7] + modRM(&random)
    }
  }

  /// Registers, or memory with a short displacement, or RIP-relative to the data.
  private func modRM(_ random: inout SplitMix) -> [UInt8] {
    let byte = UInt8.random(in: 0...255, using: &random)
    switch Int.random(in: 0..<5, using: &random) {
    case 0, 1: return [byte | 0xC0]
    case 2: return [byte & 0x38 | 5, 0x00, 0x08, 0x02, 0]  // near [rip + 0x20800]
    case 3: return [byte & 0x3F | 0x40]
    default: return [byte & 0x3F]
    }
  }
}
