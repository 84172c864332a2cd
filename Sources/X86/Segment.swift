// SPDX-License-Identifier: Apache-2.0
//
// Segments: access rights in the VMCS's format, and descriptors in memory.

/// A segment's access rights in the format of a VMCS (SDM volume 3, "Guest Register State"):
///
///     bits 3:0  type      bit 4  S (code or data)   bits 6:5  DPL   bit 7  present
///     bit 12    AVL       bit 13 L                  bit 14    D/B   bit 15 G
///     bit 16    unusable
public struct SegmentAccessRights: RawRepresentable, Sendable, Hashable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

  @inlinable public static var codeOrDataBit: UInt32 { 1 << 4 }
  @inlinable public static var presentBit: UInt32 { 1 << 7 }
  @inlinable public static var longBit: UInt32 { 1 << 13 }
  @inlinable public static var bigBit: UInt32 { 1 << 14 }
  @inlinable public static var granularityBit: UInt32 { 1 << 15 }
  @inlinable public static var unusableBit: UInt32 { 1 << 16 }

  @inlinable public var type: UInt8 { UInt8(rawValue & 0xF) }
  @inlinable public var isCodeOrData: Bool { rawValue & Self.codeOrDataBit != 0 }
  @inlinable public var dpl: UInt8 { UInt8((rawValue >> 5) & 3) }
  @inlinable public var isPresent: Bool { rawValue & Self.presentBit != 0 }
  @inlinable public var isLong: Bool { rawValue & Self.longBit != 0 }
  @inlinable public var isBig: Bool { rawValue & Self.bigBit != 0 }
  @inlinable public var isPageGranular: Bool { rawValue & Self.granularityBit != 0 }
  @inlinable public var isUnusable: Bool { rawValue & Self.unusableBit != 0 }
  /// Code segment (of an S=1 type).
  @inlinable public var isCode: Bool { rawValue & 0x18 == 0x18 }
  /// Readable code, or writable data.
  @inlinable public var isReadableCodeOrWritableData: Bool { rawValue & 2 != 0 }
  /// Conforming code, or expand-down data.
  @inlinable public var isConformingOrExpandDown: Bool { rawValue & 4 != 0 }
}

/// An 8-byte segment descriptor in a descriptor table.
public struct SegmentDescriptor: RawRepresentable, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// The base address; system descriptors of 64-bit mode have 32 more bits in their second half.
  @inlinable public var base: UInt64 {
    (rawValue >> 16) & 0xFF_FFFF | (rawValue >> 32) & 0xFF00_0000
  }
  /// The limit in bytes, granularity applied.
  @inlinable public var limit: UInt32 {
    let raw = UInt32(truncatingIfNeeded: rawValue & 0xFFFF | (rawValue >> 32) & 0xF_0000)
    return rawValue & 1 << 55 != 0 ? raw << 12 | 0xFFF : raw
  }
  /// The access rights in a VMCS's format.
  @inlinable public var accessRights: SegmentAccessRights {
    SegmentAccessRights(rawValue: UInt32(truncatingIfNeeded: rawValue >> 40) & 0xF0FF)
  }
  /// The accessed bit of a code or data descriptor.
  @inlinable public static var accessedBit: UInt64 { 1 << 40 }
  /// The busy bit of a TSS descriptor.
  @inlinable public static var busyBit: UInt64 { 1 << 41 }
}

/// Types of system descriptors (SDM volume 3, "System Descriptor Types").
public enum SystemDescriptorType {
  @inlinable public static var tss16Available: UInt8 { 1 }
  @inlinable public static var ldt: UInt8 { 2 }
  @inlinable public static var tss16Busy: UInt8 { 3 }
  @inlinable public static var callGate16: UInt8 { 4 }
  @inlinable public static var taskGate: UInt8 { 5 }
  @inlinable public static var interruptGate16: UInt8 { 6 }
  @inlinable public static var trapGate16: UInt8 { 7 }
  @inlinable public static var tssAvailable: UInt8 { 9 }
  @inlinable public static var tssBusy: UInt8 { 11 }
  @inlinable public static var callGate: UInt8 { 12 }
  @inlinable public static var interruptGate: UInt8 { 14 }
  @inlinable public static var trapGate: UInt8 { 15 }
}
