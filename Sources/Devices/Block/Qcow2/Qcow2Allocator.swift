// SPDX-License-Identifier: Apache-2.0
//
// Allocation of the file's clusters: the reference count table, its blocks, and free clusters
// (QEMU's specification of qcow2, "Host cluster management"). Changes stay in memory until
// `Qcow2Image` writes them. A released cluster keeps its count until no table of the file
// references it, and is not reused before all requests that may have seen it have ended: after a
// crash, counts are at most too high.

import Host
import SystemPackage

struct Qcow2Allocator: Sendable {
  /// A block of reference counts, in the file's format.
  struct Block: Sendable {
    var bytes: [UInt8]
    /// The range that is not in the file yet.
    var changed: Range<Int>?
  }

  /// A cluster that no table in memory references any more.
  struct GivenUp: Sendable {
    let cluster: UInt64
    let generation: UInt64
  }

  let file: DiskFile
  /// For a block device, which cannot grow: its clusters.
  private let room: UInt64
  let geometry: Qcow2Geometry
  /// The file's table: offsets of blocks.
  var table: [UInt64]
  var tableOffset: UInt64
  var changedTable: Set<Int> = []
  /// The table has another place than the header says.
  private var move: TableMove?
  var blocks: [Int: Block] = [:]
  /// The first cluster beyond the file's end.
  var end: UInt64
  /// All clusters before it are in use or in `free`.
  private var next: UInt64 = 0
  /// Clusters with a count of 0.
  private var free: [UInt64] = []
  /// Tables of the file may still reference them.
  private var named: [GivenUp] = []
  /// Their count is 0, but requests may still use them.
  private var resting: [GivenUp] = []
  private var restingClusters: Set<UInt64> = []
  /// The image is damaged: no more writes.
  var isBroken = false
  /// Metadata clusters allocated since the mapping was last updated.
  var newReserved: [UInt64] = []
  /// Clusters that are no longer metadata.
  var oldReserved: [UInt64] = []

  init(_ file: DiskFile, _ header: Qcow2Header) throws(Errno) {
    self.file = file
    geometry = Qcow2Geometry(header)
    tableOffset = header.refcountOffset
    table = try Qcow2Table.load(
      file, at: tableOffset, count: header.refcountClusters << Int(header.clusterBits &- 3))
    end = geometry.clusters(file.size)
    room = file.isDevice ? file.size >> geometry.clusterBits : .max
  }

  // MARK: Counts

  /// A cluster's block and the index of its count.
  private func place(_ cluster: UInt64) -> (block: Int, index: UInt64) {
    (
      Int(truncatingIfNeeded: cluster >> geometry.refcountBits),
      cluster & ((1 << geometry.refcountBits) &- 1)
    )
  }

  /// Reads a block; false if there is none.
  private mutating func load(_ block: Int) throws(Errno) -> Bool {
    if blocks[block] != nil { return true }
    guard table.indices.contains(block) else { return false }
    let offset = table[block] & Qcow2Geometry.offsetMask
    if offset == 0 { return false }
    guard geometry.isAligned(offset), offset >> geometry.clusterBits < end else { throw .ioError }
    forgetOld()
    blocks[block] = Block(
      bytes: try file.bytes(at: offset, count: Int(truncatingIfNeeded: geometry.clusterSize)))
    return true
  }

  private mutating func forgetOld() {
    guard blocks.count >= max((4 << 20) >> Int(truncatingIfNeeded: geometry.clusterBits), 8) else {
      return
    }
    blocks = blocks.filter { $0.value.changed != nil }
  }

  mutating func count(_ cluster: UInt64) throws(Errno) -> UInt64 {
    let (block, index) = place(cluster)
    guard try load(block), let bytes = blocks[block]?.bytes else { return 0 }
    return Self.count(bytes, index, geometry.refcountOrder)
  }

  private static func count(_ bytes: [UInt8], _ index: UInt64, _ order: UInt64) -> UInt64 {
    if order < 3 {
      let bit = index << order
      let byte = UInt64(bytes[Int(truncatingIfNeeded: bit >> 3)])
      return (byte >> (bit & 7)) & ((1 << (1 << order)) &- 1)
    }
    var value: UInt64 = 0
    let width = 1 << Int(truncatingIfNeeded: order &- 3)
    let start = Int(truncatingIfNeeded: index) &* width
    for offset in 0..<width { value = value << 8 | UInt64(bytes[start &+ offset]) }
    return value
  }

