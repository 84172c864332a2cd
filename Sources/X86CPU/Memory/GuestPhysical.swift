// SPDX-License-Identifier: Apache-2.0
//
// Guest-physical to host addresses, through the running guest's nested page tables (EPT), its only
// access to memory.
//
// A small direct-mapped cache in front of the walk (`PhysicalCPU.physicalCache`) keeps a guest page
// walk, which looks up one guest-physical address for each level, nearly as cheap as its loads.

import X86

/// A guest-physical page's host page and its EPT rights.
package struct PhysicalPage {
  /// Guest-physical page with the low bits of `CPUState.physicalGeneration`, or all ones.
  package var tag: UInt64
  /// Host address of the 4 KiB page.
  package var host: UInt64
  /// EPTEntry.read, write, execute; and pageSize if the entry maps 2 MiB or more.
  package var rights: UInt64

  var isLarge: Bool { rights & EPTEntry.pageSize != 0 }

  package static let invalid = PhysicalPage(tag: .max, host: 0, rights: 0)
}

/// The purpose of an access to guest-physical memory, for the exit's record.
package enum PhysicalAccessPurpose {
  /// The translated address of a linear access.
  case linear(UInt64, PageTranslation)
  /// A paging-structure entry on the way to translating the linear address.
  case pageWalk(UInt64)
  /// Neither: PDPTE loads.
  case other
}

extension CPU {
  /// The width of physical addresses.
  package static let physicalAddressBits: UInt64 = 48

  /// The page of `address` with at least the wanted right, or nil if EPT does not map it so.
  ///
  /// - Parameter isUser: a fetch from a user-mode address.
  func physicalPage(
    _ address: UInt64, _ kind: AccessKind, isUser: Bool = false
  ) -> PhysicalPage? {
    let page = address & Page.mask
    let slot = s.pointee.physicalCache + Int((page >> Page.shift) & PhysicalCPU.physicalCacheMask)
    let separate = isUser && kind == .execute && s.pointee.pageTracking.separatesUserExecution
    let wanted = separate ? EPTEntry.userExecute : EPTEntry.read << UInt64(kind.rawValue)
    let tag = page | s.pointee.physicalGeneration & Page.offsetMask
    if slot.pointee.tag == tag, slot.pointee.rights & wanted != 0 { return slot.pointee }
    guard let found = walkEPT(page, kind) else { return nil }
    slot.pointee = found
    slot.pointee.tag = tag
    return found.rights & wanted != 0 ? found : nil
  }

  /// Walks the EPT. Sets accessed and dirty flags if the EPT pointer enables them, in the entries
  /// that it read; if one has changed, it walks again.
  private func walkEPT(_ page: UInt64, _ kind: AccessKind) -> PhysicalPage? {
    for _ in 0..<Self.mostWalks {
      if case .done(let found) = walkEPTOnce(page, kind, insists: false) { return found }
    }
    if case .done(let found) = walkEPTOnce(page, kind, insists: true) { return found }
    return nil
  }

  private enum EPTWalk {
    case done(PhysicalPage?)
    /// An entry was replaced.
    case exchanged
  }

