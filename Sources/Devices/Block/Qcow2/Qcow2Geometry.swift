// SPDX-License-Identifier: Apache-2.0
//
// How a qcow2 image maps the disk: clusters, two levels of tables, and the meaning of an L2 entry
// (QEMU's specification of qcow2, "Cluster mapping").

/// Sizes and shifts that the header fixes.
struct Qcow2Geometry: Sendable {
  let version: UInt32
  /// log2 of the cluster size.
  let clusterBits: UInt64
  let clusterSize: UInt64
  /// Extended L2 entries: two words, with a state for each of 32 subclusters.
  let isExtended: Bool
  /// log2 of the number of entries in an L2 table.
  let l2Bits: UInt64
  /// log2 of the subcluster size, the unit of an entry's states: a whole cluster without extended
  /// entries.
  let subclusterBits: UInt64
  let refcountOrder: UInt64
  /// log2 of the number of reference counts in a block.
  let refcountBits: UInt64

  /// Bits 9 to 55 of an entry.
  static let offsetMask: UInt64 = 0x00FF_FFFF_FFFF_FE00
  static let offsetLimit: UInt64 = 1 << 56

  init(_ header: Qcow2Header) {
    version = header.version
    clusterBits = header.clusterBits
    clusterSize = 1 << header.clusterBits
    isExtended = header.incompatible & Qcow2Header.Incompatible.extendedL2 != 0
    l2Bits = header.clusterBits &- (isExtended ? 4 : 3)
    subclusterBits = isExtended ? header.clusterBits &- 5 : header.clusterBits
    refcountOrder = header.refcountOrder
    refcountBits = header.clusterBits &+ 3 &- header.refcountOrder
  }

  var subclusterSize: UInt64 { 1 << subclusterBits }
  /// Subclusters in a cluster.
  var subclusterCount: Int { isExtended ? 32 : 1 }
  /// Words of 64 bits in a cluster.
  var wordCount: Int { 1 << Int(truncatingIfNeeded: clusterBits &- 3) }
  /// log2 of the bytes of the disk that an L2 table maps.
  var l1Shift: UInt64 { l2Bits &+ clusterBits }

  func isAligned(_ offset: UInt64) -> Bool { offset & (clusterSize &- 1) == 0 }

  /// The number of clusters for a number of bytes, rounded up.
  func clusters(_ bytes: UInt64) -> UInt64 {
    (bytes >> clusterBits) &+ (isAligned(bytes) ? 0 : 1)
  }

  /// The number of L1 entries for a disk.
  func l1Count(forSize size: UInt64) -> UInt64 {
    (size >> l1Shift) &+ (size & ((1 << l1Shift) &- 1) == 0 ? 0 : 1)
  }

  func l1Index(_ offset: UInt64) -> Int { Int(truncatingIfNeeded: offset >> l1Shift) }

  /// Index of the first word of an offset's entry.
  func wordIndex(_ offset: UInt64) -> Int {
    let entry = Int(truncatingIfNeeded: (offset >> clusterBits) & ((1 << l2Bits) &- 1))
    return isExtended ? entry << 1 : entry
  }

  func subcluster(_ offset: UInt64) -> Int {
    Int(truncatingIfNeeded: (offset & (clusterSize &- 1)) >> subclusterBits)
  }
}

/// An entry of an L2 table.
struct Qcow2Entry: Hashable, Sendable {
  /// The cluster has no other reference.
  static let copied: UInt64 = 1 << 63
  static let compressed: UInt64 = 1 << 62
  static let zero: UInt64 = 1

  var word: UInt64
  /// For extended entries: the low half marks subclusters with data, the high half zero ones.
  var bitmap: UInt64 = 0

  static let unallocated = Qcow2Entry(word: 0)

  /// The state of a subcluster.
  enum Kind: Sendable {
    case unallocated
    case zero
    case data
    case compressed
    /// Does not occur in valid images.
    case invalid
  }

