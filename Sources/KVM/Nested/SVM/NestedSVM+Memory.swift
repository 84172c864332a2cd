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
  // MARK: Which tables

  /// Makes the tables of vmcb12 the current ones.
  func useShadow(_ vcpu: VirtualCPU) {
    let mode = unsafe UInt64(walkLevels) << 32 | (svm.page.vmcb[.efer] & EFER.nxe.rawValue) << 40
    let source = ShadowTables.Source(
      root: block.vmcb[.nestedCR3], space: block.vmcb[.asid] | mode)
    if unsafe shadows.use(source, .ordinary, vcpu.machine.memory) { flushTranslations() }
  }

  /// TLB_CONTROL of vmcb12, and another ASID than before: L2 has one of ours for all of L1's.
  func obeyTLBControl() {
    let space = block.vmcb[.asid]
    switch UInt8(truncatingIfNeeded: block.vmcb[.tlbControl]) & 7 {
    case TLBControl.nothing: if space != lastASID { flushTranslations() }
    case TLBControl.flushAll:
      shadows.clear()
      flushTranslations()
      unsafe svm.flushGuestTranslations()
    default: clearShadows(of: space)
    }
    lastASID = space
  }

  /// L1 has invalidated the translations of an ASID.
  func clearShadows(of space: UInt64) {
    shadows.clear { $0.space & 0xFFFF_FFFF == space }
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
      return vcpu.mapNested(
        address, physical, leaf, isWrite: info.contains(.write), shadows.current)
    }
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
        guard vcpu.markNestedEntry(entry, PageTableEntry.accessed | dirty, at: place) else {
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
}
