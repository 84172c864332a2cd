// SPDX-License-Identifier: Apache-2.0
//
// What performance counters are made of: instructions, branches and time, by ring. The guests'
// loops are counted by hand, and counts must be exact.

import Support
import Testing
import X86
import X86CPU

@Suite struct EventCountTests {
  /// 1000 rounds: mov ecx, 1000; 1: dec ecx; jnz 1b; hlt
  private static let loop: [UInt8] = [0xB9, 0xE8, 0x03, 0, 0, 0xFF, 0xC9, 0x75, 0xFC, 0xF4]

  private func machine(cpl: UInt8 = 0) -> TestMachine {
    let m = TestMachine()
    m.setLongMode(cpl: cpl)
    m.load(Self.loop, at: 0x1000)
    return m
  }

  @Test func straightCodeAndLoops() {
    let m = machine()
    m.load([UInt8](repeating: 0x90, count: 300) + Self.loop, at: 0x2000)
    m.processor.startCounting(instructions: true, EventLimits())
    #expect(m.run(from: 0x2000) == .hlt)
    var counts = m.processor.takeCounts()
    #expect(counts.instructions.supervisor == 300 + 2001)
    #expect(counts.branches.supervisor == 1000)
    #expect(counts.instructions.user == 0 && counts.branches.user == 0)
    #expect(counts.ticks.supervisor > 0 && counts.ticks.user == 0)
    // From 0 again.
    #expect(m.run(from: 0x1000) == .hlt)
    counts = m.processor.takeCounts()
    #expect(counts.instructions.sum == 2001 && counts.branches.sum == 1000)
    m.processor.stopCounting()
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.processor.takeCounts().instructions.sum == 0)
  }

  /// The guest leaves right behind the instruction that reaches a limit.
  @Test func limits() {
    let m = machine()
    var limits = EventLimits()
    limits.instructions.both = 502
    m.processor.startCounting(instructions: true, limits)
    #expect(m.run(from: 0x1000) == .externalInterrupt)
    #expect(m.processor.isAtLimit)
    #expect(m.cpu.gpr[1] == 749 && m.cpu.s.pointee.rip == 0x1007)
    #expect(m.processor.takeCounts().instructions.sum == 502)
    // It stays where it is until there are others.
    limits = EventLimits()
    limits.branches.supervisor = 3
    limits.branches.user = 1
    m.processor.startCounting(instructions: true, limits)
    #expect(!m.processor.isAtLimit)
    #expect(m.run() == .externalInterrupt)
    #expect(m.cpu.gpr[1] == 747 && m.cpu.s.pointee.rip == 0x1005)
    #expect(m.processor.takeCounts().branches.supervisor == 3)
    limits.branches = RingLimits()
    limits.instructions.supervisor = 1
    m.processor.startCounting(instructions: true, limits)
    #expect(m.run() == .externalInterrupt)
    #expect(m.cpu.gpr[1] == 746 && m.cpu.s.pointee.rip == 0x1007)
    m.processor.startCounting(instructions: true, EventLimits())
    #expect(m.run() == .hlt)
  }

  /// Ten system calls: mov ebx, 10; 1: syscall; dec ebx; jnz 1b; out 0x90, al; there nop; nop;
  /// sysretq.
  @Test func rings() {
    let m = machine(cpl: 3)
    m.load([0xBB, 10, 0, 0, 0, 0x0F, 0x05, 0xFF, 0xCB, 0x75, 0xFA, 0xE6, 0x90], at: 0x1000)
    m.load([0x90, 0x90, 0x48, 0x0F, 0x07], at: 0x2000)
    m.cpu.s.pointee.lstar = 0x2000
    m.cpu.s.pointee.star = 0x0013_0008 << 32
    m.cpu.s.pointee.rflags |= 0x3000
    m.processor.startCounting(instructions: true, EventLimits())
    #expect(m.run(from: 0x1000) == .ioInstruction)
    let counts = m.processor.takeCounts()
    #expect(counts.instructions.user == 31 && counts.instructions.supervisor == 30)
    #expect(counts.branches.user == 20 && counts.branches.supervisor == 10)
    #expect(counts.ticks.user > 0 && counts.ticks.supervisor > 0)
  }

  /// A string instruction is one, however many exits it has.
  @Test func repeatedInstructions() throws {
    let m = try VMXMachine()
    // mov edi, 0x3000; mov ecx, 5; rep stosb; hlt
    m.test.load([0xBF, 0, 0x30, 0, 0, 0xB9, 5, 0, 0, 0, 0xF3, 0xAA, 0xF4], at: 0x1000)
    let p = m.processor
    p.vmwrite(
      .primaryControls, p.vmread(.primaryControls) | UInt64(PrimaryControls.monitorTrapFlag))
    p.startCounting(instructions: true, EventLimits())
    var exits = 0
    var reason = try p.vmlaunch()
    while reason == .monitorTrapFlag {
      exits += 1
      reason = try p.vmresume()
    }
    #expect(reason == .hlt)
    #expect(exits == 7)
    #expect(p.takeCounts().instructions.sum == 3)
    p.vmwrite(.guestRIP, 0x1000)
    p.vmwrite(
      .primaryControls, p.vmread(.primaryControls) & ~UInt64(PrimaryControls.monitorTrapFlag))
    #expect(try p.vmresume() == .hlt)
    #expect(p.takeCounts().instructions.sum == 3)
    p.stopCounting()
  }

  /// An instruction that faults does not retire.
  @Test func faults() {
    let m = machine()
    // nop; ud2, without an interrupt table
    m.load([0x90, 0x0F, 0x0B], at: 0x1000)
    m.processor.startCounting(instructions: true, EventLimits())
    #expect(m.run(from: 0x1000) == .tripleFault)
    let counts = m.processor.takeCounts()
    #expect(counts.instructions.sum == 1 && counts.branches.sum == 0)
  }

  /// Time alone needs nothing of the run loop.
  @Test func timeAlone() {
    let m = machine()
    m.processor.startCounting(instructions: false, EventLimits())
    #expect(m.run(from: 0x1000) == .hlt)
    let counts = m.processor.takeCounts()
    #expect(counts.ticks.sum > 0)
    #expect(counts.instructions.sum == 0)
    #expect(m.cpu.s.pointee.slow == 0)
  }
}
