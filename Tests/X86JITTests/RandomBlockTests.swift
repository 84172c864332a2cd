// SPDX-License-Identifier: Apache-2.0
//
// Random blocks of integer instructions, each run by the interpreter and by the translator from the
// same state. Registers, flags (those that are defined), memory, RIP, exit reason and the number of
// instructions must agree.

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
  func accessesWithoutLooksAreThoseOfLooks(_ seed: UInt64, _ mode: CodeMode) {
    run(seed, vector: true, mode: mode, verifies: true).expectVerified()
  }

  @discardableResult
  private func run(
    _ seed: UInt64, vector: Bool, mode: CodeMode = .bits64, guards: Bool = true,
    verifies: Bool = false
  ) -> ComparisonRig {
    var rig = ComparisonRig(
      seed: seed &* 0xD6E8_FEB8_6659_FD93, vector: vector, mode: mode, guards: guards,
      verifies: verifies)
    let rounds = RandomRounds(debug: 300, release: 5000)
    for round in rounds.range {
      rig.begin(round)
      guard let difference = rig.round() else { continue }
      Issue.record("seed \(seed), round \(round): \(difference)\n\(rounds.again(round))")
      return rig
    }
    #expect(rig.translatedBlocks > UInt64(rounds.range.count / 2) || RandomRounds.again != nil)
    return rig
  }

  /// A program may overwrite its end.
  @Test func programsWithoutEndEnd() {
    var rig = ComparisonRig(seed: 1, vector: false)
    var program = InstructionGenerator.Program()
    // jmp -2
    program.bytes = [0xEB, 0xFE]
    rig.load(program)
    #expect(rig.run(program) == nil)
    program.bytes = [0xF4]
    rig.load(program)
    #expect(rig.run(program) == nil)
  }

  /// What a round runs cannot change what the next one's addresses mean.
  @Test(arguments: [CodeMode.bits64, .bits32]) func tablesAreOutOfReach(_ mode: CodeMode) {
    let rig = ComparisonRig(seed: 1, vector: false, mode: mode)
    // mov [rdi], eax ; hlt
    let code: [UInt8] = [0x89, 0x07, 0xF4]
    for m in [rig.reference, rig.subject] {
      let tables = TestMachine.tables
      let before = [UInt8](
        UnsafeRawBufferPointer(start: m.memory + tables.lowerBound, count: tables.count))
      m.load(code, at: ComparisonRig.code)
      for address in stride(from: tables.lowerBound, to: tables.upperBound, by: 0x400) {
        m.cpu.gpr[7] = UInt64(address)
        #expect(m.run(from: UInt64(ComparisonRig.code)) == .exceptionOrNMI)
      }
      m.cpu.gpr[7] = UInt64(tables.upperBound)
      #expect(m.run(from: UInt64(ComparisonRig.code)) == .hlt)
      let after = UnsafeRawBufferPointer(start: m.memory + tables.lowerBound, count: tables.count)
      // Walks may have set accessed flags in the upper tables.
      #expect(zip(before, after).allSatisfy { $0 | 0x20 == $1 | 0x20 })
    }
  }
}
