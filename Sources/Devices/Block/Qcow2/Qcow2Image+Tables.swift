// SPDX-License-Identifier: Apache-2.0
//
// When and in which order a qcow2 image's tables are written to the file; and repair of counts that
// a program with lazy refcounts has left.

import Synchronization
import SystemPackage

extension Qcow2Image {
  /// Writes changed tables. If this stops anywhere, counts in the file are not lower than its
  /// tables' references, and its tables reference only clusters whose contents are in the file.
  ///
  /// - Parameter isFlush: make all previous writes durable on the host's disk.
  func writeTables(_ allocator: inout Qcow2Allocator, isFlush: Bool) throws(Errno) {
    if allocator.isBroken { throw .ioError }
    // A temporary image ends with the program: its tables need not be written until memory for them
    // runs out.
    if isTemporary, isFlush, !allocator.hasGivenUp { return }
    let (changes, l1, hasL1) = mapping.withLock { ($0.changes, $0.l1, $0.changedL1) }
    if allocator.isChanged {
      try allocator.writeBlocks()
      if !allocator.changedTable.isEmpty {
        try sync()
        try allocator.writeTable()
      }
    }
    if !changes.isEmpty {
      try sync()
      for change in changes { try Qcow2Table.store(change.words, file, at: change.offset) }
      mapping.withLock { $0.settle(changes) }
    }
    if !hasL1.isEmpty {
      try sync()
      for index in hasL1.sorted() {
        let offset = header.l1Offset &+ UInt64(truncatingIfNeeded: index << 3)
        try Qcow2Table.store(l1[index...index], file, at: offset)
      }
      mapping.withLock { $0.settleL1() }
    }
    if isFlush || !changes.isEmpty || !hasL1.isEmpty { try sync() }
    try release(&allocator)
  }

  private func sync() throws(Errno) { if !isTemporary { try file.flush() } }

  /// Frees clusters that the file no longer references. If a crash comes first, their counts are
  /// too high.
  private func release(_ allocator: inout Qcow2Allocator) throws(Errno) {
    guard allocator.hasGivenUp else { return }
    try allocator.releaseNamed()
    try allocator.writeBlocks()
    forgetDecompressed()
    let generation = mapping.withLock { mapping in
      mapping.advance()
      mapping.advance()
      return mapping.generation
    }
    allocator.releaseResting(generation)
  }

  /// The image is damaged: stops all writes to it and reports it.
  func breakDown(_ allocator: inout Qcow2Allocator, _ what: String) {
    allocator.isBroken = true
    reportDamage(what)
    try? setIncompatible(header.incompatible | Qcow2Header.Incompatible.corrupt)
  }

  // MARK: Repair of lazy refcounts

  /// Raises counts to the tables' references if the image's dirty bit says that they may be too
  /// low. Counts that are too high stay: they only waste space.
  func mendCounts() throws(ImageError) {
    let dirty = Qcow2Header.Incompatible.dirty
    guard header.incompatible & dirty != 0, !isReadOnly else { return }
    do {
      let wanted = try Qcow2Census(self).counts
      try allocator.withLock { allocator in
        for (number, count) in wanted.enumerated() where count != 0 {
          let cluster = UInt64(truncatingIfNeeded: number)
          guard try allocator.count(cluster) < UInt64(count) else { continue }
          try allocator.makeBlock(of: cluster)
          try allocator.setCount(cluster, UInt64(count))
        }
        try writeTables(&allocator, isFlush: true)
        mapping.withLock { reserve(&$0, &allocator) }
      }
      try setIncompatible(header.incompatible & ~dirty)
      try file.flush()
    } catch {
      throw .unusable(
        "not closed properly, and not to be mended here; repair it with qemu-img check -r all")
    }
  }
}

/// Counts the references in an image's tables.
struct Qcow2Census {
  /// Limits of memory and time.
  private static let clusterLimit = 1 << 26
  /// Bytes of tables.
  private static let tableLimit = 8 << 30

  private struct TooMuch: Error {}

  private(set) var counts: [UInt32]
  private let image: Qcow2Image
  private let geometry: Qcow2Geometry
  /// Tables that may still be read. A valid image has fewer.
  private var budget: Int

  init(_ image: Qcow2Image) throws {
    self.image = image
    geometry = image.geometry
    let clusters = geometry.clusters(image.file.size)
    guard clusters <= UInt64(Self.clusterLimit) else { throw TooMuch() }
    counts = [UInt32](repeating: 0, count: Int(truncatingIfNeeded: clusters))
    let most = Self.tableLimit >> Int(truncatingIfNeeded: geometry.clusterBits)
    budget = min(counts.count &* 4, most) &+ 64
    let header = image.header
    try add(0)
    try add(header.refcountOffset, clusters: UInt64(truncatingIfNeeded: header.refcountClusters))
    for block in image.allocator.withLock({ $0.table }) where block != 0 { try add(block) }
    try addTables(header.l1Offset, header.l1Count)
    let snapshots = try Qcow2Snapshot.all(image.file, header)
    let bytes = Qcow2Snapshot.bytes(snapshots)
    try add(header.snapshotOffset, clusters: geometry.clusters(bytes))
    for snapshot in snapshots {
      guard snapshot.isUsable(geometry) else { throw TooMuch() }
      try addTables(snapshot.l1Offset, snapshot.l1Count)
    }
  }

  private mutating func add(_ offset: UInt64, clusters: UInt64 = 1) throws {
    let first = offset >> geometry.clusterBits
    guard first <= UInt64(counts.count), clusters <= UInt64(counts.count) &- first else {
      throw TooMuch()
    }
    for cluster in first..<first &+ clusters {
      counts[Int(truncatingIfNeeded: cluster)] &+= 1
    }
  }

  private mutating func addTables(_ offset: UInt64, _ count: Int) throws {
    let size = geometry.clusters(UInt64(truncatingIfNeeded: count) &* 8)
    budget &-= Int(truncatingIfNeeded: size)
    guard budget > 0 else { throw TooMuch() }
    try add(offset, clusters: size)
    for entry in try Qcow2Table.load(image.file, at: offset, count: count) {
      let table = entry & Qcow2Geometry.offsetMask
      guard table != 0 else { continue }
      budget &-= 1
      guard budget > 0 else { throw TooMuch() }
      try add(table)
      let words = try Qcow2Table.load(image.file, at: table, count: geometry.wordCount)
      for index in stride(from: 0, to: words.count, by: geometry.isExtended ? 2 : 1) {
        for cluster in Qcow2Entry(word: words[index]).references(geometry) { try add(cluster) }
      }
    }
  }
}
