// SPDX-License-Identifier: Apache-2.0

import Support
import Testing
import X86
import X86CPU

/// Single steps, breakpoints and the shadows of STI and MOV SS.
@Suite struct DebugEventTests {
  private func machine() -> TestMachine {
    let m = TestMachine()
    m.setLongSystem()
    m.setHandlers(long: true)
    return m
  }

  @Test func singleStepTrapsAfterOneInstruction() {
    let m = machine()
    m.cpu.s.pointee.rflags |= RFLAGS.tf.rawValue
    m.cpu.updateMode()
    m.load([0xF8, 0xF8], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 1)
    #expect(m.stacked(0, as: UInt64.self) == 0x1001)
    #expect(m.stacked(2, as: UInt64.self) & RFLAGS.tf.rawValue != 0)
    #expect(m.cpu.flags & RFLAGS.tf.rawValue == 0)
    #expect(m.cpu.s.pointee.dr6 == 0xFFFF_4FF0)
  }

  @Test func trapFlagSetByPopTrapsOneInstructionLater() {
    let m = machine()
    // push 0x102; popf; clc; clc
    m.load([0x68, 2, 1, 0, 0, 0x9D, 0xF8, 0xF8], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 1)
    #expect(m.stacked(0, as: UInt64.self) == 0x1007)
  }

  @Test func interruptInstructionIsNotStepped() {
    let m = machine()
    m.cpu.s.pointee.rflags |= RFLAGS.tf.rawValue
    m.cpu.updateMode()
    m.load([0xCC], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 3)
    #expect(m.stacked(2, as: UInt64.self) & RFLAGS.tf.rawValue != 0)
  }

  @Test func singleStepExitHasItsBitInTheQualification() {
    let m = machine()
    m.cpu.s.pointee.vmx.exceptionBitmap = 1 << 1
    m.cpu.s.pointee.rflags |= RFLAGS.tf.rawValue
    m.cpu.updateMode()
    m.load([0xF8], at: 0x1000)
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.s.pointee.exit.qualification == 0x4000)
    #expect(m.cpu.s.pointee.dr6 == 0xFFFF_0FF0)
    #expect(m.cpu.s.pointee.rip == 0x1001)
    #expect(m.cpu.s.pointee.pendingDebug == 0)
  }

  @Test func instructionBreakpointAndResumeFlag() {
    let m = machine()
    m.cpu.s.pointee.dr[1] = 0x1001
    m.cpu.s.pointee.dr7 = 0x400 | 1 << 2 | DR7.gd.rawValue
    m.cpu.updateMode()
    m.load([0xF8, 0xF8, 0xCC], at: 0x1000)
    // The handler sets RF in the image and returns: or dword [rsp+16], 0x10000; iretq
    m.load(
      [0x81, 0x4C, 0x24, 0x10, 0, 0, 1, 0, 0x48, 0xCF], at: Int(m.handler(1)))
    m.load([0xF4], at: Int(m.handler(3)))
    m.setLongGate(1, to: 0x7000)
    m.load([0x81, 0x4C, 0x24, 0x10, 0, 0, 1, 0, 0x48, 0xCF], at: 0x7000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 3)
    #expect(m.stacked(0, as: UInt64.self) == 0x1003)
    #expect(m.stacked(2, as: UInt64.self) & RFLAGS.rf.rawValue == 0)
    #expect(m.cpu.s.pointee.dr6 == 0xFFFF_0FF2)
    #expect(m.cpu.s.pointee.dr7 & DR7.gd.rawValue == 0)
  }

  @Test func dataBreakpointTrapsAfterTheWrite() {
    let m = machine()
    m.cpu.s.pointee.dr[0] = 0x2004
    m.cpu.s.pointee.dr7 = 0x400 | 1 | 1 << 16 | 3 << 18  // 4 bytes, write
    m.cpu.updateMode()
    m.cpu.flushTLB()
    // mov eax, [0x2004]; mov [0x2006], al; clc
    m.load(
      [0x8B, 0x04, 0x25, 4, 0x20, 0, 0, 0x88, 0x04, 0x25, 6, 0x20, 0, 0, 0xF8], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 1)
    #expect(m.stacked(0, as: UInt64.self) == 0x100E)
    #expect(m.cpu.s.pointee.dr6 & 0xF == 1)
  }

  @Test func stiHoldsInterruptsForOneInstruction() {
    let m = machine()
    m.cpu.s.pointee.vmx.primary |= PrimaryControls.interruptWindowExiting
    m.load([0xFB, 0xF8, 0xF8], at: 0x1000)
    #expect(m.run(from: 0x1000) == .interruptWindow)
    #expect(m.cpu.s.pointee.rip == 0x1002)
    #expect(m.cpu.s.pointee.interruptibility == 0)
  }

  @Test func movSSHoldsSingleStep() {
    let m = machine()
    m.cpu.s.pointee.rflags |= RFLAGS.tf.rawValue
    m.cpu.updateMode()
    m.cpu.gpr[0] = UInt64(Tables.data0)
    m.load([0x8E, 0xD0, 0xF8, 0xF8], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 1)
    #expect(m.stacked(0, as: UInt64.self) == 0x1003)
  }
}
