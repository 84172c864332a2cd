// SPDX-License-Identifier: Apache-2.0

/// Bits of the guest's paging structures (SDM volume 3, "Paging").
public enum PageTableEntry {
  public static let present: UInt64 = 1 << 0
  public static let writable: UInt64 = 1 << 1
  public static let user: UInt64 = 1 << 2
  public static let writeThrough: UInt64 = 1 << 3
  public static let cacheDisable: UInt64 = 1 << 4
  public static let accessed: UInt64 = 1 << 5
  public static let dirty: UInt64 = 1 << 6
  /// In a directory entry: it maps a page, not a table.
  public static let pageSize: UInt64 = 1 << 7
  public static let global: UInt64 = 1 << 8
  public static let executeDisable: UInt64 = 1 << 63
  public static let protectionKeyShift: UInt64 = 59
  /// The address bits 51:12.
  public static let addressMask: UInt64 = 0x000F_FFFF_FFFF_F000
}

/// Bits of extended-page-table entries (SDM volume 3, "EPT Translation Mechanism").
public enum EPTEntry {
  public static let read: UInt64 = 1 << 0
  public static let write: UInt64 = 1 << 1
  public static let execute: UInt64 = 1 << 2
  public static let memoryTypeShift: UInt64 = 3
  public static let memoryTypeWriteBack: UInt64 = 6 << 3
  public static let ignorePAT: UInt64 = 1 << 6
  /// In a directory entry: it maps a page, not a table.
  public static let pageSize: UInt64 = 1 << 7
  public static let accessed: UInt64 = 1 << 8
  public static let dirty: UInt64 = 1 << 9
  public static let addressMask: UInt64 = 0x000F_FFFF_FFFF_F000
}

/// Page sizes and masks.
public enum Page {
  public static let shift: UInt64 = 12
  public static let size: UInt64 = 4096
  public static let mask: UInt64 = ~0xFFF
  public static let offsetMask: UInt64 = 0xFFF
}
