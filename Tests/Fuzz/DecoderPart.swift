// SPDX-License-Identifier: Apache-2.0
//
// The decoder on the fuzzer's bytes: an instruction has at most 15 bytes, needs all of them,
// and has a text.

import X86
import X86Decoder

/// The first byte is the mode, the others are code.
enum DecoderPart {
  private static let modes: [CodeMode] = [.bits16, .bits32, .bits64]

  static func run(_ input: UnsafeRawBufferPointer) {
    guard let first = input.first else { return }
    let mode = modes[Int(first) % modes.count]
    let code = UnsafeRawBufferPointer(rebasing: input[1...])
    var position = 0
    while position < code.count {
      let rest = UnsafeRawBufferPointer(rebasing: code[position...])
      guard let instruction = decode(rest, mode) else {
        position += 1
        continue
      }
      let length = Int(instruction.length)
      check(length >= 1 && length <= 15 && length <= rest.count, "a wrong length")
      check(instruction.operandCount <= 4, "too many operands")
      let text = Disassembler.text(instruction, at: UInt64(position) &* 0x0101_0101_0101_0101)
      check(!text.isEmpty, "no text")
      // It needs all of its bytes.
      let shorter = UnsafeRawBufferPointer(rebasing: rest[..<(length - 1)])
      check(decode(shorter, mode) == nil, "needs less than its length")
      position += length
    }
  }

  private static func decode(_ code: UnsafeRawBufferPointer, _ mode: CodeMode) -> Instruction? {
    try? Decoder.decode(code, mode: mode)
  }

  /// One instruction of each map and prefix, in each mode.
  static let seeds: [[UInt8]] = modes.indices.flatMap { mode in
    [
      [0x48, 0x01, 0x44, 0x8B, 0x10], [0x66, 0x0F, 0x38, 0x00, 0xC1],
      [0xF2, 0x0F, 0x38, 0xF0, 0xC1],
      [0xC5, 0xF9, 0x6F, 0x04, 0x25, 1, 2, 3, 4], [0xC4, 0xE2, 0x79, 0x18, 0x00],
      [0x62, 0xF1, 0x7C, 0x48, 0x58, 0xC1], [0x62, 0xF1, 0x7C, 0xBF, 0x58, 0x40, 0x01],
      [0xF0, 0x0F, 0xC7, 0x0E], [0xD9, 0x2C, 0x24], [0xEA, 1, 2, 3, 4, 5, 6], [0x0F, 0x01, 0xD1],
      [0x48, 0xB8, 1, 2, 3, 4, 5, 6, 7, 8], [0xC8, 1, 2, 3], [0x0F, 0x3A, 0x0F, 0xC0, 7],
    ].map { [UInt8(mode)] + $0 }
  }
}

/// Ends the process, which libFuzzer takes for a failure, with a reason.
func check(_ holds: Bool, _ reason: String) {
  if !holds { fatalError(reason) }
}
