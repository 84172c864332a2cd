// SPDX-License-Identifier: Apache-2.0
//
// Segments, far transfers and interrupts of real mode, against the SDM ("8086 Emulation").

import Support
import Testing
import X86
import X86CPU

@Suite struct RealModeTransferTests {
  private func machine() -> TestMachine {
    let m = TestMachine()
    m.setRealMode()
    m.cpu.s.pointee.idtr.base = 0
    m.cpu.s.pointee.idtr.limit = 0x3FF
    for vector in 0..<64 {
      m.store(UInt16(0x10), at: vector * 4)
      m.store(UInt16(0x600), at: vector * 4 + 2)
    }
    m.load([0xF4], at: 0x6010)
    m.cpu.gpr[4] = 0x8000
    return m
  }

  @Test func interruptAndReturn() {
    let m = machine()
    m.cpu.s.pointee.rflags |= RFLAGS.if.rawValue
    m.load([0xCF], at: 0x6010)  // iret
    m.load([0xF9, 0xCD, 0x21, 0xF4], at: 0x1000)  // stc; int 0x21; hlt
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.s.pointee.rip == 0x1003)
    #expect(m.cpu.segment(.cs).pointee.base == 0)
    #expect(m.cpu.gpr[4] == 0x8000)
    #expect(m.cpu.flags & (RFLAGS.if.rawValue | RFLAGS.cf.rawValue) == 0x201)
    #expect(m.read(0x7FFA, as: UInt16.self) == 0x1003)
    #expect(m.read(0x7FFC, as: UInt16.self) == 0)
    #expect(m.read(0x7FFE, as: UInt16.self) == 0x203)
  }

  @Test func faultHasNoErrorCode() {
    let m = machine()
    m.cpu.gpr[3] = 0xFFFF
    m.load([0x8B, 0x07], at: 0x1000)  // mov ax, [bx] beyond the limit: #GP
    m.run(from: 0x1000)
    #expect(m.cpu.s.pointee.rip == 0x10)
    #expect(m.cpu.segment(.cs).pointee.selector == 0x600)
    #expect(m.cpu.gpr[4] == 0x7FFA)
    #expect(m.read(0x7FFA, as: UInt16.self) == 0x1000)
  }

  @Test func interceptedFaultHasNoErrorCode() {
    let m = machine()
    m.cpu.vmxControls.exceptionBitmap = 1 << 13
    m.cpu.gpr[3] = 0xFFFF
    m.load([0x8B, 0x07], at: 0x1000)
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.exitFields.interruptionInfo == 0x8000_030D)
  }

  @Test func farCallAndReturn() {
    let m = machine()
    // call 0x200:0x34; hlt
    m.load([0x9A, 0x34, 0, 0, 2, 0xF4], at: 0x1000)
    // mov ax, cs; mov ds, ax; retf 4
    m.load([0x8C, 0xC8, 0x8E, 0xD8, 0xCA, 4, 0], at: 0x2034)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.s.pointee.rip == 0x1005)
    #expect(m.cpu.gpr[4] == 0x8004)
    #expect(m.cpu.segment(.ds).pointee.base == 0x2000)
    #expect(m.cpu.segment(.ds).pointee.selector == 0x200)
  }

  @Test func limitsOfProtectedModeStay() {
    let m = machine()
    m.cpu.segment(.ds).pointee.limit = .max
    m.cpu.gpr[0] = 0x123
    m.load([0x8E, 0xD8, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.segment(.ds).pointee.limit == .max)
    #expect(m.cpu.segment(.ds).pointee.base == 0x1230)
  }

  @Test func stackOfPushedSegmentsAndFarPointers() {
    let m = machine()
    m.cpu.segment(.es).pointee.selector = 0x77
    m.store(UInt32(0x0123_4567), at: 0x2000)
    // push es; pop ds; es: les bx, [0x2000] without ds; hlt
    m.load([0x06, 0x1F, 0x26, 0xC4, 0x1E, 0, 0x20, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.segment(.ds).pointee.base == 0x770)
    #expect(m.cpu.gpr[3] & 0xFFFF == 0x4567)
    #expect(m.cpu.segment(.es).pointee.selector == 0x0123)
  }

  @Test func protectedInstructionsAreUndefined() {
    for code: [UInt8] in [[0x0F, 0x00, 0xC0], [0x0F, 0x02, 0xC0], [0x63, 0xC0]] {
      let m = machine()
      m.store(UInt16(0x20), at: 6 * 4)
      m.load([0xF4], at: 0x6020)
      m.load(code, at: 0x1000)
      m.run(from: 0x1000)
      #expect(m.cpu.s.pointee.rip == 0x20)
    }
  }
}
