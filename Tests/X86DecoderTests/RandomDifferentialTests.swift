// SPDX-License-Identifier: Apache-2.0
//
// Random encodings of each mode against objdump: length and text must agree where objdump knows
// the instruction.

import Foundation
import TestRandom
import Testing
import X86
import X86Decoder

@Suite struct RandomDifferentialTests {
  /// Random encodings in slots of 32 bytes that end in NOPs, so that one bad instruction does not
  /// shift the next.
  static let slot = 32

  @Test(arguments: [CodeMode.bits16, .bits32, .bits64])
  func lengthsAndTextsAgree(mode: CodeMode) throws {
    var random = SplitMix(seed: 0x5EED_0001 + UInt64(mode.rawValue))
    var image: [UInt8] = []
    for _ in 0..<40_000 {
      var bytes = randomEncoding(&random, mode)
      bytes += [UInt8](repeating: 0x90, count: Self.slot - bytes.count)
      image += bytes
    }
    let path = NSTemporaryDirectory() + "martlet-decoder-\(getpid())-\(mode.rawValue).bin"
    try Data(image).write(to: URL(fileURLWithPath: path))
    defer { try? FileManager.default.removeItem(atPath: path) }
    let machine = ["i8086", "i386", "x86-64"][Int(mode.rawValue)]
    var compared = 0
    var differences: [String] = []
    let options = ["-D", "-b", "binary", "-m", "i386", "-M", "intel,intel64,\(machine)", path]
    try Objdump.list(options) { listed in
      let offset = Int(listed.address)
      guard offset % Self.slot == 0, !listed.isBad, Spelling.isComparable(listed) else { return }
      let slot = Array(image[offset..<(offset + Self.slot)])
      guard let mine = try? decode(slot, mode).get() else { return }
      compared += 1
      let sameLength = Int(mine.length) == listed.bytes.count
      guard !sameLength || !Spelling.agree(mine, at: listed.address, with: listed.text) else {
        return
      }
      let text = Disassembler.text(mine, at: listed.address)
      differences.append(
        "\(hexText(listed.bytes)): \(mine.length) \(text), objdump \(listed.text)")
    }
    #expect(compared > 12_000)
    let shown = differences.prefix(30).joined(separator: "\n")
    #expect(differences.isEmpty, "\(differences.count) differ: \(shown)")
  }

  /// Bytes that are likely to be an instruction: prefixes, an opcode of any map, random rest.
  private func randomEncoding(_ random: inout SplitMix, _ mode: CodeMode) -> [UInt8] {
    var bytes: [UInt8] = []
    let prefixes: [UInt8] = [0x66, 0x67, 0xF2, 0xF3, 0xF0, 0x2E, 0x64, 0x36]
    for _ in 0..<[0, 0, 0, 1, 1, 2][Int.random(in: 0..<6, using: &random)] {
      bytes.append(prefixes.randomElement(using: &random) ?? 0x66)
    }
    if mode == .bits64, Bool.random(using: &random) {
      bytes.append(UInt8.random(in: 0x40...0x4F, using: &random))
    }
    switch Int.random(in: 0..<9, using: &random) {
    case 0, 1: break
    case 2, 3: bytes.append(0x0F)
    case 4: bytes += [0x0F, 0x38]
    case 5: bytes += [0x0F, 0x3A]
    case 6: bytes = vex(&random, mode)
    default: bytes = evex(&random, mode)
    }
    while bytes.count < 16 { bytes.append(UInt8.random(in: 0...255, using: &random)) }
    return bytes
  }

  private func vex(_ random: inout SplitMix, _ mode: CodeMode) -> [UInt8] {
    let free = UInt8.random(in: 0...255, using: &random)
    let vvvv: UInt8 = Bool.random(using: &random) ? 0x78 : 0
    if Int.random(in: 0..<3, using: &random) == 0 {
      return [0xC5, free | vvvv | (mode == .bits64 ? 0 : 0xC0)]
    }
    let map = UInt8.random(in: 1...3, using: &random)
    let high = UInt8.random(in: 0...255, using: &random) & 0xE0
    return [0xC4, high | map | (mode == .bits64 ? 0 : 0xC0), free | vvvv]
  }

  private func evex(_ random: inout SplitMix, _ mode: CodeMode) -> [UInt8] {
    let map = UInt8.random(in: 1...3, using: &random)
    let first = UInt8.random(in: 0...255, using: &random) & 0xF0 | map
    var second = UInt8.random(in: 0...255, using: &random) | 4
    if Bool.random(using: &random) { second |= 0x78 }
    var third = UInt8.random(in: 0...255, using: &random)
    if Bool.random(using: &random) { third |= 8 }
    if Bool.random(using: &random) { third &= 0x6F }
    return [0x62, mode == .bits64 ? first : first | 0xF0, second, third]
  }
}

func hexText(_ bytes: [UInt8]) -> String {
  bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
}
