// SPDX-License-Identifier: Apache-2.0
//
// Another thread changes an operand all the time while the guest executes the instruction: whatever
// the guest is meant to see, it is one value or the other, and nothing that one of them forbids
// happens to the program.

import Foundation
import Support
import Synchronization
import Testing
import X86
import X86CPU

/// Two values that stand in 8 bytes of guest memory by turns.
private struct Flip: Sendable {
  var address: Int
  var first: UInt64
  var second: UInt64
  /// Bits that the guest may set in the first value; in the second it may set none.
  var mayGain: UInt64 = 0
}

/// Exchanges the values until it goes, and counts those that it finds changed in another way.
private final class Flipper: Sendable {
  private let isStopped = Atomic<Bool>(false)
  private let wrong = Atomic<Int>(0)
  private let turns = Atomic<Int>(0)
  private let finished = DispatchSemaphore(value: 0)

  init(_ m: TestMachine, _ flips: [Flip]) {
    let memory = UInt(bitPattern: m.memory)
    for flip in flips { m.store(flip.first, at: flip.address) }
    Thread.detachNewThread { [self] in
      while !isStopped.load(ordering: .relaxed) {
        for flip in flips { turn(memory, flip) }
        turns.add(1, ordering: .relaxed)
      }
      finished.signal()
    }
    while turns.load(ordering: .relaxed) == 0 { sched_yield() }
  }

  private func turn(_ memory: UInt, _ flip: Flip) {
    guard let raw = UnsafeMutableRawPointer(bitPattern: memory + UInt(flip.address)) else { return }
    let place = raw.assumingMemoryBound(to: Atomic<UInt64>.self)
    let first = place.pointee.exchange(flip.second, ordering: .sequentiallyConsistent)
    if first & ~flip.mayGain != flip.first { wrong.add(1, ordering: .relaxed) }
    let second = place.pointee.exchange(flip.first, ordering: .sequentiallyConsistent)
    if second != flip.second { wrong.add(1, ordering: .relaxed) }
  }

  /// - Returns: how many values were neither what they should be.
  func stop() -> Int {
    isStopped.store(true, ordering: .relaxed)
    finished.wait()
    return wrong.load(ordering: .relaxed)
  }
}

/// An instruction and the operand that changes.
struct RaceCase: Sendable, CustomTestStringConvertible {
  var name: String
  /// Runs in a loop; RCX is the count.
  var code: [UInt8]
  fileprivate var flips: [Flip]
  var cpl: UInt8 = 3
  var testDescription: String { name }

  private static func at3000(_ first: UInt64, _ second: UInt64) -> [Flip] {
    [Flip(address: 0x3000, first: first, second: second)]
  }

  private static let absolute: [UInt8] = [0x25, 0, 0x30, 0, 0]  // [0x3000]

  static let vectors: [RaceCase] = [
    // fld1 ; fldz ; fldcw [0x3000] ; fdivp ; fwait ; fninit
    .init(
      name: "FLDCW",
      code: [0xD9, 0xE8, 0xD9, 0xEE, 0xD9, 0x2C] + absolute + [0xDE, 0xF9, 0x9B, 0xDB, 0xE3],
      flips: at3000(0x37F, 0x340)),
    // fldenv [0x3000] ; fld1 ; fstp st(0) ; fninit: control and status word change together
    .init(
      name: "FLDENV",
      code: [0xD9, 0x24] + absolute + [0xD9, 0xE8, 0xDD, 0xD8, 0xDB, 0xE3],
      flips: at3000(0x37F, 0x3F_0000_0340)),
    .init(
      name: "FRSTOR",
      code: [0xDD, 0x24] + absolute + [0xD9, 0xE8, 0xDD, 0xD8, 0xDB, 0xE3],
      flips: at3000(0x3F_0000_037F, 0x3800_0000_0340)),
    .init(
      name: "FXRSTOR", code: [0x0F, 0xAE, 0x0C] + absolute + [0xD9, 0xE8, 0xDB, 0xE3],
      flips: [
        Flip(address: 0x3000, first: 0x37F, second: 0x3F_0340),
        Flip(address: 0x3018, first: 0x1F80, second: 0xFFFF_0040),
      ]),
    // mov eax, 3 ; xor edx, edx ; xrstor [0x3000] ; fld1 ; fninit
    .init(
      name: "XRSTOR",
      code: [0xB8, 3, 0, 0, 0, 0x31, 0xD2, 0x0F, 0xAE, 0x2C] + absolute + [0xD9, 0xE8, 0xDB, 0xE3],
      flips: [
        Flip(address: 0x3000, first: 0x37F, second: 0x3F_0340),
        Flip(address: 0x3018, first: 0x1F80, second: 0xFFFF_0040),
        Flip(address: 0x3200, first: 3, second: 0x8000_0000_0000_0001),
        Flip(address: 0x3208, first: 0, second: 0x8000_0000_0000_0003),
        Flip(address: 0x3210, first: 0, second: 1),
      ]),
    // ldmxcsr [0x3000] ; divps xmm0, xmm1
    .init(
      name: "LDMXCSR", code: [0x0F, 0xAE, 0x14] + absolute + [0x0F, 0x5E, 0xC1],
      flips: at3000(0x1F80, 0x0000)),
    .init(
      name: "LDMXCSR, reserved bits", code: [0x0F, 0xAE, 0x14] + absolute + [0x0F, 0x5E, 0xC1],
      flips: at3000(0x1F80, 0xFFFF_1F80)),
    .init(
      name: "VLDMXCSR",
      code: [0xC5, 0xF8, 0xAE, 0x14] + absolute + [0xC5, 0xF0, 0x5E, 0xC1],
      flips: at3000(0x1F80, 0x0000)),
  ]

