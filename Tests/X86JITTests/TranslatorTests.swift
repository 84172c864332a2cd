// SPDX-License-Identifier: Apache-2.0
//
// Small guests on both tiers: registers, flags, memory and faults must be the same with
// translation as without, and code that should be translated is.

import Foundation
import Support
import Testing
import X86
import X86CPU
import X86JIT

@Suite struct TranslatorTests {
  /// add eax, ecx ; dec ecx ; jnz -6 ; hlt
  private static let loop: [UInt8] = [0x01, 0xC8, 0xFF, 0xC9, 0x75, 0xFA, 0xF4]

  private func machine(threshold: UInt32 = 1, codeBytes: Int = 1 << 20) -> TestMachine {
    let m = TestMachine(threshold: threshold, codeBytes: codeBytes)
    m.setLongMode()
    m.cpu.gpr[4] = 0x8000
    return m
  }

  @Test func loopIsTranslated() throws {
    let m = machine(threshold: 4)
    m.load(Self.loop, at: 0x1000)
    m.cpu.gpr[1] = 1000
    let before = m.cpu.s.pointee.retired
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[0] == 500_500)
    #expect(m.cpu.gpr[1] == 0)
    #expect(m.cpu.flags & 0x40 != 0)
    #expect(m.cpu.s.pointee.rip == 0x1006)
    #expect(m.cpu.s.pointee.retired - before == 3000)
    #expect(try #require(m.translator).statistics.blocks >= 1)
  }

  /// A count of FFH shifts by 63: the carry is the last bit that goes out, for the ADC behind it.
  @Test(arguments: [0, 1] as [UInt32], [false, true])
  func shiftOfMemoryGivesItsCarry(threshold: UInt32, carry: Bool) {
    let m = machine(threshold: threshold)
    // sar qword [0x3000], cl ; adc rax, 0 ; hlt
    m.load(
      [0x48, 0xD3, 0x3C, 0x25, 0x00, 0x30, 0, 0, 0x48, 0x83, 0xD0, 0x00, 0xF4], at: 0x1000)
    m.store((carry ? 0xC000_0000_0000_0000 : 0x8000_0000_0000_0000) as UInt64, at: 0x3000)
    (m.cpu.gpr[0], m.cpu.gpr[1]) = (0, 0xFF)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[0] == (carry ? 1 : 0))
    #expect(m.read(0x3000, as: UInt64.self) == .max)
  }

  /// LOOP, LOOPE, LOOPNE and JRCXZ backwards and forwards, with 64 and 32 bits of the count: on
  /// both tiers the same, and without a call of a handler.
  @Test(arguments: [0xE0, 0xE1, 0xE2, 0xE3] as [UInt8], [false, true])
  func countedJumps(_ opcode: UInt8, _ short: Bool) throws {
    let prefix: [UInt8] = short ? [0x67] : []
    let end = UInt8(prefix.count)
    // L: add eax, ebx; cmp eax, 100 ; loop L ; adc esi, esi ; hlt
    let backwards: [UInt8] =
      [0x01, 0xD8, 0x83, 0xF8, 100] + prefix + [opcode, 0xF9 &- end, 0x11, 0xF6, 0xF4]
    // L: sub rcx, rdx ; loop M ; inc edi ; M: adc esi, esi ; cmp esi, 900 ; jb L ; hlt
    let forwards: [UInt8] =
      [0x48, 0x29, 0xD1] + prefix + [opcode, 0x02, 0xFF, 0xC7, 0x11, 0xF6]
      + [0x81, 0xFE, 0x84, 0x03, 0, 0, 0x72, 0xEF &- end, 0xF4]
    for code in [backwards, forwards] {
      for count: UInt64 in [1, 2, 77, 101, 300] {
        for other: UInt64 in [0, 1, 5, count] {
          var results: [[UInt64]] = []
          for threshold: UInt32 in [0, 1] {
            let m = machine(threshold: threshold)
            m.load(code, at: 0x1000)
            m.cpu.gpr[1] = short ? 7 << 32 | count : count
            (m.cpu.gpr[0], m.cpu.gpr[2]) = (0, other)
            (m.cpu.gpr[3], m.cpu.gpr[6], m.cpu.gpr[7]) = (1, 1, 0)
            let before = m.cpu.s.pointee.retired
            #expect(m.run(from: 0x1000) == .hlt)
            results.append(
              [m.cpu.s.pointee.rip, m.cpu.flags, m.cpu.s.pointee.retired - before]
                + (0..<8).map { m.cpu.gpr[$0] })
          }
          #expect(results[0] == results[1], "\(code) \(count) \(other)")
        }
      }
    }
  }

  @Test func countedJumpsCallNoHandler() throws {
    let m = machine()
    // L: dec eax ; jrcxz M ; M: loop L ; hlt
    m.load([0xFF, 0xC8, 0xE3, 0x00, 0xE2, 0xFA, 0xF4], at: 0x1000)
    m.cpu.gpr[1] = 1000
    let counts = UnsafeMutablePointer<UInt64>.allocate(capacity: 2048)
    counts.initialize(repeating: 0, count: 2048)
    defer { counts.deallocate() }
    m.cpu.s.pointee.native.handlerCounts = counts
    m.run(from: 0x1000)
    m.cpu.s.pointee.native.handlerCounts = nil
    #expect(m.cpu.gpr[0] == UInt64(UInt32.max - 999))
    #expect((0..<2048).reduce(0) { $0 + counts[$1] } <= 1)
  }

  @Test func callsAndReturns() {
    let m = machine()
    // call 0x2000 ; dec ecx ; jnz -9 ; hlt  |  0x2000: add eax, 3 ; push r13 ; pop r14 ; ret
    m.load([0xE8, 0xFB, 0x0F, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xF4], at: 0x1000)
    m.load([0x83, 0xC0, 0x03, 0x41, 0x55, 0x41, 0x5E, 0xC3], at: 0x2000)
    m.cpu.gpr[1] = 100
    m.cpu.gpr[13] = 77
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] == 300)
    #expect(m.cpu.gpr[4] == 0x8000)
    #expect(m.cpu.gpr[14] == 77)
  }

  /// No stack pointer reaches what is remembered of the stack while nothing is.
  @Test(arguments: [1 << 62 + 0x58, 0x58, 0xFFFF_FFFF_FFFF_FFF8, 1 << 63 + 0x100] as [UInt64])
  func stackPointersAtOddPlaces(_ rsp: UInt64) {
    let m = machine()
    m.cpu.vmxControls.exceptionBitmap = .max
    // The first page is not there: a 4 KiB table for the first 2 MiB.
    m.store(UInt64(0x13007), at: 0x12000)
    for page in 1..<512 { m.store(UInt64(page) << 12 | 0x67, at: 0x13000 + page * 8) }
    for code: [UInt8] in [
      [0x50, 0xF4], [0x58, 0xF4], [0xF3, 0x0F, 0x6F, 0x44, 0x24, 0x10, 0xF4],
    ] {
      m.load(code, at: 0x1000)
      m.cpu.flushTLB()
      m.cpu.gpr[4] = rsp
      let reason = m.run(from: 0x1000)
      #expect(reason == .exceptionOrNMI)
      #expect(m.cpu.gpr[4] == rsp && m.cpu.s.pointee.rip == 0x1000)
    }
  }

  /// Flags that are made between two accesses of a group, whose look fails.
  @Test func flagsPastAFailedLookOfAGroup() {
    let m = machine()
    // mov rax, [rbx] ; add rcx, rdx ; mov rsi, [rbx + 8] ; adc rdi, rdi ; hlt
    m.load(
      [
        0x48, 0x8B, 0x03, 0x48, 0x01, 0xD1, 0x48, 0x8B, 0x73, 0x08, 0x48, 0x11, 0xFF, 0xF4,
      ], at: 0x1000)
    for round in 0..<6 {
      m.cpu.gpr[3] = round & 1 == 0 ? 0x4000 : 0x4FF8
      m.cpu.gpr[1] = .max
      m.cpu.gpr[2] = 1
      m.cpu.gpr[7] = 0
      if round > 3 { m.cpu.flushTLB() }
      m.run(from: 0x1000)
      #expect(m.cpu.gpr[7] == 1)
    }
  }

  /// A group's first byte that its first instruction cannot address: 32 bits of displacement more
  /// would be 4 GiB away.
  @Test func displacementsDoNotWrap() {
    let m = machine()
    // The first 2 MiB above 4 GiB are the second ones of memory.
    m.store(UInt64(0x14007), at: 0x11020)
    m.store(UInt64(0x20_0087), at: 0x14000)
    for address in [0x20_4000, 0x20_4008] { m.store(UInt64(0xBAD), at: address) }
    m.store(UInt64(0x1111), at: 0x4008)
    m.store(UInt64(0x2222), at: 0x4000)
    m.cpu.flushTLB()
    // mov rax, [rbx - 0x80000000] ; sub rbx, 8 ; mov rdx, [rbx - 0x80000000] ; hlt
    m.load(
      [
        0x48, 0x8B, 0x83, 0, 0, 0, 0x80, 0x48, 0x83, 0xEB, 0x08, 0x48, 0x8B, 0x93, 0, 0, 0, 0x80,
        0xF4,
      ], at: 0x1000)
    for _ in 0..<4 {
      m.cpu.gpr[3] = 0x8000_4008
      #expect(m.run(from: 0x1000) == .hlt)
      #expect(m.cpu.gpr[0] == 0x1111 && m.cpu.gpr[2] == 0x2222)
    }
  }

  /// A page fault in the middle of a block: registers, flags and RIP are those of the instruction.
  @Test func faultInTheMiddleOfABlock() {
    let m = machine()
    m.cpu.vmxControls.exceptionBitmap = .max
    // add al, 0xFF (0x1000) ; mov r12d, 5 ; mov rbx, [0x40000000] ; mov r12d, 6 ; hlt
    m.load(
      [
        0x04, 0xFF, 0x41, 0xBC, 5, 0, 0, 0, 0x48, 0x8B, 0x1C, 0x25, 0, 0, 0, 0x40, 0x41, 0xBC, 6, 0,
        0, 0, 0xF4,
      ], at: 0x1000)
    m.cpu.gpr[0] = 1
    m.cpu.gpr[3] = 99
    let before = m.cpu.s.pointee.retired
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.s.pointee.rip == 0x1008)
    #expect(m.cpu.gpr[12] == 5)
    #expect(m.cpu.gpr[3] == 99)
    #expect(m.cpu.flags & 0x8D5 == 0x55)
    #expect(m.cpu.s.pointee.retired - before == 2)
  }

  /// A request ends an endless loop, of one block and of two.
  @Test(arguments: [[0xEB, 0xFE], [0x90, 0xEB, 0x02, 0x90, 0x90, 0xEB, 0xF9]] as [[UInt8]])
  func requestEndsALoop(_ code: [UInt8]) {
    let m = machine()
    m.load(code, at: 0x1000)
    let processor = m.processor
    // A thread of its own: the test blocks one of the few that tasks run on.
    Thread.detachNewThread {
      usleep(20_000)
      processor.kick()
    }
    #expect(m.run(from: 0x1000) == .externalInterrupt)
  }

  /// Code memory for a few blocks only: everything is dropped again and again.
  @Test func tinyCodeMemory() throws {
    let m = machine(codeBytes: 1 << 15)
    // 1200 blocks: add eax, 1 ; jmp +0, then dec ecx ; jnz back
    var code: [UInt8] = []
    for _ in 0..<1200 { code += [0x83, 0xC0, 0x01, 0xEB, 0x00] }
    code += [0xFF, 0xC9, 0x0F, 0x85]
    let distance = Int32(-(code.count + 4))
    for n in 0..<4 { code.append(UInt8(truncatingIfNeeded: distance >> Int32(n * 8))) }
    code.append(0xF4)
    m.load(code, at: 0x20000)
    m.cpu.gpr[1] = 20
    m.run(from: 0x20000)
    #expect(m.cpu.gpr[0] == 24000)
    #expect(try #require(m.translator).statistics.resets > 0)
  }
}
