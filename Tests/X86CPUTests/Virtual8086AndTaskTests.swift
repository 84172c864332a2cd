// SPDX-License-Identifier: Apache-2.0
//
// Virtual-8086 mode and task switches: what faults, exits and is pushed is the SDM's, and an
// emulated switch leaves both TSSs as it says.

import Support
import Testing
import X86
import X86CPU

/// Virtual-8086 mode: entry by IRET, interrupts out of it, IOPL, the mode's extensions.
@Suite struct Virtual8086Tests {
  /// A machine that enters virtual-8086 mode at 0x100:0x10 (linear 0x1010), SS:SP 0x700:0x800.
  private func machine(iopl: UInt32, code: [UInt8]) -> TestMachine {
    let m = TestMachine()
    m.setProtectedSystem()
    m.setHandlers(long: false)
    let frame: [UInt32] = [
      0x10, 0x100, 0x2_0202 | iopl << 12, 0x800, 0x700, 0x11, 0x22, 0x33, 0x44,
    ]
    m.cpu.gpr[4] = Tables.stack - 36
    for (n, value) in frame.enumerated() { m.store(value, at: Int(Tables.stack) - 36 + n * 4) }
    for vector in [3, 32] { m.setGate(vector, to: m.handler(vector), dpl: 3) }
    m.load([0xCF], at: 0x2000)
    m.load(code, at: 0x1010)
    return m
  }

  @Test func interruptLeavesWithSegments() {
    let m = machine(iopl: 3, code: [0xCD, 0x20])
    #expect(m.run(from: 0x2000) == .hlt)
    #expect(m.stoppedIn == 32)
    #expect(m.cpu.cpl == 0)
    #expect(m.cpu.flags & RFLAGS.vm.rawValue == 0)
    #expect(m.cpu.gpr[4] == Tables.innerStack - 36)
    #expect(m.stacked(0, as: UInt32.self) == 0x12)
    #expect(m.stacked(1, as: UInt32.self) == 0x100)
    #expect(m.stacked(2, as: UInt32.self) & 0x2_3000 == 0x2_3000)
    #expect(m.stacked(3, as: UInt32.self) == 0x800)
    #expect(m.stacked(4, as: UInt32.self) == 0x700)
    #expect(m.stacked(5, as: UInt32.self) == 0x11)
    #expect(m.stacked(8, as: UInt32.self) == 0x44)
    #expect(m.cpu.segment(.ds).pointee.rights.isUnusable)
  }

  @Test(arguments: [[0xCD, 0x20], [0xFA], [0x9C], [0x9D], [0xCF]] as [[UInt8]])
  func sensitiveInstructionsFaultBelowIOPL3(_ code: [UInt8]) {
    let m = machine(iopl: 0, code: code)
    m.run(from: 0x2000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(0, as: UInt32.self) == 0)
    #expect(m.stacked(1, as: UInt32.self) == 0x10)
  }

  @Test func extensionsRedirectInterruptsAndVirtualizeIF() {
    // sti; int 0x21; at its handler: pushf; pop ax; then int3
    let m = machine(iopl: 0, code: [0xFB, 0xCD, 0x21])
    m.cpu.s.pointee.cr4 |= CR4.vme.rawValue
    m.store(UInt16(0x88), at: Tables.tss + 0x66)
    m.store(UInt32(0x0100_0040), at: 0x21 * 4)
    m.load([0x9C, 0x58, 0xCC], at: 0x1040)
    m.run(from: 0x2000)
    #expect(m.stoppedIn == 3)
    #expect(m.cpu.gpr[0] & 0xFFFF == 0x3002)
    #expect(m.read(0x7000 + 0x7FA, as: UInt16.self) == 0x13)
    #expect(m.read(0x7000 + 0x7FE, as: UInt16.self) == 0x3202)
    #expect(m.stacked(2, as: UInt32.self) & 0x8_0200 == 0x200)
  }
}

/// The exits of task switches, and their emulation.
@Suite struct TaskSwitchTests {
  private static let other: UInt16 = 0x48
  private static let otherTSS = 0xC000

  private func machine(cpl: UInt8 = 0) -> TestMachine {
    let m = TestMachine()
    m.setProtectedSystem(cpl: cpl)
    m.setHandlers(long: false)
    m.setDescriptor(
      Self.other, descriptor(base: UInt64(Self.otherTSS), limit: 0x67, rights: 0x89))
    let tss = Self.otherTSS
    m.store(UInt32(0x2000), at: tss + 0x20)
    m.store(UInt32(0x202), at: tss + 0x24)
    m.store(UInt32(0xAAAA), at: tss + 0x28)
    m.store(UInt32(0xA000), at: tss + 0x38)
    for (offset, selector) in [
      (0x48, Tables.data0), (0x4C, Tables.code0), (0x50, Tables.data0), (0x54, Tables.data0),
    ] {
      m.store(selector, at: tss + offset)
    }
    m.load([0xF4], at: 0x2000)
    return m
  }

  private func type(_ m: TestMachine, _ selector: UInt16) -> UInt8 {
    m.read(Tables.gdt + Int(selector) + 5, as: UInt8.self) & 15
  }

