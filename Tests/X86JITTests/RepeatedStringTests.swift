// SPDX-License-Identifier: Apache-2.0
//
// REP STOS and REP MOVS in translated code: what stays in a page is the host's own instruction, and
// everything else its handler's. Interpreter and translator leave the same registers and memory.

import Support
import Testing
import X86
import X86CPU
import X86JIT

@Suite struct RepeatedStringTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var name: String
    var code: [UInt8]
    var source: UInt64
    var destination: UInt64
    var count: UInt64
    var isBackward = false
    var testDescription: String { name }
  }

  private static let stos: [(size: UInt64, code: [UInt8])] = [
    (1, [0xF3, 0xAA]), (2, [0xF3, 0x66, 0xAB]), (4, [0xF2, 0xAB]), (8, [0xF3, 0x48, 0xAB]),
  ]
  private static let movs: [(size: UInt64, code: [UInt8])] = [
    (1, [0xF3, 0xA4]), (2, [0xF3, 0x66, 0xA5]), (4, [0xF2, 0xA5]), (8, [0xF3, 0x48, 0xA5]),
  ]

  /// Counts around nothing, a piece, a page and more than one; pieces that end at a page's end, one
  /// byte before it and behind it.
  static let cases: [Case] = {
    var all: [Case] = []
    for (size, code) in stos + movs {
      for count in [0, 1, 3, 17, 4096 / size, 4096 / size + 1, 9000 / size] as [UInt64] {
        for start in [0x20_3000, 0x20_3FFB, 0x20_4000 - count * size, 0x20_4001 - count * size]
          as [UInt64]
        {
          all.append(
            Case(
              name: "\(code) \(count) times at \(String(start, radix: 16))", code: code,
              source: start ^ 0x1_0000, destination: start, count: count))
        }
      }
      all.append(
        Case(
          name: "\(code) backward", code: code, source: 0x21_3FF0, destination: 0x20_3800,
          count: 30, isBackward: true))
    }
    for (size, code) in movs {
      for distance in [1, size, 7, 64] as [UInt64] {
        all.append(
          Case(
            name: "\(code) onto itself, \(distance) further", code: code, source: 0x20_3100,
            destination: 0x20_3100 + distance, count: 100))
        all.append(
          Case(
            name: "\(code) onto itself, \(distance) before", code: code,
            source: 0x20_3100 + distance, destination: 0x20_3100, count: 100))
      }
    }
    return all
  }()

  /// Registers and memory after three rounds of an instruction, which a flag outlives.
  private func result(_ c: Case, threshold: UInt32) -> [UInt64] {
    let m = TestMachine(threshold: threshold)
    m.setLongMode()
    m.cpu.gpr[4] = 0x8000
    for n in 0..<0x4000 {
      m.store(UInt8(truncatingIfNeeded: n &* 7 ^ n >> 8), at: 0x20_2000 + n)
      m.store(UInt8(truncatingIfNeeded: n &* 11 ^ n >> 7), at: 0x21_2000 + n)
    }
    // L: mov rsi, r8; mov rdi, r9; mov rcx, r10; cmp rbx, 2; [cld|std] ; rep ... ; adc rdx, 0 ;
    // add rax, 0x1111 ; dec rbx ; jnz L ; cld ; hlt
    var code: [UInt8] = [0x4C, 0x89, 0xC6, 0x4C, 0x89, 0xCF, 0x4C, 0x89, 0xD1, 0x48, 0x83, 0xFB, 2]
    code += [c.isBackward ? 0xFD : 0xFC] + c.code
    code += [0x48, 0x83, 0xD2, 0, 0x48, 0x05, 0x11, 0x11, 0, 0, 0x48, 0xFF, 0xCB, 0x75]
    code += [UInt8(truncatingIfNeeded: -(code.count + 1)), 0xFC, 0xF4]
    m.load(code, at: 0x1000)
    (m.cpu.gpr[0], m.cpu.gpr[2], m.cpu.gpr[3]) = (0x0123_4567_89AB_CDEF, 0, 3)
    (m.cpu.gpr[8], m.cpu.gpr[9], m.cpu.gpr[10]) = (c.source, c.destination, c.count)
    #expect(m.run(from: 0x1000) == .hlt)
    var result = (0..<16).map { m.cpu.gpr[$0] }
    for n in 0..<0x4000 / 8 {
      result.append(m.read(0x20_2000 + n * 8))
      result.append(m.read(0x21_2000 + n * 8))
    }
    return result
  }

  @Test(arguments: cases) func sameAsInterpreted(_ c: Case) {
    let expected = result(c, threshold: 0)
    #expect(expected[2] == 1, "the comparison with 2 borrows once")
    #expect(result(c, threshold: 1) == expected)
  }

  /// Bytes whose number wraps to a few, and a pointer that is not canonical: the fault is that of
  /// the first element that cannot be accessed, with what was done before it done.
  @Test(arguments: [1 << 61, 1 << 61 + 1, UInt64.max] as [UInt64], [UInt32(0), 1])
  func countsThatWrap(_ count: UInt64, threshold: UInt32) {
    let m = TestMachine(threshold: threshold)
    m.setLongMode()
    m.cpu.gpr[4] = 0x8000
    m.load([0xF3, 0x48, 0xAB, 0xF4], at: 0x1000)
    // Memory ends at 8 MiB, where the page tables of the test end as well.
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[7]) = (5, count, 0x7F_FFF0)
    let reason = m.run(from: 0x1000)
    #expect(reason != .hlt)
    #expect(m.cpu.gpr[1] == count &- 2)
    #expect(m.cpu.gpr[7] == 0x80_0000)
    #expect(m.read(0x7F_FFF8, as: UInt64.self) == 5)
  }

  /// Code that clears the page that it is in stops being what it was.
  @Test(arguments: [UInt32(0), 1]) func overItself(_ threshold: UInt32) {
    let m = TestMachine(threshold: threshold)
    m.setLongMode()
    m.cpu.gpr[4] = 0x8000
    // rep stosb (over the NOPs behind it: hlt) ; nop ; nop ; jmp -4
    m.load([0xF3, 0xAA, 0x90, 0x90, 0xEB, 0xFC], at: 0x1000)
    (m.cpu.gpr[0], m.cpu.gpr[1], m.cpu.gpr[7]) = (0xF4, 2, 0x1002)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[7] == 0x1004)
  }
}
