// SPDX-License-Identifier: Apache-2.0
//
// Random blocks of vector, x87 and integer instructions, each run by the interpreter and by the
// translator from the same state, in modes that allow them and in some that do not. Everything that
// a guest can see must agree but the x87 unit's instruction and data pointers.

import Foundation
import Support
import Testing
import X86
import X86CPU
import X86Decoder
import X86JIT

@Suite struct VectorBlockTests {
  @Test(arguments: 1...4) func interpreterAndTranslatorAgree(_ seed: UInt64) {
    var rig = VectorRig(seed: seed &* 0xA24B_AED4_963E_E407)
    let rounds = RandomRounds(debug: 200, release: 1000)
    for round in rounds.range {
      rig.begin(round)
      guard let difference = rig.round() else { continue }
      Issue.record("seed \(seed), round \(round): \(difference)\n\(rounds.again(round))")
      return
    }
    #expect(rig.nativeInstructions > 0)
  }
}

struct VectorRig {
  private var reference: TestMachine
  private var subject: TestMachine
  private var random: SplitMix
  private let seed: UInt64
  private let generator = VectorGenerator()
  private let trace = ProcessInfo.processInfo.environment["VECTOR_TRACE"] != nil

  static let code = 0x20000
  static let data = 0x40000
  static let counter = 0x46000

  var nativeInstructions: UInt64 { subject.translator?.statistics.instructions ?? 0 }

  init(seed: UInt64) {
    self.seed = seed
    random = RandomRounds.random(seed, 0)
    (reference, subject) = (Self.machine(0), Self.machine(1))
  }

  /// 0x40000 to 0x44FFF is data, the page after it is absent.
  private static func machine(_ threshold: UInt32) -> TestMachine {
    let m = TestMachine(megabytes: 2, threshold: threshold, codeBytes: 1 << 18)
    m.setLongModeWithSmallPages(absent: 0x45)
    m.cpu.vmxControls.exceptionBitmap = .max
    return m
  }

  /// Before each round.
  mutating func begin(_ round: Int) {
    random = RandomRounds.random(seed, round)
    if RandomRounds.needsNewMachines(round) {
      (reference, subject) = (Self.machine(0), Self.machine(1))
    }
  }

  /// Runs one block on both; what differs, or nil.
  mutating func round() -> String? {
    let program = generator.block(&random)
    let flushed = Int.random(in: 0..<32, using: &random)
    let start = random
    if trace {
      FileHandle.standardError.write(Data("\(program.text)\n".utf8))
    }
    for (n, m) in [reference, subject].enumerated() {
      random = start
      if n == flushed { m.cpu.flushTLB() }
      m.load(program.bytes, at: Self.code)
      prepare(m)
      m.cpu.s.pointee.retired = 0
      m.cpu.s.pointee.pendingException = 0
      m.run(from: UInt64(Self.code))
    }
    guard let difference = compare() else { return nil }
    let bytes = program.bytes.map { String($0, radix: 16) }.joined(separator: " ")
    return "\(difference)\n\(bytes)\n\(program.text.joined(separator: "\n"))"
  }

  private mutating func oneIn(_ n: Int) -> Bool { Int.random(in: 0..<n, using: &random) == 0 }

  /// The same state from the same random numbers.
  private mutating func prepare(_ m: TestMachine) {
    let s = m.cpu.s
    for n in 0..<16 { m.cpu.gpr[n] = randomValue() }
    m.cpu.flags = random.next() & 0x8D5 | 2
    let pattern = random.next()
    (m.memory + 0x3F000).initializeMemory(as: UInt64.self, repeating: pattern, count: 0x8000 / 8)
    for n in 0..<64 {
      (m.memory + Self.data + n * 8).storeBytes(of: randomNumber(), as: UInt64.self)
    }
    m.memory.storeBytes(
      of: UInt32.random(in: 1...4, using: &random), toByteOffset: Self.counter, as: UInt32.self)
    s.pointee.cr0 &= ~(CR0.ts.rawValue | CR0.em.rawValue)
    s.pointee.cr4 |= CR4.osfxsr.rawValue | CR4.osxsave.rawValue | CR4.osxmmexcpt.rawValue
    s.pointee.xcr0 = XCR0([.x87, .sse, .avx, .avx512]).rawValue
    if oneIn(32) { s.pointee.cr0 |= CR0.ts.rawValue }
    if oneIn(64) { s.pointee.cr0 |= CR0.em.rawValue }
    if oneIn(32) { s.pointee.cr4 &= ~CR4.osfxsr.rawValue }
    if oneIn(32) { s.pointee.xcr0 = XCR0([.x87, .sse]).rawValue }
    if oneIn(32) { s.pointee.xcr0 = XCR0([.x87, .sse, .avx]).rawValue }
    m.cpu.updateMode()
    prepareVectors(m.cpu)
  }

