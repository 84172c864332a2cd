// SPDX-License-Identifier: Apache-2.0
//
// TLB invalidation. Nothing is walked: a flush of an address space takes a new context, a flush of
// global pages a new generation. A context belongs to a PCID, a root and a value of PKRU, so a
// switch that keeps translations finds its old context again.
//
// Links to code are separate (jump cache, translated code's table, `executePages`). Links to user
// code contain the context; links to supervisor code do not, as long as all of it is in global
// pages (`CPUState.supervisorCodeIsGlobal`). All contain an epoch, of user or of supervisor code.

import X86

extension CPU {
  /// Drops every translation of every address space, and cached guest-physical translations
  /// (INVEPT, mapping changes, mode changes).
  package func flushTLB() {
    owner.flushPhysicalCache()
    flushAllAddressSpaces(keepGlobal: false)
    s.pointee.supervisorCodeIsGlobal = true
    updateBlockContext()
  }

  /// Drops the translations of every address space (INVPCID).
  func flushAllAddressSpaces(keepGlobal: Bool) {
    if keepGlobal { owner.forgetContexts() } else { flushGlobal() }
    setAddressSpace(owner.newContext())
  }

  private func setAddressSpace(_ context: UInt64) {
    s.pointee.addressSpace = context
    updateSupervisorBank()
    updateBlockContext()
  }

  private func updateSupervisorBank() {
    s.pointee.supervisorTLBContext =
      s.pointee.supervisorDataIsGlobal ? s.pointee.globalContext : s.pointee.addressSpace
    useBank(currentBank)
  }

  /// Called before a non-global page is entered into the supervisor's bank.
  func noteLocalSupervisorPage() {
    if !s.pointee.supervisorDataIsGlobal { return }
    s.pointee.supervisorDataIsGlobal = false
    updateSupervisorBank()
  }

  /// Entries of global pages keep the context of the address space that made them.
  private func flushGlobal() {
    owner.newJumpEpoch()
    startGlobalTranslations()
  }

  /// No entry counts, of global pages neither. The caller chooses an address space afterwards.
  func startGlobalTranslations() {
    owner.newTLBGeneration()
    owner.forgetContexts()
    s.pointee.globalContext = owner.newContext()
    s.pointee.supervisorDataIsGlobal = s.pointee.cr4 & CR4.pge.rawValue != 0
  }

  /// Drops translations of the current address space.
  package func flushAddressSpace(keepGlobal: Bool) {
    if !keepGlobal { flushGlobal() }
    let pcid = s.pointee.cr4 & CR4.pcide.rawValue != 0 ? s.pointee.cr3 & 0xFFF : 0
    owner.forgetContext(ofPCID: pcid)
    switchAddressSpace(toPCID: pcid)
  }

  /// Switches to the address space of CR3 with the given PCID and keeps cached translations (MOV to
  /// CR3 with bit 63 set).
  package func switchAddressSpace(toPCID pcid: UInt64) {
    setAddressSpace(
      owner.context(forPCID: pcid, root: s.pointee.cr3 & Page.mask, keys: s.pointee.pkru))
  }

  /// To that of the registers, after PKRU or the guest changed: rights of user pages are those of
  /// the keys.
  func switchAddressSpace() {
    switchAddressSpace(
      toPCID: s.pointee.cr4 & CR4.pcide.rawValue != 0 ? s.pointee.cr3 & 0xFFF : 0)
  }

  /// Drops the translations of one linear address (INVLPG), in all address spaces.
  package func flushPage(_ linear: UInt64) {
    let owner = owner
    if owner.mayBeLargePage(linear) {
      flushAddressSpace(keepGlobal: false)
      return
    }
    owner.tlbCounts.pageFlushes &+= 1
    let index = Int((linear >> Page.shift) & TLB.indexMask)
    let second = SecondTLB.index(linear)
    for bank in 0..<TLB.bankCount {
      owner.tlbBanks[bank * TLB.entriesPerBank + index] = .invalid
      s.pointee.secondTLB[bank * SecondTLB.entriesPerBank + second] = .invalid
    }
    s.pointee.stackLimit = 0
    let page = linear >> Page.shift
    let isUser = owner.executedByUser.mayContain(page)
    let isSupervisor = owner.executedBySupervisor.mayContain(page)
    if isUser { owner.newUserJumpEpoch() }
    if isSupervisor { owner.newSupervisorJumpEpoch() }
    if isUser || isSupervisor { updateBlockContext() }
  }

  /// Recomputes the tag of jump-cache entries: address space, mode, privilege and epoch.
  package func updateBlockContext() {
    let common = UInt64(s.pointee.modeKey) << 12
    let context = s.pointee.addressSpace
    s.pointee.stackLimit = 0
    s.pointee.native.userContext = common | context | 1 << 28 | s.pointee.userJumpEpoch << 29
    s.pointee.native.supervisorContext =
      common | s.pointee.supervisorJumpEpoch << 29
      | (s.pointee.supervisorCodeIsGlobal ? s.pointee.globalContext : context)
    s.pointee.blockContext =
      s.pointee.cpl == 3 ? s.pointee.native.userContext : s.pointee.native.supervisorContext
  }

