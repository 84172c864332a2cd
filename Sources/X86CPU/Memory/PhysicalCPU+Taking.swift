// SPDX-License-Identifier: Apache-2.0
//
// Removal of a CPU's translations by another thread, because the CPU cannot drop them itself: it
// waits in the middle of a guest's access. Every store invalidates one entry and validates none,
// with a word that is invalid whatever the entry's others are. So it does not matter what the CPU
// does meanwhile.

import Synchronization
import X86

extension PhysicalCPU {
  /// Drops the CPU's cached translations, except those that its running instructions have already
  /// looked up. Entries that it makes concurrently may survive, so remove EPT entries first. From
  /// any thread.
  package func takeTranslations() {
    let s = cpu.s
    // First, so that no parked space is resumed (`enterTranslationSpace`).
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
