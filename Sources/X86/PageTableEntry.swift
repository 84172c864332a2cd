// SPDX-License-Identifier: Apache-2.0
//
// Entries of page tables, the guest's and extended ones, and page sizes.

/// Bits of the guest's paging structures (SDM volume 3, "Paging").
public enum PageTableEntry {
  @inlinable public static var present: UInt64 { 1 << 0 }
  @inlinable public static var writable: UInt64 { 1 << 1 }
  @inlinable public static var user: UInt64 { 1 << 2 }
  @inlinable public static var writeThrough: UInt64 { 1 << 3 }
  @inlinable public static var cacheDisable: UInt64 { 1 << 4 }
  @inlinable public static var accessed: UInt64 { 1 << 5 }
  @inlinable public static var dirty: UInt64 { 1 << 6 }
  /// In a directory entry: it maps a page, not a table.
  @inlinable public static var pageSize: UInt64 { 1 << 7 }
  @inlinable public static var global: UInt64 { 1 << 8 }
  @inlinable public static var executeDisable: UInt64 { 1 << 63 }
  @inlinable public static var protectionKeyShift: UInt64 { 59 }
  /// The address bits 51:12.
  @inlinable public static var addressMask: UInt64 { 0x000F_FFFF_FFFF_F000 }
}

/// Bits of extended-page-table entries (SDM volume 3, "EPT Translation Mechanism").
public enum EPTEntry {
  @inlinable public static var read: UInt64 { 1 << 0 }
  @inlinable public static var write: UInt64 { 1 << 1 }
  @inlinable public static var execute: UInt64 { 1 << 2 }
  /// An entry with none of these is not present.
  @inlinable public static var rightsMask: UInt64 { read | write | execute }
  @inlinable public static var memoryTypeShift: UInt64 { 3 }
  @inlinable public static var memoryTypeWriteBack: UInt64 { 6 << 3 }
  @inlinable public static var ignorePAT: UInt64 { 1 << 6 }
  /// In a directory entry: it maps a page, not a table.
  @inlinable public static var pageSize: UInt64 { 1 << 7 }
  @inlinable public static var accessed: UInt64 { 1 << 8 }
  @inlinable public static var dirty: UInt64 { 1 << 9 }
  /// With mode-based execute control: `execute` for user-mode linear addresses, while bit 2 is for
  /// supervisor-mode ones.
  @inlinable public static var userExecute: UInt64 { 1 << 10 }
  /// A violation here exits even if the guest would otherwise get a virtualization exception.
  @inlinable public static var suppressException: UInt64 { 1 << 63 }
  @inlinable public static var addressMask: UInt64 { 0x000F_FFFF_FFFF_F000 }
}

/// Bits of the EPT pointer (SDM volume 3, "Extended-Page-Table Pointer (EPTP)"):
///
///     2:0 memory type   5:3 levels - 1   6 accessed and dirty flags   11:7 reserved
public enum EPTPointer {
  @inlinable public static var memoryTypeMask: UInt64 { 7 }
  @inlinable public static var uncacheable: UInt64 { 0 }
  @inlinable public static var writeBack: UInt64 { 6 }
  @inlinable public static var levelsMask: UInt64 { 7 << 3 }
  @inlinable public static var fourLevels: UInt64 { 3 << 3 }
  @inlinable public static var fiveLevels: UInt64 { 4 << 3 }
  /// Levels of tables: 4 or 5, for any pointer.
  @inlinable public static func levels(_ pointer: UInt64) -> UInt64 {
    pointer & levelsMask == fiveLevels ? 5 : 4
  }
  @inlinable public static var accessedDirty: UInt64 { 1 << 6 }
  @inlinable public static var reserved: UInt64 { 0xF80 }
}

/// Page sizes and masks.
public enum Page {
  @inlinable public static var shift: UInt64 { 12 }
  @inlinable public static var size: UInt64 { 4096 }
  @inlinable public static var mask: UInt64 { ~0xFFF }
  @inlinable public static var offsetMask: UInt64 { 0xFFF }
}
