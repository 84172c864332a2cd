// SPDX-License-Identifier: Apache-2.0
//
// What a vector instruction's handler costs: the figures are printed, and the bounds are loose
// enough for any host.

import Support
import Testing
import X86
import X86CPU
import X86Decoder

@Suite struct VectorSpeedTests {
  @Test(
    arguments: [
      ("movups xmm1, xmm2", [0x0F, 0x10, 0xCA]),
      ("movups xmm1, [rsi]", [0x0F, 0x10, 0x0E]),
      ("paddd xmm1, xmm2", [0x66, 0x0F, 0xFE, 0xCA]),
      ("paddd xmm1, [rsi]", [0x66, 0x0F, 0xFE, 0x0E]),
      ("mulsd xmm1, xmm2", [0xF2, 0x0F, 0x59, 0xCA]),
      ("vpaddq zmm1, zmm2, zmm3", [0x62, 0xF1, 0xED, 0x48, 0xD4, 0xCB]),
      ("fadd st1", [0xD8, 0xC1]),
      ("paddb mm1, mm2", [0x0F, 0xFC, 0xCA]),
    ] as [(String, [UInt8])])
  func handlerCost(name: String, bytes: [UInt8]) throws {
    let m = VectorMachine()
    m.c.gpr[6] = 0x4000
    let padded = bytes + [0, 0, 0, 0, 0, 0, 0, 0]
    let i = try padded.withUnsafeBytes { bytes throws(DecodeError) in
      try Decoder.decode(bytes, mode: .bits64)
    }
    let op = MicroOpPointer.allocate(capacity: 1)
    defer { op.deallocate() }
    Lowering.lower(i, offset: 0, into: op, for: m.c)
    let count = 200_000
    for _ in 0..<1000 { _ = op.pointee.handler(m.c.raw, op) }
    let time = ContinuousClock().measure {
      for _ in 0..<count { _ = op.pointee.handler(m.c.raw, op) }
    }
    let nanoseconds = Double(time.components.attoseconds) / 1e9 / Double(count)
    print("\(name): \(nanoseconds) ns")
    #expect(nanoseconds < 20_000)
  }
}
