// SPDX-License-Identifier: Apache-2.0
//
// Single steps, breakpoints and the shadows of STI and MOV SS: each debug exception comes where
// the SDM's chapter on debugging has it, with its bits of DR6.

import Support
import Testing
import X86
import X86CPU

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
    m.cpu.vmxControls.exceptionBitmap = 1 << 1
    m.cpu.s.pointee.rflags |= RFLAGS.tf.rawValue
    m.cpu.updateMode()
    m.load([0xF8], at: 0x1000)
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.exitFields.qualification == 0x4000)
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
    m.cpu.vmxControls.primary |= PrimaryControls.interruptWindowExiting
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

  /// Counts its entries in RBX and ends stepping: inc rbx; and dword [rsp + 16], ~0x100; iretq.
  private func setCountingHandler(_ m: TestMachine) {
    let code: [UInt8] = [
      0x48, 0xFF, 0xC3, 0x81, 0x64, 0x24, 0x10, 0xFF, 0xFE, 0xFF, 0xFF, 0x48, 0xCF,
    ]
    m.load(code, at: 0x7000)
    m.setLongGate(1, to: 0x7000)
    m.cpu.gpr[3] = 0
  }

  /// A step trap that waits behind MOV SS goes with the debug exception of the next instruction:
  /// INT1, MOV from DR0 with DR7.GD.
  @Test(arguments: [[0xF1, 0xF4], [0x0F, 0x21, 0xC1, 0xF4]] as [[UInt8]])
  func waitingStepIsToldOnce(_ code: [UInt8]) {
    let m = machine()
    setCountingHandler(m)
    m.cpu.s.pointee.rflags |= RFLAGS.tf.rawValue
    if code[0] == 0x0F { m.cpu.s.pointee.dr7 |= DR7.gd.rawValue }
    m.cpu.updateMode()
    m.cpu.gpr[0] = UInt64(Tables.data0)
    m.load([0x8E, 0xD0] + code, at: 0x1000)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[3] == 1)
    #expect(m.cpu.s.pointee.rip == UInt64(0x1002 + code.count - 1))
    #expect(m.cpu.s.pointee.dr6 & DR6.bs.rawValue != 0)
    #expect((m.cpu.s.pointee.dr6 & DR6.bd.rawValue != 0) == (code[0] == 0x0F))
  }

  @Test func watchpointOfMovSSBeforeINT1() {
    let m = machine()
    setCountingHandler(m)
    m.cpu.s.pointee.dr[2] = 0x2004
    m.cpu.s.pointee.dr7 = 0x400 | 1 << 4 | 3 << 24 | 3 << 26
    m.cpu.updateMode()
    m.cpu.flushTLB()
    m.store(UInt32(Tables.data0), at: 0x2004)
    // mov ss, [0x2004]; int1; hlt
    m.load([0x8E, 0x14, 0x25, 4, 0x20, 0, 0, 0xF1, 0xF4], at: 0x1000)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[3] == 1)
    #expect(m.cpu.s.pointee.dr6 & 0xF == 4)
  }

  @Test func exitOfINT1SaysWhatWaited() {
    let m = machine()
    m.cpu.vmxControls.exceptionBitmap = 1 << 1
    m.cpu.s.pointee.rflags |= RFLAGS.tf.rawValue
    m.cpu.updateMode()
    m.cpu.gpr[0] = UInt64(Tables.data0)
    m.load([0x8E, 0xD0, 0xF1], at: 0x1000)
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.exitFields.qualification == 0x4000)
    #expect(m.cpu.s.pointee.pendingDebug == 0)
    #expect(m.cpu.s.pointee.dr6 == 0xFFFF_0FF0)
  }

  /// POPF sets TF before a far return that faults: no trap then, but one when it has come to an
  /// end.
  @Test func stepOverAFarReturnThatFaultsOnce() {
    let m = machine()
    m.setDescriptor(Tables.spare, descriptor(rights: 0xA01B))
    let frame: [UInt64] = [0x102, 0x2000, UInt64(Tables.spare)]
    for (n, value) in frame.enumerated() { m.store(value, at: 0x7800 + n * 8) }
    m.cpu.gpr[4] = 0x7800
    // popf; lretq
    m.load([0x9D, 0x48, 0xCB], at: 0x1000)
    m.load([0xF8, 0xF4], at: 0x2000)
    // #NP: makes the segment present: inc rbx; or byte [gdt + spare + 5], 0x80; add rsp, 8; iretq
    let byte = Tables.gdt + Int(Tables.spare) + 5
    m.load(
      [0x48, 0xFF, 0xC3, 0x80, 0x0C, 0x25, UInt8(byte & 0xFF), UInt8(byte >> 8), 0, 0, 0x80]
        + [0x48, 0x83, 0xC4, 8, 0x48, 0xCF], at: 0x7000)
    m.setLongGate(11, to: 0x7000)
    m.cpu.gpr[3] = 0
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.stoppedIn == 1)
    #expect(m.cpu.gpr[3] == 1)
    #expect(m.stacked(0, as: UInt64.self) == 0x2000)
  }
}
