// SPDX-License-Identifier: Apache-2.0
//
// Code that changes under the guest, by itself, through an alias or by the host: the next
// execution is of the new bytes, also where the old ones were decoded.

import Support
import Testing
import X86
import X86CPU

@Suite struct SelfModifyingCodeTests {
  /// A store changes the instruction right behind it, in the same block.
  @Test func nextInstructionOfTheSameBlock() {
    let m = TestMachine()
    m.setLongMode()
    // mov byte [0x1009], 0x42 ; mov al, 1 (its immediate is at 0x1009) ; hlt
    m.load([0xC6, 0x04, 0x25, 0x09, 0x10, 0, 0, 0x42, 0xB0, 0x01, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] & 0xFF == 0x42)
  }

  /// A loop that rewrites an immediate in itself on every round.
  @Test func loopThatChangesItself() {
    let m = TestMachine()
    m.setLongMode()
    // L: add eax, imm8 (at 0x1002) ; inc byte [0x1002] ; dec ecx ; jnz L ; hlt
    m.load(
      [0x83, 0xC0, 0x01, 0xFE, 0x04, 0x25, 0x02, 0x10, 0, 0, 0xFF, 0xC9, 0x75, 0xF2, 0xF4],
      at: 0x1000)
    m.cpu.gpr[1] = 10
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] == 55)
  }

  /// Code is written through another linear address of its page.
  @Test func writeThroughAnAlias() {
    let m = TestMachine()
    m.setLongMode()
    m.store(UInt64(0x87), at: 0x12000 + 8)  // 2 MiB is physical 0 as well
    m.cpu.flushTLB()
    // call 0x2000 ; mov byte [0x202001], 7 ; call 0x2000 ; hlt
    m.load(
      [
        0xE8, 0xFB, 0x0F, 0, 0, 0xC6, 0x04, 0x25, 0x01, 0x20, 0x20, 0, 7, 0xE8, 0xEE, 0x0F, 0, 0,
        0xF4,
      ], at: 0x1000)
    m.load([0xB0, 0x01, 0x01, 0xC3, 0xC3], at: 0x2000)  // mov al, 1 ; add ebx, eax ; ret
    m.cpu.gpr[4] = 0x8000
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[3] == 8)
  }

  /// Memory is changed by the host, as a device does.
  @Test func writeByTheHost() {
    let m = TestMachine()
    m.setLongMode()
    m.load([0xB0, 0x01, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    m.load([0xB0, 0x02, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] & 0xFF == 2)
  }

  /// An instruction that lies across two pages, whose second half changes.
  @Test func instructionAcrossPages() {
    let m = TestMachine()
    m.setLongMode()
    // mov eax, imm32 with the opcode at 0x1FFF; then mov byte [0x2000], 9 ; jmp back once
    m.load([0xB8, 1, 0, 0, 0, 0xFF, 0xC9, 0x74, 0x0A], at: 0x1FFF)  // ... dec ecx ; jz +10
    m.load([0xC6, 0x04, 0x25, 0x00, 0x20, 0, 0, 9, 0xEB, 0xED, 0xF4], at: 0x2008)
    m.cpu.gpr[1] = 2
    m.run(from: 0x1FFF)
    #expect(m.cpu.gpr[0] == 9)
  }

  @Test func secondPageOfAnInstructionIsAbsent() {
    let m = TestMachine()
    m.setLongMode()
    m.store(UInt64(0x13007), at: 0x12000 + 2 * 8)
    m.store(UInt64(0x5007), at: 0x13000)
    m.cpu.flushTLB()
    m.cpu.vmxControls.exceptionBitmap = .max
    m.load([0xB8], at: 0x5FFF)
    m.run(from: 0x40_0FFF)
    #expect(m.cpu.exitFields.qualification == 0x40_1000)
    #expect(m.cpu.exitFields.interruptionErrorCode & 0x11 == 0x10)
    #expect(m.cpu.s.pointee.rip == 0x40_0FFF)
  }

  /// A small block cache is dropped whole, again and again, without effect on the result.
  @Test func fullCacheIsDropped() {
    let m = TestMachine()
    m.setLongMode()
    // 6000 blocks of `inc eax; jmp +0`, 4 bytes each.
    for n in 0..<6000 { m.load([0xFF, 0xC0, 0xEB, 0x00], at: 0x20_0000 + n * 4) }
    m.load([0xFF, 0xC9, 0x0F, 0x85, 0x38, 0xA2, 0xFF, 0xFF, 0xF4], at: 0x20_0000 + 24000)
    m.cpu.gpr[1] = 3
    m.run(from: 0x20_0000)
    #expect(m.cpu.gpr[0] == 18000)
    #expect(m.processor.blocks.flushes > 0)
  }
}
