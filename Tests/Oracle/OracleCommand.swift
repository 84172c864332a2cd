// SPDX-License-Identifier: Apache-2.0

import Foundation
import X86Decoder

/// What to run, from the environment; a mismatch prints what to set to see it again.
///
///     MARTLET_ORACLE_SEED      the seed; else a random one
///     MARTLET_ORACLE_PAIRS     how many executions to compare; else 10 million
///     MARTLET_ORACLE_BATCH     this batch alone
///     MARTLET_ORACLE_MNEMONIC  this instruction alone (changes what the batches are)
///     MARTLET_ORACLE_MAX       mismatching rows after which to stop; else 20
package struct OracleCommand {
  package let seed: UInt64
  package let pairs: Int
  package let batch: Int?
  package let only: Mnemonic?
  package let maximumMismatches: Int

  /// Every row gets its turn: nothing narrows the run down.
  package var isWhole: Bool { batch == nil && only == nil && pairs >= 1_000_000 }

  package init() {
    let environment = ProcessInfo.processInfo.environment
    func number(_ name: String) -> UInt64? {
      environment["MARTLET_ORACLE_" + name].flatMap { UInt64($0) }
    }
    seed = number("SEED") ?? .random(in: 1...UInt64(UInt32.max))
    pairs = Int(number("PAIRS") ?? 10_000_000)
    batch = number("BATCH").map { Int($0) }
    maximumMismatches = Int(number("MAX") ?? 20)
    only = environment["MARTLET_ORACLE_MNEMONIC"].flatMap { name in
      Mnemonic.allCases.first { "\($0)" == name }
    }
  }

  /// Runs it and prints seed, result, mismatches and what was not compared.
  package func run() throws -> OracleReport {
    print("oracle: seed \(seed), \(pairs) pairs")
    let start = Date()
    let oracle = try Oracle(
      seed: seed, pairs: pairs, onlyBatch: batch, only: only, maximumMismatches: maximumMismatches)
    let report = oracle.run()
    let seconds = Int(Date().timeIntervalSince(start))
    print(
      "oracle: \(report.pairs) pairs in \(seconds) s, \(report.faults) faults, "
        + "\(report.coveredRows) rows, \(report.differing) differ, seed \(seed)")
    for mismatch in report.mismatches { print(mismatch) }
    let reasons = Dictionary(grouping: report.excluded, by: \.reason)
    for (reason, rows) in reasons.sorted(by: { $0.key < $1.key }) {
      print("oracle: not compared, \(rows.count) rows: \(reason)")
    }
    for condition in Exclusions.conditions { print("oracle: not compared, states: \(condition)") }
    if isWhole { for row in report.uncovered { print("oracle: not compared: \(row)") } }
    return report
  }
}
