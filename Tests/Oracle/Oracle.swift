// SPDX-License-Identifier: Apache-2.0
//
// The oracle: random instructions from random states, executed by the host processor and by others,
// must have the same results.
//
//     let report = try Oracle(settings).run { number in true }
//     print(report.mismatches, OracleCoverage(report).uncovered)
//
// It goes in batches: one instruction, `statesPerBatch` states. A batch depends on the seed and its
// number alone, so that any of them can be run again by itself.

import Foundation
import X86
import X86CPU
import X86Decoder

package final class Oracle {
  package static let statesPerBatch = 16
  private let settings: OracleSettings
  private let host: NativeExecutor
  private let others: [SoftwareExecutor]
  private let rows: [RowTemplate]
  /// Vector state before, and after on the host and on the others.
  private let vectors: UnsafeMutablePointer<VectorState>
  private var noted: Set<Int> = []
  private var lastSlot = Int.max
  private var report = OracleReport()

  package init(_ settings: OracleSettings) throws {
    self.settings = settings
    host = try NativeExecutor()
    others = [SoftwareExecutor(translated: false), SoftwareExecutor(translated: true)]
    rows = Decoder.rowTemplates
    vectors = .allocate(capacity: 4)
    vectors.initialize(repeating: VectorState(), count: 4)
  }

  deinit { vectors.deallocate() }

  /// - Parameter goesOn: asked before each batch.
  package func run(while goesOn: (Int) -> Bool) -> OracleReport {
    let only = settings.only
    let active = rows.filter {
      Exclusions.reason($0) == nil && (settings.mnemonic == nil || $0.mnemonic == only)
    }
    let pairs = settings.share(settings.pairs)
    var batch = settings.batch ?? settings.worker
    while !active.isEmpty && report.pairs < pairs && !isDone && goesOn(batch) {
      run(batch: batch, active[batch % active.count])
      batch += settings.workers
      if settings.batch != nil { break }
    }
    for other in others { other.addStatistics(to: &report) }
    return report
  }

  private var isDone: Bool { report.mismatches.count >= settings.maximumMismatches }

  private func run(batch: Int, _ row: RowTemplate) {
    var random = OracleRandom(settings.seed ^ UInt64(batch) &* 0xD1B5_4A32_D192_ED03)
    var encodings = EncodingGenerator(random: OracleRandom(random.next()))
    let slot = batch % Layout.slotCount
    if slot <= lastSlot { for other in others { other.startRound() } }
    lastSlot = slot
    guard let encoding = encodings.encoding(of: row, slot: slot) else { return }
    encoding.bytes.withUnsafeBytes { code in
      host.load(code, slot: slot)
      for other in others { other.load(code, slot: slot) }
    }
    fillSandboxes(OracleRandom(random.next()))
    var states = StateGenerator(
      random: OracleRandom(random.next()), sandboxes: [host.sandbox] + others.map(\.sandbox))
    var input = Registers()
    for _ in 0..<Self.statesPerBatch {
      guard states.fill(&input, for: encoding) else { continue }
      if encoding.instruction.usesVectorState { states.fill(vectors, for: encoding) }
      compare(encoding, &input, row, batch)
      if isDone { return }
    }
  }

  private func fillSandboxes(_ random: OracleRandom) {
    var random = random
    let words = host.sandbox.assumingMemoryBound(to: UInt64.self)
    for n in 0..<(Layout.sandboxSize / 8) { words[n] = random.next() }
    for other in others { other.sandbox.copyMemory(from: words, byteCount: Layout.sandboxSize) }
  }

  private func compare(
    _ e: Encoding, _ input: inout Registers, _ row: RowTemplate, _ batch: Int
  ) {
    let expected = run(host, 1, e, &input)
    let comparison = Comparison(e, input)
    var first: ExecutorResult?
    var isAllowed = false
    var isDifferent = false
    for (n, other) in others.enumerated() {
      let actual = run(other, 2 + n, e, &input)
      report.pairs += 1
      if !comparison.agree(expected, actual) {
        isDifferent = true
        let pair = DifferingPair(
          e.instruction, from: input, vectors, isBlock: false, host: expected, other: actual)
        let choices = pair.choices(comparison)
        report.allow(choices)
        if choices.isEmpty { note(e, input, batch, row, comparison, expected, actual) }
        isAllowed = isAllowed || !choices.isEmpty
      }
      // What the host may do otherwise, interpreter and translator do alike.
      if isAllowed, let first, !comparison.agree(first, actual) {
        note(e, input, batch, row, comparison, first, actual)
      }
      first = actual
    }
    if isDifferent || comparison.ignoresDestination {
      for other in others {
        other.sandbox.copyMemory(from: host.sandbox, byteCount: Layout.sandboxSize)
      }
    }
    if expected.outcome.fault.vector != Fault.none { report.faults += 1 }
    report.states += 1
    report.rows.insert(row.index)
  }

  /// - Parameter number: of the vector state after.
  @inline(__always) private func run(
    _ executor: some Executor, _ number: Int, _ e: Encoding, _ input: inout Registers
  ) -> ExecutorResult {
    var outcome = Outcome()
    let vector = e.instruction.usesVectorState ? vectors + number : nil
    if let vector { vector.pointee = vectors.pointee }
    executor.run(&input, vector: vector, into: &outcome)
    return ExecutorResult(
      name: executor.name, outcome: outcome, vectors: vector.map { UnsafePointer($0) },
      memory: UnsafeRawPointer(executor.sandbox))
  }

  private func note(
    _ e: Encoding, _ input: Registers, _ batch: Int, _ row: RowTemplate, _ comparison: Comparison,
    _ a: ExecutorResult, _ b: ExecutorResult
  ) {
    report.differing += 1
    guard noted.insert(row.index).inserted else { return }
    let bytes = e.bytes.map { String($0, radix: 16) }.joined(separator: " ")
    let lines = [
      "\(Disassembler.text(e.instruction, at: e.address))  [\(bytes)] at \(String(e.address, radix: 16))",
      "  MARTLET_ORACLE_SEED=\(settings.seed) MARTLET_ORACLE_BATCH=\(batch)"
        + (settings.mnemonic.map { " MARTLET_ORACLE_MNEMONIC=\($0)" } ?? ""),
      "  from \(Comparison.text(input))",
    ]
    report.mismatches.append((lines + comparison.text(a, b, vectors)).joined(separator: "\n"))
  }
}
