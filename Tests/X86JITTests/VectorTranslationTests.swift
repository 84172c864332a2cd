// SPDX-License-Identifier: Apache-2.0
//
// What translated code makes of vector and x87 instructions: which it executes itself, and how it
// leaves where it may not.

import Support
import Testing
import X86
import X86CPU
import X86Decoder
import X86JIT

@Suite struct VectorTranslationTests {
  private func machine() -> TestMachine {
    let m = TestMachine(threshold: 1)
    m.setLongMode()
    m.cpu.s.pointee.cr4 |= CR4.osxsave.rawValue
    m.cpu.s.pointee.xcr0 = XCR0([.x87, .sse, .avx, .avx512]).rawValue
    m.cpu.s.pointee.vmx.exceptionBitmap = .max
    m.cpu.updateMode()
    m.cpu.resetVectorState()
    m.cpu.gpr[4] = 0x8000
    return m
  }

  /// What was left to handlers, HLT aside.
  private func handled(_ m: TestMachine) throws -> [Mnemonic] {
    try #require(m.translator).handlerUse.map(\.mnemonic).filter { $0 != .hlt }
  }

  private func low(_ m: TestMachine, _ register: Int) -> Double {
    Double(bitPattern: m.cpu.vector.pointee.zmm[register * 8])
  }

