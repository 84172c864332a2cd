// SPDX-License-Identifier: Apache-2.0
//
// REP MOVS and REP STOS over several pages, which are copied at once where they lie behind each
// other in the host's memory.

import Glibc
import Support
import Testing
import X86
import X86CPU

@Suite struct RepeatedMoveTests {
  /// Pages of 4 KiB from 0x40000 on, each of them itself but for `moved`; `absent` is not there.
  private func machine(moved: [Int: Int] = [:], absent: Int? = nil) -> TestMachine {
    let m = TestMachine(megabytes: 2)
    m.setLongMode()
    m.cpu.vmxControls.exceptionBitmap = .max
    m.store(UInt64(0x13007), at: 0x12000)
    for page in 0..<512 where page != absent {
      m.store(UInt64(moved[page] ?? page) << 12 | 0x67, at: 0x13000 + page * 8)
    }
    m.cpu.flushTLB()
    for n in 0..<0x8000 { m.store(UInt64(n) &* 0x9E37_79B9_7F4A_7C15, at: 0x40000 + n * 8) }
    return m
  }

  /// What byte-wise copying makes of memory, by linear addresses.
  private func copied(
    _ m: TestMachine, _ moved: [Int: Int], from: Int, to: Int, count: Int
  ) -> [UInt8] {
    var bytes = [UInt8](UnsafeRawBufferPointer(start: m.memory, count: m.memorySize))
    func physical(_ a: Int) -> Int { (moved[a >> 12] ?? a >> 12) << 12 | a & 4095 }
    for n in 0..<count { bytes[physical(to + n)] = bytes[physical(from + n)] }
    return bytes
  }

  @Test(arguments: [
    (0x40000, 0x60000, 0x9000), (0x40003, 0x60801, 0x12345), (0x48000, 0x40000, 0xA000),
    (0x40000, 0x43000, 0x8000), (0x40000, 0x40800, 0x4000), (0x40FFF, 0x60FFE, 3),
    (0x40000, 0x60000, 0x1FFFF),
  ])
  func copies(from: Int, to: Int, count: Int) {
    for moved in [[:], [0x43: 0x71, 0x71: 0x43], [0x61: 0x60, 0x60: 0x61]] {
      let m = machine(moved: moved)
      let wanted = copied(m, moved, from: from, to: to, count: count)
      m.load([0xF3, 0xA4, 0xF4], at: 0x1000)  // rep movsb; hlt
      m.cpu.gpr[6] = UInt64(from)
      m.cpu.gpr[7] = UInt64(to)
      m.cpu.gpr[1] = UInt64(count)
      #expect(m.run(from: 0x1000) == .hlt)
      #expect(m.cpu.gpr[6] == UInt64(from + count) && m.cpu.gpr[7] == UInt64(to + count))
      #expect(m.cpu.gpr[1] == 0)
      let same = wanted.withUnsafeBytes {
        memcmp($0.baseAddress! + 0x40000, m.memory + 0x40000, m.memorySize - 0x40000) == 0
      }
      #expect(same)
    }
  }

  /// A page that is not there, of the source and of the destination: all before it is copied.
  @Test(arguments: [(0x44, 0x4000), (0x65, 0x5000)])
  func faultInTheMiddle(absent: Int, done: Int) {
    let m = machine(absent: absent)
    m.load([0xF3, 0x48, 0xA5, 0xF4], at: 0x1000)  // rep movsq; hlt
    m.cpu.gpr[6] = 0x40000
    m.cpu.gpr[7] = 0x60000
    m.cpu.gpr[1] = 0x1000
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.exitFields.qualification == UInt64(absent << 12))
    #expect(m.cpu.s.pointee.rip == 0x1000)
    #expect(m.cpu.gpr[6] == UInt64(0x40000 + done) && m.cpu.gpr[7] == UInt64(0x60000 + done))
    #expect(m.cpu.gpr[1] == UInt64(0x1000 - done / 8))
    #expect(memcmp(m.memory + 0x40000, m.memory + 0x60000, done) == 0)
    #expect(m.read(0x60000 + done, as: UInt64.self) != m.read(0x40000 + done, as: UInt64.self))
  }

  @Test func storesOfBytes() {
    let m = machine()
    m.load([0xF3, 0xAA, 0xF4], at: 0x1000)  // rep stosb; hlt
    m.cpu.gpr[0] = 0x1A5
    m.cpu.gpr[7] = 0x40010
    m.cpu.gpr[1] = 0x3000
    #expect(m.run(from: 0x1000) == .hlt)
    let isFilled = (0..<0x3000).allSatisfy { m.read(0x40010 + $0, as: UInt8.self) == 0xA5 }
    #expect(isFilled && m.cpu.gpr[7] == 0x43010 && m.cpu.gpr[1] == 0)
  }
}
