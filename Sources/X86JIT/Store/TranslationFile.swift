// SPDX-License-Identifier: Apache-2.0
//
// The file that keeps translations from run to run. It only grows: a run appends segments, each
// with one call, so that several processes can write at once; each record says by a checksum
// whether it is whole. What is read is copied first and then checked: nothing is ever mapped.
//
//     heading | segment | segment | ...
//     segment: header | index (name, offset, size of each record) | records
//
// There is one file for each kind of translation (`TranslationKind`), and a limit for all of the
// folder. Where it is reached, files of other kinds go, the oldest first, and then the older half
// of the own file, by writing a new one under another name and renaming it.
//
// The folder is this user's alone (`PrivateFolder`): what is in these files is executed.

import Glibc
import Host
import SystemPackage

/// What a translation's bytes depend on besides the guest's code: a program's build, the host, and
/// options. Translations of another kind are in another file.
package struct TranslationKind: Sendable, Equatable {
  package let high: UInt64
  package let low: UInt64

  package init(_ bytes: [UInt8]) {
    (high, low) = (ContentHash.of(bytes.bytes, seed: 1), ContentHash.of(bytes.bytes, seed: 2))
  }

  var fileName: String {
    func hex(_ value: UInt64) -> String {
      let digits = String(value, radix: 16)
      return String(repeating: "0", count: 16 - digits.count) + digits
    }
    return hex(high) + hex(low) + TranslationFile.suffix
  }
}

