// SPDX-License-Identifier: Apache-2.0
//
// The oracle for as long as asked: rounds of random blocks and, one in four, of single
// instructions, each with a seed of its own. A round prints its seed and figures, and all totals
// come at the end.

import Foundation

struct OracleSoak {
  private static let roundSeconds = 30.0
  private let minutes: Double

  init(minutes: Double) { self.minutes = minutes }

  /// Returns the exit status: 1 where anything differed.
  func run() throws -> Int32 {
    let end = Date().addingTimeInterval(minutes * 60)
    var blocks = OracleReport()
    var instructions = OracleReport()
    var round = 0
    let maximum = OracleSettings(.blocks).maximumMismatches
    while end.timeIntervalSinceNow > 0, blocks.differing + instructions.differing < maximum {
      let isBlocks = round % 4 != 3
      var settings = OracleSettings(isBlocks ? .blocks : .instructions)
      if round > 0 { settings.seed = .random(in: 1...UInt64(UInt32.max)) }
      // Every other round with blocks.
      settings.verifies = isBlocks && round % 2 == 0
      settings.seconds = max(1, Int(min(Self.roundSeconds, end.timeIntervalSinceNow)))
      settings.pairs = .max / 2
      settings.blocks = .max / 2
      let report = try Workers.run(settings)
      if isBlocks { blocks.add(report) } else { instructions.add(report) }
      round += 1
      let text = isBlocks ? report.blockText : report.instructionText
      print("soak: round \(round), seed \(settings.seed): \(text)")
      for mismatch in report.mismatches { print(mismatch) }
      fflush(nil)
    }
    print("soak: blocks in total: \(blocks.blockText)")
    print("soak: single instructions in total: \(instructions.instructionText)")
    let differing = blocks.differing + instructions.differing
    print("soak: \(round) rounds, \(blocks.pairs + instructions.pairs) pairs, \(differing) differ")
    return differing == 0 ? 0 : 1
  }
}
