// SPDX-License-Identifier: Apache-2.0
//
// Linear to guest-physical: the guest's own page tables (SDM volume 3, "Paging").
//
// One loop serves 32-bit, PAE, 4-level and 5-level paging; a `PagingMode` has the number of levels,
// the width of an entry and the reserved bits. The walk collects rights; only `checkRights` decides
// whether an access is allowed.

import X86

/// The result of a walk: a 4 KiB page (of a larger one, the part that contains the address).
package struct PageTranslation {
  /// Guest-physical address of the 4 KiB page.
  package var physical: UInt64
  /// Log 2 of the page's size.
  package var shift: UInt64
  package var writable: Bool
  package var user: Bool
  package var executable: Bool
  package var global: Bool
  package var dirty: Bool
  package var protectionKey: UInt64
}

/// The format of the current paging mode.
private struct PagingMode {
  var levels: Int
  var entrySize: UInt64
  /// Bits of linear address per level.
  var indexBits: UInt64
  var root: UInt64
  /// Reserved in every entry.
  var reserved: UInt64
  var isPAE: Bool
}

extension CPU {
  /// Translates a linear address for the given access.
  ///
  /// - Parameter bank: the TLB bank, whose rights apply.
  /// - Throws: #PF, or `.vmExit` if a paging structure is not mapped by EPT.
  package func translate(
    _ linear: UInt64, _ kind: AccessKind, bank: Int
  ) throws(GuestException) -> PageTranslation {
    if s.pointee.cr0 & CR0.pg.rawValue == 0 {
      return PageTranslation(
        physical: linear & 0xFFFF_F000, shift: 12, writable: true, user: true, executable: true,
        global: false, dirty: true, protectionKey: 0)
    }
    return try walk(linear, kind, bank)
  }

  private func pagingMode(_ linear: UInt64) -> PagingMode {
    let high = ~((UInt64(1) << CPU.physicalAddressBits) - 1) & PageTableEntry.addressMask
    let noExecute = s.pointee.efer & EFER.nxe.rawValue == 0 ? PageTableEntry.executeDisable : 0
    if isLongMode {
      let levels = s.pointee.cr4 & CR4.la57.rawValue != 0 ? 5 : 4
      return PagingMode(
        levels: levels, entrySize: 8, indexBits: 9,
        root: s.pointee.cr3 & PageTableEntry.addressMask,
        reserved: high | noExecute, isPAE: false)
    }
    if s.pointee.cr4 & CR4.pae.rawValue != 0 {
      let pdpte = s.pointee.pdptrs[Int((linear >> 30) & 3)]
      return PagingMode(
        levels: 2, entrySize: 8, indexBits: 9, root: pdpte,
        reserved: high | noExecute | 0x7FF0_0000_0000_0000, isPAE: true)
    }
    return PagingMode(
      levels: 2, entrySize: 4, indexBits: 10, root: s.pointee.cr3 & 0xFFFF_F000, reserved: 0,
      isPAE: false)
  }

  /// Walks the tables; sets accessed and dirty flags. Restarts if an entry is replaced between its
  /// reading and the setting of a flag: the flag belongs to the entry that was used.
  private func walk(
    _ linear: UInt64, _ kind: AccessKind, _ bank: Int
  ) throws(GuestException) -> PageTranslation {
    for _ in 0..<Self.mostWalks {
      if let result = try walkOnce(linear, kind, bank, insists: false) { return result }
    }
    guard let result = try walkOnce(linear, kind, bank, insists: true) else {
      throw pageFault(linear, kind, bank, [])
    }
    return result
  }

  /// Only a hostile CPU can replace entries during so many walks in a row; a walk must not last
  /// forever because of it.
  static let mostWalks = 1000

  /// - Parameter insists: set flags even if the entry has changed.
  /// - Returns: nil if an entry was replaced.
  private func walkOnce(
    _ linear: UInt64, _ kind: AccessKind, _ bank: Int, insists: Bool
  ) throws(GuestException) -> PageTranslation? {
    let mode = pagingMode(linear)
    if mode.isPAE && mode.root & PageTableEntry.present == 0 {
      throw pageFault(linear, kind, bank, [])
    }
    var table = mode.root & PageTableEntry.addressMask
    var result = PageTranslation(
      physical: 0, shift: 12, writable: true, user: true, executable: true, global: false,
      dirty: false, protectionKey: 0)
    var level = mode.levels &- 1
    while true {
      let shift = 12 &+ mode.indexBits &* UInt64(truncatingIfNeeded: level)
      let index = (linear &>> shift) & ((1 &<< mode.indexBits) &- 1)
      let address = table &+ index &* mode.entrySize
      let entry = try readEntry(address, mode.entrySize, linear)
      if entry & PageTableEntry.present == 0 { throw pageFault(linear, kind, bank, []) }
      let isLeaf = level == 0 || (entry & PageTableEntry.pageSize != 0 && mayBeLarge(level, mode))
      if entry & reservedBits(level, isLeaf, shift, mode) != 0 {
        throw pageFault(linear, kind, bank, [.present, .reserved])
      }
      result.writable = result.writable && entry & PageTableEntry.writable != 0
      result.user = result.user && entry & PageTableEntry.user != 0
      result.executable = result.executable && entry & PageTableEntry.executeDisable == 0
      if isLeaf {
        finish(&result, entry, shift, linear, mode)
        // Set the accessed flag only for an allowed walk: the caller's check comes first.
        try checkRights(result, linear, kind, bank)
        let bits = PageTableEntry.accessed | (kind == .write ? PageTableEntry.dirty : 0)
        let isSame = try mark(bits, entry, address, mode.entrySize, linear, insists: insists)
        guard isSame else { return nil }
        if kind == .write { result.dirty = true }
        return result
      }
      let isSame = try mark(
        PageTableEntry.accessed, entry, address, mode.entrySize, linear, insists: insists)
      guard isSame else { return nil }
      table = entry & PageTableEntry.addressMask
      level &-= 1
    }
  }