  /// Notes a page that is entered for execution: for INVLPG, and for whether supervisor code is the
  /// same in every address space.
  func noteExecuted(_ linear: UInt64, _ translation: PageTranslation) {
    let owner = owner
    if s.pointee.cpl == 3 {
      owner.executedByUser.insert(linear >> Page.shift)
    } else {
      owner.executedBySupervisor.insert(linear >> Page.shift)
    }
    if translation.shift > Page.shift { owner.noteLargePage(linear, shift: translation.shift) }
    if s.pointee.cpl != 3 && !translation.global && s.pointee.supervisorCodeIsGlobal {
      s.pointee.supervisorCodeIsGlobal = false
      owner.newSupervisorJumpEpoch()
      owner.executedBySupervisor.insert(linear >> Page.shift)
      updateBlockContext()
    }
  }
}

/// A set of numbers with false positives: one bit for each hash value.
struct NumberFilter {
  private static let wordCount = 1024
  private let words = UnsafeMutablePointer<UInt64>.allocate(capacity: wordCount)
  private var isEmpty = false

  init() { removeAll() }

  func deallocate() { words.deallocate() }

  private func bit(_ number: UInt64) -> (word: Int, mask: UInt64) {
    let hash = (number ^ number >> 16) & UInt64(Self.wordCount * 64 - 1)
    return (Int(hash >> 6), 1 << (hash & 63))
  }

  mutating func insert(_ number: UInt64) {
    let (word, mask) = bit(number)
    words[word] |= mask
    isEmpty = false
  }

  func mayContain(_ number: UInt64) -> Bool {
    let (word, mask) = bit(number)
    return words[word] & mask != 0
  }

  mutating func removeAll() {
    if isEmpty { return }
    words.update(repeating: 0, count: Self.wordCount)
    isEmpty = true
  }
}

extension PhysicalCPU {
  /// A context without valid TLB entries.
  func newContext() -> UInt64 {
    if nextContext > TLB.lastContext {
      tlbCounts.wipes &+= 1
      tlbBanks.update(repeating: .invalid, count: TLB.entriesPerBank * TLB.bankCount)
      newTLBGeneration()
      forgetContexts()
      parkedSpaces.removeAll()
      largePages.removeAll()
      newJumpEpoch()
      // A caller that renews this one, too, is about to select another address space.
      cpu.s.pointee.globalContext = 0
      nextContext = 1
    }
    tlbCounts.contexts &+= 1
    nextContext += 1
    return nextContext - 1
  }

  /// A number that no entry of the second table has.
  func newTLBGeneration() {
    lastTLBGeneration &+= 1
    cpu.s.pointee.tlbGeneration = lastTLBGeneration
  }

  /// Every way to code is found anew. `updateBlockContext` follows.
  func newJumpEpoch() {
    newUserJumpEpoch()
    newSupervisorJumpEpoch()
  }

  /// The same for code at CPL 3.
  func newUserJumpEpoch() {
    cpu.s.pointee.userJumpEpoch &+= 1
    executedByUser.removeAll()
  }

  /// The same for code below CPL 3.
  func newSupervisorJumpEpoch() {
    cpu.s.pointee.supervisorJumpEpoch &+= 1
    executedBySupervisor.removeAll()
  }

  /// Forgets the contexts of PCIDs.
  func forgetContexts() { pcidContexts.removeAll(keepingCapacity: true) }

  func forgetContext(ofPCID pcid: UInt64) { pcidContexts.removeAll { $0.pcid == pcid } }

  /// The context of an address space, a new one if it is unknown.
  func context(forPCID pcid: UInt64, root: UInt64, keys: UInt64) -> UInt64 {
    for known in pcidContexts
    where known.pcid == pcid && known.root == root && known.keys == keys {
      return known.context
    }
    pcidContexts.removeAll { $0.pcid == pcid && $0.root != root }
    if pcidContexts.count >= 16 { pcidContexts.removeFirst() }
    let context = newContext()
    pcidContexts.append((pcid: pcid, root: root, keys: keys, context: context))
    return context
  }

  func flushPhysicalCache() {
    physicalGeneration &+= 1
    if physicalGeneration & Page.offsetMask == 0 {
      physicalCache.update(repeating: .invalid, count: Int(PhysicalCPU.physicalCacheMask) + 1)
      parkedSpaces.removeAll()
      physicalGeneration = 1
    }
    cpu.s.pointee.physicalGeneration = physicalGeneration
  }

  /// Records that a part of a large page was entered, so that INVLPG flushes further entries.
  func noteLargePage(_ linear: UInt64, shift: UInt64) {
    largePages.insert(Self.largePage(linear, shift > 22 ? 30 : 22))
  }

  func mayBeLargePage(_ linear: UInt64) -> Bool {
    largePages.mayContain(Self.largePage(linear, 22))
      || largePages.mayContain(Self.largePage(linear, 30))
  }

  /// A hash of the 4 MiB or the 1 GiB around an address.
  private static func largePage(_ linear: UInt64, _ shift: UInt64) -> UInt64 {
    (linear >> shift) &* 0x9E37_79B9_7F4A_7C15 >> 40 ^ shift
  }
}
