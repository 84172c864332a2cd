// SPDX-License-Identifier: Apache-2.0
//
// TLB invalidation. A flush of an address space takes a new context; nothing is walked.

import X86

extension CPU {
  /// Drops every translation of every address space, and what is known of guest-physical memory
  /// (INVEPT, mapping changes, mode changes).
  package func flushTLB() {
    owner.flushPhysicalCache()
    owner.forgetContexts()
    s.pointee.tlbContext = owner.newContext()
    updateBlockContext()
  }

  /// Drops translations of the current address space. Global pages may go too: a flush may drop more
  /// than it must.
  package func flushAddressSpace(keepGlobal: Bool) {
    let pcid = s.pointee.cr4 & CR4.pcide.rawValue != 0 ? s.pointee.cr3 & 0xFFF : 0
    owner.pcidContexts.removeAll { $0.pcid == pcid }
    s.pointee.tlbContext = owner.context(forPCID: pcid, root: s.pointee.cr3 & Page.mask)
    updateBlockContext()
  }

  /// Switches to the address space of CR3 with the given PCID, keeping translations that are still
  /// known (MOV to CR3 with bit 63 set).
  package func switchAddressSpace(toPCID pcid: UInt64) {
    s.pointee.tlbContext = owner.context(forPCID: pcid, root: s.pointee.cr3 & Page.mask)
    updateBlockContext()
  }

  /// Drops the translations of one linear address (INVLPG). Other address spaces lose it too.
  package func flushPage(_ linear: UInt64) {
    if owner.mayBeLargePage(linear) {
      flushAddressSpace(keepGlobal: false)
      return
    }
    owner.tlbCounts.pageFlushes &+= 1
    let index = Int((linear >> Page.shift) & TLB.indexMask)
    for bank in 0..<TLB.bankCount {
      owner.tlbBanks[bank * TLB.entriesPerBank + index] = .invalid
    }
    owner.executePages[Int((linear >> Page.shift) & PhysicalCPU.executePagesMask)].tag = .max
    owner.jumpEpoch &+= 1
    updateBlockContext()
  }

  /// Recomputes what a jump-cache entry must match: address space, mode, privilege and epoch.
  package func updateBlockContext() {
    s.pointee.native.stackPage = NativeState.noPage
    s.pointee.blockContext =
      s.pointee.tlbContext | UInt64(s.pointee.modeKey) << 12
      | (s.pointee.cpl == 3 ? 1 << 28 : 0) | owner.jumpEpoch << 29
  }
}

extension PhysicalCPU {
  /// A context that no valid TLB entry has.
  func newContext() -> UInt64 {
    if nextContext > TLB.lastContext {
      tlbCounts.wipes &+= 1
      tlbBanks.update(repeating: .invalid, count: TLB.entriesPerBank * TLB.bankCount)
      executePages.update(
        repeating: ExecutePage.invalid, count: Int(PhysicalCPU.executePagesMask) + 1)
      forgetContexts()
      largePages = nil
      jumpEpoch &+= 1
      nextContext = 0
    }
    tlbCounts.contexts &+= 1
    nextContext += 1
    return nextContext - 1
  }

  /// Forgets which contexts belong to which PCID.
  func forgetContexts() { pcidContexts.removeAll(keepingCapacity: true) }

  /// The context of an address space, a new one if it is not known.
  func context(forPCID pcid: UInt64, root: UInt64) -> UInt64 {
    for known in pcidContexts where known.pcid == pcid && known.root == root {
      return known.context
    }
    pcidContexts.removeAll { $0.pcid == pcid }
    if pcidContexts.count >= 8 { pcidContexts.removeFirst() }
    let context = newContext()
    pcidContexts.append((pcid: pcid, root: root, context: context))
    return context
  }

  func flushPhysicalCache() {
    physicalCache.update(
      repeating: .invalid, count: Int(PhysicalCPU.physicalCacheMask) + 1)
  }

  /// Remembers that a large page's part was entered, so that INVLPG knows it has to look further.
  func noteLargePage(_ linear: UInt64) {
    let low = linear & ~0x3FFF_FFFF
    if let range = largePages {
      largePages = (min(range.low, low), max(range.high, low | 0x3FFF_FFFF))
    } else {
      largePages = (low, low | 0x3FFF_FFFF)
    }
  }

  func mayBeLargePage(_ linear: UInt64) -> Bool {
    guard let range = largePages else { return false }
    return linear >= range.low && linear <= range.high
  }
}