  private func image(_ m: TestMachine) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(m.cpu.vector) + VectorLayout.fx
  }

  @Test func loopKeepsItsRegisters() throws {
    let m = machine()
    // addsd xmm0, xmm1 ; vaddpd zmm17, zmm17, zmm18 ; dec ecx ; jnz ; hlt
    m.load(
      [
        0xF2, 0x0F, 0x58, 0xC1, 0x62, 0xA1, 0xF5, 0x40, 0x58, 0xCA, 0xFF, 0xC9, 0x75, 0xF2, 0xF4,
      ], at: 0x1000)
    m.cpu.vector.pointee.zmm[8] = 1.5.bitPattern
    for part in 0..<8 { m.cpu.vector.pointee.zmm[18 * 8 + part] = Double(part).bitPattern }
    m.cpu.vector.pointee.zmm[1] = 77
    m.cpu.gpr[1] = 1000
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(low(m, 0) == 1500)
    #expect(m.cpu.vector.pointee.zmm[1] == 77)
    #expect(m.cpu.vector.pointee.zmm[17 * 8 + 7] == 7000.0.bitPattern)
    #expect(try handled(m).isEmpty)
  }

  /// The flags that arithmetic raises are in the guest's MXCSR, and the program's is its own again.
  @Test func stickyFlagsComeHome() throws {
    let m = machine()
    // divsd xmm0, xmm1 ; hlt
    m.load([0xF2, 0x0F, 0x5E, 0xC1, 0xF4], at: 0x1000)
    m.cpu.vector.pointee.zmm[0] = 1.0.bitPattern
    m.cpu.vector.pointee.zmm[8] = 3.0.bitPattern
    m.cpu.mxcsr = 0x7F80  // toward zero
    m.run(from: 0x1000)
    #expect(m.cpu.mxcsr == 0x7FA0)
    #expect(m.cpu.vector.pointee.zmm[0] == 0x3FD5_5555_5555_5555)
    var tenth = 1.0
    tenth /= 10
    #expect(tenth == 0.1)
    #expect(try handled(m).isEmpty)
  }

  @Test func x87StaysInTheUnit() throws {
    let m = machine()
    // fldz ; fld1 ; L: fadd st(1), st ; mov [0x3000], ecx ; dec ecx ; jnz L ; fstp st ;
    // fstp qword [0x3000] ; hlt
    m.load(
      [
        0xD9, 0xEE, 0xD9, 0xE8, 0xDC, 0xC1, 0x89, 0x0C, 0x25, 0, 0x30, 0, 0, 0xFF, 0xC9, 0x75, 0xF3,
        0xDD, 0xD8, 0xDD, 0x1C, 0x25, 0, 0x30, 0, 0, 0xF4,
      ], at: 0x1000)
    m.cpu.gpr[1] = 1000
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(Double(bitPattern: m.read(0x3000, as: UInt64.self)) == 1000)
    let handled = try handled(m)
    #expect(handled.allSatisfy { $0 == .mov || $0 == .fstp })
    // Neither pointer is the host's.
    #expect(image(m).load(fromByteOffset: 8, as: UInt64.self) < 0x10000)
    #expect(image(m).load(fromByteOffset: 16, as: UInt64.self) < 0x10000)
  }

  /// CR0.TS: the run ends with #NM at the instruction, what is before it has happened.
  @Test func deviceNotAvailable() {
    let m = machine()
    m.cpu.s.pointee.cr0 |= CR0.ts.rawValue
    m.cpu.updateMode()
    // inc eax ; addps xmm0, xmm1 ; hlt
    m.load([0xFF, 0xC0, 0x0F, 0x58, 0xC1, 0xF4], at: 0x1000)
    let before = m.cpu.s.pointee.retired
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.gpr[0] == 1)
    #expect(m.cpu.s.pointee.rip == 0x1002)
    #expect(m.cpu.s.pointee.retired - before == 1)
    #expect(UInt8(truncatingIfNeeded: m.cpu.s.pointee.pendingException) == 7)
  }

  /// A misaligned operand is #GP, not the program's end; registers are as before.
  @Test func misalignedOperand() {
    let m = machine()
    // addsd xmm0, xmm0 ; addps xmm0, [0x3008] ; hlt
    m.load([0xF2, 0x0F, 0x58, 0xC0, 0x0F, 0x58, 0x04, 0x25, 8, 0x30, 0, 0, 0xF4], at: 0x1000)
    m.cpu.vector.pointee.zmm[0] = 2.0.bitPattern
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.s.pointee.rip == 0x1004)
    #expect(low(m, 0) == 4)
    #expect(UInt8(truncatingIfNeeded: m.cpu.s.pointee.pendingException) == 13)
  }

  /// FLDCW that unmasks: the division by zero after it is #MF at the next waiting instruction.
  @Test func unmaskingLeavesTranslatedCode() {
    let m = machine()
    // fld1 ; fldz ; fldcw [0x3000] ; fdivp ; fwait ; hlt
    m.load(
      [0xD9, 0xE8, 0xD9, 0xEE, 0xD9, 0x2C, 0x25, 0, 0x30, 0, 0, 0xDE, 0xF9, 0x9B, 0xF4], at: 0x1000)
    m.store(UInt16(0x37B), at: 0x3000)
    let before = m.cpu.s.pointee.retired
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.s.pointee.rip == 0x100D)
    #expect(m.cpu.s.pointee.retired - before == 4)
    #expect(UInt8(truncatingIfNeeded: m.cpu.s.pointee.pendingException) == 16)
  }

  @Test func zeroUpper() throws {
    let m = machine()
    // vaddpd ymm1, ymm1, ymm1 ; vzeroupper ; addsd xmm1, xmm1 ; hlt
    m.load(
      [0xC5, 0xF5, 0x58, 0xC9, 0xC5, 0xF8, 0x77, 0xF2, 0x0F, 0x58, 0xC9, 0xF4], at: 0x1000)
    for n in 0..<256 { m.cpu.vector.pointee.zmm[n] = 1.0.bitPattern }
    m.run(from: 0x1000)
    #expect(low(m, 1) == 4)
    #expect(m.cpu.vector.pointee.zmm[9] == 2.0.bitPattern)
    for register in 0..<16 {
      #expect((2..<8).allSatisfy { m.cpu.vector.pointee.zmm[register * 8 + $0] == 0 })
    }
    #expect(m.cpu.vector.pointee.zmm[16 * 8 + 2] == 1.0.bitPattern)
    #expect(try handled(m).isEmpty || !HostFeatures.current.hasAVX512)
  }
}
