// SPDX-License-Identifier: Apache-2.0
//
// What translated code makes of vector and x87 instructions: which it executes itself, and how it
// leaves where it may not.

import Host
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
    m.cpu.vmxControls.exceptionBitmap = .max
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

  // MARK: Upper parts of the host's registers

  /// What is in use of the host's AVX state: XGETBV with ECX 1, XINUSE.
  private func stateInUse() throws -> UInt64 {
    let memory = try CodeMemory(size: 4096)
    // mov ecx, 1; xgetbv; ret
    let code: [UInt8] = [0xB9, 1, 0, 0, 0, 0x0F, 0x01, 0xD0, 0xC3]
    memory.writable.copyMemory(from: code, byteCount: code.count)
    return unsafeBitCast(memory.executable, to: (@convention(c) () -> UInt64).self)()
  }

  static let tellsStateInUse =
    HostFeatures.current.hasAVX && HostCPUID.leaf(0xD, 1).eax & 1 << 2 != 0

  /// Guest code that uses 32 bytes of registers 0 and 1, and how the translation is left.
  static let wideCode: [(name: String, code: [UInt8])] = [
    // vpaddd ymm0, ymm0, ymm1 ; hlt
    ("handler", [0xC5, 0xFD, 0xFE, 0xC1, 0xF4]),
    // vpaddd ymm0, ymm0, ymm1 ; jmp +0xFFB, to the next page
    ("jump", [0xC5, 0xFD, 0xFE, 0xC1, 0xE9, 0xF7, 0x0F, 0, 0]),
    // vpaddd ymm0, ymm0, ymm1 ; test eax, eax ; jne +0xFF5
    ("condition", [0xC5, 0xFD, 0xFE, 0xC1, 0x85, 0xC0, 0x0F, 0x85, 0xF4, 0x0F, 0, 0, 0xF4]),
    // vmovdqu ymm1, [0x3FF0], across two pages ; hlt
    ("miss", [0xC5, 0xFE, 0x6F, 0x0C, 0x25, 0xF0, 0x3F, 0, 0, 0xF4]),
    // vpaddd ymm0, ymm0, ymm1 ; call +0xFF7
    ("call", [0xC5, 0xFD, 0xFE, 0xC1, 0xE8, 0xF7, 0x0F, 0, 0]),
  ]

  /// Legacy SSE instructions stall on many processors while the upper parts are in use.
  @Test(.enabled(if: tellsStateInUse), arguments: wideCode.indices) func upperPartsAreUnusedOutside(
    _ n: Int
  ) throws {
    let m = machine()
    m.load(Self.wideCode[n].code, at: 0x1000)
    m.load([0xF4], at: 0x2000)
    m.cpu.gpr[0] = 1
    for part in 0..<8 { m.cpu.vector.pointee.zmm[part] = .max }
    for _ in 0..<3 { #expect(m.run(from: 0x1000) == .hlt) }
    #expect(try stateInUse() & XCR0.avx.rawValue == 0, "\(Self.wideCode[n].name)")
    #expect(try handled(m).filter { $0 != .vmovdqu && $0 != .call }.isEmpty)
  }

  /// A register of which only 16 bytes are read keeps the others; one that is written loses them.
  @Test func upperPartsAreKeptWhereOnlyTheLowerIsRead() throws {
    let m = machine()
    // L: vaddsd xmm2, xmm0, xmm1 ; vmovapd xmm3, xmm3 ; addsd xmm4, xmm1 ;
    // vpaddd ymm5, ymm5, ymm6 ; dec ecx ; jnz L ; hlt
    m.load(
      [
        0xC5, 0xFB, 0x58, 0xD1, 0xC5, 0xF9, 0x28, 0xDB, 0xF2, 0x0F, 0x58, 0xE1, 0xC5, 0xD5, 0xFE,
        0xEE,
        0xFF, 0xC9, 0x75, 0xEC, 0xF4,
      ], at: 0x1000)
    m.cpu.gpr[1] = 3
    for part in 0..<56 { m.cpu.vector.pointee.zmm[part] = UInt64(part + 1) }
    #expect(m.run(from: 0x1000) == .hlt)
    let zmm = (0..<56).map { m.cpu.vector.pointee.zmm[$0] }
    for register in [0, 1, 6] {
      #expect(
        Array(zmm[register * 8..<register * 8 + 8]) == (1...8).map { UInt64(register * 8 + $0) })
    }
    #expect(zmm[2 * 8 + 1] == 2 && zmm[2 * 8 + 2..<2 * 8 + 8].allSatisfy { $0 == 0 })
    #expect(
      zmm[3 * 8] == 25 && zmm[3 * 8 + 1] == 26 && zmm[3 * 8 + 2..<3 * 8 + 8].allSatisfy { $0 == 0 })
    #expect(Array(zmm[4 * 8 + 1..<4 * 8 + 8]) == (34...40).map { UInt64($0) })
    #expect(zmm[5 * 8 + 3] == 44 + 3 * 52 && zmm[5 * 8 + 4..<5 * 8 + 8].allSatisfy { $0 == 0 })
    #expect(try handled(m).isEmpty)
  }
}
