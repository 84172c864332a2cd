// SPDX-License-Identifier: Apache-2.0
//
// What to run; a mismatch prints what to set in the environment to see it again.
//
//     MARTLET_ORACLE_SEED      the seed; else a random one
//     MARTLET_ORACLE_WORKERS   processes that share the work; else one for each of the host's CPUs
//     MARTLET_ORACLE_MAX       mismatches after which to stop; else 20
//     MARTLET_ORACLE_PAIRS     single instructions: how many comparisons, two for each execution
//                              on the host; else 20 million
//     MARTLET_ORACLE_BATCH     single instructions: this batch alone
//     MARTLET_ORACLE_MNEMONIC  single instructions: this one alone (changes what the batches are)
//     MARTLET_ORACLE_BLOCKS    random blocks: how many; else 200000
//     MARTLET_VERIFY           random blocks: 1 compares translated accesses without a look at the
//                              TLB with one
//     MARTLET_ORACLE_CASE      random blocks: this one alone

import Foundation
import X86Decoder

package struct OracleSettings: Codable, Sendable {
  package enum Mode: String, Codable, Sendable { case instructions, blocks }

  package var mode: Mode
  package var seed: UInt64
  package var pairs: Int
  package var blocks: Int
  /// The number of the only batch or case.
  package var batch: Int?
  package var mnemonic: String?
  package var maximumMismatches: Int
  /// Random blocks: translated accesses without a look at the TLB are compared with one.
  package var verifies = false
  /// After which to end, done or not.
  package var seconds: Int?
  /// Of `workers` processes this one does every batch and case whose number modulo `workers` is
  /// `worker`. What a number means depends on the seed alone.
  package var workers: Int
  package var worker = 0

  package init(_ mode: Mode, seed: UInt64? = nil, blocks: Int? = nil) {
    let environment = ProcessInfo.processInfo.environment
    func number(_ name: String) -> UInt64? {
      environment["MARTLET_ORACLE_" + name].flatMap { UInt64($0) }
    }
    self.mode = mode
    self.seed = number("SEED") ?? seed ?? .random(in: 1...UInt64(UInt32.max))
    pairs = Int(number("PAIRS") ?? 20_000_000)
    self.blocks = number("BLOCKS").map { Int(clamping: $0) } ?? blocks ?? 200_000
    batch = number(mode == .blocks ? "CASE" : "BATCH").map { Int($0) }
    mnemonic = environment["MARTLET_ORACLE_MNEMONIC"]
    verifies = environment["MARTLET_VERIFY"] != nil
    maximumMismatches = Int(number("MAX") ?? 20)
    let cores = ProcessInfo.processInfo.activeProcessorCount
    workers = batch != nil ? 1 : max(1, Int(number("WORKERS") ?? UInt64(cores)))
  }

  /// Every row gets its turn: nothing narrows the run down.
  package var isWhole: Bool {
    mode == .instructions && batch == nil && mnemonic == nil && pairs >= 1_000_000 && seconds == nil
  }

  /// Translated code of random blocks counts instructions: with odd seeds. Others have what guests
  /// run in unless statistics are asked for.
  var countsInstructions: Bool { seed & 1 != 0 }

  var only: Mnemonic? {
    mnemonic.flatMap { name in Mnemonic.allCases.first { "\($0)" == name } }
  }

  /// This worker's share of a number.
  func share(_ count: Int) -> Int { (count + workers - 1) / workers }
}
