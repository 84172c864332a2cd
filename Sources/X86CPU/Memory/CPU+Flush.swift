// SPDX-License-Identifier: Apache-2.0
//
// TLB invalidation.

import X86

extension CPU {
  /// Drops every translation of every address space (MOV to CR0/CR4, INVEPT, mapping changes).
  package func flushTLB() {
    let banks = owner.tlbBanks
    banks.update(repeating: .invalid, count: TLB.entriesPerBank * TLB.bankCount)
  }

  /// Drops translations of the current address space; `keepGlobal` keeps global pages (MOV to CR3).
  package func flushAddressSpace(keepGlobal: Bool) { flushTLB() }

  /// Drops the translation of one linear address (INVLPG).
  package func flushPage(_ linear: UInt64) { flushTLB() }
}
