// SPDX-License-Identifier: Apache-2.0
//
// The tables that say where each cluster of a disk is: the L1 table, and the L2 tables that were
// used last. Changes stay in memory until `Qcow2Image` writes them in an order that a crash
// survives.
//
// Requests that have looked something up and not come back yet are counted by generations, so that
// a cluster that is given up is not used anew while somebody still reads or writes it.

import Host
import SystemPackage

/// A table of the file, in memory.
struct Qcow2Table: Sendable {
  var words: [UInt64]
  /// What the file does not have yet.
  var changed: Range<Int>?
  /// When it was used last.
  var used: UInt64 = 0

  mutating func set(_ index: Int, _ value: UInt64) {
    guard words.indices.contains(index), words[index] != value else { return }
    words[index] = value
    let (first, next) = (changed?.lowerBound ?? index, changed?.upperBound ?? index)
    changed = min(first, index)..<max(next, index &+ 1)
  }

  /// Reads words of a file; what lies behind its end is 0.
  static func load(
    _ file: DiskFile, at offset: UInt64, count: Int
  ) throws(Errno) -> [UInt64] {
    let buffer = HostBuffer(count: count << 3)
    try file.read(at: offset, into: buffer.pieces(count: count << 3), padsWithZeroes: true)
    return buffer.withBytes { bytes in
      (0..<count).map { bytes.load(big: UInt64.self, at: $0 << 3) ?? 0 }
    }
  }

  /// Writes words to a file.
  static func store(_ words: ArraySlice<UInt64>, _ file: DiskFile, at offset: UInt64) throws(Errno)
  {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(words.count << 3)
    for word in words { bytes.append(big: word) }
    try file.write(bytes, at: offset)
  }
}

struct Qcow2Mapping: Sendable {
  /// Bytes of L2 tables that are kept, and tables at least.
  private static let cacheSize = 8 << 20
  private static let cacheMinimum = 4

  let geometry: Qcow2Geometry
  private(set) var l1: [UInt64]
  private(set) var changedL1: Set<Int> = []
  private var tables: [UInt64: Qcow2Table] = [:]
  /// Tables that the file does not have as they are.
  private var changedTables: Set<UInt64> = []
  private var clock: UInt64 = 0
  /// Clusters that describe the image: the disk's contents are never written there.
  private(set) var reserved: Set<UInt64>
  /// The first offset behind the file's clusters.
  var fileEnd: UInt64

  init(_ geometry: Qcow2Geometry, l1: [UInt64], reserved: Set<UInt64>, fileEnd: UInt64) {
    self.geometry = geometry
    self.l1 = l1
    self.reserved = reserved
    self.fileEnd = fileEnd
    for entry in l1 where entry & Qcow2Geometry.offsetMask != 0 {
      self.reserved.insert(entry & Qcow2Geometry.offsetMask)
    }
  }

  mutating func reserve(_ offset: UInt64) { reserved.insert(offset) }
  mutating func unreserve(_ offset: UInt64) { reserved.remove(offset) }

  // MARK: Generations

  private(set) var generation: UInt64 = 0
  private var active = [0, 0]

  /// A request begins; what it has to give back at its end.
  mutating func enter() -> UInt64 {
    active[Int(truncatingIfNeeded: generation & 1)] &+= 1
    return generation
  }

  mutating func leave(_ generation: UInt64) {
    active[Int(truncatingIfNeeded: generation & 1)] &-= 1
  }

  /// Begins a new generation where all requests of the last but one have ended. What was given up
  /// two generations ago has no users.
  mutating func advance() {
    if active[Int(truncatingIfNeeded: (generation &+ 1) & 1)] == 0 { generation &+= 1 }
  }

  // MARK: Lookups

  /// The offset of an L2 table; 0 where there is none. Throws where the image is damaged.
  func tableOffset(_ index: Int) throws(Errno) -> UInt64 {
    guard l1.indices.contains(index) else { throw .ioError }
    let offset = l1[index] & Qcow2Geometry.offsetMask
    guard geometry.isAligned(offset), offset < fileEnd else { throw .ioError }
    return offset
  }