  @Test func jumpExitsAndIsEmulated() throws {
    let m = machine()
    m.cpu.gpr[0] = 0x1111
    m.load([0xEA, 0, 0, 0, 0, 0x48, 0], at: 0x1000)
    #expect(m.run(from: 0x1000) == .taskSwitch)
    #expect(m.cpu.exitFields.qualification == 2 << 30 | 0x48)
    #expect(m.cpu.exitFields.instructionLength == 7)
    #expect(m.cpu.s.pointee.rip == 0x1000)
    try m.cpu.emulateTaskSwitch(selector: 0x48, source: .jump, returnRIP: 0x1007)
    #expect(m.run() == .hlt)
    #expect(m.cpu.s.pointee.rip == 0x2000)
    #expect(m.cpu.gpr[0] == 0xAAAA)
    #expect(m.cpu.gpr[4] == 0xA000)
    #expect(m.cpu.segment(.tr).pointee.selector == 0x48)
    #expect(type(m, Tables.task) == 9)
    #expect(type(m, Self.other) == 11)
    #expect(m.read(Tables.tss + 0x20, as: UInt32.self) == 0x1007)
    #expect(m.read(Tables.tss + 0x28, as: UInt32.self) == 0x1111)
    #expect(m.read(Tables.tss + 0x4C, as: UInt16.self) == Tables.code0)
    #expect(m.cpu.s.pointee.cr0 & CR0.ts.rawValue != 0)
  }

  @Test func callNestsAndReturns() throws {
    let m = machine()
    m.load([0x9A, 0, 0, 0, 0, 0x48, 0, 0xF4], at: 0x1000)
    #expect(m.run(from: 0x1000) == .taskSwitch)
    #expect(m.cpu.exitFields.qualification == 0x48)
    try m.cpu.emulateTaskSwitch(selector: 0x48, source: .call, returnRIP: 0x1007)
    #expect(m.cpu.flags & RFLAGS.nt.rawValue != 0)
    #expect(m.read(Self.otherTSS, as: UInt16.self) == Tables.task)
    #expect(type(m, Tables.task) == 11)
    m.load([0xCF], at: 0x2000)
    #expect(m.run() == .taskSwitch)
    #expect(m.cpu.exitFields.qualification == 1 << 30 | UInt64(Tables.task))
    try m.cpu.emulateTaskSwitch(
      selector: Tables.task, source: .interruptReturn, returnRIP: 0x2001)
    #expect(type(m, Self.other) == 9)
    #expect(m.run() == .hlt)
    #expect(m.cpu.s.pointee.rip == 0x1007)
  }

  @Test func faultThroughTaskGatePushesErrorCode() throws {
    let m = machine()
    m.setGate(13, to: 0, type: 5, selector: Self.other)
    m.cpu.gpr[0] = 0x108
    m.load([0x8E, 0xD8], at: 0x1000)
    #expect(m.run(from: 0x1000) == .taskSwitch)
    #expect(m.cpu.exitFields.qualification == 3 << 30 | 0x48)
    #expect(m.cpu.exitFields.idtVectoringInfo == 0x8000_0B0D)
    #expect(m.cpu.exitFields.idtVectoringErrorCode == 0x108)
    try m.cpu.emulateTaskSwitch(
      selector: 0x48, source: .interrupt, returnRIP: 0x1000, errorCode: 0x108)
    #expect(m.stacked(0, as: UInt32.self) == 0x108)
    #expect(m.cpu.gpr[4] == 0x9FFC)
  }

  /// A selector of slot 0 leaves LDTR unusable: no descriptor is read for it.
  @Test func shortTaskNeedsNoLocalTable() throws {
    let m = machine()
    let tss = Self.otherTSS
    m.setDescriptor(Self.other, descriptor(base: UInt64(tss), limit: 0x2B, rights: 0x81))
    // IP, FLAGS, AX, SP; ES, CS, SS, DS; LDT.
    for (offset, word) in [
      (0x0E, 0x2000), (0x10, 0x202), (0x12, 0xAAAA), (0x1A, 0xA000),
      (0x22, Tables.data0), (0x24, Tables.code0), (0x26, Tables.data0), (0x28, Tables.data0),
      (0x2A, 0),
    ] as [(Int, UInt16)] {
      m.store(word, at: tss + offset)
    }
    m.load([0xEA, 0, 0, 0, 0, 0x48, 0], at: 0x1000)
    #expect(m.run(from: 0x1000) == .taskSwitch)
    try m.cpu.emulateTaskSwitch(selector: 0x48, source: .jump, returnRIP: 0x1007)
    #expect(m.run() == .hlt)
    #expect(m.cpu.s.pointee.rip == 0x2000)
    #expect(m.cpu.gpr[0] & 0xFFFF == 0xAAAA && m.cpu.gpr[4] & 0xFFFF == 0xA000)
    #expect(m.cpu.segment(.ldtr).pointee.selector == 0)
    #expect(m.cpu.segment(.ldtr).pointee.accessRights & 1 << 16 != 0)
    #expect(type(m, Self.other) == 3)
  }

  @Test func busyTaskIsRefused() {
    let m = machine()
    m.setDescriptor(
      Self.other, descriptor(base: UInt64(Self.otherTSS), limit: 0x67, rights: 0x8B))
    m.load([0xEA, 0, 0, 0, 0, 0x48, 0], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(0, as: UInt32.self) == 0x48)
  }

  @Test func trapBitRaisesDebugException() {
    let m = machine()
    m.store(UInt16(1), at: Self.otherTSS + 0x64)
    #expect(throws: GuestException.debug(.bt)) {
      try m.cpu.emulateTaskSwitch(selector: 0x48, source: .jump, returnRIP: 0x1000)
    }
  }
}
