// SPDX-License-Identifier: Apache-2.0
//
// Random bytes through the decoder: they decode or fail, never trap, and what decodes keeps
// what readers of an instruction rely on.

import TestRandom
import Testing
import X86
import X86Decoder

@Suite struct FuzzTests {
  /// Any bytes decode or fail, never trap; what decodes is at most 15 bytes long, needs all of them
  /// and no more, and has a text.
  @Test(arguments: [CodeMode.bits16, .bits32, .bits64])
  func anyBytes(mode: CodeMode) {
    var random = SplitMix(seed: 0xF022 + UInt64(mode.rawValue))
    var decoded = 0
    for round in 0..<40_000 {
      let count = Int.random(in: 1...20, using: &random)
      var bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
      if round % 3 == 0 { bytes[0] = [0x62, 0xC4, 0xC5, 0x0F, 0x66, 0xF0][round / 3 % 6] }
      guard case .success(let instruction) = decode(bytes, mode) else { continue }
      decoded += 1
      let length = Int(instruction.length)
      guard length >= 1 && length <= 15 && length <= count, consistent(instruction),
        !Disassembler.text(instruction).isEmpty
      else {
        Issue.record("\(hexText(bytes)): \(instruction)")
        continue
      }
      for shorter in 1..<length where !isTruncated(decode(Array(bytes[..<shorter]), mode)) {
        Issue.record("\(hexText(bytes)) cut to \(shorter)")
      }
    }
    #expect(decoded > 10_000)
  }

  private func isTruncated(_ result: Result<Instruction, DecodeError>) -> Bool {
    if case .failure(.truncated) = result { return true }
    return false
  }

  /// What every reader of an instruction may rely on.
  private func consistent(_ instruction: Instruction) -> Bool {
    guard instruction.operandCount <= 4, [1, 2, 4, 8].contains(instruction.operandSize),
      [2, 4, 8].contains(instruction.addressSize), instruction.mnemonic != .invalid
    else { return false }
    for index in 0..<4 {
      let operand = instruction.operands[index]
      if index >= Int(instruction.operandCount) {
        guard operand.kind == .none else { return false }
        continue
      }
      switch operand.kind {
      case .none: return false
      case .general: guard operand.number < 20, operand.size <= 8 else { return false }
      case .vector:
        guard operand.number < 32, [16, 32, 64].contains(operand.size) else { return false }
      case .segment: guard operand.number < 6 else { return false }
      case .mask, .mmx, .x87, .debug: guard operand.number < 8 else { return false }
      default: break
      }
    }
    let isRegister = instruction.base < 16 || instruction.base >= Instruction.ripRegister
    return isRegister && (instruction.index < 32 || instruction.index == Instruction.noRegister)
  }

  @Test func fifteenBytesAreTheLimit() {
    let padded = [UInt8](repeating: 0x66, count: 14) + [0x90]
    #expect((try? decode(padded, .bits64).get())?.length == 15)
    let tooLong = [UInt8](repeating: 0x66, count: 15) + [0x90]
    guard case .failure(.tooLong) = decode(tooLong, .bits64) else {
      Issue.record("16 bytes decoded")
      return
    }
  }
}
