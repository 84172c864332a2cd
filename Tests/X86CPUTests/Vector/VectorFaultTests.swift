// SPDX-License-Identifier: Apache-2.0
//
// Vector instructions that fault: the exception is the manual's, and nothing is written but
// what it allows, as the progress of a gather.

import Support
import Testing
import X86
import X86CPU

@Suite struct VectorFaultTests {
  /// Maps the page at 0x5000 of 2 MiB page 0 away, with 4 KiB tables at 0x13000.
  private func unmap(_ m: VectorMachine, page: Int) {
    for n in 0..<512 { m.machine.store(UInt64(n) << 12 | 7, at: 0x13000 + n * 8) }
    m.machine.store(UInt64(0), at: 0x13000 + page * 8)
    m.machine.store(UInt64(0x13000 | 7), at: 0x12000)
    m.c.flushTLB()
  }

  @Test func unalignedLegacyOperandFaults() {
    let m = VectorMachine()
    m.catchExceptions()
    m.c.gpr[3] = 0x4008
    m.run([0x0F, 0x58, 0x03])  // addps xmm0, [rbx]
    #expect(m.raised(.generalProtection))
  }

  @Test func disabledSSEIsUndefined() {
    let m = VectorMachine()
    m.catchExceptions()
    m.c.s.pointee.cr4 &= ~CR4.osfxsr.rawValue
    m.run([0x0F, 0x58, 0xC1])
    #expect(m.raised(.invalidOpcode))
  }

  @Test func taskSwitchedIsDeviceNotAvailable() {
    let m = VectorMachine()
    m.catchExceptions()
    m.c.s.pointee.cr0 |= CR0.ts.rawValue
    m.run([0xC5, 0xFC, 0x58, 0xC1])  // vaddps ymm0, ymm0, ymm1
    #expect(m.raised(.deviceNotAvailable))
  }

  @Test func unmaskedExceptionCommitsNothing() {
    let m = VectorMachine()
    m.catchExceptions()
    m.c.mxcsr = 0x1F80 & ~(1 << 9)  // zero divide unmasked
    m[zmm: 0, 0] = (1.0 as Double).bitPattern
    m[zmm: 1, 0] = 0
    m.run([0xF2, 0x0F, 0x5E, 0xC1])  // divsd xmm0, xmm1
    #expect(m.raised(.simdFloatingPoint))
    #expect(Double(bitPattern: m[zmm: 0, 0]) == 1.0)
    #expect(m.c.mxcsr & 0x3F == 4)
  }

  @Test func storeAcrossPagesIsAllOrNothing() {
    let m = VectorMachine()
    m.catchExceptions()
    unmap(m, page: 5)
    m.c.gpr[3] = 0x4FF8
    m.machine.store(UInt64(0x55), at: 0x4FF8)
    for n in 0..<8 { m[zmm: 0, n] = 0xAA }
    m.run([0x0F, 0x11, 0x03])  // movups [rbx], xmm0
    #expect(m.raised(.pageFault))
    #expect(m.c.s.pointee.faultAddress == 0x5000)
    #expect(m.machine.read(0x4FF8, as: UInt64.self) == 0x55)
  }

  @Test func maskSuppressesFaults() {
    let m = VectorMachine()
    unmap(m, page: 5)
    m.c.gpr[3] = 0x4FF8
    m.machine.store(UInt64(7), at: 0x4FF8)
    m.c.vector.pointee.opmask[1] = 1
    // vmovdqu64 zmm0{k1}{z}, [rbx]; vpaddq zmm0, zmm0, zmm0; vmovdqu64 [rbx]{k1}, zmm0
    let reason = m.run([
      0x62, 0xF1, 0xFE, 0xC9, 0x6F, 0x03, 0x62, 0xF1, 0xFD, 0x48, 0xD4, 0xC0, 0x62, 0xF1, 0xFE,
      0x49, 0x7F, 0x03,
    ])
    #expect(reason == .hlt)
    #expect(m.c.s.pointee.rip == 0x1012)
    #expect(m.machine.read(0x4FF8, as: UInt64.self) == 14)
  }

  @Test func vectorMaskSuppressesFaults() {
    let m = VectorMachine()
    unmap(m, page: 5)
    m.c.gpr[3] = 0x4FFC
    m.machine.store(UInt32(7), at: 0x4FFC)
    m[zmm: 1, 0] = 0x8000_0000
    m.run([0xC4, 0xE2, 0x75, 0x2C, 0x03])  // vmaskmovps ymm0, ymm1, [rbx]
    #expect(m.c.s.pointee.rip == 0x1005)
    #expect(m[zmm: 0, 0] == 7)
    #expect(m[zmm: 0, 1] == 0)
  }

  @Test func gatherStopsAtFaultWithItsProgress() {
    let m = VectorMachine()
    m.catchExceptions()
    unmap(m, page: 5)
    m.c.gpr[3] = 0x4000
    m.machine.store(UInt32(11), at: 0x4000)
    m.machine.store(UInt32(22), at: 0x4004)
    m[zmm: 4, 0] = 1 << 32  // indices 0, 1, 0x400 (the page that is not there), 0
    m[zmm: 4, 1] = 0x400
    m[zmm: 2, 0] = .max
    m[zmm: 2, 1] = .max
    m.run([0xC4, 0xE2, 0x69, 0x90, 0x0C, 0xA3])  // vpgatherdd xmm1, [rbx+xmm4*4], xmm2
    #expect(m.raised(.pageFault))
    #expect(m[zmm: 1, 0] == 22 << 32 | 11)
    #expect(m[zmm: 2, 0] == 0)
    #expect(m[zmm: 2, 1] == .max)
  }

  @Test func scatterWritesSelectedElements() {
    let m = VectorMachine()
    m.c.gpr[3] = 0x4000
    for n in 0..<8 {
      m[zmm: 1, n] = UInt64(n + 1)
      m[zmm: 4, n] = UInt64(n * 2)
    }
    m.c.vector.pointee.opmask[1] = 0b1010_0101
    m.run([0x62, 0xF2, 0xFD, 0x49, 0xA1, 0x0C, 0xE3])  // vpscatterqq [rbx+zmm4*8]{k1}, zmm1
    let stored = (0..<8).map { m.machine.read(0x4000 + $0 * 16, as: UInt64.self) }
    #expect(stored == [1, 0, 3, 0, 0, 6, 0, 8])
    #expect(m.c.vector.pointee.opmask[1] == 0)
  }

  @Test func stringCompareSetsIndexAndFlags() {
    let m = VectorMachine()
    m[zmm: 1, 0] = 0x0000_0000_0000_0063  // "c"
    m[zmm: 2, 0] = 0x0000_0000_6463_6261  // "abcd"
    m.run([0x66, 0x0F, 0x3A, 0x63, 0xCA, 0x00])  // pcmpistri xmm1, xmm2, 0
    #expect(m.c.gpr[1] == 2)
    #expect(m.c.flags & RFLAGS.cf.rawValue != 0)
  }

  @Test func maskedByteMoveWritesSelectedBytes() {
    let m = VectorMachine()
    m.c.gpr[7] = 0x4000
    m[zmm: 0, 0] = 0x0807_0605_0403_0201
    m[zmm: 1, 0] = 0x8000_0000_0000_0080
    m.run([0x66, 0x0F, 0xF7, 0xC1])  // maskmovdqu xmm0, xmm1
    #expect(m.machine.read(0x4000, as: UInt64.self) == 0x0800_0000_0000_0001)
  }
}
