// SPDX-License-Identifier: Apache-2.0
//
// Some SSE and AVX instructions in a guest, end to end: results, sticky flags and the guest's
// own rounding mode. The oracle (Tests/Oracle) has all of them.

import Support
import Testing
import X86
import X86CPU

@Suite struct SSETests {
  @Test func movesAndAddsPackedIntegers() {
    let m = VectorMachine()
    m[zmm: 1, 0] = 0x0000_0001_0000_0002
    m[zmm: 1, 1] = 0x0000_0003_FFFF_FFFF
    m[zmm: 1, 2] = 77
    m.machine.store(UInt64(0x0000_0010_0000_0020), at: 0x4000)
    m.machine.store(UInt64(0x0000_0030_0000_0001), at: 0x4008)
    m.c.gpr[3] = 0x4000
    // movdqu xmm2, [rbx]; paddd xmm1, xmm2; movaps [rbx+16], xmm1
    m.run([0xF3, 0x0F, 0x6F, 0x13, 0x66, 0x0F, 0xFE, 0xCA, 0x0F, 0x29, 0x4B, 0x10])
    #expect(m[zmm: 1, 0] == 0x0000_0011_0000_0022)
    #expect(m[zmm: 1, 1] == 0x0000_0033_0000_0000)
    #expect(m[zmm: 1, 2] == 77, "a legacy instruction keeps the upper part")
    #expect(m.machine.read(0x4010, as: UInt64.self) == 0x0000_0011_0000_0022)
    #expect(m.machine.read(0x4018, as: UInt64.self) == 0x0000_0033_0000_0000)
  }

  @Test func floatingPointRaisesStickyFlags() {
    let m = VectorMachine()
    m[zmm: 0, 0] = (1.0 as Double).bitPattern
    m[zmm: 8, 0] = (3.0 as Double).bitPattern
    m.run([0xF2, 0x41, 0x0F, 0x5E, 0xC0])  // divsd xmm0, xmm8
    #expect(Double(bitPattern: m[zmm: 0, 0]) == 1.0 / 3.0)
    #expect(m.c.mxcsr == 0x1FA0)
  }

  @Test func guestRoundingModeHolds() {
    let m = VectorMachine()
    m.c.mxcsr = 0x1F80 | 2 << 13  // up
    m[zmm: 0, 0] = (1.0 as Double).bitPattern
    m[zmm: 1, 0] = (3.0 as Double).bitPattern
    m.run([0xF2, 0x0F, 0x5E, 0xC1])
    #expect(Double(bitPattern: m[zmm: 0, 0]) == (1.0 / 3.0).nextUp)
    #expect(m.c.mxcsr == 0x1FA0 | 2 << 13)
    var third = 1.0
    third /= 3.0
    #expect(third == 1.0 / 3.0, "the program's own rounding is untouched")
  }

  @Test func convertsToGeneralRegister() {
    let m = VectorMachine()
    m[zmm: 1, 0] = (-7.6 as Double).bitPattern
    m.c.gpr[10] = .max
    m.run([0xF2, 0x44, 0x0F, 0x2C, 0xD1])  // cvttsd2si r10d, xmm1
    #expect(m.c.gpr[10] == 0xFFFF_FFF9)
  }

  @Test func comparesIntoFlags() {
    let m = VectorMachine()
    m[zmm: 1, 0] = (1.0 as Double).bitPattern
    m[zmm: 2, 0] = (2.0 as Double).bitPattern
    m.run([0x66, 0x0F, 0x2F, 0xCA])  // comisd xmm1, xmm2
    #expect(m.c.flags & RFLAGS.arithmetic.rawValue == RFLAGS.cf.rawValue)
  }

  @Test func avxZeroesUpperPart() {
    let m = VectorMachine()
    for n in 0..<8 { m[zmm: 3, n] = 5 }
    // vpaddq xmm3, xmm3, xmm3; vpaddq zmm4, zmm3, zmm3
    m.run([0xC5, 0xE1, 0xD4, 0xDB, 0x62, 0xF1, 0xE5, 0x48, 0xD4, 0xE3])
    #expect((0..<8).map { m[zmm: 3, $0] } == [10, 10, 0, 0, 0, 0, 0, 0])
    #expect((0..<8).map { m[zmm: 4, $0] } == [20, 20, 0, 0, 0, 0, 0, 0])
  }
}