  private mutating func prepareVectors(_ c: CPU) {
    c.resetVectorState()
    for n in 0..<256 { c.vector.pointee.zmm[n] = randomNumber() }
    for n in 0..<8 { c.vector.pointee.opmask[n] = random.next() }
    let image = UnsafeMutableRawPointer(c.vector) + VectorLayout.fx
    let rounding = UInt16.random(in: 0..<4, using: &random)
    let masks: UInt16 = oneIn(16) ? UInt16.random(in: 0..<64, using: &random) : 0x3F
    image.storeBytes(of: 0x340 | rounding << 10 | masks, as: UInt16.self)
    let status = UInt16(truncatingIfNeeded: random.next()) & 0x7F00
    image.storeBytes(of: status, toByteOffset: 2, as: UInt16.self)
    image.storeBytes(of: UInt8(truncatingIfNeeded: random.next()), toByteOffset: 4, as: UInt8.self)
    var mxcsr = UInt32(0x1F80) | UInt32(rounding) << 13
    if oneIn(4) { mxcsr |= UInt32(truncatingIfNeeded: random.next()) & 0x803F }
    if oneIn(16) { mxcsr &= ~(UInt32(truncatingIfNeeded: random.next()) & 0x1F80) }
    image.storeBytes(of: mxcsr, toByteOffset: 24, as: UInt32.self)
    for n in 0..<8 {
      image.storeBytes(of: randomNumber(), toByteOffset: 32 + n * 16, as: UInt64.self)
      let exponent = UInt16(0x3FF0 + Int.random(in: 0..<32, using: &random))
      image.storeBytes(of: exponent, toByteOffset: 40 + n * 16, as: UInt16.self)
    }
    c.normalizeX87()
  }

  /// Numbers that arithmetic finds interesting.
  private mutating func randomNumber() -> UInt64 {
    switch Int.random(in: 0..<8, using: &random) {
    case 0: 0
    case 1: Double(Int.random(in: -1000...1000, using: &random)).bitPattern
    case 2: 0x7FF0_0000_0000_0000
    case 3: UInt64(Float(Int.random(in: -99...99, using: &random)).bitPattern) &* 0x1_0000_0001
    case 4: Double.random(in: -1e10...1e10, using: &random).bitPattern
    default: random.next()
    }
  }

  /// Small numbers, addresses of the data (aligned more often than not), and anything.
  private mutating func randomValue() -> UInt64 {
    switch Int.random(in: 0..<12, using: &random) {
    case 0: UInt64.random(in: 0..<64, using: &random)
    case 1: UInt64(Self.data) + UInt64.random(in: 0..<0x5020, using: &random)
    case 2: UInt64(Self.data) + UInt64.random(in: 0xFC0..<0x1010, using: &random)
    case 3: random.next()
    default: (UInt64(Self.data) + UInt64.random(in: 0..<0x4F00, using: &random)) & ~63
    }
  }

  private func compare() -> String? {
    let (a, b) = (reference.cpu, subject.cpu)
    func hex(_ x: UInt64) -> String { String(x, radix: 16) }
    let (s, t) = (a.s.pointee, b.s.pointee)
    if s.rip != t.rip { return "rip \(hex(s.rip)) \(hex(t.rip))" }
    for n in 0..<16 where a.gpr[n] != b.gpr[n] {
      return "register \(n): \(hex(a.gpr[n])) \(hex(b.gpr[n]))"
    }
    if a.flags != b.flags { return "flags \(hex(a.flags)) \(hex(b.flags))" }
    if s.exit.cause != t.exit.cause { return "exit reason" }
    if s.pendingException != t.pendingException {
      return "exception \(hex(s.pendingException)) \(hex(t.pendingException))"
    }
    if s.retired != t.retired { return "retired \(s.retired) \(t.retired)" }
    return compareVectors(a, b) ?? compareMemory()
  }

  private func compareVectors(_ a: CPU, _ b: CPU) -> String? {
    func hex(_ x: UInt64) -> String { String(x, radix: 16) }
    for n in 0..<256 where a.vector.pointee.zmm[n] != b.vector.pointee.zmm[n] {
      let values = "\(hex(a.vector.pointee.zmm[n])) \(hex(b.vector.pointee.zmm[n]))"
      return "zmm\(n / 8) part \(n % 8): \(values)"
    }
    for n in 0..<8 where a.vector.pointee.opmask[n] != b.vector.pointee.opmask[n] {
      return "mask \(n)"
    }
    let p = UnsafeRawPointer(a.vector) + VectorLayout.fx
    let q = UnsafeRawPointer(b.vector) + VectorLayout.fx
    let registers = (0..<8).flatMap { n in (32 + n * 16)..<(42 + n * 16) }
    for offset in Array(0..<6) + Array(24..<28) + registers {
      let x = p.load(fromByteOffset: offset, as: UInt8.self)
      let y = q.load(fromByteOffset: offset, as: UInt8.self)
      if x != y { return "FXSAVE image at \(offset): \(hex(UInt64(x))) \(hex(UInt64(y)))" }
    }
    return nil
  }

  private func compareMemory() -> String? {
    for offset in stride(from: 0x3F000, to: 0x47000, by: 8)
    where reference.read(offset, as: UInt64.self) != subject.read(offset, as: UInt64.self) {
      return "memory at \(String(offset, radix: 16))"
    }
    return nil
  }
}
