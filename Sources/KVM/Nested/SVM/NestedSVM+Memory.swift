// SPDX-License-Identifier: Apache-2.0
//
// L2's memory where L1 uses nested paging. L2's physical address is looked up in L1's nested tables
// as a processor does it (APM volume 2, "Nested Paging"): every access is a user's, accessed and
// dirty flags are set, and what the tables do not allow is L1's nested page fault. What they allow
// is then L1's access to its memory: mapped, logged and protected as any other. Both together make
// one leaf of the shadow tables.

import X86
import X86CPU

/// What L1's tables say of an address.
private enum NestedWalk {
  /// - Parameters:
  ///   - physical: L1's address of the access.
  ///   - leaf: rights and size, as a leaf of ours would have them.
  case page(physical: UInt64, leaf: NestedLeaf)
  /// A fault for L1, with these bits of its error code.
  case fault(NestedFaultInfo)
  /// An entry was exchanged under the walk.
  case exchanged
}

extension NestedSVM {
  private static let mostShadows = 8

  // MARK: Which tables

  /// Makes the tables of vmcb12 the last in the list.
  func useShadow(_ vcpu: VirtualCPU) {
    let mode = unsafe UInt64(walkLevels) << 32 | (svm.page.vmcb[.efer] & EFER.nxe.rawValue) << 40
    let source = ShadowTables.Source(
      root: block.vmcb[.nestedCR3], space: block.vmcb[.asid] | mode)
    if shadows.last?.source == source { return }
    if let index = shadows.firstIndex(where: { $0.source == source }) {
      shadows.append(shadows.remove(at: index))
      return
    }
    if shadows.count >= Self.mostShadows { shadows.removeFirst() }
    unsafe shadows.append(ShadowTables(source, .ordinary, vcpu.machine.memory))
    // The new tables may be where older ones were.
    flushTranslations()
  }

  /// TLB_CONTROL of vmcb12, and another ASID than before: L2 has one of ours for all of L1's.
  func obeyTLBControl() {
    let space = block.vmcb[.asid]
    switch UInt8(truncatingIfNeeded: block.vmcb[.tlbControl]) & 7 {
    case TLBControl.nothing: if space != lastASID { flushTranslations() }
    case TLBControl.flushAll:
      for tables in shadows { tables.clear() }
      flushTranslations()
      unsafe svm.flushGuestTranslations()
    default: clearShadows(of: space)
    }
    lastASID = space
  }

  /// L1 has taken translations of an ASID back.
  func clearShadows(of space: UInt64) {
    for tables in shadows where tables.source.space & 0xFFFF_FFFF == space { tables.clear() }
    flushTranslations()
  }

  /// Of every L2 in this CPU.
  func flushTranslations() { unsafe svm.flushTranslations(of: svm.guestsASID) }

  // MARK: Faults

  func takeNestedFault(_ vcpu: VirtualCPU) -> Disposition {
    let address = unsafe svm.vmcb[.exitInfo2]
    let info = unsafe NestedFaultInfo(rawValue: svm.vmcb[.exitInfo1])
    unsafe svm.restoreDR6(isDebug: false)
    switch walk(address, info, vcpu) {
    case .exchanged: return .resume
    case .fault(let reason):
      let access: NestedFaultInfo = [.write, .user, .fetch, .finalAddress, .guestTable]
      let all = info.intersection(access).union(reason).union(.user)
      leave(vcpu, NestedSVMExit(code: .nestedPageFault, info1: all.rawValue, info2: address))
      return .resume
    case .page(let physical, let leaf):
      return map(address, physical, leaf, isWrite: info.contains(.write), vcpu)
    }
  }

  private func map(
    _ address: UInt64, _ physical: UInt64, _ leaf: NestedLeaf, isWrite: Bool, _ vcpu: VirtualCPU
  ) -> Disposition {
    var disposition = Disposition.resume
    switch vcpu.memory.map(physical, writing: isWrite) {
    case .mapped, .waits: break
    case .dirtied(let slot, let page): disposition = vcpu.noteDirty(slot: slot, page: page)
    case .fault: return vcpu.hostFault()
    case .none: return emulate(physical, vcpu)
    }
    guard let shadow = shadows.last else { return disposition }
    vcpu.memory.withLeaf(of: physical) { own in
      if !shadow.put(Self.joined(leaf, own, physical), at: address) {
        unsafe svm.invalidateNestedMappings()
      }
    }
    return disposition
  }

  /// A device of the machine's that L1 has passed on, or read-only memory.
  private func emulate(_ physical: UInt64, _ vcpu: VirtualCPU) -> Disposition {
    guard let event = vcpu.events.interrupted else { return vcpu.emulateInstruction() }
    return vcpu.undeliverable(event, at: physical)
  }

