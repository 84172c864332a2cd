// SPDX-License-Identifier: Apache-2.0

import Foundation
import Oracle
import Testing
import X86Decoder

/// One at a time: the native executor's addresses and signal handlers are the process's.
@Suite(.serialized) struct OracleTests {
  /// MARTLET_ORACLE_SEED, MARTLET_ORACLE_PAIRS, MARTLET_ORACLE_BATCH and MARTLET_ORACLE_MNEMONIC
  /// replay what a failure prints.
  @Test func hostAndInterpreterAgree() throws {
    let environment = ProcessInfo.processInfo.environment
    func number(_ name: String) -> UInt64? { environment["MARTLET_ORACLE_" + name].flatMap { UInt64($0) } }
    let seed = number("SEED") ?? .random(in: 1...UInt64(UInt32.max))
    let pairs = Int(number("PAIRS") ?? 10_000_000)
    let only = environment["MARTLET_ORACLE_MNEMONIC"].flatMap { name in
      Mnemonic.allCases.first { "\($0)" == name }
    }
    print("oracle: seed \(seed), \(pairs) pairs")
    let start = Date()
    let oracle = try Oracle(
      seed: seed, pairs: pairs, onlyBatch: number("BATCH").map { Int($0) }, only: only)
    let report = oracle.run()
    let seconds = Date().timeIntervalSince(start)
    print(
      "oracle: \(report.pairs) pairs in \(Int(seconds)) s, \(report.faults) faults, "
        + "\(report.coveredRows) rows, \(report.mismatches.count) differ")
    for mismatch in report.mismatches { print(mismatch) }
    #expect(report.mismatches.isEmpty, "seed \(seed)")
    if only == nil && number("BATCH") == nil && pairs >= 1_000_000 {
      #expect(report.uncovered == [], "rows without a reason")
    }
    let reasons = Dictionary(grouping: report.excluded, by: \.reason)
    for (reason, rows) in reasons.sorted(by: { $0.key < $1.key }) {
      print("oracle: not compared: \(rows.count) rows: \(reason)")
    }
  }
}