package struct TranslationFile: ~Copyable, Sendable {
  package static let suffix = ".translations"
  /// Of files that are being written and not in use yet.
  package static let temporarySuffix = ".new"

  struct Heading {
    static let magic: UInt64 = 0x3153_4E41_5254_4D01
    var magic = Self.magic
    var high: UInt64
    var low: UInt64
    var padding: UInt64 = 0
  }

  struct SegmentHeader {
    static let magic: UInt64 = 0x3147_4553_5254_4D02
    var magic = Self.magic
    /// Of the rest of the header and of the index.
    var checksum: UInt64 = 0
    /// Bytes of the segment, header and index included.
    var size: UInt64
    var count: UInt64
  }

  struct IndexEntry {
    var name: UInt64
    /// Of the record, from the first record's start.
    var offset: UInt32
    var size: UInt32

    init(name: UInt64, offset: UInt32, size: UInt32) {
      (self.name, self.offset, self.size) = (name, offset, size)
    }

    /// Entry `number` of an index; nil where it ends before.
    init?(_ index: RawSpan, _ number: Int) {
      let start = number * MemoryLayout<Self>.size
      guard let name = index.load(UInt64.self, at: start),
        let offset = index.load(UInt32.self, at: start + 8),
        let size = index.load(UInt32.self, at: start + 12)
      else { return nil }
      self.init(name: name, offset: offset, size: size)
    }
  }

  private static let mostRecords: UInt64 = 1 << 20
  static let mostSegment: UInt64 = 1 << 26

  private let descriptor: OwnedFileDescriptor
  private let limit: UInt64
  /// Bytes that are sound, from the start.
  private(set) var end: UInt64 = 0
  /// What was found behind them is none of ours: nothing is appended.
  private(set) var isDamaged = false
  /// That was so when the file was opened, and it is a new one now.
  private(set) var wasRepaired = false

  private init(_ descriptor: consuming OwnedFileDescriptor, limit: UInt64) {
    self.descriptor = descriptor
    self.limit = limit
  }

  /// Opens the file of a kind, or makes it.
  ///
  /// - Parameters:
  ///   - limit: bytes of all files of the folder.
  ///   - note: is called with each record's name, place and size.
  package static func open(
    in folder: borrowing PrivateFolder, _ kind: TranslationKind, limit: UInt64,
    note: (IndexPlace) -> Void
  ) throws(PrivateFolderError) -> TranslationFile {
    let limit = limit &- min(limit, removeOthers(folder, kind, limit))
    var file = try openOrMake(folder, kind, limit)
    var places: [IndexPlace] = []
    let segments = file.readIndex { places.append($0) }
    let size = file.size
    if file.isDamaged || size > limit / 8 * 7 {
      let wasDamaged = file.isDamaged
      try file.compact(folder, kind, segments)
      file.wasRepaired = wasDamaged
      places.removeAll(keepingCapacity: true)
      _ = file.readIndex { places.append($0) }
    }
    for place in places { note(place) }
    return file
  }

  /// Where a record is in the file.
  package struct IndexPlace: Sendable {
    package var name: UInt64
    package var position: UInt64
    package var size: UInt64
  }

  private var size: UInt64 { UInt64((try? descriptor.size()) ?? 0) }

  // MARK: Opening

  private static func openOrMake(
    _ folder: borrowing PrivateFolder, _ kind: TranslationKind, _ limit: UInt64
  ) throws(PrivateFolderError) -> TranslationFile {
    if let file = try openExisting(folder, kind, limit) { return file }
    return try makeNew(folder, kind, limit)
  }

  private static func openExisting(
    _ folder: borrowing PrivateFolder, _ kind: TranslationKind, _ limit: UInt64
  ) throws(PrivateFolderError) -> TranslationFile? {
    let found: OwnedFileDescriptor
    do throws(PrivateFolderError) {
      found = try folder.open(kind.fileName, flags: O_RDWR | O_APPEND)
    } catch {
      if error == .system(.noSuchFileOrDirectory) { return nil }
      throw error
    }
    let file = TranslationFile(found, limit: limit)
    var heading = Heading(high: 0, low: 0)
    let isWhole = withMutableBytes(of: &heading) { file.read(into: &$0, at: 0) }
    if isWhole, heading.magic == Heading.magic, heading.high == kind.high, heading.low == kind.low {
      return file
    }
    folder.remove(kind.fileName)
    return nil
  }

  /// A file that has its heading before it has its name.
  private static func makeNew(
    _ folder: borrowing PrivateFolder, _ kind: TranslationKind, _ limit: UInt64
  ) throws(PrivateFolderError) -> TranslationFile {
    let name = temporaryName(kind)
    let file = try create(folder, kind, limit, name)
    if try folder.renameIfFree(name, to: kind.fileName) { return file }
    // Another process was faster.
    if let other = try openExisting(folder, kind, limit) { return other }
    return file
  }

  private static func temporaryName(_ kind: TranslationKind) -> String {
    "\(kind.fileName).\(getpid())\(temporarySuffix)"
  }

  private static func create(
    _ folder: borrowing PrivateFolder, _ kind: TranslationKind, _ limit: UInt64, _ name: String
  ) throws(PrivateFolderError) -> TranslationFile {
    folder.remove(name)
    let new = try folder.open(name, flags: O_RDWR | O_APPEND | O_CREAT | O_EXCL)
    let heading = withBytes(of: Heading(high: kind.high, low: kind.low)) { $0.array }
    do throws(Errno) {
      try writeAll(new.rawValue, heading.bytes)
    } catch {
      throw .system(error)
    }
    return TranslationFile(new, limit: limit)
  }

  /// Files of other kinds go, the oldest first, as long as all are more than the limit, and what
  /// processes that have ended left half-made.
  ///
  /// - Returns: bytes of those that stay.
  private static func removeOthers(
    _ folder: borrowing PrivateFolder, _ kind: TranslationKind, _ limit: UInt64
  ) -> UInt64 {
    let now = time(nil)
    let entries = folder.entries()
    for entry in entries where entry.name.hasSuffix(temporarySuffix) {
      if now &- entry.modified > 3600 { folder.remove(entry.name) }
    }
    var total = entries.reduce(0 as UInt64) { $0 &+ UInt64($1.size) }
    let others = entries.filter { $0.name.hasSuffix(suffix) && $0.name != kind.fileName }
    for entry in others.sorted(by: { $0.modified < $1.modified }) where total > limit / 4 * 3 {
      if folder.remove(entry.name) { total &-= UInt64(entry.size) }
    }
    let own = entries.first { $0.name == kind.fileName }
    return total &- min(total, UInt64(own?.size ?? 0))
  }

  // MARK: Reading

  /// Whether all bytes from a position on could be read.
  func read(into room: inout MutableRawSpan, at position: UInt64) -> Bool {
    readSome(into: &room, at: position) == room.byteCount
  }

  /// As many bytes as there are, up to the room; nil where none can be read.
  func readSome(into room: inout MutableRawSpan, at position: UInt64) -> Int? {
    guard let offset = off_t(exactly: position) else { return nil }
    return room.withUnsafeMutableBytes { room in
      try? systemCall { () -> Int in
        pread(descriptor.rawValue, room.baseAddress, room.count, offset)
      }
    }
  }

  /// Names every record of the sound segments, whose places it returns.
  private mutating func readIndex(_ note: (IndexPlace) -> Void) -> [Range<UInt64>] {
    let size = size
    var segments: [Range<UInt64>] = []
    end = UInt64(MemoryLayout<Heading>.size)
    while end < size {
      guard let length = readSegment(end, size, note) else {
        isDamaged = true
        break
      }
      segments.append(end..<end + length)
      end += length
    }
    return segments
  }

  /// The segment's length; nil where it is damaged.
  private func readSegment(
    _ start: UInt64, _ size: UInt64, _ note: (IndexPlace) -> Void
  ) -> UInt64? {
    var header = SegmentHeader(size: 0, count: 0)
    let headerSize = UInt64(MemoryLayout<SegmentHeader>.size)
    guard withMutableBytes(of: &header, { read(into: &$0, at: start) }),
      header.magic == SegmentHeader.magic, header.count <= Self.mostRecords,
      header.size <= Self.mostSegment, header.size & 7 == 0, header.size <= size - start
    else { return nil }
    let indexSize = header.count * UInt64(MemoryLayout<IndexEntry>.size)
    guard header.size >= headerSize + indexSize else { return nil }
    var index = [UInt8](repeating: 0, count: Int(indexSize))
    guard index.withMutableBytes({ read(into: &$0, at: start + headerSize) }),
      header.checksum == Self.checksum(header, index.bytes)
    else { return nil }
    let room = header.size - headerSize - indexSize
    for number in 0..<Int(header.count) {
      guard let entry = IndexEntry(index.bytes, number), entry.offset & 7 == 0,
        UInt64(entry.offset) + UInt64(entry.size) <= room, entry.size <= KeptTranslation.mostBytes
      else { continue }
      note(
        IndexPlace(
          name: entry.name, position: start + headerSize + indexSize + UInt64(entry.offset),
          size: UInt64(entry.size)))
    }
    return header.size
  }

  static func checksum(_ header: SegmentHeader, _ index: RawSpan) -> UInt64 {
    ContentHash.of(index, seed: header.size &* 31 &+ header.count)
  }

  // MARK: Writing

  /// Appends a segment by one call.
  ///
  /// - Returns: where its first record is; nil where nothing can be appended any more.
  mutating func append(_ index: RawSpan, _ records: RawSpan) -> UInt64? {
    let headerSize = MemoryLayout<SegmentHeader>.size
    let total = headerSize + index.byteCount + records.byteCount
    let before = size
    guard !isDamaged, UInt64(total) <= Self.mostSegment, total & 7 == 0, before & 7 == 0,
      before + UInt64(total) <= limit
    else { return nil }
    var header = SegmentHeader(
      size: UInt64(total), count: UInt64(index.byteCount / MemoryLayout<IndexEntry>.size))
    header.checksum = Self.checksum(header, index)
    let written = withBytes(of: header) { write($0, index, records) } ?? 0
    let end = lseek(descriptor.rawValue, 0, SEEK_CUR)
    guard written == total, end >= off_t(total), end & 7 == 0 else {
      // A part of a segment, which ends what is sound in the file.
      isDamaged = true
      return nil
    }
    return UInt64(end) - UInt64(total) + UInt64(headerSize + index.byteCount)
  }

  /// Bytes of the three parts that one call has written.
  private func write(_ header: RawSpan, _ index: RawSpan, _ records: RawSpan) -> Int? {
    func part(_ bytes: UnsafeRawBufferPointer) -> iovec {
      iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
    }
    return header.withUnsafeBytes { header in
      index.withUnsafeBytes { index in
        records.withUnsafeBytes { records in
          let parts = [part(header), part(index), part(records)]
          return try? systemCall { () -> Int in writev(descriptor.rawValue, parts, 3) }
        }
      }
    }
  }

  /// A new file takes the place of this one, with the newer segments: half of the limit.
  private mutating func compact(
    _ folder: borrowing PrivateFolder, _ kind: TranslationKind, _ segments: [Range<UInt64>]
  ) throws(PrivateFolderError) {
    var kept: [Range<UInt64>] = []
    var total: UInt64 = 0
    for segment in segments.reversed() {
      let length = segment.upperBound - segment.lowerBound
      if total + length > limit / 2 { break }
      total += length
      kept.append(segment)
    }
    let name = Self.temporaryName(kind)
    let new = try Self.create(folder, kind, limit, name)
    for segment in kept.reversed() where !copy(segment, to: new.descriptor.rawValue) { break }
    try folder.rename(name, to: kind.fileName)
    self = new
  }

  private func copy(_ range: Range<UInt64>, to target: Int32) -> Bool {
    let length = Int(range.upperBound - range.lowerBound)
    var bytes = [UInt8](repeating: 0, count: length)
    guard bytes.withMutableBytes({ read(into: &$0, at: range.lowerBound) }) else { return false }
    return (try? writeAll(target, bytes.bytes)) != nil
  }
}