  /// A leaf of the smaller size, with the rights that both give.
  private static func joined(
    _ guests: NestedLeaf, _ own: NestedLeaf, _ physical: UInt64
  ) -> NestedLeaf {
    let level = min(guests.level, own.level)
    let small = NestedLeaf(entry: 0, level: level)
    let place = own.entry & PageTableEntry.addressMask & ~own.offsetMask | physical & own.offsetMask
    var entry = place & ~small.offsetMask & PageTableEntry.addressMask
    entry |= own.entry & guests.entry & EPTEntry.rightsMask
    entry |= (own.entry | guests.entry) & PageTableEntry.executeDisable
    entry |= PageTableEntry.accessed | PageTableEntry.dirty
    if level > 0 { entry |= PageTableEntry.pageSize }
    return NestedLeaf(entry: entry, level: level)
  }

  func translate(_ address: UInt64, writing: Bool, _ vcpu: VirtualCPU) -> UInt64? {
    guard hasNestedPaging else { return address }
    guard case .page(let physical, _) = walk(address, writing ? .write : [], vcpu) else {
      return nil
    }
    return physical
  }

  // MARK: The walk

  /// L1's paging mode is that of its nested tables.
  private var walkLevels: Int {
    let l1 = unsafe svm.page.vmcb
    if l1[.efer] & EFER.lma.rawValue == 0 { return 3 }
    return l1[.cr4] & CR4.la57.rawValue != 0 ? 5 : 4
  }

  private func walk(_ address: UInt64, _ access: NestedFaultInfo, _ vcpu: VirtualCPU) -> NestedWalk
  {
    let levels = walkLevels
    guard address &>> NestedLeaf.shift(levels) == 0 else { return .fault([]) }
    let isPAE = levels == 3
    var table = block.vmcb[.nestedCR3] & (isPAE ? 0xFFFF_FFE0 : PageTableEntry.addressMask)
    var rights = EPTEntry.rightsMask
    var level = levels &- 1
    while level >= 0 {
      let index = (address &>> NestedLeaf.shift(level)) & 511
      let place = table &+ index &* 8
      guard let entry: UInt64 = vcpu.memory.load(place), entry & PageTableEntry.present != 0 else {
        return .fault([])
      }
      let isLarge = entry & PageTableEntry.pageSize != 0
      let isLeaf = level == 0 || level < 3 && isLarge && !(isPAE && level == 2)
      if entry & reservedBits(level, isLeaf: isLeaf, isPAE: isPAE) != 0 {
        return .fault([.present, .reserved])
      }
      // The four entries at the top of PAE paging have no rights.
      if !(isPAE && level == 2) {
        rights &= entry | ~EPTEntry.rightsMask
        rights |= entry & PageTableEntry.executeDisable
        guard Self.allows(rights, access, isLeaf: isLeaf) else { return .fault(.present) }
        let dirty = isLeaf && access.contains(.write) ? PageTableEntry.dirty : 0
        guard mark(entry, PageTableEntry.accessed | dirty, at: place, vcpu) else {
          return .exchanged
        }
      }
      if isLeaf { return page(address, entry, level, rights, access) }
      table = entry & PageTableEntry.addressMask
      level &-= 1
    }
    return .fault([])
  }

  private func page(
    _ address: UInt64, _ entry: UInt64, _ level: Int, _ rights: UInt64, _ access: NestedFaultInfo
  ) -> NestedWalk {
    var leaf = NestedLeaf(entry: rights, level: level)
    // Without the dirty flag a write must come this way.
    if !access.contains(.write), entry & PageTableEntry.dirty == 0 { leaf.entry &= ~EPTEntry.write }
    let base = entry & PageTableEntry.addressMask & ~leaf.offsetMask
    return .page(physical: base | address & leaf.offsetMask, leaf: leaf)
  }

  /// The access is a user's.
  private static func allows(_ rights: UInt64, _ access: NestedFaultInfo, isLeaf: Bool) -> Bool {
    guard rights & PageTableEntry.user != 0 else { return false }
    if access.contains(.write), rights & PageTableEntry.writable == 0 { return false }
    return !access.contains(.fetch) || rights & PageTableEntry.executeDisable == 0
  }

  private func reservedBits(_ level: Int, isLeaf: Bool, isPAE: Bool) -> UInt64 {
    let width = CPU.physicalAddressBits
    var bits = ~((1 &<< width) &- 1) & PageTableEntry.addressMask
    let hasNX = unsafe svm.page.vmcb[.efer] & EFER.nxe.rawValue != 0
    if isPAE { bits |= 0x7FF0_0000_0000_0000 }
    if !hasNX || isPAE && level == 2 { bits |= PageTableEntry.executeDisable }
    if isPAE, level == 2 { return bits | 0x1E6 }
    if level >= 3 { bits |= PageTableEntry.pageSize }
    // Bit 12 of a large page is PAT's.
    if isLeaf, level > 0 { bits |= NestedLeaf(entry: 0, level: level).offsetMask & ~0x1FFF }
    return bits
  }

  /// Sets flags in an entry of L1's. False where the entry is another now.
  private func mark(
    _ entry: UInt64, _ flags: UInt64, at place: UInt64, _ vcpu: VirtualCPU
  ) -> Bool {
    if entry & flags == flags { return true }
    var isSame = false
    let isThere = vcpu.writeMemory(place, count: 8) { bytes in
      isSame = bytes.compareExchange(entry | flags, expected: entry)
    }
    // Tables in read-only memory stay as they are.
    return isSame || !isThere
  }
}
