// SPDX-License-Identifier: Apache-2.0
//
// Random blocks of integer instructions, each run by the interpreter and by the translator from the
// same state. Registers, flags (those that are defined), memory, RIP, exit reason and the number of
// instructions must agree.

import Glibc
import Support
import Testing
import X86
import X86CPU
import X86Decoder
import X86JIT

@Suite struct RandomBlockTests {
  @Test(arguments: 1...4) func integerBlocks(_ seed: UInt64) { run(seed, vector: false) }

  @Test(arguments: 5...8) func vectorBlocks(_ seed: UInt64) { run(seed, vector: true) }

  @Test(arguments: 9...12) func integerBlocksOf32Bits(_ seed: UInt64) {
    run(seed, vector: false, mode: .bits32)
  }

  @Test(arguments: 13...16) func vectorBlocksOf32Bits(_ seed: UInt64) {
    run(seed, vector: true, mode: .bits32)
  }

  @Test(arguments: [17, 18] as [UInt64]) func unguardedBlocks(_ seed: UInt64) {
    run(seed, vector: true, guards: false)
  }

  @Test(arguments: [(19, CodeMode.bits64), (20, .bits32)] as [(UInt64, CodeMode)])
  func accessesWithoutLooksAreThoseOfLooks(_ seed: UInt64, _ mode: CodeMode) throws {
    let rig = run(seed, vector: true, mode: mode, verifies: true)
    try rig.expectVerified()
  }

  @discardableResult
  private func run(
    _ seed: UInt64, vector: Bool, mode: CodeMode = .bits64, guards: Bool = true,
    verifies: Bool = false
  ) -> ComparisonRig {
    var rig = ComparisonRig(
      seed: seed &* 0xD6E8_FEB8_6659_FD93, vector: vector, mode: mode, guards: guards,
      verifies: verifies)
    // `MARTLET_RANDOM_BLOCKS` is how many for each seed.
    let asked = getenv("MARTLET_RANDOM_BLOCKS").flatMap { Int(String(cString: $0)) }
    #if DEBUG
      let rounds = asked ?? 300
    #else
      let rounds = asked ?? 5000
    #endif
    for round in 0..<rounds {
      guard let difference = rig.round() else { continue }
      Issue.record("seed \(seed), round \(round): \(difference)")
      return rig
    }
    #expect(rig.subject.translator?.statistics.blocks ?? 0 > UInt64(rounds / 2))
    return rig
  }
}

/// SplitMix64.
struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}

/// Two machines that get the same code and state.
struct ComparisonRig {
  let reference = TestMachine(megabytes: 2, threshold: 0)
  let subject: TestMachine
  var random: SplitMix
  var generator = InstructionGenerator()

  static let code = 0x20000
  static let data = 0x40000

  init(
    seed: UInt64, vector: Bool, mode: CodeMode = .bits64, guards: Bool = true,
    verifies: Bool? = nil
  ) {
    subject = TestMachine(
      megabytes: 2, threshold: 1, codeBytes: 1 << 18, guardsSpeculation: guards,
      verifies: verifies)
    random = SplitMix(state: seed)
    generator.isVector = vector
    generator.mode = mode
    for m in [reference, subject] {
      if mode == .bits64 { Self.setLongMode(m) } else { Self.setProtectedMode(m) }
      m.cpu.s.pointee.vmx.exceptionBitmap = .max
      if vector {
        m.cpu.s.pointee.cr4 |= CR4.osxsave.rawValue
        m.cpu.s.pointee.xcr0 = 7
      }
      m.cpu.flushTLB()
    }
  }

  /// 0x40000 to 0x44FFF is data, the page after it is absent: a 4 KiB table for the first 2 MiB.
  private static func setLongMode(_ m: TestMachine) {
    m.setLongMode()
    m.store(UInt64(0x13007), at: 0x12000)
    for page in 0..<512 where page != 0x45 {
      m.store(UInt64(page) << 12 | 0x67, at: 0x13000 + page * 8)
    }
  }

  /// The same pages with 32-bit paging. FS is a segment of 4 GiB with a base, GS one of 4 KiB.
  private static func setProtectedMode(_ m: TestMachine) {
    m.setProtectedMode()
    m.store(UInt32(0x13007), at: 0x10000)
    for page in 0..<512 where page != 0x45 {
      m.store(UInt32(page) << 12 | 0x67, at: 0x13000 + page * 4)
    }
    m.cpu.s.pointee.cr3 = 0x10000
    m.cpu.s.pointee.cr0 |= CR0.pg.rawValue
    m.cpu.s.pointee.cr4 |= CR4.osfxsr.rawValue | CR4.osxmmexcpt.rawValue
    m.cpu.segment(.fs).pointee.base = 0x100
    m.cpu.segment(.gs).pointee.base = UInt64(data)
    m.cpu.segment(.gs).pointee.limit = 0xFFF
    m.cpu.updateMode()
  }

  /// Accesses without a look were compared, and none differed.
  func expectVerified() throws {
    let found = try #require(subject.translator).verification
    #expect(found.count > 100)
    let text = (0..<5).map { String(found.first[$0], radix: 16) }.joined(separator: " ")
    #expect(found.differences == 0, "linear, host, walk, size, page: \(text)")
  }