  static let integers: [RaceCase] = [
    // mov eax, 7 ; xor edx, edx ; div dword [0x3000]
    .init(
      name: "DIV", code: [0xB8, 7, 0, 0, 0, 0x31, 0xD2, 0xF7, 0x34] + absolute,
      flips: at3000(3, 0)),
    // mov eax, 0x80000000 ; cdq ; idiv dword [0x3000]
    .init(
      name: "IDIV", code: [0xB8, 0, 0, 0, 0x80, 0x99, 0xF7, 0x3C] + absolute,
      flips: at3000(3, 0xFFFF_FFFF)),
    // lfs eax, [0x3000]
    .init(
      name: "LFS", code: [0x0F, 0xB4, 0x04] + absolute,
      flips: at3000(0x0010_1234_5678, 0xFFF8_0000_0000), cpl: 0),
    // lgdt [0x3000] and lidt [0x3000]; the base becomes canonical or not
    .init(
      name: "LGDT, LIDT",
      code: [0x0F, 0x01, 0x14] + absolute + [0x0F, 0x01, 0x1C] + absolute,
      flips: [
        Flip(address: 0x3000, first: 0x6000_00FF, second: 0xFFFF),
        Flip(address: 0x3008, first: 0, second: 0x8000),
      ], cpl: 0),
    // mov eax, [0x3000] ; bts dword [0x3010], eax, with numbers near the operand
    .init(
      name: "BTS", code: [0x8B, 0x04] + absolute + [0x0F, 0xAB, 0x04, 0x25, 0x10, 0x30, 0, 0],
      flips: at3000(3, 0x1FFF)),
    // push qword [0x3000] ; pop rax
    .init(
      name: "PUSH", code: [0xFF, 0x34] + absolute + [0x58],
      flips: at3000(0, UInt64.max)),
    // mov esi, 0x3000 ; mov edi, 0x3800 ; push rcx ; mov ecx, 16 ; rep movsq ; pop rcx
    .init(
      name: "MOVS",
      code: [
        0xBE, 0, 0x30, 0, 0, 0xBF, 0, 0x38, 0, 0, 0x51, 0xB9, 16, 0, 0, 0, 0xF3, 0x48, 0xA5, 0x59,
      ],
      flips: at3000(0, UInt64.max)),
    // lock cmpxchg16b [0x3000], which never succeeds
    .init(
      name: "CMPXCHG16B",
      code: [0x31, 0xC0, 0x31, 0xD2, 0xF0, 0x48, 0x0F, 0xC7, 0x0C] + absolute,
      flips: [
        Flip(address: 0x3000, first: 1, second: 2), Flip(address: 0x3008, first: 3, second: 4),
      ]),
    // mov eax, 0x40 ; mov es, ax: data whose accessed bit is clear, and an LDT
    .init(
      name: "MOV to a segment register", code: [0xB8, 0x40, 0, 0, 0, 0x8E, 0xC0],
      flips: [
        Flip(
          address: 0x5040, first: 0x00CF_9200_0000_FFFF, second: 0x0000_8200_0000_FFFF,
          mayGain: 1 << 40)
      ], cpl: 0),
    // mov eax, 0x40 ; ltr ax: a task that is available, and an LDT
    .init(
      name: "LTR", code: [0xB8, 0x40, 0, 0, 0, 0x0F, 0x00, 0xD8],
      flips: [
        Flip(
          address: 0x5040, first: 0x0000_8900_0000_0067, second: 0x0000_8200_0000_0067,
          mayGain: 1 << 41)
      ], cpl: 0),
    // invlpg [0x400000] ; mov [0x400000], eax: a page, and an entry that is not present
    .init(
      name: "page-table entry",
      code: [0x0F, 0x01, 0x3C, 0x25, 0, 0, 0x40, 0, 0x89, 0x04, 0x25, 0, 0, 0x40, 0],
      flips: [Flip(address: 0x13000, first: 0x6007, second: 0x7006, mayGain: 0x60)], cpl: 0),
    // invlpg [0x400000] ; mov eax, [0x400000]: the table of the page
    .init(
      name: "entry of a table",
      code: [0x0F, 0x01, 0x3C, 0x25, 0, 0, 0x40, 0, 0x8B, 0x04, 0x25, 0, 0, 0x40, 0],
      flips: [Flip(address: 0x12010, first: 0x13007, second: 0x14006, mayGain: 0x20)], cpl: 0),
  ]
}

