// SPDX-License-Identifier: Apache-2.0
//
// What the oracle once found in vector and x87 instructions, one small test each.

import Support
import Testing
import X86
import X86CPU

@Suite struct OracleVectorTests {
  private static var hasAVX512: Bool { HostFeatures.current.hasAVX512 }

  private func unmap(_ m: VectorMachine, page: Int) {
    for n in 0..<512 { m.machine.store(UInt64(n) << 12 | 7, at: 0x13000 + n * 8) }
    m.machine.store(UInt64(0), at: 0x13000 + page * 8)
    m.machine.store(UInt64(0x13000 | 7), at: 0x12000)
    m.c.flushTLB()
  }

  /// FNINIT, EMMS: TOP becomes 0 and the registers stay where they are.
  @Test(arguments: [[UInt8(0xDB), 0xE3], [0x0F, 0x77]])
  func emptyingTheStackMovesNoRegister(code: [UInt8]) {
    let m = VectorMachine()
    for n in 0..<8 { m.c.vector.pointee.fx[4 + n * 2] = UInt64(n) }
    m.c.vector.pointee.fx[0] = 0x037F | 1 << (16 + 11)
    #expect(m.run(code) == .hlt)
    for n in 0..<8 { #expect(m.c.vector.pointee.fx[4 + n * 2] == UInt64((n + 7) & 7)) }
  }

  @Test(.enabled(if: hasAVX512, "the host has no AVX-512"))
  func maskedExtractAcrossPagesStoresActiveElementsOnly() {
    let m = VectorMachine()
    for n in 0..<4 { m.machine.store(UInt64.max, at: 0x4FF0 + n * 8) }
    m.c.gpr[3] = 0x4FF8
    m.c.vector.pointee.opmask[1] = 0b0100
    // vextractf32x4 [rbx]{k1}, zmm0, 0
    #expect(m.run([0x62, 0xF3, 0x7D, 0x49, 0x19, 0x03, 0x00]) == .hlt)
    #expect(m.machine.read(0x4FF8, as: UInt64.self) == .max)
    #expect(m.machine.read(0x5000, as: UInt64.self) == 0xFFFF_FFFF_0000_0000)
  }

  @Test(.enabled(if: hasAVX512, "the host has no AVX-512"))
  func classificationHonoursDenormalsAreZero() {
    let m = VectorMachine()
    m.c.mxcsr = 0x1FC0
    m[zmm: 6, 0] = 0x8DC
    // vfpclassss k0, xmm6, 2 (positive zero)
    #expect(m.run([0x62, 0xF3, 0x7D, 0x08, 0x67, 0xC6, 0x02]) == .hlt)
    #expect(m.c.vector.pointee.opmask[0] == 1)
  }

  @Test(.enabled(if: hasAVX512, "the host has no AVX-512"))
  func maskedShiftByImmediateSuppressesFaults() {
    let m = VectorMachine()
    m.catchExceptions()
    unmap(m, page: 5)
    m.c.gpr[3] = 0x4FF8
    m.c.vector.pointee.opmask[1] = 0b0011
    m.machine.store(UInt64(0x0000_0002_0000_0001), at: 0x4FF8)
    // vpslld xmm0{k1}{z}, [rbx], 4
    #expect(m.run([0x62, 0xF1, 0x7D, 0x89, 0x72, 0x33, 0x04]) == .hlt)
    #expect(m[zmm: 0, 0] == 0x0000_0020_0000_0010)
  }

  @Test(.enabled(if: hasAVX512, "the host has no AVX-512"))
  func repeatedBroadcastReadsSelectedElementsOnly() {
    let m = VectorMachine()
    m.catchExceptions()
    unmap(m, page: 5)
    m.c.gpr[3] = 0x4FFC
    m.c.vector.pointee.opmask[1] = 0b0101
    m.machine.store(UInt32(7), at: 0x4FFC)
    // vbroadcasti32x2 xmm0{k1}{z}, [rbx]
    #expect(m.run([0x62, 0xF2, 0x7D, 0x89, 0x59, 0x03]) == .hlt)
    #expect(m[zmm: 0, 0] == 7)
    #expect(m[zmm: 0, 1] == 7)
  }

  @Test(.enabled(if: hasAVX512, "the host has no AVX-512"))
  func faultingGatherHasClearedTheMaskBeforeTheFault() {
    let m = VectorMachine()
    m.catchExceptions()
    unmap(m, page: 5)
    m.c.gpr[3] = 0x5000
    m[zmm: 2, 0] = 0x0000_0001
    m[zmm: 2, 1] = 0xC33E_AB97_0000_0002
    // vpgatherdd xmm0, [rbx + xmm1], xmm2
    m.run([0xC4, 0xE2, 0x69, 0x90, 0x04, 0x0B])
    #expect(m.raised(.pageFault))
    #expect(m[zmm: 2, 0] == 0)
    #expect(m[zmm: 2, 1] == 0xC33E_AB97_0000_0000)
  }
}
