// SPDX-License-Identifier: Apache-2.0
//
// Writes to a qcow2 image: in place if only the disk references the clusters, otherwise to new
// clusters, with the rest of an old cluster copied.

import Synchronization
import SystemPackage

extension Qcow2Image {
  func write(at offset: UInt64, from pieces: IOPieces) throws(Errno) {
    if isReadOnly { throw .readOnlyFileSystem }
    try prepareToWrite()
    let generation = mapping.withLock { $0.enter() }
    defer { mapping.withLock { $0.leave(generation) } }
    var done = 0
    while done < pieces.count {
      let start = offset &+ UInt64(truncatingIfNeeded: done)
      let (host, count) = try findWritable(start, limit: pieces.count &- done)
      let part = pieces.slice(from: done, count: count)
      if let host {
        try file.write(at: host, from: part)
      } else {
        try allocator.withLock { (allocator) throws(Errno) in
          try writeNew(start, part, &allocator)
        }
      }
      done &+= count
    }
  }

  /// Where the bytes from an offset on can be written in place, or nil; and the length of the run
  /// with the same answer in one L2 table.
  private func findWritable(
    _ offset: UInt64, limit: Int
  ) throws(Errno) -> (host: UInt64?, count: Int) {
    do throws(Errno) {
      return try mapping.withLock { (mapping) throws(Errno) in
        let host = try writable(offset, &mapping)
        var count = 0
        repeat {
          let next = offset &+ UInt64(truncatingIfNeeded: count)
          if count > 0 {
            guard geometry.l1Index(next) == geometry.l1Index(offset) else { break }
            let other = try writable(next, &mapping)
            let expected = host.map { $0 &+ UInt64(truncatingIfNeeded: count) }
            guard other == expected else { break }
          }
          let size = geometry.subclusterSize
          count &+= Int(truncatingIfNeeded: size &- (next & (size &- 1)))
        } while count < limit
        return (host, min(count, limit))
      }
    } catch {
      if error == .ioError { reportDamage("bad entry of a table for offset \(offset)") }
      throw error
    }
  }

  /// The offset in the file of a subcluster that only the disk references.
  private func writable(
    _ offset: UInt64, _ mapping: inout Qcow2Mapping
  ) throws(Errno) -> UInt64? {
    guard mapping.ownsTable(geometry.l1Index(offset)) else { return nil }
    let entry = try mapping.entry(offset, file)
    guard entry.isCopied, entry.kind(geometry.subcluster(offset), geometry) == .data else {
      return nil
    }
    try check(entry, mapping)
    return entry.host &+ (offset & (geometry.clusterSize &- 1))
  }

  /// Prevents writes of disk contents over tables or beyond the file.
  private func check(_ entry: Qcow2Entry, _ mapping: Qcow2Mapping) throws(Errno) {
    guard entry.host < mapping.fileEnd, !mapping.reserved.contains(entry.host) else {
      throw .ioError
    }
  }

  // MARK: New clusters

  /// A write's effect on a cluster.
  private struct Change {
    let offset: UInt64
    let entry: Qcow2Entry
    let old: Qcow2Entry
    /// The cluster was allocated for this.
    let taken: UInt64?
  }

  /// Runs of bytes for the file; contiguous ones are written in one call.
  private struct Output {
    private var start: UInt64 = 0
    private var pieces = IOPieces()
    /// Owns the memory of the pieces.
    private var buffers: [HostBuffer] = []

    mutating func add(_ offset: UInt64, _ more: IOPieces, _ file: DiskFile) throws(Errno) {
      if more.isEmpty { return }
      if offset != start &+ UInt64(truncatingIfNeeded: pieces.count) {
        try write(file)
        start = offset
      }
      pieces.append(more)
    }

    mutating func keep(_ buffer: HostBuffer) { buffers.append(buffer) }

    mutating func write(_ file: DiskFile) throws(Errno) {
      defer { withExtendedLifetime(buffers) {} }
      if !pieces.isEmpty { try file.write(at: start, from: pieces) }
      start &+= UInt64(truncatingIfNeeded: pieces.count)
      pieces = IOPieces()
      buffers = []
    }
  }

  /// Writes if at least one cluster cannot be written in place. The bytes are in one L2 table.
  func writeNew(
    _ offset: UInt64, _ pieces: IOPieces, _ allocator: inout Qcow2Allocator
  ) throws(Errno) {
    if allocator.isBroken { throw .ioError }
    if mapping.withLock({ $0.isFull }) { try writeTables(&allocator, isFlush: false) }
    var changes: [Change] = []
    do throws(Errno) {
      try ownTable(offset, &allocator)
      var output = Output()
      var done = 0
      while done < pieces.count {
        let start = offset &+ UInt64(truncatingIfNeeded: done)
        let rest = geometry.clusterSize &- (start & (geometry.clusterSize &- 1))
        let part = pieces.slice(from: done, count: Int(truncatingIfNeeded: rest))
        changes.append(try change(start, part, &output, &allocator))
        done &+= part.count
      }
      try output.write(file)
    } catch {
      for taken in changes.compactMap(\.taken) { allocator.abandon(taken) }
      throw error
    }
    try note(changes, &allocator)
  }

  /// Enters changes in the tables in memory.
  private func note(_ changes: [Change], _ allocator: inout Qcow2Allocator) throws(Errno) {
    try mapping.withLock { (mapping) throws(Errno) in
      reserve(&mapping, &allocator)
      for change in changes {
        try mapping.set(change.offset, change.entry, file)
        guard change.taken != nil else { continue }
        for old in change.old.references(geometry) {
          allocator.giveUp(old, generation: mapping.generation)
        }
      }
    }
  }