@Suite struct RacingOperandTests {
  private static let rounds: UInt64 = 5000

  private func machine(_ race: RaceCase, _ threshold: UInt32) -> TestMachine {
    let m = TestMachine(threshold: threshold)
    m.setLongMode(cpl: race.cpl)
    let s = m.cpu.s
    s.pointee.cr4 |= CR4.osxsave.rawValue
    s.pointee.xcr0 = XCR0([.x87, .sse, .avx]).rawValue
    m.cpu.vmxControls.exceptionBitmap = .max
    s.pointee.gdtr.base = 0x5000
    s.pointee.gdtr.limit = 0xFF
    m.store(UInt64(0x00CF_9300_0000_FFFF), at: 0x5010)
    m.store(UInt64(0x13007), at: 0x12000 + 2 * 8)
    m.store(UInt64(0x6007), at: 0x13000)
    m.cpu.updateMode()
    m.cpu.flushTLB()
    // The code ; dec rcx ; jnz back ; hlt, which exits at CPL 0 and is #GP at 3.
    let back = UInt8(truncatingIfNeeded: -(race.code.count + 5))
    m.load(race.code + [0x48, 0xFF, 0xC9, 0x75, back, 0xF4], at: 0x1000)
    return m
  }

  /// Runs all rounds; a round that ends in an exception is followed by the next.
  private func run(_ race: RaceCase, _ threshold: UInt32) {
    let m = machine(race, threshold)
    let end = UInt64(0x1000 + race.code.count + 5)
    let flipper = Flipper(m, race.flips)
    m.cpu.gpr[4] = 0x8000
    m.cpu.gpr[1] = Self.rounds
    var exits: UInt64 = 0
    while true {
      exits += 1
      _ = m.run(from: 0x1000)
      m.cpu.initializeX87()
      m.cpu.mxcsr = MXCSR.initial
      if m.cpu.s.pointee.rip == end || m.cpu.gpr[1] == 0 || exits >= Self.rounds { break }
      m.cpu.gpr[4] = 0x8000
      if m.cpu.gpr[1] > Self.rounds { m.cpu.gpr[1] = 1000 }
      m.cpu.gpr[1] -= 1
      if m.cpu.gpr[1] == 0 { break }
    }
    let wrong = flipper.stop()
    #expect(wrong == 0, "values that nobody stored")
    #expect(m.cpu.mxcsr & ~MXCSR.mask == 0)
  }

  @Test(arguments: RaceCase.vectors, [0, 1] as [UInt32])
  func vectorOperand(_ race: RaceCase, threshold: UInt32) { run(race, threshold) }

  @Test(arguments: RaceCase.integers, [0, 1] as [UInt32])
  func operand(_ race: RaceCase, threshold: UInt32) { run(race, threshold) }

  /// Code that changes without a word between its decoding and its translation is not translated as
  /// something that it was not decoded as.
  @Test(arguments: [0x1000, 0x1FFE]) func codeBeforeTranslation(_ address: Int) {
    let m = TestMachine(threshold: 4)
    m.setLongMode()
    m.load([0xB8, 1, 0, 0, 0, 0xF4], at: address)  // mov eax, 1 ; hlt
    m.run(from: UInt64(address))
    m.memory.storeBytes(of: 2, toByteOffset: address + 1, as: UInt8.self)
    for _ in 0..<8 {
      m.cpu.gpr[0] = 0
      m.run(from: UInt64(address))
      #expect(m.cpu.gpr[0] == 1)
    }
    m.load([0xB8, 3, 0, 0, 0], at: address)
    for _ in 0..<8 { m.run(from: UInt64(address)) }
    #expect(m.cpu.gpr[0] == 3)
  }

  /// A CPU whose guest has none of a page is not waited for when the page becomes code.
  @Test(.timeLimit(.minutes(1))) func otherGuestsAreNotWaitedFor() {
    let other = TestMachine()
    let root = other.cpu.vmxControls.eptPointer & EPTEntry.addressMask
    let range =
      UInt64(
        UInt(bitPattern: other.memory))..<UInt64(
        UInt(bitPattern: other.memory + other.memorySize))
    GuestSpaces.shared.add(root) { range.contains($0) }
    defer { GuestSpaces.shared.remove(root) }
    // Its thread is in guest code and does not answer.
    other.processor.enterGuestCode()
    defer { other.processor.leaveGuestCode() }
    let m = TestMachine()
    m.setLongMode()
    m.load([0xB8, 1, 0, 0, 0, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] == 1)
  }

  /// Translations that are taken from a CPU are looked up again.
  @Test func takenTranslations() {
    let m = TestMachine()
    m.setLongMode()
    // mov eax, [0x400000] ; hlt
    m.load([0x8B, 0x04, 0x25, 0, 0, 0x40, 0, 0xF4], at: 0x1000)
    m.store(UInt32(5), at: 0x400000)
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] == 5)
    // The tables change without a flush.
    m.store(UInt64(0x600087), at: 0x12000 + 2 * 8)
    m.store(UInt32(6), at: 0x600000)
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] == 5)
    m.processor.takeTranslations()
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[0] == 6)
  }
}
