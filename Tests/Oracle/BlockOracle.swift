// SPDX-License-Identifier: Apache-2.0
//
// The oracle for blocks: random blocks of several instructions from random states, executed by the
// host processor, the interpreter and the translator, must have the same results.
//
// A case is one block with `statesPerCase` states; it depends on the seed and its number alone. The
// interpreter goes first: what reaches other memory than the sandbox there, or does not end, is
// never executed on the host. A case that differs is made small (BlockOracle+Shrinking) and
// printed.

import Foundation
import X86
import X86CPU
import X86Decoder

package final class BlockOracle {
  static let statesPerCase = 8
  let settings: OracleSettings
  let host: NativeExecutor
  let interpreter = SoftwareExecutor(translated: false)
  let translator: SoftwareExecutor
  let watchdog: Watchdog
  private let rows = BlockRows()
  /// Vector state before, and after on the host and on the others.
  let vectors: UnsafeMutablePointer<VectorState>
  /// The sandbox before.
  let memory: UnsafeMutableRawPointer
  private var lastPlace = Int.max
  private(set) var report = OracleReport()

  package init(_ settings: OracleSettings) throws {
    self.settings = settings
    host = try NativeExecutor()
    // With little memory all translations are dropped again and again.
    translator = SoftwareExecutor(
      translated: true, codeBytes: settings.seed % 4 == 0 ? 64 << 10 : 4 << 20,
      hotEntries: [1, 2, 2, 3, 5][Int(settings.seed / 4 % 5)], verifies: settings.verifies,
      counts: settings.countsInstructions)
    watchdog = Watchdog([interpreter.line, translator.line])
    vectors = .allocate(capacity: 4)
    vectors.initialize(repeating: VectorState(), count: 4)
    memory = .allocate(byteCount: Layout.sandboxSize, alignment: 64)
  }

  deinit {
    vectors.deallocate()
    memory.deallocate()
  }

  /// - Parameter goesOn: asked before each case.
  package func run(while goesOn: (Int) -> Bool) -> OracleReport {
    var number = settings.batch ?? settings.worker
    let end = settings.batch.map { $0 + 1 } ?? settings.blocks
    while number < end && report.mismatches.count < settings.maximumMismatches && goesOn(number) {
      run(case: number)
      number += settings.workers
    }
    translator.addStatistics(to: &report)
    report.disturbances = translator.disturbances
    return report
  }

  // MARK: Cases

  /// What a case is, without its block.
  struct Plan {
    var number: Int
    var address: UInt64
    var roles: BlockRoles
    /// Each state is made of one of these.
    var seeds: [UInt64]
    /// Registers that are 0 in each state, to make a failing case simple.
    var zeroed: [Int] = []
  }

  private func run(case number: Int) {
    var random = OracleRandom(settings.seed ^ UInt64(number) &* 0xA076_1D64_78BD_642F)
    var generator = BlockGenerator(random: OracleRandom(random.next()), rows: rows)
    generator.generate()
    let place = number % Layout.blockCount
    let room = Layout.blockRoom - Layout.blockSize
    let start =
      place % 4 == 3 && place < Layout.blockCount - 1
      ? random.below(Layout.blockRoom) : Layout.blockRoom / 4 + random.below(room / 2)
    let address = Layout.slots + UInt64(place * Layout.blockRoom + start)
    let seeds = (0..<Self.statesPerCase).map { _ in random.next() }
    let plan = Plan(number: number, address: address, roles: generator.roles, seeds: seeds)
    guard let block = generator.block.assembled(at: address) else { return discard("too long") }
    if place <= lastPlace { startRound() }
    lastPlace = place
    report.blocks += 1
    if settings.batch != nil {
      for line in block.text { print(line) }
      // Should the block end this process.
      fflush(nil)
    }
    if let difference = firstDifference(block, generator.block, plan, counts: true) {
      report.differing += 1
      report.mismatches.append(explain(difference, generator.block, plan))
      // Nothing of what was tried is to be found by the next case.
      startRound()
    }
  }

  func startRound() {
    interpreter.startRound()
    translator.startRound()
  }

  private func discard(_ reason: String) { report.discarded[reason, default: 0] += 1 }

  // MARK: States

  struct Difference {
    var state: Int
    var input: Registers
    var text: [String]
  }

  /// Runs the states in turn until executors differ.
  func firstDifference(
    _ code: AssembledBlock, _ block: Block, _ plan: Plan, counts: Bool
  ) -> Difference? {
    code.bytes.withUnsafeBytes { bytes in
      for executor: any Executor in [host, interpreter, translator] {
        executor.load(bytes, block: code.address)
      }
    }
    let usesVectors = block.usesVectorState
    for (state, seed) in plan.seeds.enumerated() {
      var input = Registers()
      prepare(&input, seed, plan, usesVectors)
      let verdict = compare(code, &input, usesVectors)
      if counts { count(verdict) }
      if case .differ(let text) = verdict {
        return Difference(state: state, input: input, text: text)
      }
    }
    return nil
  }

  private func prepare(_ input: inout Registers, _ seed: UInt64, _ plan: Plan, _ usesVectors: Bool)
  {
    var states = StateGenerator(random: OracleRandom(seed), sandboxes: [])
    states.fill(&input, for: plan.roles, at: plan.address)
    for register in plan.zeroed { input.gpr[register] = 0 }
    let words = memory.assumingMemoryBound(to: UInt64.self)
    for n in 0..<(Layout.sandboxSize / 8) { words[n] = states.random.next() }
    if usesVectors { states.fill(vectors) }
    if states.random.oneIn(4) {
      interpreter.forgetAddresses()
      translator.forgetAddresses()
    }
  }

  private func count(_ verdict: Verdict) {
    switch verdict {
    case .discarded(let reason): discard(reason)
    case .agree(let retired, let isFault):
      report.states += 1
      report.pairs += 2
      report.instructions += Int(retired)
      if isFault { report.faults += 1 }
    case .differ: report.states += 1
    }
  }

  // MARK: Comparison

  enum Verdict {
    case agree(retired: UInt64, isFault: Bool)
    case discarded(String)
    case differ([String])
  }

  private func compare(
    _ code: AssembledBlock, _ input: inout Registers, _ usesVectors: Bool
  ) -> Verdict {
    var interpreted = Outcome()
    var expected = Outcome()
    var translated = Outcome()
    run(interpreter, 0, &input, usesVectors ? vectors + 2 : nil, &interpreted, seconds: 0.3)
    if let reason = reasonToDiscard(interpreted, code) { return .discarded(reason) }
    host.sandbox.copyMemory(from: memory, byteCount: Layout.sandboxSize)
    if usesVectors { vectors[1] = vectors[0] }
    host.run(&input, vector: usesVectors ? vectors + 1 : nil, into: &expected)
    for seconds in [0.3, 3.0] {
      run(translator, 1, &input, usesVectors ? vectors + 3 : nil, &translated, seconds: seconds)
      if translated.fault.vector != Self.stopped { break }
    }
    func result(_ executor: any Executor, _ outcome: Outcome, _ number: Int) -> ExecutorResult {
      ExecutorResult(
        name: executor.name, outcome: outcome,
        vectors: usesVectors ? UnsafePointer(vectors + number) : nil,
        memory: UnsafeRawPointer(executor.sandbox))
    }
    return verdict(
      code, result(host, expected, 1), result(interpreter, interpreted, 2),
      result(translator, translated, 3))
  }

  private func verdict(
    _ code: AssembledBlock, _ host: ExecutorResult, _ interpreter: ExecutorResult,
    _ translator: ExecutorResult
  ) -> Verdict {
    let comparison = self.comparison(code, host.outcome)
    // What the host may do otherwise, interpreter and translator do alike.
    let own = self.comparison(code, interpreter.outcome)
    if !own.agree(interpreter, translator) {
      return .differ(own.text(interpreter, translator, vectors))
    }
    if settings.countsInstructions && !code.hasStrings
      && interpreter.outcome.retired != translator.outcome.retired
    {
      return .differ([
        "  interpreter | translator",
        "  instructions counted: \(interpreter.outcome.retired) | \(translator.outcome.retired)",
      ])
    }
    if comparison.agree(host, interpreter) {
      let isFault = host.outcome.fault.vector != Fault.none
      return .agree(retired: interpreter.outcome.retired, isFault: isFault)
    }
    if let reason = reasonOfHost(host.outcome, code) { return .discarded(reason) }
    let choices = choices(code, host, interpreter, comparison)
    if choices.isEmpty { return .differ(comparison.text(host, interpreter, vectors)) }
    report.allow(choices)
    return .discarded("allowed to differ")
  }

  /// The rules that allow a difference at the instruction that faulted.
  private func choices(
    _ code: AssembledBlock, _ host: ExecutorResult, _ other: ExecutorResult,
    _ comparison: Comparison
  ) -> [ImplementationChoice] {
    let registers = other.outcome.registers
    guard other.outcome.fault.vector != Fault.none, let line = code.line(at: registers.rip) else {
      return []
    }
    return DifferingPair(
      line.instruction, from: registers, other.vectors ?? UnsafePointer(vectors), isBlock: true,
      host: host, other: other
    ).choices(comparison)
  }

  private static let stopped = Fault.exit | UInt64(ExitReason.externalInterrupt.rawValue)

  private func run(
    _ executor: SoftwareExecutor, _ number: Int, _ input: inout Registers,
    _ vector: UnsafeMutablePointer<VectorState>?, _ outcome: inout Outcome, seconds: Double
  ) {
    executor.sandbox.copyMemory(from: memory, byteCount: Layout.sandboxSize)
    if let vector { vector.pointee = vectors.pointee }
    watchdog.watch(number, seconds: seconds) {
      executor.run(&input, vector: vector, into: &outcome)
    }
  }

  /// Why the host must not, or need not, execute what the interpreter has.
  private func reasonToDiscard(_ outcome: Outcome, _ code: AssembledBlock) -> String? {
    let fault = outcome.fault
    if fault.vector == Self.stopped { return "no end" }
    if fault.vector == Fault.exit | UInt64(ExitReason.eptViolation.rawValue) {
      return "reads code"
    }
    if fault.vector == UInt64(ExceptionVector.pageFault.rawValue),
      !Footprint.isSafe(fault.address, 64), !Self.isCode(fault.address)
    {
      return "other memory"
    }
    // The host may find no fault, and would go on to what nobody has looked at.
    if fault.vector < 32, let i = code.line(at: outcome.registers.rip)?.instruction {
      if DifferingPair.isStore(i), !X87Image(vectors + 2).masksAll {
        return ImplementationChoice.unmaskedStores.rawValue
      }
      if MemoryAccess.partialKind(i) != nil { return ImplementationChoice.partialOperand.rawValue }
    }
    return nil
  }

  /// Why what the host has done says nothing: a fault that only hosts have.
  private func reasonOfHost(_ outcome: Outcome, _ code: AssembledBlock) -> String? {
    guard let i = code.line(at: outcome.registers.rip)?.instruction else { return nil }
    if outcome.fault.vector == UInt64(ExceptionVector.alignmentCheck.rawValue),
      DifferingPair.isLocked(i)
    {
      return ImplementationChoice.splitLocks.rawValue
    }
    if outcome.fault.vector == UInt64(ExceptionVector.pageFault.rawValue),
      MemoryAccess.partialKind(i) == .selected
    {
      return ImplementationChoice.partialOperand.rawValue
    }
    return nil
  }

  /// In the slots' memory the host faults as the others do: it is there, and read-only.
  private static func isCode(_ address: UInt64) -> Bool {
    address &- Layout.slots < UInt64(Layout.slotBytes - 64)
  }

  private func comparison(_ code: AssembledBlock, _ outcome: Outcome) -> Comparison {
    let rip = outcome.registers.rip
    if rip == code.end { return Comparison(block: nil, undefined: code.undefinedAtEnd) }
    let line = code.line(at: rip)
    return Comparison(block: line?.instruction, undefined: line?.undefined ?? FlagFlow.all)
  }
}
