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
  /// Vector state before, and after on the host and on another.
  private let vectors: UnsafeMutablePointer<VectorState>
  private var noted: Set<Int> = []
  private var lastSlot = Int.max
  private var report = OracleReport()

  package init(_ settings: OracleSettings) throws {
    self.settings = settings
    host = try NativeExecutor()
    others = [SoftwareExecutor(translated: false), SoftwareExecutor(translated: true)]
    rows = Decoder.rowTemplates
    vectors = .allocate(capacity: 3)
    vectors.initialize(repeating: VectorState(), count: 3)
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
    var expected = Outcome()
    var actual = Outcome()
    let usesVectors = e.instruction.usesVectorState
    if usesVectors { vectors[1] = vectors[0] }
    host.run(&input, vector: usesVectors ? vectors + 1 : nil, into: &expected)
    let comparison = Comparison(e, input)
    for other in others {
      if usesVectors { vectors[2] = vectors[0] }
      other.run(&input, vector: usesVectors ? vectors + 2 : nil, into: &actual)
      report.pairs += 1
      var agrees = comparison.agree(expected, actual)
      if usesVectors && !comparison.agree(vectors + 1, vectors + 2) { agrees = false }
      if memcmp(host.sandbox, other.sandbox, Layout.sandboxSize) != 0 {
        if !comparison.ignoresDestination { agrees = false }
      }
      let choice = agrees ? nil : choice(e, input, other, comparison, expected, actual)
      if let choice { report.allowed[choice.rawValue, default: 0] += 1 }
      if !agrees && choice == nil {
        report.differing += 1
        if noted.insert(row.index).inserted {
          note(e, input, batch, other, comparison, expected, actual)
        }
      }
      if !agrees || comparison.ignoresDestination {
        other.sandbox.copyMemory(from: host.sandbox, byteCount: Layout.sandboxSize)
      }
    }
    if expected.fault.vector != Fault.none { report.faults += 1 }
    report.states += 1
    report.rows.insert(row.index)
  }

  private func choice(
    _ e: Encoding, _ input: Registers, _ other: SoftwareExecutor, _ comparison: Comparison,
    _ expected: Outcome, _ actual: Outcome
  ) -> ImplementationChoice? {
    DifferingPair(
      instruction: e.instruction, input: input, host: expected, other: actual,
      vectors: e.instruction.usesVectorState
        ? (UnsafePointer(vectors + 1), UnsafePointer(vectors + 2)) : nil,
      memory: (UnsafeRawPointer(host.sandbox), UnsafeRawPointer(other.sandbox))
    ).choice(comparison)
  }

  private func note(
    _ e: Encoding, _ input: Registers, _ batch: Int, _ other: SoftwareExecutor,
    _ comparison: Comparison, _ expected: Outcome, _ actual: Outcome
  ) {
    let bytes = e.bytes.map { String($0, radix: 16) }.joined(separator: " ")
    var lines = [
      "\(Disassembler.text(e.instruction, at: e.address))  [\(bytes)] at \(String(e.address, radix: 16))",
      "  seed \(settings.seed) batch \(batch), host | \(other.name)",
      "  from \(Comparison.text(input))",
    ]
    lines += comparison.differences(expected, actual)
    lines += Comparison.memoryDifferences(host.sandbox, other.sandbox)
    if e.instruction.usesVectorState {
      lines += comparison.differences(vectors, vectors + 1, vectors + 2)
    }
    report.mismatches.append(lines.joined(separator: "\n"))
  }
}
