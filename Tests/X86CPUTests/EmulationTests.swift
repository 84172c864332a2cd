// SPDX-License-Identifier: Apache-2.0
//
// Accesses of memory that EPT does not map, which the hypervisor emulates: a recorder behind
// the address shows which reads and writes are made, and registers show what came of them.

import Support
import Testing
import X86
import X86CPU

/// Memory-mapped registers that record what is done to them.
private final class Recorder: EmulationContext {
  var reads: [(UInt64, Int)] = []
  var writes: [(UInt64, Int, UInt64)] = []
  var answers: [UInt64] = []
  func readMMIO(_ address: UInt64, size: Int) -> UInt64? {
    reads.append((address, size))
    return answers.isEmpty ? nil : answers.removeFirst()
  }
  func writeMMIO(_ address: UInt64, size: Int, value: UInt64) -> Bool {
    writes.append((address, size, value))
    return true
  }
  func readPort(_ port: UInt16, size: Int) -> UInt64? { nil }
  func writePort(_ port: UInt16, size: Int, value: UInt64) -> Bool { false }
}

@Suite struct EmulationTests {
  /// A guest in protected mode without paging, about to access 0xFE000000, where EPT maps nothing.
  private func machine(_ code: [UInt8]) -> TestMachine {
    let m = TestMachine()
    m.setProtectedMode()
    m.load(code + [0xF4], at: 0x1000)
    m.cpu.gpr[3] = 0xFE00_0000
    return m
  }

  @Test func loadFromNowhereIsAnEPTViolation() {
    let m = machine([0x8B, 0x43, 0x08])  // mov eax, [ebx + 8]
    #expect(m.run(from: 0x1000) == .eptViolation)
    #expect(m.cpu.exitFields.guestPhysical == 0xFE00_0008)
    #expect(m.cpu.exitFields.qualification & 0x1BF == 0x181)
    #expect(m.cpu.s.pointee.rip == 0x1000)
  }

  @Test func emulatedLoad() {
    let m = machine([0x8B, 0x43, 0x08])
    m.run(from: 0x1000)
    let context = Recorder()
    #expect(m.processor.emulate(context) == .stopped)
    #expect(m.cpu.s.pointee.rip == 0x1000)
    context.answers = [0x1234_5678]
    #expect(m.processor.emulate(context) == .completed)
    #expect(m.cpu.gpr[0] == 0x1234_5678)
    #expect(m.cpu.s.pointee.rip == 0x1003)
    #expect(context.reads.map(\.0) == [0xFE00_0008, 0xFE00_0008])
  }

  @Test func emulatedReadModifyWrite() {
    let m = machine([0x01, 0x03])  // add [ebx], eax
    m.cpu.gpr[0] = 5
    m.run(from: 0x1000)
    let context = Recorder()
    context.answers = [7]
    #expect(m.processor.emulate(context) == .completed)
    #expect(context.writes.map(\.2) == [12])
  }

  @Test func emulatedStringMakesOneIteration() {
    let m = machine([0xFC, 0xF3, 0xA5])  // cld ; rep movsd
    m.cpu.gpr[6] = 0x2000
    m.cpu.gpr[7] = 0xFE00_0000
    m.cpu.gpr[1] = 2
    m.store(UInt32(0xAA), at: 0x2000)
    m.store(UInt32(0xBB), at: 0x2004)
    #expect(m.run(from: 0x1000) == .eptViolation)
    let context = Recorder()
    #expect(m.processor.emulate(context) == .completed)
    #expect(m.cpu.gpr[1] == 1)
    #expect(m.cpu.s.pointee.rip == 0x1001)
    #expect(m.processor.emulate(context) == .completed)
    #expect(context.writes.map(\.2) == [0xAA, 0xBB])
    #expect(m.run() == .hlt)
  }

  @Test func accessAcrossMemoryAndDevice() {
    let m = machine([0x8B, 0x03])  // mov eax, [ebx]
    m.cpu.gpr[3] = UInt64(m.memorySize) - 2
    m.store(UInt16(0x1122), at: m.memorySize - 2)
    m.run(from: 0x1000)
    let context = Recorder()
    context.answers = [0x3344]
    #expect(m.processor.emulate(context) == .completed)
    #expect(m.cpu.gpr[0] == 0x3344_1122)
    #expect(context.reads.map(\.1) == [2])
  }

  /// MOV between the accumulator and the place at an offset (A0 to A3), as to the local APIC.
  @Test(arguments: [0xA0, 0xA1, 0xA2, 0xA3] as [UInt8], [false, true])
  func emulatedOffsets(_ opcode: UInt8, _ long: Bool) {
    let m = TestMachine()
    if long { m.setLongMode() } else { m.setProtectedMode() }
    let address: [UInt8] = [0x80, 0, 0xE0, 0xFE] + (long ? [0, 0, 0, 0] : [])
    // The page tables map 0xFEE00000 to itself: entry 3 of a PDPT, then a large page.
    if long {
      m.store(UInt64(0x14007), at: 0x11018)
      m.store(UInt64(0xFEE0_0087), at: 0x14000 + 0x1F7 * 8)
      m.cpu.flushTLB()
    }
    m.load([opcode] + address + [0xF4], at: 0x1000)
    m.cpu.gpr[0] = 0x1122_3344
    #expect(m.run(from: 0x1000) == .eptViolation)
    let context = Recorder()
    context.answers = [0x55]
    #expect(m.processor.emulate(context) == .completed)
    let size = opcode & 1 == 0 ? 1 : 4
    if opcode < 0xA2 {
      #expect(context.reads.map(\.0) == [0xFEE0_0080] && context.reads.map(\.1) == [size])
      #expect(m.cpu.gpr[0] == (size == 1 ? 0x1122_3355 : 0x55))
    } else {
      #expect(context.writes.map(\.0) == [0xFEE0_0080] && context.writes.map(\.1) == [size])
      #expect(context.writes.map(\.2) == [size == 1 ? 0x44 : 0x1122_3344])
    }
    #expect(m.run() == .hlt)
  }
}
