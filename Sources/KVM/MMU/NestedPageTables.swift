// SPDX-License-Identifier: Apache-2.0
//
// Nested paging structures: four levels of 4 KiB tables in this process's memory, with host
// addresses in their leaves (SDM volume 3, "The Extended Page Table Mechanism", with `EPTEntry`;
// APM volume 2, "Nested Paging", with `PageTableEntry`). Both formats have rights, addresses and
// page sizes in the same bits; they differ in the flags of a leaf.
//
// Not thread-safe, but entries are single words: a concurrent page walk reads either the old or the
// new.

import ClientMemory
import Host
import X86

/// The processor's format.
enum NestedTableFormat: Sendable {
  /// VT-x's EPT.
  case extended
  /// SVM's: ordinary page tables, walked as by user accesses.
  case ordinary

  /// In every leaf. Ordinary entries have the accessed and dirty bits set already.
  var leafFlags: UInt64 {
    switch self {
    case .extended: EPTEntry.memoryTypeWriteBack
    case .ordinary: PageTableEntry.accessed | PageTableEntry.dirty
    }
  }

  /// In every leaf of shadow tables: accessed and dirty already, as L1's tables have these flags.
  var shadowFlags: UInt64 {
    switch self {
    case .extended: EPTEntry.memoryTypeWriteBack | EPTEntry.accessed | EPTEntry.dirty
    case .ordinary: leafFlags
    }
  }

  /// In every entry that points to a table.
  var tableFlags: UInt64 { self == .extended ? 0 : PageTableEntry.accessed }
}

/// A leaf of nested tables, and its level: 0, 1, 2 of 4 KiB, 2 MiB, 1 GiB.
struct NestedLeaf {
  var entry: UInt64
  var level: Int

  /// Log 2 of the size of what an entry of a level maps.
  static func shift(_ level: Int) -> UInt64 { 12 &+ 9 &* UInt64(truncatingIfNeeded: level) }
  var offsetMask: UInt64 { (1 &<< Self.shift(level)) &- 1 }
}

/// Sendable: changed under the lock of the slots; entries are stored and read as single words.
@safe struct NestedPageTables: @unchecked Sendable {
  private typealias Table = UnsafeMutablePointer<UInt64>

  @safe private final class Pages {
    var pages: [UnsafeMutablePointer<UInt64>] = unsafe []
    func make() -> UnsafeMutablePointer<UInt64> {
      let raw = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
      let table = unsafe raw.bindMemory(to: UInt64.self, capacity: 512)
      unsafe table.initialize(repeating: 0, count: 512)
      unsafe pages.append(table)
      return unsafe table
    }
    deinit { unsafe pages.forEach { unsafe $0.deallocate() } }
  }

  private let top: Pages
  private var lower = Pages()
  /// Unlinked tables that a processor may still be walking.
  private var left: [Pages] = []
  private let rootTable: UnsafeMutablePointer<UInt64>

  private let format: NestedTableFormat

  init(_ format: NestedTableFormat) {
    self.format = format
    top = Pages()
    unsafe rootTable = unsafe top.make()
  }

  /// The address of the top table.
  var root: UInt64 { unsafe UInt64(UInt(bitPattern: rootTable)) }

  /// Removes all entries.
  ///
  /// - Parameter keepingTables: a processor may be walking; if false none is, not even one that
  ///   an earlier call left in guest code.
  mutating func clear(keepingTables: Bool = false) {
    unsafe rootTable.update(repeating: 0, count: 512)
    if keepingTables { left.append(lower) } else { left = [] }
    lower = Pages()
  }

  /// Maps the largest page around `address` that `slot` contains; if that is 4 KiB, all of the
  /// slot's pages in the same 2 MiB, because the guest will touch them too.
  ///
  /// - Parameters:
  ///   - area: the mapped part of the slot's memory.
  ///   - present: the pages of these 2 MiB to map, without a larger page; nil: all.
  mutating func map(
    _ address: UInt64, _ slot: MemorySlot, _ area: HostMemoryMap.Area,
    _ present: PresentPages? = nil
  ) {
    guard address >> 48 == 0 else { return }
    var table: Table = unsafe rootTable
    for level in [3, 2, 1] {
      let shift = UInt64(12 + 9 * level)
      let fits = present == nil || level == 1 && present?.isEverything == true
      if level < 3, fits, unsafe place(in: table, address, shift, slot, area) { return }
      unsafe table = unsafe child(of: table, Int((address >> shift) & 511))
    }
    let first = address & ~0x1F_FFFF
    for index in 0..<512 {
      let page = first &+ UInt64(index) << 12
      guard present?.contains(index) != false, slot.contains(page),
        area.range.contains(page &+ slot.offset)
      else { continue }
      let isDirty = slot.log?.contains(slot.page(of: page)) ?? true
      unsafe table[index] = leaf(page, slot, isWritable: isDirty && area.isWritable)
    }
  }

