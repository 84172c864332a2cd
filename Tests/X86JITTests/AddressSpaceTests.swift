// SPDX-License-Identifier: Apache-2.0
//
// Code in several address spaces: translated code finds its successors by tables that outlive
// switches, so that what is executed has to be what is mapped.

import Support
import Testing
import X86
import X86CPU
import X86JIT

@Suite struct AddressSpaceTests {
  private static let secondRoot = 0x14000
  private static let pageTable = 0x17000
  private static let other: UInt64 = 0x40_0000

  /// Two address spaces; in the first, linear 0x200000 is physical 0x200000, in the second it is
  /// 0x400000. Everything else is the same, and global with PGE where that is asked for.
  private func machine(_ threshold: UInt32, global: Bool) -> TestMachine {
    let m = TestMachine(threshold: threshold)
    m.setLongMode()
    m.cpu.gpr[4] = 0x8000
    m.load([0xB8, 1, 0, 0, 0, 0xC3], at: 0x20_0000)  // mov eax, 1 ; ret
    m.load([0xB8, 2, 0, 0, 0, 0xC3], at: 0x40_0000)  // mov eax, 2 ; ret
    m.store(UInt64(0x15007), at: Self.secondRoot)
    m.store(UInt64(0x16007), at: 0x15000)
    let flags = UInt64(global ? 0x187 : 0x87)
    for n in 0..<4 as Range<UInt64> {
      m.store(n << 21 | (n == 1 ? 0x87 : flags), at: 0x12000 + Int(n) * 8)
      m.store((n == 1 ? Self.other | 0x87 : n << 21 | flags), at: 0x16000 + Int(n) * 8)
    }
    m.cpu.s.pointee.cr4 |= CR4.pge.rawValue
    m.cpu.flushTLB()
    (m.cpu.gpr[5], m.cpu.gpr[6], m.cpu.gpr[7]) = (0x10000, UInt64(Self.secondRoot), 0x20_0000)
    m.cpu.gpr[3] = 0
    return m
  }