  var isCompressed: Bool { word & Self.compressed != 0 }
  var isCopied: Bool { word & Self.copied != 0 }
  /// The cluster's offset in the file, 0 if there is none. Not for compressed ones.
  var host: UInt64 { word & Qcow2Geometry.offsetMask }

  func kind(_ subcluster: Int, _ geometry: Qcow2Geometry) -> Kind {
    if isCompressed { return .compressed }
    guard geometry.isAligned(host) else { return .invalid }
    if geometry.isExtended { return extendedKind(subcluster) }
    if word & Self.zero != 0 { return geometry.version >= 3 ? .zero : .invalid }
    return host == 0 ? .unallocated : .data
  }

  private func extendedKind(_ subcluster: Int) -> Kind {
    let hasData = bitmap >> UInt64(truncatingIfNeeded: subcluster) & 1 != 0
    let isZero = bitmap >> UInt64(truncatingIfNeeded: subcluster &+ 32) & 1 != 0
    switch (hasData, isZero) {
    case (true, true): return .invalid
    case (true, false): return host == 0 ? .invalid : .data
    case (false, true): return .zero
    case (false, false): return .unallocated
    }
  }

  /// Bits of the bitmap's low half.
  private static func mask(_ parts: ClosedRange<Int>) -> UInt64 {
    let count = UInt64(truncatingIfNeeded: parts.upperBound &- parts.lowerBound &+ 1)
    return ((1 << count) &- 1) << UInt64(truncatingIfNeeded: parts.lowerBound)
  }

  /// This entry after subclusters have been written to a cluster that only it references.
  func written(_ parts: ClosedRange<Int>, at host: UInt64, _ geometry: Qcow2Geometry) -> Qcow2Entry
  {
    guard geometry.isExtended else { return Qcow2Entry(word: host | Self.copied) }
    let mask = isCompressed ? 0xFFFF_FFFF : Self.mask(parts)
    let old = isCompressed ? 0 : bitmap
    return Qcow2Entry(word: host | Self.copied, bitmap: (old | mask) & ~(mask << 32))
  }

  /// This entry with subclusters that are zero without space. Version 3.
  func zeroed(_ parts: ClosedRange<Int>, _ geometry: Qcow2Geometry) -> Qcow2Entry {
    guard geometry.isExtended else { return Qcow2Entry(word: word | Self.zero) }
    let mask = Self.mask(parts)
    return Qcow2Entry(word: word, bitmap: (bitmap & ~mask) | mask << 32)
  }

  /// A whole cluster that is zero without space. Version 3.
  static func allZero(_ geometry: Qcow2Geometry) -> Qcow2Entry {
    geometry.isExtended
      ? Qcow2Entry(word: 0, bitmap: 0xFFFF_FFFF << 32) : Qcow2Entry(word: zero)
  }

  /// The range of a compressed cluster's bytes in the file ("Compressed Clusters Descriptor").
  func compressedRange(_ geometry: Qcow2Geometry) -> (offset: UInt64, count: Int) {
    let shift = 62 &- (geometry.clusterBits &- 8)
    let descriptor = word & (Self.compressed &- 1)
    let offset = descriptor & ((1 << shift) &- 1)
    let sectors = (descriptor >> shift) &+ 1
    let count = (sectors << 9) &- (offset & 511)
    return (offset, Int(truncatingIfNeeded: count))
  }

  /// The offsets of the clusters that this entry references.
  func references(_ geometry: Qcow2Geometry) -> [UInt64] {
    if !isCompressed { return host == 0 ? [] : [host] }
    let (offset, count) = compressedRange(geometry)
    let first = offset & ~(geometry.clusterSize &- 1)
    let end = offset &+ UInt64(truncatingIfNeeded: count)
    return Array(
      stride(from: first, to: end, by: Int(truncatingIfNeeded: geometry.clusterSize)))
  }
}