  /// Sets a count. Its block must be loaded.
  mutating func setCount(_ cluster: UInt64, _ value: UInt64) throws(Errno) {
    let (number, index) = place(cluster)
    let order = geometry.refcountOrder
    guard order == 6 || value >> (1 << order) == 0 else { throw .tooManyLinks }
    guard try load(number), var block = blocks.removeValue(forKey: number) else { throw .ioError }
    let width = order < 3 ? 1 : 1 << Int(truncatingIfNeeded: order &- 3)
    let start = Int(truncatingIfNeeded: order < 3 ? (index << order) >> 3 : index) &* width
    if order < 3 {
      let shift = (index << order) & 7
      let mask = UInt8(truncatingIfNeeded: ((1 << (1 << order)) &- 1) << shift)
      block.bytes[start] =
        (block.bytes[start] & ~mask) | UInt8(truncatingIfNeeded: value << shift)
    } else {
      for offset in 0..<width {
        let shift = UInt64(truncatingIfNeeded: (width &- 1 &- offset) << 3)
        block.bytes[start &+ offset] = UInt8(truncatingIfNeeded: value >> shift)
      }
    }
    let (first, next) = (block.changed?.lowerBound ?? start, block.changed?.upperBound ?? start)
    block.changed = min(first, start)..<max(next, start &+ width)
    blocks[number] = block
  }

  // MARK: Allocation

  /// A cluster of the file.
  struct Cluster: Sendable {
    let offset: UInt64
    /// Never written: it reads as 0.
    let isFresh: Bool
  }

  /// Limit of counts checked for one cluster, because a file may have any size.
  private static let searchLimit = 1 << 20

  /// Allocates a free cluster and sets its count to 1.
  mutating func allocate() throws(Errno) -> Cluster {
    while let cluster = free.popLast() {
      guard try count(cluster) == 0 else { continue }
      return try take(cluster)
    }
    for _ in 0..<Self.searchLimit {
      guard next < end else { break }
      let cluster = next
      let (block, _) = place(cluster)
      // Intact images have counts for all used clusters; here there are none.
      guard table.indices.contains(block) else {
        next = end
        break
      }
      if table[block] == 0, !file.isDevice {
        next = min(((cluster >> geometry.refcountBits) &+ 1) << geometry.refcountBits, end)
        continue
      }
      next &+= 1
      guard try count(cluster) == 0, !restingClusters.contains(cluster) else { continue }
      if table[block] != 0 { return try take(cluster) }
      // A block device has all its space from the start, without counts.
      if file.isDevice { try putBlock(block, at: cluster) }
    }
    return try append()
  }

  private mutating func take(_ cluster: UInt64) throws(Errno) -> Cluster {
    try setCount(cluster, 1)
    return Cluster(offset: cluster << geometry.clusterBits, isFresh: false)
  }

  /// Allocates the cluster at the end of the file.
  private mutating func append() throws(Errno) -> Cluster {
    while try !load(place(end).block) { try addBlock() }
    let cluster = end
    if cluster >= room { throw .noSpace }
    guard cluster << geometry.clusterBits < Qcow2Geometry.offsetLimit &- geometry.clusterSize else {
      throw .noSpace
    }
    try setCount(cluster, 1)
    end &+= 1
    next = max(next, end)
    return Cluster(offset: cluster << geometry.clusterBits, isFresh: !file.isDevice)
  }

  /// Creates the block for the cluster at the end of the file, in that cluster.
  private mutating func addBlock() throws(Errno) {
    let (block, _) = place(end)
    guard table.indices.contains(block) else { return try growTable(toHave: block) }
    if end >= room { throw .noSpace }
    try putBlock(block, at: end)
    end &+= 1
    next = max(next, end)
  }

  private mutating func putBlock(_ block: Int, at cluster: UInt64) throws(Errno) {
    let offset = cluster << geometry.clusterBits
    blocks[block] = emptyBlock
    table[block] = offset
    changedTable.insert(block)
    newReserved.append(offset)
    if place(cluster).block == block { try setCount(cluster, 1) }
  }

  private var emptyBlock: Block {
    let size = Int(truncatingIfNeeded: geometry.clusterSize)
    return Block(bytes: [UInt8](repeating: 0, count: size), changed: 0..<size)
  }

  /// Creates the block of any cluster, for repairing counts.
  mutating func makeBlock(of cluster: UInt64) throws(Errno) {
    let (block, _) = place(cluster)
    while try !load(block) {
      if !table.indices.contains(block) {
        try growTable(toHave: block)
        continue
      }
      // The new block's own cluster may need a block first, or be covered by it.
      if try !load(place(end).block) {
        try addBlock()
        continue
      }
      let home = try append()
      try putBlock(block, at: home.offset >> geometry.clusterBits)
    }
  }

  /// Frees a cluster that no table, in memory or in the file, ever referenced.
  mutating func abandon(_ offset: UInt64) {
    let cluster = offset >> geometry.clusterBits
    do throws(Errno) {
      try setCount(cluster, 0)
      free.append(cluster)
    } catch {
      // It leaks: it stays in use without a user.
    }
  }

  /// A table in memory no longer references a cluster.
  mutating func giveUp(_ offset: UInt64, generation: UInt64) {
    named.append(GivenUp(cluster: offset >> geometry.clusterBits, generation: generation))
  }