  /// The leaf that maps an address.
  func leaf(of address: UInt64) -> NestedLeaf? {
    guard address >> 48 == 0 else { return nil }
    var table: Table = unsafe rootTable
    for level in [3, 2, 1, 0] {
      let entry = unsafe table[Int(truncatingIfNeeded: (address >> NestedLeaf.shift(level)) & 511)]
      if entry & EPTEntry.rightsMask == 0 { return nil }
      if level == 0 || level < 3 && entry & EPTEntry.pageSize != 0 {
        return NestedLeaf(entry: entry, level: level)
      }
      guard
        let next = unsafe Table(bitPattern: UInt(truncatingIfNeeded: entry & EPTEntry.addressMask))
      else { return nil }
      unsafe table = unsafe next
    }
    return nil
  }

  /// Puts a leaf into the table of its level, which is below 3.
  mutating func put(_ leaf: NestedLeaf, at address: UInt64) {
    guard address >> 48 == 0 else { return }
    var table: Table = unsafe rootTable
    for level in [3, 2, 1] where level > leaf.level {
      let index = (address >> NestedLeaf.shift(level)) & 511
      unsafe table = unsafe child(of: table, Int(truncatingIfNeeded: index))
    }
    let index = (address >> NestedLeaf.shift(leaf.level)) & 511
    unsafe table[Int(truncatingIfNeeded: index)] = leaf.entry
  }

  /// Tables below the top one.
  var tableCount: Int { unsafe lower.pages.count }

  /// Takes the right to write away from the page of `address`, where a 4 KiB page maps it.
  mutating func protect(_ address: UInt64) {
    guard address >> 48 == 0 else { return }
    var table: Table = unsafe rootTable
    for level in [3, 2, 1] {
      let entry = unsafe table[Int((address >> UInt64(12 + 9 * level)) & 511)]
      guard entry & EPTEntry.rightsMask != 0, entry & EPTEntry.pageSize == 0,
        let next = unsafe Table(bitPattern: UInt(entry & EPTEntry.addressMask))
      else { return }
      unsafe table = unsafe next
    }
    unsafe table[Int((address >> 12) & 511)] &= ~EPTEntry.write
  }

  /// Stores a large page in `table` if the slot contains all of it with the required alignment.
  private func place(
    in table: Table, _ address: UInt64, _ shift: UInt64, _ slot: MemorySlot,
    _ area: HostMemoryMap.Area
  ) -> Bool {
    let size: UInt64 = 1 &<< shift
    let start = address & ~(size &- 1)
    guard slot.log == nil, start >= slot.base, slot.contains(start), slot.end &- start >= size,
      slot.offset & (size &- 1) == 0, area.range.contains(start &+ slot.offset),
      area.range.upperBound &- (start &+ slot.offset) >= size
    else { return false }
    unsafe table[Int((address >> shift) & 511)] =
      leaf(start, slot, isWritable: area.isWritable) | EPTEntry.pageSize
    return true
  }

  private func leaf(_ address: UInt64, _ slot: MemorySlot, isWritable: Bool) -> UInt64 {
    let rights =
      slot.isReadOnly || !isWritable ? EPTEntry.read | EPTEntry.execute : EPTEntry.rightsMask
    return (address &+ slot.offset) & EPTEntry.addressMask | format.leafFlags | rights
  }

  private func child(of table: Table, _ index: Int) -> Table {
    let entry = unsafe table[index]
    if entry & EPTEntry.rightsMask != 0, entry & EPTEntry.pageSize == 0,
      let next = unsafe Table(bitPattern: UInt(entry & EPTEntry.addressMask))
    {
      return unsafe next
    }
    let next = unsafe lower.make()
    unsafe table[index] = UInt64(UInt(bitPattern: next)) | EPTEntry.rightsMask | format.tableFlags
    return unsafe next
  }
}
