// SPDX-License-Identifier: Apache-2.0
//
// A disk in a qcow2 image (QEMU's specification of qcow2).
//
// Reads, and writes to clusters that only the disk references, look up their clusters and then run
// in parallel. Operations that change tables hold the allocator, one at a time: writes to new
// clusters, discards, flushes. The lock order is allocator, mapping.
//
// Only `writeTables` changes tables in the file, in an order that leaves a valid image wherever it
// stops: first counts that grow, then the tables that reference the clusters, then counts that
// shrink. The host's disk is flushed between these, so this also holds after a power failure.

import GuestMemory
import Host
import Synchronization
import SystemPackage

package final class Qcow2Image: BlockImage, ImageLayer {
  let file: DiskFile
  let geometry: Qcow2Geometry
  package let size: UInt64
  package let isReadOnly: Bool
  /// The layer that unallocated clusters read from.
  let backing: (any ImageLayer)?
  /// Writes need not survive the program.
  let isTemporary: Bool
  let header: Qcow2Header
  private let decompressor: Qcow2Decompressor
  private let report: @Sendable (String) -> Void
  let mapping: Mutex<Qcow2Mapping>
  let allocator: Mutex<Qcow2Allocator>
  /// The header records that a program without support for all of its extensions writes the image.
  private let isPrepared = Atomic<Bool>(false)
  private let hasReported = Atomic<Bool>(false)
  private let decompressed = Mutex(DecompressedClusters())

  package var blockSize: UInt32 { 4096 }
  package var discardSize: UInt32 { UInt32(truncatingIfNeeded: geometry.subclusterSize) }

  /// - Parameters:
  ///   - file: contains the image.
  ///   - snapshot: an internal snapshot of the disk, by name or identifier; read-only.
  ///   - report: called with a line if the image turns out to be damaged.
  init(
    _ file: DiskFile, _ header: Qcow2Header, backing: (any ImageLayer)?, snapshot: String? = nil,
    isTemporary: Bool = false, report: @escaping @Sendable (String) -> Void = { _ in }
  ) throws(ImageError) {
    self.file = file
    self.backing = backing
    self.isTemporary = isTemporary
    self.report = report
    isReadOnly = file.isReadOnly || snapshot != nil
    var header = header
    geometry = Qcow2Geometry(header)
    decompressor = try Qcow2Decompressor(header.compression)
    if header.incompatible & Qcow2Header.Incompatible.corrupt != 0, !isReadOnly {
      throw .unusable(
        "marked as corrupt; repair it with qemu-img check -r all, or give readonly=on")
    }
    do {
      let snapshots = try Qcow2Snapshot.all(file, header)
      if let snapshot {
        guard let found = Qcow2Snapshot.find(snapshot, snapshots) else {
          throw ImageError.unusable("no snapshot \(snapshot); qemu-img snapshot -l lists them")
        }
        (header.l1Offset, header.l1Count) = (found.l1Offset, found.l1Count)
        header.size = found.size ?? header.size
        try found.check(geometry, header.size)
      }
      size = header.size
      var reserved = Self.fixedClusters(header, geometry, snapshots)
      let l1 = try Qcow2Table.load(file, at: header.l1Offset, count: header.l1Count)
      let allocator = try Qcow2Allocator(file, header)
      for block in allocator.table where block != 0 {
        reserved.insert(block & Qcow2Geometry.offsetMask)
      }
      mapping = Mutex(
        Qcow2Mapping(
          geometry, l1: l1, reserved: reserved,
          fileEnd: allocator.end << geometry.clusterBits))
      self.allocator = Mutex(allocator)
    } catch let error as ImageError {
      throw error
    } catch let error as Errno {
      throw .cannotOpen(error)
    } catch {
      throw .cannotOpen(.ioError)
    }
    self.header = header
    try mendCounts()
  }

  /// Clusters of the header and of tables at offsets in the header.
  private static func fixedClusters(
    _ header: Qcow2Header, _ geometry: Qcow2Geometry, _ snapshots: [Qcow2Snapshot]
  ) -> Set<UInt64> {
    var clusters: Set<UInt64> = [0]
    func add(_ offset: UInt64, _ count: UInt64) {
      let first = offset & ~(geometry.clusterSize &- 1)
      let end = offset &+ count
      clusters.formUnion(
        stride(from: first, to: end, by: Int(truncatingIfNeeded: geometry.clusterSize)))
    }
    add(header.l1Offset, UInt64(truncatingIfNeeded: header.l1Count) &* 8)
    add(
      header.refcountOffset,
      UInt64(truncatingIfNeeded: header.refcountClusters) << geometry.clusterBits)
    add(header.snapshotOffset, Qcow2Snapshot.bytes(snapshots))
    return clusters
  }

  /// Reports damage to the user, once.
  func reportDamage(_ what: String) {
    if !hasReported.exchange(true, ordering: .relaxed) {
      report("the image is damaged (\(what)); try qemu-img check")
    }
  }

  // MARK: BlockImage

  package func read(at offset: UInt64, into buffers: GuestBuffers) throws(Errno) {
    try read(at: offset, into: IOPieces(buffers))
    buffers.noteWritten(buffers.count)
  }

  package func write(at offset: UInt64, from buffers: GuestBuffers) throws(Errno) {
    try write(at: offset, from: IOPieces(buffers))
  }

  package func flush() throws(Errno) {
    if isReadOnly { return }
    try allocator.withLock { (allocator) throws(Errno) in
      try writeTables(&allocator, isFlush: true)
    }
  }

  package func finish() throws(Errno) { try flush() }

  // MARK: Lookups

  /// The location of a contiguous run of the disk's bytes.
  enum Place {
    case zero
    /// In the backing file, at the same offset.
    case backing
    /// At this offset of the file.
    case file(UInt64)
    case compressed(Qcow2Entry)
  }

  /// The location of the bytes from an offset on, and the length of the run, at most `limit`.
  func find(_ offset: UInt64, limit: Int) throws(Errno) -> (place: Place, count: Int) {
    do throws(Errno) {
      return try mapping.withLock { (mapping) throws(Errno) in
        let first = try place(offset, &mapping)
        var count = min(restOfPart(offset, first), limit)
        while count < limit {
          let next = offset &+ UInt64(truncatingIfNeeded: count)
          guard geometry.l1Index(next) == geometry.l1Index(offset) else { break }
          let place = try place(next, &mapping)
          guard Self.follows(place, first, count) else { break }
          count = min(count &+ restOfPart(next, place), limit)
        }
        return (first, count)
      }
    } catch {
      if error == .ioError { reportDamage("bad entry of a table for offset \(offset)") }
      throw error
    }
  }

  private static func follows(_ place: Place, _ first: Place, _ count: Int) -> Bool {
    switch (first, place) {
    case (.zero, .zero), (.backing, .backing): true
    case (.file(let start), .file(let next)): next == start &+ UInt64(truncatingIfNeeded: count)
    default: false
    }
  }

  /// Bytes up to the end of the subcluster or cluster with one state.
  private func restOfPart(_ offset: UInt64, _ place: Place) -> Int {
    var size = geometry.subclusterSize
    if case .compressed = place { size = geometry.clusterSize }
    return Int(truncatingIfNeeded: size &- (offset & (size &- 1)))
  }

  private func place(
    _ offset: UInt64, _ mapping: inout Qcow2Mapping
  ) throws(Errno) -> Place {
    let entry = try mapping.entry(offset, file)
    switch entry.kind(geometry.subcluster(offset), geometry) {
    case .unallocated: return backing == nil ? .zero : .backing
    case .zero: return .zero
    case .compressed: return .compressed(entry)
    case .data:
      guard entry.host < mapping.fileEnd else { throw .ioError }
      return .file(entry.host &+ (offset & (geometry.clusterSize &- 1)))
    case .invalid: throw .ioError
    }
  }

  // MARK: Reading

  func read(at offset: UInt64, into pieces: IOPieces) throws(Errno) {
    if isReadOnly { return try fill(pieces, from: offset) }
    let generation = mapping.withLock { $0.enter() }
    defer { mapping.withLock { $0.leave(generation) } }
    try fill(pieces, from: offset)
  }

  /// Reads for a caller that holds the allocator or is counted as a request.
  func fill(_ pieces: IOPieces, from offset: UInt64) throws(Errno) {
    var done = 0
    while done < pieces.count {
      let start = offset &+ UInt64(truncatingIfNeeded: done)
      let (place, count) = try find(start, limit: pieces.count &- done)
      let part = pieces.slice(from: done, count: count)
      switch place {
      case .zero: part.clear()
      case .backing: try fillFromBacking(part, start)
      case .file(let host): try file.read(at: host, into: part, padsWithZeroes: true)
      case .compressed(let entry): try decompress(entry, start, part)
      }
      done &+= count
    }
  }

  /// A backing file may be shorter than the disk.
  private func fillFromBacking(_ pieces: IOPieces, _ offset: UInt64) throws(Errno) {
    guard let backing, offset < backing.size else { return pieces.clear() }
    let room = Int(clamping: backing.size &- offset)
    try backing.read(at: offset, into: pieces.slice(from: 0, count: room))
    if room < pieces.count { pieces.slice(from: room).clear() }
  }

  private func decompress(
    _ entry: Qcow2Entry, _ offset: UInt64, _ pieces: IOPieces
  ) throws(Errno) {
    let start = Int(truncatingIfNeeded: offset & (geometry.clusterSize &- 1))
    if let cluster = decompressed.withLock({ $0.find(entry.word) }) {
      return pieces.fill(from: cluster.bytes.extracting(start...))
    }
    let (host, count) = entry.compressedRange(geometry)
    let end = mapping.withLock { $0.fileEnd } &+ BlockSector.size
    guard host &+ UInt64(truncatingIfNeeded: count) <= end else {
      reportDamage("a compressed cluster is not in the file")
      throw .ioError
    }
    let input = HostBuffer(count: count)
    try file.read(at: host, into: input.pieces(count: count), padsWithZeroes: true)
    var cluster = [UInt8](repeating: 0, count: Int(truncatingIfNeeded: geometry.clusterSize))
    let isWhole = cluster.withMutableBytes { cluster in
      input.withBytes { decompressor.decompress($0, &cluster) }
    }
    guard isWhole else {
      reportDamage("a compressed cluster cannot be decompressed")
      throw .ioError
    }
    decompressed.withLock { $0.add(entry.word, cluster) }
    pieces.fill(from: cluster.bytes.extracting(start...))
  }

  /// Clusters of the file have new contents.
  func forgetDecompressed() { decompressed.withLock { $0 = DecompressedClusters() } }

  // MARK: The header

  /// Before the first write of a run: marks data of unknown features as outdated.
  func prepareToWrite() throws(Errno) {
    if isPrepared.load(ordering: .acquiring) { return }
    try allocator.withLock { (_) throws(Errno) in
      guard !isPrepared.load(ordering: .acquiring) else { return }
      if header.version >= 3, header.autoclear != 0 {
        try file.write(
          [UInt8](repeating: 0, count: 8), at: UInt64(Qcow2Header.Field.autoclear))
      }
      isPrepared.store(true, ordering: .releasing)
    }
  }

  func setIncompatible(_ bits: UInt64) throws(Errno) {
    guard header.version >= 3 else { return }
    var bytes: [UInt8] = []
    bytes.append(big: bits)
    try file.write(bytes, at: UInt64(Qcow2Header.Field.incompatible))
  }
}

/// The clusters that were decompressed last, by entry.
private struct DecompressedClusters: Sendable {
  private static let limit = 4
  private var clusters: [(word: UInt64, bytes: [UInt8])] = []

  func find(_ word: UInt64) -> [UInt8]? { clusters.first { $0.word == word }?.bytes }

  mutating func add(_ word: UInt64, _ bytes: [UInt8]) {
    if clusters.count >= Self.limit { clusters.removeFirst() }
    clusters.append((word, bytes))
  }
}
