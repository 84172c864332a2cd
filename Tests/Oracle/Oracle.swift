// SPDX-License-Identifier: Apache-2.0
//
// The oracle: random instructions from random states, executed by the host processor and by others,
// must have the same results.
//
//     let report = try Oracle(seed: 1, pairs: 1_000_000).run()
//     print(report.mismatches, report.uncovered)
//
// It goes in batches: one instruction, `statesPerBatch` states. A batch depends on the seed and its
// number alone, so that any of them can be run again by itself.

import Foundation
import X86
import X86CPU
import X86Decoder

package struct OracleReport {
  package var pairs = 0
  package var faults = 0
  /// How many differ, and the text of the first of each row.
  package var differing = 0
  package var mismatches: [String] = []
  /// Rows that were compared, and those that were not with the reason, by row.
  package var coveredRows = 0
  package var excluded: [(row: String, reason: String)] = []
  /// Rows that were not compared for no reason.
  package var uncovered: [String] = []
}

package final class Oracle {
  package static let statesPerBatch = 16
  private let seed: UInt64
  private let pairs: Int
  private let onlyBatch: Int?
  private let maximumMismatches: Int
  private let only: Mnemonic?
  private let host: NativeExecutor
  private let others: [any Executor]
  private let rows: [RowTemplate]
  /// Vector state before, and after on the host and on another.
  private let vectors: UnsafeMutablePointer<VectorState>
  private var counts: [Int: Int] = [:]
  private var noted: Set<Int> = []
  private var report = OracleReport()

  /// - Parameters:
  ///   - pairs: how many executions to compare.
  ///   - onlyBatch: run this batch alone.
  package init(
    seed: UInt64, pairs: Int, onlyBatch: Int? = nil, only: Mnemonic? = nil,
    maximumMismatches: Int = 20
  ) throws {
    self.seed = seed
    self.pairs = pairs
    self.onlyBatch = onlyBatch
    self.only = only
    self.maximumMismatches = maximumMismatches
    host = try NativeExecutor()
    others = [InterpreterExecutor()]
    rows = Decoder.rowTemplates
    vectors = .allocate(capacity: 3)
    vectors.initialize(repeating: VectorState(), count: 3)
  }

  deinit { vectors.deallocate() }

  package func run() -> OracleReport {
    let active = rows.filter {
      Exclusions.reason($0) == nil && (only == nil || $0.mnemonic == only)
    }
    var batch = onlyBatch ?? 0
    while !active.isEmpty && report.pairs < pairs && report.mismatches.count < maximumMismatches {
      run(batch: batch, active[batch % active.count])
      batch += 1
      if onlyBatch != nil { break }
    }
    for row in rows {
      let name =
        "\(row.mnemonic) \(row.space) \(row.map) \(String(row.opcode, radix: 16))"
        + (row.modRMMask & 0x38 != 0 ? "/\(row.modRM >> 3 & 7)" : "")
      if counts[row.index, default: 0] > 0 {
        report.coveredRows += 1
      } else if let reason = Exclusions.reason(row) {
        report.excluded.append((name, reason))
      } else {
        report.uncovered.append(name)
      }
    }
    return report
  }

  private func run(batch: Int, _ row: RowTemplate) {
    var random = OracleRandom(seed ^ UInt64(batch) &* 0xD1B5_4A32_D192_ED03)
    var encodings = EncodingGenerator(random: OracleRandom(random.next()))
    let slot = batch % Layout.slotCount
    if slot == 0 { for other in others { other.startRound() } }
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
      if report.mismatches.count >= maximumMismatches { return }
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
      if !agrees {
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
    counts[row.index, default: 0] += 1
  }

  private func note(
    _ e: Encoding, _ input: Registers, _ batch: Int, _ other: any Executor,
    _ comparison: Comparison, _ expected: Outcome, _ actual: Outcome
  ) {
    let bytes = e.bytes.map { String($0, radix: 16) }.joined(separator: " ")
    var lines = [
      "\(Disassembler.text(e.instruction, at: e.address))  [\(bytes)] at \(String(e.address, radix: 16))",
      "  seed \(seed) batch \(batch), host | \(other.name)", "  from \(Comparison.text(input))",
    ]
    lines += comparison.differences(expected, actual)
    lines += memoryDifferences(other)
    if e.instruction.usesVectorState {
      lines += comparison.differences(vectors, vectors + 1, vectors + 2)
    }
    report.mismatches.append(lines.joined(separator: "\n"))
  }

  private func memoryDifferences(_ other: any Executor) -> [String] {
    var lines: [String] = []
    for offset in stride(from: 0, to: Layout.sandboxSize, by: 8) where lines.count < 4 {
      let a = host.sandbox.load(fromByteOffset: offset, as: UInt64.self)
      let b = other.sandbox.load(fromByteOffset: offset, as: UInt64.self)
      if a != b {
        let address = Comparison.hex(Layout.sandbox + UInt64(offset))
        lines.append("  [\(address)]: \(Comparison.hex(a)) | \(Comparison.hex(b))")
      }
    }
    return lines
  }
}