  @Test(arguments: [UInt32(0), 1, 3], [false, true])
  func eachSpaceHasItsCode(_ threshold: UInt32, global: Bool) {
    let m = machine(threshold, global: global)
    // call rdi ; add ebx, eax ; mov cr3, rsi ; call rdi ; add ebx, eax ; mov cr3, rbp ; dec ecx ;
    // jnz -18 ; hlt
    m.load(
      [
        0xFF, 0xD7, 0x01, 0xC3, 0x0F, 0x22, 0xDE, 0xFF, 0xD7, 0x01, 0xC3, 0x0F, 0x22, 0xDD, 0xFF,
        0xC9, 0x75, 0xEE, 0xF4,
      ], at: 0x1000)
    m.cpu.gpr[1] = 50
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[3] == 150)
  }

  /// Code behind a page whose entry changes, with INVLPG after each change: of 4 KiB and 2 MiB.
  @Test(arguments: [UInt32(0), 1, 3], [false, true])
  func remappedCode(_ threshold: UInt32, large: Bool) {
    let m = machine(threshold, global: true)
    let entry: Int
    if large {
      entry = 0x12008
      m.store(UInt64(0x20_0187), at: entry)
    } else {
      entry = Self.pageTable
      m.store(UInt64(Self.pageTable) | 7, at: 0x12008)
      m.store(UInt64(0x20_0107), at: entry)
    }
    m.cpu.flushTLB()
    // call rdi ; add ebx, eax ; xor qword [rsi], rbp ; invlpg [rdi] ; dec ecx ; jnz -14 ; hlt
    m.load(
      [
        0xFF, 0xD7, 0x01, 0xC3, 0x48, 0x31, 0x2E, 0x0F, 0x01, 0x3F, 0xFF, 0xC9, 0x75, 0xF2, 0xF4,
      ], at: 0x1000)
    (m.cpu.gpr[5], m.cpu.gpr[6], m.cpu.gpr[1]) = (0x60_0000, UInt64(entry), 50)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[3] == 75)
  }

  /// The same code at many linear pages, as in programs that are started again and again: it knows
  /// where it is in each.
  @Test(arguments: [UInt32(0), 1, 3]) func codeAtManyPages(_ threshold: UInt32) {
    let m = machine(threshold, global: false)
    let (pages, rounds) = (300 as UInt64, 5 as UInt64)
    // lea rax, [rip] ; ret
    m.load([0x48, 0x8D, 0x05, 0, 0, 0, 0, 0xC3], at: 0x20_0000)
    m.store(UInt64(Self.pageTable) | 7, at: 0x12018)
    for n in 0..<Int(pages) { m.store(UInt64(0x20_0007), at: Self.pageTable + n * 8) }
    m.cpu.flushTLB()
    // L: mov rdi, rsi ; mov ecx, ebp ; M: call rdi ; add rbx, rax ; add rdi, 1000h ; dec ecx ; jnz
    // M ; dec edx ; jnz L ; hlt
    m.load(
      [
        0x48, 0x89, 0xF7, 0x89, 0xE9, 0xFF, 0xD7, 0x48, 0x01, 0xC3, 0x48, 0x81, 0xC7, 0, 0x10, 0, 0,
        0xFF, 0xC9, 0x75, 0xF0, 0xFF, 0xCA, 0x75, 0xE7, 0xF4,
      ], at: 0x1000)
    (m.cpu.gpr[2], m.cpu.gpr[5], m.cpu.gpr[6]) = (rounds, pages, 0x60_0000)
    #expect(m.run(from: 0x1000) == .hlt)
    let sum = (0..<pages).reduce(0) { $0 + 0x60_0007 + $1 << 12 }
    #expect(m.cpu.gpr[3] == rounds * sum)
  }

  /// Code that is written over in each round, called from another page: what is found is the new,
  /// and ways to code of other pages stay known.
  @Test(arguments: [UInt32(0), 1, 3]) func rewrittenCode(_ threshold: UInt32) {
    let m = machine(threshold, global: true)
    m.load([0xFF, 0xC2, 0xC3], at: 0x40_0000)  // inc edx ; ret
    // call rdi ; add ebx, eax ; call rsi ; inc dword [rdi + 1] ; dec ecx ; jnz -13 ; hlt
    m.load(
      [
        0xFF, 0xD7, 0x01, 0xC3, 0xFF, 0xD6, 0xFF, 0x47, 0x01, 0xFF, 0xC9, 0x75, 0xF3, 0xF4,
      ], at: 0x1000)
    let rounds: UInt64 = 200
    (m.cpu.gpr[6], m.cpu.gpr[1], m.cpu.gpr[2]) = (0x40_0000, rounds, 0)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[3] == rounds * (rounds + 1) / 2)
    #expect(m.cpu.gpr[2] == rounds)
    #expect(m.cpu.s.pointee.native.counts.searches < rounds * 3 / 2)
  }

  /// Data of another PCID: INVPCID of that PCID and of all drops what is known there.
  @Test(arguments: [UInt64(1), 2, 3]) func invalidatedPCID(_ type: UInt64) {
    let m = machine(0, global: false)
    let s = m.cpu.s
    s.pointee.cr4 |= CR4.pcide.rawValue
    m.store(UInt64(Self.pageTable) | 7, at: 0x16010)
    m.store(UInt64(0x40_0007), at: Self.pageTable)
    m.cpu.flushTLB()
    m.store(UInt64(11), at: 0x40_0008)
    m.store(UInt64(22), at: 0x50_0008)
    m.store(UInt64(5), at: 0x3000)
    m.store(UInt64(0), at: 0x3008)
    // mov cr3, rsi ; mov r8, [0x400008] ; mov cr3, rbp ; mov [0x17000], rdx ; invpcid rcx, [rdi] ;
    // mov cr3, r10 ; mov r9, [0x400008] ; hlt
    m.load(
      [
        0x0F, 0x22, 0xDE, 0x4C, 0x8B, 0x04, 0x25, 0x08, 0, 0x40, 0, 0x0F, 0x22, 0xDD, 0x48, 0x89,
        0x14, 0x25, 0, 0x70, 0x01, 0, 0x66, 0x0F, 0x38, 0x82, 0x0F, 0x41, 0x0F, 0x22, 0xDA, 0x4C,
        0x8B, 0x0C, 0x25, 0x08, 0, 0x40, 0, 0xF4,
      ], at: 0x1000)
    (m.cpu.gpr[6], m.cpu.gpr[10]) = (0x14005, 0x14005 | 1 << 63)
    (m.cpu.gpr[5], m.cpu.gpr[2]) = (0x10000 | 1 << 63, 0x50_0007)
    (m.cpu.gpr[1], m.cpu.gpr[7]) = (type, 0x3000)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[8] == 11)
    #expect(m.cpu.gpr[9] == 22)
  }

  /// Rights by protection keys over changes of PKRU there and back.
  @Test(arguments: [UInt32(0), 1]) func protectionKeys(_ threshold: UInt32) {
    let m = machine(threshold, global: false)
    let s = m.cpu.s
    s.pointee.cr4 |= CR4.pke.rawValue
    m.cpu.vmxControls.exceptionBitmap = .max
    // 0x400000 has key 1.
    m.store(UInt64(0x40_0087) | 1 << 59, at: 0x12010)
    m.cpu.flushTLB()
    // L: mov [rdi], ebx ; wrpkru ; xor eax, 8 ; inc ebx ; cmp ebx, 5 ; jne L ; hlt
    m.load(
      [
        0x89, 0x1F, 0x0F, 0x01, 0xEF, 0x83, 0xF0, 0x08, 0xFF, 0xC3, 0x83, 0xFB, 5, 0x75, 0xF1,
        0xF4,
      ], at: 0x1000)
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[2], m.cpu.gpr[3]) = (0, 0, 0, 0)
    m.cpu.gpr[7] = 0x40_0000
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(s.pointee.rip == 0x1000)
    #expect(m.cpu.gpr[3] == 2)
    #expect(m.read(0x40_0000, as: UInt32.self) == 1)
    // The handler's way out: rights again.
    m.cpu.gpr[0] = 0
    m.cpu.gpr[3] = 4
    #expect(m.run(from: 0x1002) == .hlt)
  }
}
