// SPDX-License-Identifier: Apache-2.0
//
// The oracle's program: what it is told to compare, and what its exit status says.
//
//     martlet-oracle instructions [SEED]    single instructions from random states
//     martlet-oracle blocks [SEED [COUNT]]  random blocks from random states
//     martlet-oracle soak [MINUTES]         both, with fresh seeds, for as long as asked; else
//                                           10 minutes
//
// Without a seed a random one is taken. `OracleSettings` has what it obeys in the environment,
// which goes before arguments. The exit status is 0 where all executors agree
// and, of a whole run, every row of the opcode table was compared or has a reason.

import Foundation

package struct OracleCommand {
  package init() {}

  package func run(_ arguments: [String]) throws -> Int32 {
    if arguments.first == Workers.argument { return try Workers.work(Array(arguments.dropFirst())) }
    let numbers = arguments.dropFirst().compactMap { UInt64($0) }
    switch (arguments.first, numbers.count == arguments.count - 1) {
    case ("instructions", true) where numbers.count <= 1:
      return try runInstructions(OracleSettings(.instructions, seed: numbers.first))
    case ("blocks", true) where numbers.count <= 2:
      let count = numbers.count > 1 ? Int(clamping: numbers[1]) : nil
      return try runBlocks(OracleSettings(.blocks, seed: numbers.first, blocks: count))
    case ("soak", _):
      guard let minutes = Double(arguments.dropFirst().first ?? "10"), minutes > 0 else { break }
      return try OracleSoak(minutes: minutes).run()
    default: break
    }
    print("usage: martlet-oracle instructions [SEED] | blocks [SEED [COUNT]] | soak [MINUTES]")
    return 64
  }

  private func runInstructions(_ settings: OracleSettings) throws -> Int32 {
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

  private func runBlocks(_ settings: OracleSettings) throws -> Int32 {
    print("oracle: seed \(settings.seed), \(settings.blocks) blocks, \(settings.workers) processes")
    let start = Date()
    let report = try Workers.run(settings)
    print("oracle: \(report.blockText) in \(seconds(since: start)) s, seed \(settings.seed)")
    for mismatch in report.mismatches { print(mismatch) }
    return report.mismatches.isEmpty ? 0 : 1
  }

  private func seconds(since start: Date) -> Int { Int(Date().timeIntervalSince(start)) }
}