  /// Updates the mapping after allocations.
  func reserve(_ mapping: inout Qcow2Mapping, _ allocator: inout Qcow2Allocator) {
    mapping.fileEnd = allocator.end << geometry.clusterBits
    for offset in allocator.oldReserved { mapping.unreserve(offset) }
    for offset in allocator.newReserved { mapping.reserve(offset) }
    (allocator.oldReserved, allocator.newReserved) = ([], [])
  }

  /// Writes a part of one cluster.
  private func change(
    _ offset: UInt64, _ pieces: IOPieces, _ output: inout Output,
    _ allocator: inout Qcow2Allocator
  ) throws(Errno) -> Change {
    let entry = try mapping.withLock { (mapping) throws(Errno) in
      let entry = try mapping.entry(offset, file)
      if !entry.isCompressed, entry.isCopied, entry.host != 0 { try check(entry, mapping) }
      return entry
    }
    let last = offset &+ UInt64(truncatingIfNeeded: pieces.count &- 1)
    let parts = geometry.subcluster(offset)...geometry.subcluster(last)
    let isOwn = !entry.isCompressed && entry.isCopied && entry.host != 0
    var taken: Qcow2Allocator.Cluster?
    if !isOwn { taken = try take(&allocator) }
    let host = taken?.offset ?? entry.host
    do throws(Errno) {
      let plan = ClusterPlan(
        offset: offset, pieces: pieces, entry: entry, parts: parts, host: host,
        isFresh: taken?.isFresh ?? false, isNew: taken != nil)
      try add(plan, &output)
    } catch {
      if let taken { allocator.abandon(taken.offset) }
      throw error
    }
    return Change(
      offset: offset, entry: entry.written(parts, at: host, geometry), old: entry,
      taken: taken?.offset)
  }

  /// How to write a part of a cluster.
  private struct ClusterPlan {
    let offset: UInt64
    let pieces: IOPieces
    let entry: Qcow2Entry
    /// The subclusters to write.
    let parts: ClosedRange<Int>
    let host: UInt64
    let isFresh: Bool
    let isNew: Bool
  }

  private func add(_ plan: ClusterPlan, _ output: inout Output) throws(Errno) {
    let size = Int(truncatingIfNeeded: geometry.clusterSize)
    let part = Int(truncatingIfNeeded: geometry.subclusterSize)
    let start = Int(truncatingIfNeeded: plan.offset & (geometry.clusterSize &- 1))
    let end = start &+ plan.pieces.count
    // Copies around the bytes: the rest of the subclusters that they touch, all of a compressed
    // cluster, and other subclusters with data of an abandoned cluster.
    let copiesAll = plan.entry.isCompressed || plan.isNew && plan.entry.host != 0
    let first = copiesAll ? 0 : plan.parts.lowerBound &* part
    let next = copiesAll ? size : (plan.parts.upperBound &+ 1) &* part
    let base = plan.offset &- UInt64(truncatingIfNeeded: start)
    try copy(first..<start, base, plan, &output)
    try output.add(plan.host &+ UInt64(truncatingIfNeeded: start), plan.pieces, file)
    try copy(end..<next, base, plan, &output)
  }

  /// Copies a range of the old cluster to its new place, as far as necessary.
  private func copy(
    _ range: Range<Int>, _ base: UInt64, _ plan: ClusterPlan, _ output: inout Output
  ) throws(Errno) {
    var position = range.lowerBound
    while position < range.upperBound {
      let offset = base &+ UInt64(truncatingIfNeeded: position)
      let number = geometry.subcluster(offset)
      let part = Int(truncatingIfNeeded: geometry.subclusterSize)
      let end = min((number &+ 1) &* part, range.upperBound)
      defer { position = end }
      let kind = plan.entry.kind(number, geometry)
      // Already in place, or a subcluster that stays without data.
      if kind == .data, !plan.isNew { continue }
      if !plan.parts.contains(number), kind == .zero || kind == .unallocated { continue }
      let isZero = kind == .zero || kind == .unallocated && backing == nil
      if isZero, plan.isFresh { continue }
      let buffer = HostBuffer(count: end &- position)
      let pieces = buffer.pieces(count: end &- position)
      if !isZero { try fill(pieces, from: offset) }
      try output.add(plan.host &+ UInt64(truncatingIfNeeded: position), pieces, file)
      output.keep(buffer)
    }
  }

  /// Makes sure that an offset has an L2 table in memory that only the disk references.
  func ownTable(_ offset: UInt64, _ allocator: inout Qcow2Allocator) throws(Errno) {
    let index = geometry.l1Index(offset)
    let (old, isOwn) = try mapping.withLock { (mapping) throws(Errno) in
      (try mapping.tableOffset(index), mapping.ownsTable(index))
    }
    if old != 0, isOwn { return }
    var words = [UInt64](repeating: 0, count: geometry.wordCount)
    if old != 0 {
      words = try mapping.withLock { (mapping) throws(Errno) in
        _ = try mapping.entry(offset, file)
        return mapping.words(offset) ?? words
      }
    }
    let cluster = try take(&allocator)
    mapping.withLock { mapping in
      mapping.adopt(index, table: cluster.offset, words: words)
      if old != 0 {
        mapping.unreserve(old)
        allocator.giveUp(old, generation: mapping.generation)
      }
    }
  }

  /// Allocates a cluster. Metadata clusters are never free, whatever their count.
  private func take(_ allocator: inout Qcow2Allocator) throws(Errno) -> Qcow2Allocator.Cluster {
    let cluster = try allocator.allocate()
    let isReserved = mapping.withLock { mapping in
      reserve(&mapping, &allocator)
      return mapping.reserved.contains(cluster.offset)
    }
    if isReserved {
      breakDown(&allocator, "a table's cluster counts as free")
      throw .ioError
    }
    return cluster
  }
}