  private func mayBeLarge(_ level: Int, _ mode: PagingMode) -> Bool {
    if mode.entrySize == 4 { return s.pointee.cr4 & CR4.pse.rawValue != 0 }
    return level == 1 || level == 2
  }

  private func reservedBits(
    _ level: Int, _ isLeaf: Bool, _ shift: UInt64, _ mode: PagingMode
  ) -> UInt64 {
    if mode.entrySize == 4 {
      // PSE: bits 20:13 are address bits 39:32, bit 21 is reserved.
      return isLeaf && level == 1 ? 1 << 21 : 0
    }
    if isLeaf && level > 0 {
      // Address bits below the page's size, except the PAT bit (12).
      return mode.reserved | ((UInt64(1) &<< shift) &- 1) & ~0x1FFF
    }
    return mode.reserved | (level >= 3 ? PageTableEntry.pageSize : 0)
  }

  private func finish(
    _ result: inout PageTranslation, _ entry: UInt64, _ shift: UInt64, _ linear: UInt64,
    _ mode: PagingMode
  ) {
    let offsetMask = (UInt64(1) &<< shift) &- 1
    var base = entry & PageTableEntry.addressMask & ~offsetMask
    if mode.entrySize == 4 {
      base = shift == 22 ? entry & 0xFFC0_0000 | (entry & 0x1F_E000) << 19 : entry & 0xFFFF_F000
    }
    result.physical = base | linear & offsetMask & Page.mask
    result.shift = shift
    result.global = entry & PageTableEntry.global != 0 && s.pointee.cr4 & CR4.pge.rawValue != 0
    result.dirty = entry & PageTableEntry.dirty != 0
    if isLongMode { result.protectionKey = (entry >> PageTableEntry.protectionKeyShift) & 15 }
  }

  private func readEntry(
    _ address: UInt64, _ size: UInt64, _ linear: UInt64
  ) throws(GuestException) -> UInt64 {
    let place = Self.place(of: address, in: try tablePage(address, .read, linear))
    return size == 8 ? UInt64.atomicLoad(place) : UInt64(UInt32.atomicLoad(place))
  }

  private static func place(
    of address: UInt64, in page: PhysicalPage
  ) -> UnsafeMutableRawPointer {
    let host = UInt(page.host | address & Page.offsetMask)
    return UnsafeMutableRawPointer(bitPattern: host).unsafelyUnwrapped
  }

  /// Sets flags of an entry as the processor does: only if not yet set, as a locked write, and only
  /// if the entry is still the one that was read. False if it is not.
  private func mark(
    _ bits: UInt64, _ entry: UInt64, _ address: UInt64, _ size: UInt64, _ linear: UInt64,
    insists: Bool
  ) throws(GuestException) -> Bool {
    if entry & bits == bits { return true }
    let page = try tablePage(address, .write, linear)
    noteCodeWrite(page.host)
    let place = Self.place(of: address, in: page)
    return size == 8
      ? Self.setBits(place, UInt64.self, bits, of: entry, insists: insists)
      : Self.setBits(place, UInt32.self, bits, of: entry, insists: insists)
  }

  /// Raises #PF unless the walk's rights allow the access (SDM volume 3, "Determination of Access
  /// Rights").
  private func checkRights(
    _ t: PageTranslation, _ linear: UInt64, _ kind: AccessKind, _ bank: Int
  ) throws(GuestException) {
    let isUser = bank == TLB.user
    let writeProtect = s.pointee.cr0 & CR0.wp.rawValue != 0
    var allowed: Bool
    switch kind {
    case .execute:
      allowed =
        t.executable && (isUser ? t.user : !(t.user && s.pointee.cr4 & CR4.smep.rawValue != 0))
    case .read, .write:
      allowed = isUser ? t.user : !(t.user && smapApplies(bank))
      if kind == .write { allowed = allowed && (t.writable || !isUser && !writeProtect) }
    }
    if !allowed { throw pageFault(linear, kind, bank, .present) }
    if kind != .execute && t.user && isLongMode && s.pointee.cr4 & CR4.pke.rawValue != 0 {
      let rights = (s.pointee.pkru &>> (t.protectionKey &* 2)) & 3
      if rights & 1 != 0 || (kind == .write && rights & 2 != 0 && (isUser || writeProtect)) {
        throw pageFault(linear, kind, bank, [.present, .protectionKey])
      }
    }
  }

  private func smapApplies(_ bank: Int) -> Bool {
    bank == TLB.supervisor && s.pointee.cr4 & CR4.smap.rawValue != 0
  }

  /// #PF, with CR2's future value in `faultAddress`.
  package func pageFault(
    _ linear: UInt64, _ kind: AccessKind, _ bank: Int, _ code: PageFaultCode
  ) -> GuestException {
    var code = code
    if kind == .write { code.insert(.write) }
    if bank == TLB.user { code.insert(.user) }
    let fetchBit =
      s.pointee.efer & EFER.nxe.rawValue != 0
      && (isLongMode || s.pointee.cr4 & CR4.pae.rawValue != 0)
      || s.pointee.cr4 & CR4.smep.rawValue != 0
    if kind == .execute && fetchBit { code.insert(.instructionFetch) }
    s.pointee.faultAddress = linear
    return GuestException(.pageFault, code: code.rawValue)
  }
}
