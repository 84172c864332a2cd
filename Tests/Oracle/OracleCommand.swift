// SPDX-License-Identifier: Apache-2.0

import Foundation

/// The oracle's program.
///
///     martlet-oracle instructions    single instructions from random states
///     martlet-oracle blocks          random blocks from random states
///     martlet-oracle soak [MINUTES]  both, with fresh seeds, for as long as asked; else 10 minutes
///
/// `OracleSettings` has what it obeys in the environment. The exit status is 0 where all executors agree
/// and, of a whole run, every row of the opcode table was compared or has a reason.
package struct OracleCommand {
  package init() {}

  package func run(_ arguments: [String]) throws -> Int32 {
    switch arguments.first {
    case Workers.argument: return try Workers.work(Array(arguments.dropFirst()))
    case "instructions": return try runInstructions()
    case "blocks": return try runBlocks()
    case "soak":
      guard let minutes = Double(arguments.dropFirst().first ?? "10"), minutes > 0 else { break }
      return try OracleSoak(minutes: minutes).run()
    default: break
    }
    print("usage: martlet-oracle instructions | blocks | soak [MINUTES]")
    return 64
  }

  private func runInstructions() throws -> Int32 {
    let settings = OracleSettings(.instructions)
    print("oracle: seed \(settings.seed), \(settings.pairs) pairs, \(settings.workers) processes")
    let start = Date()
    let report = try Workers.run(settings)
    let coverage = OracleCoverage(report)
    print(
      "oracle: \(report.instructionText) in \(seconds(since: start)) s, seed \(settings.seed)")
    for mismatch in report.mismatches { print(mismatch) }
    let reasons = Dictionary(grouping: coverage.excluded, by: \.reason)
    for (reason, rows) in reasons.sorted(by: { $0.key < $1.key }) {
      print("oracle: not compared, \(rows.count) rows: \(reason)")
    }
    for choice in ImplementationChoice.allCases {
      print("oracle: may differ: \(choice.rawValue): \(choice.reason)")
    }
    for condition in Exclusions.conditions { print("oracle: not compared, states: \(condition)") }
    if !report.mismatches.isEmpty { return 1 }
    if !settings.isWhole { return 0 }
    for row in coverage.uncovered { print("oracle: not compared, without a reason: \(row)") }
    return report.pairs >= settings.pairs && coverage.uncovered.isEmpty ? 0 : 1
  }

  private func runBlocks() throws -> Int32 {
    let settings = OracleSettings(.blocks)
    print("oracle: seed \(settings.seed), \(settings.blocks) blocks, \(settings.workers) processes")
    let start = Date()
    let report = try Workers.run(settings)
    print("oracle: \(report.blockText) in \(seconds(since: start)) s, seed \(settings.seed)")
    for mismatch in report.mismatches { print(mismatch) }
    return report.mismatches.isEmpty ? 0 : 1
  }

  private func seconds(since start: Date) -> Int { Int(Date().timeIntervalSince(start)) }
}
