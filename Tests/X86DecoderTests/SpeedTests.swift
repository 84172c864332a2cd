// SPDX-License-Identifier: Apache-2.0
//
// What a decode costs: the figure is printed, and the bound only catches what is out of all
// proportion.

import Testing
import X86
import X86Decoder

@Suite struct SpeedTests {
  /// A typical mix; prints what a decode costs, and fails where it is out of all proportion.
  @Test func decodingIsQuick() {
    let mix: [[UInt8]] = [
      [0x48, 0x8B, 0x44, 0x24, 0x10], [0x48, 0x83, 0xEC, 0x28], [0x0F, 0x85, 0x10, 0, 0, 0],
      [0x89, 0xC3], [0xE8, 0, 1, 0, 0], [0x48, 0x8D, 0x3D, 0, 1, 0, 0], [0x31, 0xC0], [0x55],
      [0xF6, 0x43, 0x08, 0x04], [0x0F, 0xB6, 0x00], [0x65, 0x48, 0x8B, 0x04, 0x25, 0, 0, 0, 0],
      [0xC3], [0xF3, 0x0F, 0x10, 0x45, 0xF8], [0xC5, 0xFD, 0x6F, 0x06],
    ]
    var bytes: [UInt8] = []
    for _ in 0..<200 { for instruction in mix { bytes += instruction } }
    Decoder.prepare()
    let clock = ContinuousClock()
    var count = 0
    let rounds = 50
    let time = clock.measure {
      for _ in 0..<rounds { count += decodeAll(bytes) }
    }
    let each = time / max(count, 1)
    print("decoder: \(each) an instruction over \(count)")
    #expect(count == rounds * 200 * mix.count)
    #expect(each < .microseconds(20))
  }

  private func decodeAll(_ bytes: [UInt8]) -> Int {
    bytes.withUnsafeBytes { buffer in
      var offset = 0
      var count = 0
      while offset < buffer.count {
        let rest = UnsafeRawBufferPointer(rebasing: buffer[offset...])
        guard let instruction = try? Decoder.decode(rest, mode: .bits64) else { return count }
        offset += Int(instruction.length)
        count += 1
      }
      return count
    }
  }
}
