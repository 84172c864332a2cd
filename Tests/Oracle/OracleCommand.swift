// SPDX-License-Identifier: Apache-2.0

import Foundation

/// The oracle's program.
///
///     martlet-oracle [instructions]    single instructions from random states
///
/// `OracleSettings` has what it obeys in the environment. The exit status is 0 where all executors agree
/// and, of a whole run, every row of the opcode table was compared or has a reason.
package struct OracleCommand {
  package init() {}

  package func run(_ arguments: [String]) throws -> Int32 {
    switch arguments.first ?? "instructions" {
    case Workers.argument: return try Workers.work(Array(arguments.dropFirst()))
    case "instructions": return try runInstructions()
    default:
      print("usage: martlet-oracle [instructions]")
      return 64
    }
  }

  private func runInstructions() throws -> Int32 {
    let settings = OracleSettings(.instructions)
    print("oracle: seed \(settings.seed), \(settings.pairs) pairs, \(settings.workers) processes")
    let start = Date()
    let report = try Workers.run(settings)
    let coverage = OracleCoverage(report)
    print(
      "oracle: \(report.pairs) pairs in \(seconds(since: start)) s, \(report.states) states, "
        + "\(report.faults) faults, \(report.rows.count) rows, \(report.translated) translations, "
        + "\(report.refused) refused, \(report.differing) differ, seed \(settings.seed)")
    for mismatch in report.mismatches { print(mismatch) }
    let reasons = Dictionary(grouping: coverage.excluded, by: \.reason)
    for (reason, rows) in reasons.sorted(by: { $0.key < $1.key }) {
      print("oracle: not compared, \(rows.count) rows: \(reason)")
    }
    for condition in Exclusions.conditions { print("oracle: not compared, states: \(condition)") }
    if !report.mismatches.isEmpty { return 1 }
    if !settings.isWhole { return 0 }
    for row in coverage.uncovered { print("oracle: not compared, without a reason: \(row)") }
    return report.pairs >= settings.pairs && coverage.uncovered.isEmpty ? 0 : 1
  }

  private func seconds(since start: Date) -> Int { Int(Date().timeIntervalSince(start)) }
}
