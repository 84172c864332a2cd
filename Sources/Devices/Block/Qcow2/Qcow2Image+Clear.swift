// SPDX-License-Identifier: Apache-2.0
//
// Discards and zeroes of a qcow2 image: whole subclusters change their state, and only the ends of
// a zeroed range are written out.

import Synchronization
import SystemPackage

extension Qcow2Image {
  /// What to do with a range.
  private enum Clearing {
    /// Its contents become undefined. Ranges that read as 0 keep doing so.
    case discard
    /// It becomes zero, and may lose its space, or keeps it.
    case zero(mayDiscard: Bool)
  }

  package func discard(at offset: UInt64, count: UInt64) throws(Errno) {
    try clear(offset, count, .discard)
  }

  package func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(Errno) {
    try clear(offset, count, .zero(mayDiscard: mayDiscard))
  }

  private func clear(_ offset: UInt64, _ count: UInt64, _ clearing: Clearing) throws(Errno) {
    if isReadOnly { throw .readOnlyFileSystem }
    try prepareToWrite()
    let end = offset &+ count
    var position = offset
    while position < end {
      // One cluster at most, so that other requests get their turn.
      let next = min((position | (geometry.clusterSize &- 1)) &+ 1, end)
      let range = position..<next
      let skipped = try allocator.withLock { (allocator) throws(Errno) in
        try clearCluster(range, clearing, &allocator)
      }
      position = skipped ? min((position | ((1 << geometry.l1Shift) &- 1)) &+ 1, end) : next
    }
  }

  /// Clears a range of one cluster; returns whether the rest of its L2 table needs nothing.
  private func clearCluster(
    _ range: Range<UInt64>, _ clearing: Clearing, _ allocator: inout Qcow2Allocator
  ) throws(Errno) -> Bool {
    if allocator.isBroken { throw .ioError }
    let index = geometry.l1Index(range.lowerBound)
    let table = try mapping.withLock { (mapping) throws(Errno) in try mapping.tableOffset(index) }
    if table == 0 {
      // No space to free, and already 0 unless a backing file has data.
      if case .discard = clearing { return true }
      if backing == nil { return true }
    }
    // The disk may end within a subcluster, which then counts as whole.
    let size = geometry.subclusterSize
    let first = (range.lowerBound &+ size &- 1) & ~(size &- 1)
    let isEnd = range.upperBound == self.size
    let last = (isEnd ? range.upperBound &+ size &- 1 : range.upperBound) & ~(size &- 1)
    guard first < last else {
      if case .zero = clearing { try writeOutZeroes(range, &allocator) }
      return false
    }
    if case .zero = clearing {
      try writeOutZeroes(range.lowerBound..<first, &allocator)
      if last < range.upperBound { try writeOutZeroes(last..<range.upperBound, &allocator) }
    }
    try clearParts(first..<last, clearing, &allocator)
    return false
  }

  /// Clears whole subclusters of a cluster.
  private func clearParts(
    _ range: Range<UInt64>, _ clearing: Clearing, _ allocator: inout Qcow2Allocator
  ) throws(Errno) {
    let entry = try mapping.withLock { (mapping) throws(Errno) in
      try mapping.entry(range.lowerBound, file)
    }
    let parts = geometry.subcluster(range.lowerBound)...geometry.subcluster(range.upperBound &- 1)
    let kinds = parts.map { entry.kind($0, geometry) }
    if kinds.contains(.invalid) {
      reportDamage("bad entry of a table for offset \(range.lowerBound)")
      throw .ioError
    }
    let isAll = parts.count == geometry.subclusterCount
    let isZero = kinds.allSatisfy { $0 == .zero || $0 == .unallocated && backing == nil }
    let hasPlace = entry.isCompressed || entry.host != 0
    let givesBack: Bool
    switch clearing {
    case .discard:
      guard hasPlace, isAll || !entry.isCompressed else { return }
      // Without zero states the backing file's data would reappear.
      if geometry.version < 3, backing != nil { return }
      givesBack = isAll
      if isZero, !givesBack { return }
    case .zero(let mayDiscard):
      givesBack = isAll && hasPlace && (mayDiscard || entry.isCompressed || !entry.isCopied)
      if isZero, !givesBack { return }
      if geometry.version < 3 && (backing != nil || !givesBack) || entry.isCompressed && !isAll {
        return try writeOutZeroes(range.lowerBound..<min(range.upperBound, size), &allocator)
      }
    }
    try set(range.lowerBound, entry, parts, givesBack: givesBack, &allocator)
  }

  private func set(
    _ offset: UInt64, _ entry: Qcow2Entry, _ parts: ClosedRange<Int>, givesBack: Bool,
    _ allocator: inout Qcow2Allocator
  ) throws(Errno) {
    if mapping.withLock({ $0.isFull }) { try writeTables(&allocator, isFlush: false) }
    try ownTable(offset, &allocator)
    let hasStates = geometry.version >= 3
    let cleared =
      if givesBack {
        backing != nil && hasStates ? Qcow2Entry.allZero(geometry) : .unallocated
      } else {
        entry.zeroed(parts, geometry)
      }
    try mapping.withLock { (mapping) throws(Errno) in
      try mapping.set(offset, cleared, file)
      guard givesBack else { return }
      for old in entry.references(geometry) {
        allocator.giveUp(old, generation: mapping.generation)
      }
    }
  }

  /// Writes zeroes to a part of one cluster that does not read as 0 yet.
  private func writeOutZeroes(
    _ range: Range<UInt64>, _ allocator: inout Qcow2Allocator
  ) throws(Errno) {
    var position = range.lowerBound
    while position < range.upperBound {
      let limit = Int(truncatingIfNeeded: range.upperBound &- position)
      let (place, count) = try find(position, limit: limit)
      if case .zero = place {
      } else {
        let zeroes = HostBuffer(count: count)
        try writeNew(position, zeroes.pieces(count: count), &allocator)
      }
      position &+= UInt64(truncatingIfNeeded: count)
    }
  }
}
