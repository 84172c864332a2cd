import Foundation
import Oracle
import X86Decoder

let environment = ProcessInfo.processInfo.environment
func number(_ name: String) -> UInt64? { environment["MARTLET_ORACLE_" + name].flatMap { UInt64($0) } }
let seed = number("SEED") ?? .random(in: 1...UInt64(UInt32.max))
let pairs = Int(number("PAIRS") ?? 10_000_000)
let only = environment["MARTLET_ORACLE_MNEMONIC"].flatMap { name in
  Mnemonic.allCases.first { "\($0)" == name }
}
let start = Date()
let oracle = try Oracle(
  seed: seed, pairs: pairs, onlyBatch: number("BATCH").map { Int($0) }, only: only,
  maximumMismatches: Int(number("MAX") ?? 20))
let report = oracle.run()
print("seed \(seed) \(report.pairs) pairs in \(Date().timeIntervalSince(start)) s, \(report.faults) faults, \(report.coveredRows) rows, \(report.differing) differ in \(report.mismatches.count) rows")
for mismatch in report.mismatches { print(mismatch) }
if pairs > 500000 || report.mismatches.isEmpty { print("UNCOVERED", report.uncovered) }
for (reason, rows) in Dictionary(grouping: report.excluded, by: \.reason).sorted(by: { $0.key < $1.key }) {
  print("not compared: \(rows.count) rows: \(reason)")
}
