// SPDX-License-Identifier: Apache-2.0
//
// The numbers by which the translator is tuned, and their defaults.

/// When a translator translates, and how much it keeps.
package struct TranslatorTuning: Sendable, Equatable {
  /// Executions of a block after which it is translated; 1 is at once.
  package var threshold: UInt32
  /// Entries of a translation after which its block is translated with those that follow it.
  package var hotEntries: Int32
  /// Size of the code memory of each physical CPU; where it is full, all code is dropped.
  package var codeBytes: Int
  /// What the host executes of an access before it has found out that the access's check failed, it
  /// executes with an address that leads nowhere. Without that a guest that trains the host's
  /// branch predictors can learn what is in the program's memory.
  package var guardsSpeculation: Bool
  /// Every access that has no look at the TLB of its own is compared with a walk. For tests: slow.
  package var verifiesAccesses = false

  package init(
    threshold: UInt32 = 8, hotEntries: Int32 = 2000, codeBytes: Int = 128 << 20,
    guardsSpeculation: Bool = true
  ) {
    self.guardsSpeculation = guardsSpeculation
    self.threshold = threshold
    self.hotEntries = hotEntries
    self.codeBytes = codeBytes
  }

  package static let standard = TranslatorTuning()
}