  private func walkEPTOnce(_ page: UInt64, _ kind: AccessKind, insists: Bool) -> EPTWalk {
    if s.pointee.intercepts.nested == .none {
      return .done(PhysicalPage(tag: page, host: page, rights: 7))
    }
    if page >> CPU.physicalAddressBits != 0 { return .done(nil) }
    if s.pointee.intercepts.nested == .longMode { return walkNestedOnce(page, kind, insists) }
    let pointer = s.pointee.intercepts.nestedRoot
    let setFlags = pointer & EPTPointer.accessedDirty != 0
    var table = pointer & EPTEntry.addressMask
    let rightsMask = s.pointee.pageTracking.rightsMask
    var rights = rightsMask
    var level = EPTPointer.levels(pointer) &- 1
    while true {
      let shift = 12 &+ 9 &* level
      let index = (page &>> shift) & 511
      guard let entryPointer = UnsafeMutableRawPointer(bitPattern: UInt(table &+ index &* 8))
      else { return .done(nil) }
      let entry = UInt64.atomicLoad(entryPointer)
      if entry & rightsMask == 0 { return .done(nil) }
      rights &= entry
      let isLeaf = level == 0 || (level < 3 && entry & EPTEntry.pageSize != 0)
      if setFlags {
        let dirty = isLeaf && kind == .write && rights & EPTEntry.write != 0
        let logs = dirty && entry & EPTEntry.dirty == 0 && s.pointee.pageTracking.log != 0
        if logs, !hasRoomInPageLog { return .done(nil) }
        let bits = EPTEntry.accessed | (dirty ? EPTEntry.dirty : 0)
        guard Self.setBits(entryPointer, UInt64.self, bits, of: entry, insists: insists) else {
          return .exchanged
        }
        if logs { logModified(page) }
      }
      if isLeaf {
        let offsetMask = ((1 as UInt64) &<< shift) &- 1
        let host = entry & EPTEntry.addressMask & ~offsetMask | page & offsetMask
        // Without the dirty flag a write must walk again.
        let written = !setFlags || kind == .write || entry & EPTEntry.dirty != 0
        rights = rights & rightsMask | (level > 0 ? EPTEntry.pageSize : 0)
        return .done(
          PhysicalPage(
            tag: page, host: host, rights: written ? rights : rights & ~EPTEntry.write))
      }
      table = entry & EPTEntry.addressMask
      level -= 1
    }
  }

  /// The same for SVM's nested tables, in long-mode format: accesses have user privilege, flags are
  /// always set, and NX applies (APM volume 2, "Nested Paging").
  private func walkNestedOnce(_ page: UInt64, _ kind: AccessKind, _ insists: Bool) -> EPTWalk {
    var table = s.pointee.intercepts.nestedRoot
    var rights: UInt64 = EPTEntry.rightsMask
    var level: UInt64 = 3
    while true {
      let shift = 12 &+ 9 &* level
      let index = (page &>> shift) & 511
      guard let place = UnsafeMutableRawPointer(bitPattern: UInt(table &+ index &* 8)) else {
        return .done(nil)
      }
      let entry = UInt64.atomicLoad(place)
      let isThere = PageTableEntry.present | PageTableEntry.user
      if entry & isThere != isThere { return .done(nil) }
      if entry & PageTableEntry.writable == 0 { rights &= ~EPTEntry.write }
      if entry & PageTableEntry.executeDisable != 0 { rights &= ~EPTEntry.execute }
      let isLarge = entry & PageTableEntry.pageSize != 0
      if level == 3 && isLarge { return .done(nil) }
      let isLeaf = level == 0 || isLarge
      let dirty = isLeaf && kind == .write && rights & EPTEntry.write != 0
      let flags = PageTableEntry.accessed | (dirty ? PageTableEntry.dirty : 0)
      guard Self.setBits(place, UInt64.self, flags, of: entry, insists: insists) else {
        return .exchanged
      }
      if isLeaf {
        let offsetMask = ((1 as UInt64) &<< shift) &- 1
        let host = entry & PageTableEntry.addressMask & ~offsetMask | page & offsetMask
        // Without the dirty flag a write must walk again.
        if !dirty && entry & PageTableEntry.dirty == 0 { rights &= ~EPTEntry.write }
        if level > 0 { rights |= EPTEntry.pageSize }
        return .done(PhysicalPage(tag: page, host: host, rights: rights))
      }
      table = entry & PageTableEntry.addressMask
      level &-= 1
    }
  }

  /// Sets bits of a table entry in memory that others may change concurrently, if it still equals
  /// `entry`; false if not.
  ///
  /// - Parameter insists: set them even if the entry has changed.
  static func setBits<T: AtomicOperand>(
    _ place: UnsafeMutableRawPointer, _ type: T.Type, _ bits: UInt64, of entry: UInt64,
    insists: Bool
  ) -> Bool {
    if entry & bits == bits { return true }
    let expected = insists ? T.atomicLoad(place) : T(truncatingIfNeeded: entry)
    let desired = expected | T(truncatingIfNeeded: bits)
    return T.atomicCompareExchange(place, expected: expected, desired: desired).exchanged
      || insists
  }
}
