// SPDX-License-Identifier: Apache-2.0
//
// x87 and MMX: the stack, exceptions that wait for the next instruction, and the environment,
// which comes back as it was stored.

import Support
import Testing
import X86
import X86CPU

@Suite struct X87Tests {
  @Test func computesAndPops() {
    let m = VectorMachine()
    m.machine.store((2.0 as Double).bitPattern, at: 0x4000)
    m.c.gpr[3] = 0x4000
    // fninit; fld qword [rbx]; fsqrt; fstp qword [rbx+8]; fnstsw ax
    m.run([0xDB, 0xE3, 0xDD, 0x03, 0xD9, 0xFA, 0xDD, 0x5B, 0x08, 0xDF, 0xE0])
    #expect(m.machine.read(0x4008, as: UInt64.self) == (2.0 as Double).squareRoot().bitPattern)
    #expect(m.c.gpr[0] & 0xFFFF & ~0x0200 == 0x0020)
  }

  @Test func unmaskedExceptionIsRaisedByTheNextInstruction() {
    let m = VectorMachine()
    m.catchExceptions()
    m.machine.store(UInt16(0x37F & ~4), at: 0x4000)  // zero divide unmasked
    m.c.gpr[3] = 0x4000
    // fninit; fldcw [rbx]; fld1; fldz; fdivp; nop; fwait
    m.run([0xDB, 0xE3, 0xD9, 0x2B, 0xD9, 0xE8, 0xD9, 0xEE, 0xDE, 0xF9, 0x90, 0x9B])
    #expect(m.raised(.x87FloatingPoint, at: 0x100B), "FWAIT is what faults")
  }

  /// The precision exception of a division is there when the store comes, which then stores
  /// nothing.
  @Test func pendingExceptionKeepsAStoreFromMemory() {
    let m = VectorMachine()
    m.catchExceptions()
    m.machine.store(UInt16(0x37F & ~0x20), at: 0x4000)  // precision unmasked
    m.machine.store(UInt64(0x0123_4567_89AB_CDEF), at: 0x4010)
    m.machine.store(UInt64(0x1122_3344_5566_7788), at: 0x4018)
    m.c.gpr[3] = 0x4000
    // fninit; fldcw [rbx]; fld1; fldpi; fdivp; fstp tbyte [rbx+0x10]
    m.run([
      0xDB, 0xE3, 0xD9, 0x2B, 0xD9, 0xE8, 0xD9, 0xEB, 0xDE, 0xF9, 0xDB, 0x7B, 0x10,
    ])
    #expect(m.raised(.x87FloatingPoint, at: 0x100A), "FSTP is what faults")
    #expect(m.machine.read(0x4010, as: UInt64.self) == 0x0123_4567_89AB_CDEF)
    #expect(m.machine.read(0x4018, as: UInt64.self) == 0x1122_3344_5566_7788)
  }

  @Test func environmentRoundTrip() {
    let m = VectorMachine()
    m.c.gpr[3] = 0x4000
    m.c.gpr[2] = 0x4100
    // fninit; fld1; fldpi; fnsave [rbx]; frstor [rbx]; fnsave [rdx]
    m.run([
      0xDB, 0xE3, 0xD9, 0xE8, 0xD9, 0xEB, 0xDD, 0x33, 0xDD, 0x23, 0xDD, 0x32,
    ])
    for offset in stride(from: 0, to: 108, by: 4) {
      #expect(
        m.machine.read(0x4000 + offset, as: UInt32.self)
          == m.machine.read(0x4100 + offset, as: UInt32.self), "offset \(offset)")
    }
    #expect(m.machine.read(0x4008, as: UInt16.self) == 0x0FFF, "two registers in use")
    #expect(m.machine.read(0x400C, as: UInt32.self) == 0x1004, "address of FLDPI")
    #expect(m.c.fullTagWord == 0xFFFF)
  }

  @Test func mmxAliasesTheStack() {
    let m = VectorMachine()
    m.c.gpr[0] = 0x1122_3344_5566_7788
    // fninit; fld1; movq mm2, rax; paddb mm2, mm2; movq rcx, mm2
    m.run([
      0xDB, 0xE3, 0xD9, 0xE8, 0x48, 0x0F, 0x6E, 0xD0, 0x0F, 0xFC, 0xD2, 0x48, 0x0F, 0x7E, 0xD1,
    ])
    #expect(m.c.gpr[1] == 0x2244_6688_AACC_EE10)
    #expect(m.c.vector.pointee.fx[0] >> 16 & 0x3800 == 0, "TOP is 0")
    #expect(m.c.vector.pointee.fx[0] >> 32 & 0xFF == 0xFF, "all valid")
    // ST(7) was the 1.0 at TOP 7; it is register 7 still.
    #expect(m.c.vector.pointee.fx[4 + 14] == 1 << 63)
  }
}
