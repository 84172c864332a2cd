// SPDX-License-Identifier: Apache-2.0
//
// Translations that are taken from a CPU by another thread, because the CPU does not come to drop
// them: it waits in the middle of a guest's access. Every store makes one entry invalid and none
// valid, by a word that says so whatever the others are, so it does not matter what the CPU does
// meanwhile.

import Synchronization
import X86

extension PhysicalCPU {
  /// From any thread: what the CPU knows of memory is gone, but for what its running instructions
  /// have looked up already. What it enters at the same time may stay, so entries of EPT go first.
  package func takeTranslations() {
    let s = cpu.s
    // First, so that no parked space is found again (`enterTranslationSpace`).
    translationsTaken.add(1, ordering: .sequentiallyConsistent)
    for n in 0...Int(Self.physicalCacheMask) { physicalCache[n].tag = .max }
    for n in 0...Int(Self.executePagesMask) { executePages[n].tag = .max }
    s.pointee.tlbGeneration &+= 1 << 32
    s.pointee.stackLimit = 0
    for n in 0..<(TLB.entriesPerBank * TLB.bankCount) {
      tlbBanks[n].readTag = .max
      tlbBanks[n].writeTag = .max
    }
  }
}
