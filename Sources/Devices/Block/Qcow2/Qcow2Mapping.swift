// SPDX-License-Identifier: Apache-2.0
//
// The tables that map a disk's clusters: the L1 table and the most recently used L2 tables. Changes
// stay in memory until `Qcow2Image` writes them in a crash-safe order.
//
// Requests between look-up and completion are counted by generations, so that a released cluster is
// not reused while a request still reads or writes it.

import Host
import SystemPackage

/// A table of the file, in memory.
struct Qcow2Table: Sendable {
  var words: [UInt64]
  /// The range that is not in the file yet.
  var changed: Range<Int>?
  /// Time of last use.
  var used: UInt64 = 0

  mutating func set(_ index: Int, _ value: UInt64) {
    guard words.indices.contains(index), words[index] != value else { return }
    words[index] = value
    let (first, next) = (changed?.lowerBound ?? index, changed?.upperBound ?? index)
    changed = min(first, index)..<max(next, index &+ 1)
  }

  /// Reads words of a file; those beyond its end are 0.
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
  /// Bytes of cached L2 tables, and minimum of tables.
  private static let cacheSize = 8 << 20
  private static let cacheMinimum = 4

  let geometry: Qcow2Geometry
  private(set) var l1: [UInt64]
  private(set) var changedL1: Set<Int> = []
  private var tables: [UInt64: Qcow2Table] = [:]
  /// Tables that differ from the file's.
  private var changedTables: Set<UInt64> = []
  private var clock: UInt64 = 0
  /// Metadata clusters: disk contents are never written there.
  private(set) var reserved: Set<UInt64>
  /// The file's end, in whole clusters.
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

  /// Begins a request; returns the generation to pass back at its end.
  mutating func enter() -> UInt64 {
    active[Int(truncatingIfNeeded: generation & 1)] &+= 1
    return generation
  }

  mutating func leave(_ generation: UInt64) {
    active[Int(truncatingIfNeeded: generation & 1)] &-= 1
  }

  /// Begins a new generation if all requests of the one before the current have ended. Clusters
  /// released two generations ago have no users.
  mutating func advance() {
    if active[Int(truncatingIfNeeded: (generation &+ 1) & 1)] == 0 { generation &+= 1 }
  }

  // MARK: Lookups

  /// The offset of an L2 table; 0 if there is none. Throws if the image is damaged.
  func tableOffset(_ index: Int) throws(Errno) -> UInt64 {
    guard l1.indices.contains(index) else { throw .ioError }
    let offset = l1[index] & Qcow2Geometry.offsetMask
    guard geometry.isAligned(offset), offset < fileEnd else { throw .ioError }
    return offset
  }

  /// Whether an L2 table has no other reference.
  func ownsTable(_ index: Int) -> Bool {
    l1.indices.contains(index) && l1[index] & Qcow2Entry.copied != 0
  }

  /// The entry of an offset of the disk. Reads its table if necessary.
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

  /// Whether enough tables have changed to write them.
  var isFull: Bool { changedTables.count &* 2 >= cacheLimit }

  /// Drops the older half of the unchanged tables if there are too many.
  private mutating func forgetOld() {
    guard tables.count >= cacheLimit else { return }
    let ages = tables.values.filter { $0.changed == nil }.map(\.used).sorted()
    guard !ages.isEmpty else { return }
    let middle = ages[ages.count >> 1]
    tables = tables.filter { $0.value.changed != nil || $0.value.used > middle }
  }

  // MARK: Changes

  /// Sets the entry of an offset whose table only the disk references.
  mutating func set(_ offset: UInt64, _ entry: Qcow2Entry, _ file: DiskFile) throws(Errno) {
    let table = try tableOffset(geometry.l1Index(offset))
    if tables[table] == nil { try load(table, file) }
    changedTables.insert(table)
    let index = geometry.wordIndex(offset)
    tables[table]?.set(index, entry.word)
    if geometry.isExtended { tables[table]?.set(index &+ 1, entry.bitmap) }
  }

  /// Sets a new table for an L1 entry.
  mutating func adopt(_ index: Int, table offset: UInt64, words: [UInt64]) {
    clock &+= 1
    tables[offset] = Qcow2Table(words: words, changed: 0..<words.count, used: clock)
    changedTables.insert(offset)
    reserve(offset)
    l1[index] = offset | Qcow2Entry.copied
    changedL1.insert(index)
  }

  /// The words of an offset's table, which `entry` has just loaded.
  func words(_ offset: UInt64) -> [UInt64]? {
    tables[l1[geometry.l1Index(offset)] & Qcow2Geometry.offsetMask]?.words
  }

  /// A changed range of a table, and its offset.
  struct Change: Sendable {
    let table: UInt64
    let offset: UInt64
    let words: ArraySlice<UInt64>
  }

  /// All changed ranges, in whole sectors.
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

  /// The file has these changes. There are no others meanwhile: the caller holds the allocator, as
  /// all that change tables do.
  mutating func settle(_ changes: [Change]) {
    for change in changes { tables[change.table]?.changed = nil }
    changedTables = []
  }

  mutating func settleL1() { changedL1 = [] }
}
