// SPDX-License-Identifier: Apache-2.0
//
// The interpreter and the translator side by side: what a program does on both from the same state.
//
// What a round depends on is what it sets, and what it cannot change. So page tables are out of the
// programs' reach: else what addresses mean would depend on what a TLB still holds, which is open
// on hardware and here depends on other tests' processors (`ShootdownQueue`).

import Glibc
import Support
import Testing
import X86
import X86CPU
import X86Decoder
import X86JIT

/// Two machines that get the same code and state.
struct ComparisonRig {
  private(set) var reference: TestMachine
  private(set) var subject: TestMachine
  var random: SplitMix
  private var generator = InstructionGenerator()
  private let configuration: Configuration
  /// Of machines that are no longer used.
  private var formerBlocks: UInt64 = 0
  private var formerRecalls: UInt64 = 0
  private var formerVerification = Verification()
  /// Whether all memory is compared, which takes longer than a round.
  private var comparesEverything = false

  static let code = 0x20000
  static let data = 0x40000

  private struct Configuration {
    var seed: UInt64
    var mode: CodeMode
    var vector: Bool
    var guards: Bool
    var verifies: Bool?
    var xcr0: UInt64
    var store: TranslationStore?
  }

  /// Accesses without a look that were compared, and the first that differed.
  private struct Verification {
    var count: UInt64 = 0
    var difference: String?
  }

  init(
    seed: UInt64, vector: Bool, mode: CodeMode = .bits64, guards: Bool = true,
    verifies: Bool? = nil, xcr0: UInt64 = 7, store: TranslationStore? = nil
  ) {
    configuration = Configuration(
      seed: seed, mode: mode, vector: vector, guards: guards, verifies: verifies,
      xcr0: xcr0, store: store)
    random = RandomRounds.random(seed, 0)
    generator.isVector = vector
    generator.mode = mode
    (reference, subject) = Self.machines(configuration)
  }

  private static func machines(
    _ c: Configuration
  ) -> (reference: TestMachine, subject: TestMachine) {
    let reference = TestMachine(megabytes: 2, threshold: 0)
    let subject = TestMachine(
      megabytes: 2, threshold: 1, codeBytes: 1 << 18, guardsSpeculation: c.guards,
      verifies: c.verifies, store: c.store)
    for m in [reference, subject] {
      // 0x40000 to 0x44FFF is data, the page after it is absent.
      if c.mode == .bits64 {
        m.setLongModeWithSmallPages(absent: 0x45)
      } else {
        m.setProtectedModeWithSmallPages(absent: 0x45)
        setSegments(m)
      }
      m.cpu.vmxControls.exceptionBitmap = .max
      if c.vector {
        m.cpu.s.pointee.cr4 |= CR4.osxsave.rawValue
        m.cpu.s.pointee.xcr0 = c.xcr0
      }
      m.cpu.flushTLB()
    }
    return (reference, subject)
  }

  /// FS is a segment of 4 GiB with a base, GS one of 4 KiB.
  private static func setSegments(_ m: TestMachine) {
    m.cpu.segment(.fs).pointee.base = 0x100
    m.cpu.segment(.gs).pointee.base = UInt64(data)
    m.cpu.segment(.gs).pointee.limit = 0xFFF
    m.cpu.updateMode()
  }

  /// Before each round.
  mutating func begin(_ round: Int) {
    random = RandomRounds.random(configuration.seed, round)
    comparesEverything = round % 16 == 15
    if RandomRounds.needsNewMachines(round) { renewMachines() }
  }

  private mutating func renewMachines() {
    formerBlocks = translatedBlocks
    formerRecalls = recalledBlocks
    formerVerification = verification
    (reference, subject) = Self.machines(configuration)
  }

  var translatedBlocks: UInt64 {
    formerBlocks &+ (subject.translator?.statistics.blocks ?? 0)
  }

  /// Blocks and regions from the store.
  var recalledBlocks: UInt64 {
    guard let found = subject.translator?.statistics else { return formerRecalls }
    return formerRecalls &+ found.recalled &+ found.recalledRegions
  }

  private var verification: Verification {
    guard let found = subject.translator?.verification else { return formerVerification }
    var result = formerVerification
    result.count &+= found.count
    if found.differences != 0 && result.difference == nil {
      result.difference = (0..<5).map { String(found.first[$0], radix: 16) }
        .joined(separator: " ")
    }
    return result
  }

  /// Accesses without a look were compared, and none differed.
  func expectVerified() {
    let found = verification
    #expect(found.count > 100 || RandomRounds.again != nil)
    #expect(found.difference == nil, "linear, host, walk, size, page")
  }

  func load(_ program: InstructionGenerator.Program) {
    for m in [reference, subject] { m.load(program.bytes, at: Self.code) }
  }

  /// Runs one block several times on both, so that it becomes hot; what differs, or nil.
  mutating func round() -> String? {
    let program = generator.block(&random)
    load(program)
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
      if generator.isVector { setVectors(m, seed: pattern) }
      // Requests of other tests' processors empty it by chance, so what is in it must not matter.
      if Int.random(in: 0..<16, using: &random) == 0 { m.cpu.flushTLB() }
      if !m.runToItsEnd(from: Self.code) && m === reference {
        // Where it is interrupted is chance, so there is nothing to compare.
        renewMachines()
        load(program)
        return nil
      }
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
    if a.exitFields.reason != b.exitFields.reason { return "exit reason" }
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
    return compareMemory()
  }

  private func compareMemory() -> String? {
    let range =
      comparesEverything ? 0..<reference.memorySize : Self.data..<(Self.data + 0x5000)
    let (p, q) = (reference.memory, subject.memory)
    if memcmp(p + range.lowerBound, q + range.lowerBound, range.count) == 0 { return nil }
    for address in range
    where p.load(fromByteOffset: address, as: UInt8.self)
      != q.load(fromByteOffset: address, as: UInt8.self)
    {
      return "memory at \(String(address, radix: 16))"
    }
    return nil
  }
}