  /// Whether nobody else has a reference to an L2 table.
  func ownsTable(_ index: Int) -> Bool {
    l1.indices.contains(index) && l1[index] & Qcow2Entry.copied != 0
  }

  /// The entry of an offset of the disk. Reads its table if need be.
  mutating func entry(_ offset: UInt64, _ file: DiskFile) throws(Errno) -> Qcow2Entry {
    let table = try tableOffset(geometry.l1Index(offset))
    if table == 0 { return .unallocated }
    if tables[table] == nil { try load(table, file) }
    clock &+= 1
    tables[table]?.used = clock
    guard let words = tables[table]?.words else { throw .ioError }
    let index = geometry.wordIndex(offset)
    guard index &+ 1 < words.count || !geometry.isExtended && index < words.count else {
      throw .ioError
    }
    return Qcow2Entry(word: words[index], bitmap: geometry.isExtended ? words[index &+ 1] : 0)
  }

  private mutating func load(_ table: UInt64, _ file: DiskFile) throws(Errno) {
    forgetOld()
    tables[table] = Qcow2Table(
      words: try Qcow2Table.load(file, at: table, count: geometry.wordCount))
  }

  private var cacheLimit: Int {
    max(Self.cacheSize >> Int(truncatingIfNeeded: geometry.clusterBits), Self.cacheMinimum)
  }

  /// So many tables wait to be written that it is time for it.
  var isFull: Bool { changedTables.count &* 2 >= cacheLimit }

  /// Drops the older half of the tables that the file has, when there are too many.
  private mutating func forgetOld() {
    guard tables.count >= cacheLimit else { return }
    let ages = tables.values.filter { $0.changed == nil }.map(\.used).sorted()
    guard !ages.isEmpty else { return }
    let middle = ages[ages.count >> 1]
    tables = tables.filter { $0.value.changed != nil || $0.value.used > middle }
  }

  // MARK: Changes

  /// Sets the entry of an offset that has a table of its own.
  mutating func set(_ offset: UInt64, _ entry: Qcow2Entry, _ file: DiskFile) throws(Errno) {
    let table = try tableOffset(geometry.l1Index(offset))
    if tables[table] == nil { try load(table, file) }
    changedTables.insert(table)
    let index = geometry.wordIndex(offset)
    tables[table]?.set(index, entry.word)
    if geometry.isExtended { tables[table]?.set(index &+ 1, entry.bitmap) }
  }

  /// Gives an entry of the L1 table a new table.
  mutating func adopt(_ index: Int, table offset: UInt64, words: [UInt64]) {
    clock &+= 1
    tables[offset] = Qcow2Table(words: words, changed: 0..<words.count, used: clock)
    changedTables.insert(offset)
    reserve(offset)
    l1[index] = offset | Qcow2Entry.copied
    changedL1.insert(index)
  }

  /// The words of the table of an offset, which `entry` has just loaded.
  func words(_ offset: UInt64) -> [UInt64]? {
    tables[l1[geometry.l1Index(offset)] & Qcow2Geometry.offsetMask]?.words
  }

  /// A part of a table that the file does not have, and its offset.
  struct Change: Sendable {
    let table: UInt64
    let offset: UInt64
    let words: ArraySlice<UInt64>
  }

  /// What the file does not have, in whole sectors.
  var changes: [Change] {
    changedTables.sorted().compactMap { offset in
      guard let table = tables[offset], let changed = table.changed else { return nil }
      let first = changed.lowerBound & ~63
      let next = min((changed.upperBound &+ 63) & ~63, table.words.count)
      return Change(
        table: offset, offset: offset &+ UInt64(truncatingIfNeeded: first << 3),
        words: table.words[first..<next])
    }
  }

  /// The file has these changes. No other can have come meanwhile: whoever changes tables has the
  /// allocator.
  mutating func settle(_ changes: [Change]) {
    for change in changes { tables[change.table]?.changed = nil }
    changedTables = []
  }

  mutating func settleL1() { changedL1 = [] }
}
