// SPDX-License-Identifier: Apache-2.0
//
// What the oracle has found, as figures and texts: added up over workers, and over the rows of
// the opcode table that a run must have compared.

import X86Decoder

/// What came of a run, or of one worker's share of it.
package struct OracleReport: Codable, Sendable {
  /// Comparisons of the host with one other.
  package var pairs = 0
  /// Executions on the host, and those of them that ended in a fault.
  package var states = 0
  package var faults = 0
  /// How many pairs differ, and the text of the first of each row, or of each block.
  package var differing = 0
  package var mismatches: [String] = []
  /// Pairs that differ where the manuals leave room, by rule (`ImplementationChoice`).
  package var allowed: [String: Int] = [:]
  /// Rows of the opcode table that were compared.
  package var rows: Set<Int> = []
  /// Translations, those of several blocks among them, and blocks left to the interpreter.
  package var translated = 0
  package var regions = 0
  package var refused = 0
  /// Accesses of translated code without a look at the TLB that were compared with one, and those
  /// that differed (`AccessVerification`).
  package var verified = 0
  package var verifiedDiffering = 0
  /// Of random blocks: how many, states that were not run on the host by reason, and instructions
  /// that the interpreter executed.
  package var blocks = 0
  package var discarded: [String: Int] = [:]
  package var instructions = 0
  /// How often translated code was left for another thread's request, and entered again.
  package var disturbances = 0

  package init() {}

  package mutating func add(_ other: OracleReport) {
    pairs += other.pairs
    states += other.states
    faults += other.faults
    differing += other.differing
    mismatches += other.mismatches
    allowed.merge(other.allowed, uniquingKeysWith: +)
    rows.formUnion(other.rows)
    translated += other.translated
    regions += other.regions
    refused += other.refused
    verified += other.verified
    verifiedDiffering += other.verifiedDiffering
    blocks += other.blocks
    discarded.merge(other.discarded, uniquingKeysWith: +)
    instructions += other.instructions
    disturbances += other.disturbances
  }

  /// Counts a pair whose difference these rules cover.
  package mutating func allow(_ choices: [ImplementationChoice]) {
    for choice in choices { allowed[choice.rawValue, default: 0] += 1 }
  }

  /// The figures of a run of single instructions.
  var instructionText: String {
    "\(pairs) pairs, \(states) states, \(faults) faults, \(rows.count) rows, "
      + "\(translated) translations, \(refused) refused, \(differing) differ, "
      + allowedText
  }

  /// How often which rule allowed a difference.
  var allowedText: String {
    let counts = allowed.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
    return "allowed: \(counts.isEmpty ? "none" : counts.joined(separator: ", "))"
  }

  /// The figures of a run of blocks.
  var blockText: String {
    let left = discarded.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
    return "\(blocks) blocks, \(states) states, \(pairs) pairs, \(instructions) instructions, "
      + "\(faults) faults, \(translated) translations, \(regions) of regions, "
      + "\(refused) refused, \(disturbances) disturbed, "
      + (verified > 0 ? "\(verified) accesses verified, " : "") + "\(differing) differ, "
      + "\(allowedText), discarded: \(left.isEmpty ? "none" : left.joined(separator: ", "))"
  }
}

/// Which rows of the opcode table a run has not compared.
package struct OracleCoverage {
  /// With the reason, by row.
  package private(set) var excluded: [(row: String, reason: String)] = []
  /// For no reason.
  package private(set) var uncovered: [String] = []

  package init(_ report: OracleReport) {
    for row in Decoder.rowTemplates where !report.rows.contains(row.index) {
      if let reason = Exclusions.reason(row) {
        excluded.append((Self.name(row), reason))
      } else {
        uncovered.append(Self.name(row))
      }
    }
  }

  private static func name(_ row: RowTemplate) -> String {
    "\(row.mnemonic) \(row.space) \(row.map) \(String(row.opcode, radix: 16))"
      + (row.modRMMask & 0x38 != 0 ? "/\(row.modRM >> 3 & 7)" : "")
  }
}