  /// Runs one block several times on both, so that it becomes hot; what differs, or nil.
  mutating func round() -> String? {
    let program = generator.block(&random)
    for m in [reference, subject] { m.load(program.bytes, at: Self.code) }
    for run in 0..<6 {
      if let difference = self.run(program) { return "run \(run): \(difference)" }
    }
    return nil
  }

  /// Runs a program once on both; what differs, or nil. Registers are random but for `given`.
  mutating func run(
    _ program: InstructionGenerator.Program, given: [Int: UInt64] = [:]
  ) -> String? {
    var registers = (0..<16).map { _ in randomValue() }
    registers[4] = UInt64(Self.data + 0x2000 + Int.random(in: 0..<8, using: &random) * 8)
    for (n, value) in given { registers[n] = value }
    let flags = random.next() & 0x8D5 | 2
    let pattern = random.next()
    for m in [reference, subject] {
      for n in 0..<16 { m.cpu.gpr[n] = registers[n] }
      m.cpu.flags = flags
      m.memory.advanced(by: Self.data).initializeMemory(
        as: UInt64.self, repeating: pattern, count: 0x5000 / 8)
      m.cpu.s.pointee.retired = 0
      if generator.isVector { setVectors(m, seed: pattern) }
      m.run(from: UInt64(Self.code))
    }
    guard let difference = compare(program) else { return nil }
    let bytes = program.bytes.map { String($0, radix: 16) }.joined(separator: " ")
    return "\(difference)\n\(bytes)\n\(program.text.joined(separator: "\n"))"
  }

  /// Ordinary floating-point numbers, extreme ones and anything; MXCSR mostly as programs have it.
  private func setVectors(_ m: TestMachine, seed: UInt64) {
    var random = SplitMix(state: seed)
    for n in 0..<256 {
      let word = random.next()
      m.cpu.vector.pointee.zmm[n] =
        switch word & 7 {
        case 0: 0
        case 1, 2: (Double(word >> 40) / 64).bitPattern
        case 3: UInt64((Float(word >> 44) / 8).bitPattern) &* 0x1_0000_0001
        case 4: 0x7FF0_0000_7F80_0000
        default: word
        }
    }
    let controls: [UInt64] = [0x1F80, 0x1F80, 0x1F80, 0x1FA1, 0x1F9F, 0x9FC0, 0x7F80, 0x1D80]
    let mxcsr = controls[Int(random.next() & 7)]
    m.cpu.vector.pointee.fx[3] = m.cpu.vector.pointee.fx[3] & ~0xFFFF_FFFF | mxcsr
  }

  /// Small numbers, addresses of the data, and anything.
  private mutating func randomValue() -> UInt64 {
    switch Int.random(in: 0..<8, using: &random) {
    case 0: UInt64.random(in: 0..<64, using: &random)
    case 1, 2, 3: UInt64(Self.data) + UInt64.random(in: 0..<0x5020, using: &random)
    case 4: UInt64(bitPattern: -Int64.random(in: 0..<300, using: &random))
    default: random.next()
    }
  }

  private func compare(_ program: InstructionGenerator.Program) -> String? {
    let (a, b) = (reference.cpu, subject.cpu)
    let offset = Int(truncatingIfNeeded: a.s.pointee.rip) &- Self.code
    var undefined = program.undefinedBefore[offset] ?? program.undefinedFlags
    // A block that has overwritten its end went on in what was there before.
    if offset > program.bytes.count { undefined = .max }
    if a.s.pointee.rip != b.s.pointee.rip {
      return "rip \(String(a.s.pointee.rip, radix: 16)) \(String(b.s.pointee.rip, radix: 16))"
    }
    for n in 0..<16 where a.gpr[n] != b.gpr[n] {
      return "register \(n): \(String(a.gpr[n], radix: 16)) \(String(b.gpr[n], radix: 16))"
    }
    if (a.flags ^ b.flags) & ~undefined != 0 {
      let (mine, its) = (String(a.flags, radix: 16), String(b.flags, radix: 16))
      return "at \(String(offset, radix: 16)) flags \(mine) \(its) of"
        + " \(String(~undefined & 0x8D5, radix: 16))"
    }
    if a.s.pointee.exit.reason != b.s.pointee.exit.reason { return "exit reason" }
    if a.s.pointee.retired != b.s.pointee.retired {
      return "retired \(a.s.pointee.retired) \(b.s.pointee.retired)"
    }
    for n in 0..<256 where a.vector.pointee.zmm[n] != b.vector.pointee.zmm[n] {
      return "zmm\(n / 8) word \(n % 8)"
    }
    if a.vector.pointee.fx[3] != b.vector.pointee.fx[3] {
      return "mxcsr \(String(a.vector.pointee.fx[3], radix: 16))"
        + " \(String(b.vector.pointee.fx[3], radix: 16))"
    }
    let (p, q) = (reference.memory + Self.data, subject.memory + Self.data)
    if memcmp(p, q, 0x5000) == 0 { return nil }
    for offset in 0..<0x5000
    where p.load(fromByteOffset: offset, as: UInt8.self)
      != q.load(fromByteOffset: offset, as: UInt8.self)
    {
      return "memory at \(String(offset, radix: 16))"
    }
    return nil
  }
}