  var hasGivenUp: Bool { !named.isEmpty || !resting.isEmpty }

  /// The file's tables now equal those in memory: decrements the counts of released clusters.
  mutating func releaseNamed() throws(Errno) {
    let clusters = named
    named = []
    for given in clusters {
      let count = try count(given.cluster)
      // A damaged image: a cluster without a count cannot be released.
      if count == 0 { continue }
      try setCount(given.cluster, count &- 1)
      guard count == 1 else { continue }
      resting.append(given)
      restingClusters.insert(given.cluster)
    }
  }

  /// Makes clusters without possible users free, and returns their space.
  mutating func releaseResting(_ generation: UInt64) {
    let (done, waiting) = (
      resting.filter { $0.generation &+ 2 <= generation },
      resting.filter { $0.generation &+ 2 > generation }
    )
    if done.isEmpty { return }
    resting = waiting
    let clusters = done.map(\.cluster).sorted()
    restingClusters.subtract(clusters)
    // Lowest first.
    free += clusters.reversed()
    var start = 0
    while start < clusters.count {
      var next = start &+ 1
      while next < clusters.count, clusters[next] == clusters[next &- 1] &+ 1 { next &+= 1 }
      let count = UInt64(truncatingIfNeeded: next &- start)
      try? file.discard(
        at: clusters[start] << geometry.clusterBits, count: count << geometry.clusterBits)
      start = next
    }
  }

  // MARK: Writing

  var isChanged: Bool { !changedTable.isEmpty || blocks.values.contains { $0.changed != nil } }

  /// Writes changed blocks, in whole sectors.
  mutating func writeBlocks() throws(Errno) {
    for number in blocks.keys.sorted() {
      guard let block = blocks[number], let changed = block.changed else { continue }
      let first = changed.lowerBound & ~511
      let next = min((changed.upperBound &+ 511) & ~511, block.bytes.count)
      let offset = table[number] & Qcow2Geometry.offsetMask
      try file.write(
        Array(block.bytes[first..<next]), at: offset &+ UInt64(truncatingIfNeeded: first))
      blocks[number]?.changed = nil
    }
  }

  /// Writes changed entries of the table, after the blocks that they reference.
  mutating func writeTable() throws(Errno) {
    if move != nil { return try finishMove() }
    for index in changedTable.sorted() {
      let offset = tableOffset &+ UInt64(truncatingIfNeeded: index << 3)
      try Qcow2Table.store(table[index...index], file, at: offset)
    }
    changedTable = []
  }

  /// Where a table that grows goes to, and where it was.
  private struct TableMove: Sendable {
    let first: UInt64
    let clusters: UInt64
    let old: (offset: UInt64, words: Int)
  }

  /// Moves the table to the end of the file with room for a block.
  private mutating func growTable(toHave block: Int) throws(Errno) {
    try finishMove()
    let old = (offset: tableOffset, words: table.count)
    let words = max(block &+ 1, table.count &+ table.count >> 1)
    let bytes = UInt64(truncatingIfNeeded: words << 3)
    let size = geometry.clusters(bytes &+ geometry.clusterSize << 1)
    guard size << geometry.clusterBits <= UInt64(Qcow2Header.refcountTableLimit), !file.isDevice
    else { throw .noSpace }
    let wordCount = Int(truncatingIfNeeded: size << (geometry.clusterBits &- 3))
    table += [UInt64](repeating: 0, count: wordCount &- table.count)
    let first = end
    end &+= size
    tableOffset = first << geometry.clusterBits
    move = TableMove(first: first, clusters: size, old: old)
    do throws(Errno) {
      for cluster in first..<first &+ size {
        try makeBlock(of: cluster)
        try setCount(cluster, 1)
      }
    } catch {
      // Counts are missing, for which nobody looks again.
      isBroken = true
      throw error
    }
    next = max(next, end)
    try finishMove()
  }

  /// Writes a table that has moved. The header names the old one until the new one is in the file.
  /// If this fails, for lack of room for instance, it can be done again.
  private mutating func finishMove() throws(Errno) {
    guard let move else { return }
    try writeBlocks()
    try Qcow2Table.store(table[...], file, at: tableOffset)
    try file.flush()
    var fields: [UInt8] = []
    fields.append(big: tableOffset)
    fields.append(big: UInt32(truncatingIfNeeded: move.clusters))
    try file.write(fields, at: UInt64(Qcow2Header.Field.refcountOffset))
    try file.flush()
    changedTable = []
    self.move = nil
    for cluster in 0..<move.clusters {
      newReserved.append((move.first &+ cluster) << geometry.clusterBits)
    }
    for cluster in 0..<geometry.clusters(UInt64(truncatingIfNeeded: move.old.words << 3)) {
      let offset = move.old.offset &+ cluster << geometry.clusterBits
      oldReserved.append(offset)
      abandon(offset)
    }
  }
}
