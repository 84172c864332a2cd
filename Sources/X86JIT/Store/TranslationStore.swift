// SPDX-License-Identifier: Apache-2.0
//
// Translations that outlive the run: found by name (`KeptTranslation.name`), read from the file,
// and added to it a segment at a time. The translators of all CPUs of the process share one.
//
// Nothing here is needed: what is not found, or turns out to be damaged, is translated.

import Glibc
import Host
import Synchronization
import SystemPackage

/// Where translations are kept, and how many.
package struct TranslationStoreSettings: Sendable, Equatable {
  package var path: String
  /// Bytes of all files in the folder.
  package var limit: Int

  package init(path: String, limit: Int) {
    self.path = path
    self.limit = limit
  }
}

package final class TranslationStore: Sendable {
  /// What its translations rely on.
  package let options: TranslationOptions
  /// The file ended in what was none of ours, which is gone.
  package let wasRepaired: Bool
  private let state: Mutex<State>

  /// - Throws: where the folder is not this user's alone, or cannot be written.
  package init(
    _ settings: TranslationStoreSettings, _ options: TranslationOptions
  ) throws(PrivateFolderError) {
    self.options = options
    let folder = try PrivateFolder(opening: settings.path, creates: true)
    let index = StoreIndex()
    let file = try TranslationFile.open(
      in: folder, options.kind, limit: UInt64(max(settings.limit, 0))
    ) { place in
      index.insert(place)
    }
    wasRepaired = file.wasRepaired
    state = Mutex(State(file: file, index: index))
  }

  /// Whether there is a translation of that name, in the file or about to be.
  func contains(_ name: UInt64) -> Bool { state.withLock { $0.index.find(name) != nil } }

  /// Calls `body` with the translation of that name if there is one.
  func with(_ name: UInt64, _ body: (KeptTranslation) -> Bool) -> Bool {
    state.withLock { state in
      guard let place = state.index.find(name), place.size > 0 else { return false }
      let result = state.withRecord(place) { bytes -> Bool? in
        guard let translation = KeptTranslation(bytes, name: name) else { return nil }
        return body(translation)
      }
      if result == nil { state.index.remove(name) }
      return result ?? false
    }
  }

  /// Keeps a translation. `fill` writes its record and returns its size, or nil.
  func add(_ name: UInt64, _ fill: (UnsafeMutableRawPointer) -> Int?) {
    state.withLock { state in
      if state.isFull { return }
      if let known = state.index.find(name), known.position != StoreIndex.gone { return }
      guard let size = fill(state.pending.next) else { return }
      let position = State.pendingStart + UInt64(state.pending.used)
      state.index.insert(
        TranslationFile.IndexPlace(name: name, position: position, size: UInt64(size)))
      state.pending.add(name, size)
      if state.pending.isFull { state.flush() }
    }
  }

  /// Writes what is not in the file yet.
  package func flush() { state.withLock { $0.flush() } }

  /// Sendable: in the mutex alone.
  private struct State: ~Copyable, @unchecked Sendable {
    var file: TranslationFile
    var index: StoreIndex
    let reader = RecordReader()
    let pending = PendingSegment()
    /// Nothing can be added any more.
    var isFull = false

    /// Positions from here on are of records that are not in the file yet.
    static let pendingStart: UInt64 = 1 << 43

    /// What the body says of the record; nil where it cannot be read.
    func withRecord<Result>(
      _ place: TranslationFile.IndexPlace, _ body: (RawSpan) -> Result?
    ) -> Result? {
      if place.position < Self.pendingStart { return reader.withRecord(place, file, body) }
      return pending.withRecord(
        Int(place.position - Self.pendingStart), Int(place.size), body)
    }

    init(file: consuming TranslationFile, index: StoreIndex) {
      self.file = file
      self.index = index
    }

    mutating func flush() {
      if pending.entries.isEmpty || isFull { return }
      if let start = pending.withParts({ file.append($0, $1) }) {
        for entry in pending.entries {
          index.insert(
            TranslationFile.IndexPlace(
              name: entry.name, position: start + UInt64(entry.offset), size: UInt64(entry.size)))
        }
        pending.removeAll()
      } else {
        // They stay there for this run.
        isFull = true
      }
    }
  }
}

/// Records that are not in the file yet.
private final class PendingSegment {
  /// What makes a segment.
  private static let bytes = 1 << 20
  private let base = UnsafeMutableRawPointer.allocate(
    byteCount: bytes + KeptTranslation.mostBytes, alignment: 64)
  private(set) var used = 0
  private(set) var entries: [TranslationFile.IndexEntry] = []

  deinit { base.deallocate() }

  var next: UnsafeMutableRawPointer { base + used }
  var isFull: Bool { used >= Self.bytes }

  func add(_ name: UInt64, _ size: Int) {
    entries.append(
      TranslationFile.IndexEntry(
        name: name, offset: UInt32(used), size: UInt32(truncatingIfNeeded: size)))
    used += size
  }

  func withRecord<Result>(
    _ offset: Int, _ size: Int, _ body: (RawSpan) -> Result?
  ) -> Result? {
    guard offset >= 0, size >= 0, offset + size <= used else { return nil }
    return body(RawSpan(_unsafeStart: base + offset, byteCount: size))
  }

  /// Calls a function with index and records.
  func withParts<Result>(_ body: (RawSpan, RawSpan) -> Result) -> Result {
    let (entries, base) = (entries, base)
    return body(
      RawSpan(_elements: entries.span), RawSpan(_unsafeStart: base, byteCount: used))
  }

  func removeAll() {
    used = 0
    entries.removeAll(keepingCapacity: true)
  }
}

/// Reads records by windows of the file, of which some are remembered: what a guest does together
/// it does together in the next run, too, if not in the same order.
private final class RecordReader {
  private static let windowBits: UInt64 = 14
  private static let windowSize = 1 << Int(windowBits)
  private static let windowCount = 128
  private let windows = UnsafeMutableRawPointer.allocate(
    byteCount: windowCount * windowSize, alignment: 4096)
  /// Numbers of the windows that are there.
  private var numbers = [UInt64](repeating: .max, count: windowCount)
  /// Of a record that lies in several windows.
  private let record = UnsafeMutableRawBufferPointer.allocate(
    byteCount: KeptTranslation.mostBytes, alignment: 64)

  deinit {
    windows.deallocate()
    record.deallocate()
  }

  func withRecord<Result>(
    _ place: TranslationFile.IndexPlace, _ file: borrowing TranslationFile,
    _ body: (RawSpan) -> Result?
  ) -> Result? {
    let first = place.position >> Self.windowBits
    let last = (place.position + max(place.size, 1) - 1) >> Self.windowBits
    let size = Int(place.size)
    if first == last {
      guard let window = window(first, file) else { return nil }
      let offset = Int(place.position & UInt64(Self.windowSize - 1))
      return body(RawSpan(_unsafeStart: window + offset, byteCount: size))
    }
    guard size <= record.count else { return nil }
    var room = MutableRawSpan(_unsafeBytes: record[..<size])
    return file.read(into: &room, at: place.position) ? body(room.bytes) : nil
  }

  private func window(_ number: UInt64, _ file: borrowing TranslationFile) -> UnsafeRawPointer? {
    let slot = Int(number % UInt64(Self.windowCount))
    let start = windows + slot * Self.windowSize
    if numbers[slot] == number { return UnsafeRawPointer(start) }
    var room = MutableRawSpan(_unsafeStart: start, byteCount: Self.windowSize)
    let count = file.readSome(into: &room, at: number << Self.windowBits) ?? 0
    // The file's end may move: a window that is not whole is not remembered.
    numbers[slot] = count == Self.windowSize ? number : .max
    var rest = room.part(count...)
    rest.fill(0)
    return UnsafeRawPointer(start)
  }
}

/// Names and places of records: a table with open addressing.
private final class StoreIndex {
  private struct Slot {
    /// 0: none.
    var name: UInt64 = 0
    /// Position times 2^20, and size.
    var place: UInt64 = 0
  }

  private var slots: UnsafeMutablePointer<Slot>
  private var bits: UInt64 = 12
  private var count = 0
  /// Steps of a search at most: names are hashes of what guests have, and a guest may choose them.
  private static let steps = 32

  init() { slots = Self.allocate(12) }

  deinit { slots.deallocate() }

  private static func allocate(_ bits: UInt64) -> UnsafeMutablePointer<Slot> {
    let slots = UnsafeMutablePointer<Slot>.allocate(capacity: 1 << Int(bits))
    slots.initialize(repeating: Slot(), count: 1 << Int(bits))
    return slots
  }

  @inline(__always) private func slot(_ name: UInt64, _ step: Int) -> UnsafeMutablePointer<Slot> {
    let hash = (name &* 0x9E37_79B9_7F4A_7C15) &>> (64 &- bits)
    return slots + Int((hash &+ UInt64(step)) & (1 &<< bits &- 1))
  }

  func find(_ name: UInt64) -> TranslationFile.IndexPlace? {
    for step in 0..<Self.steps {
      let slot = slot(name, step)
      if slot.pointee.name == name {
        return TranslationFile.IndexPlace(
          name: name, position: slot.pointee.place &>> 20, size: slot.pointee.place & 0xF_FFFF)
      }
      if slot.pointee.name == 0 { return nil }
    }
    return nil
  }

  /// The place of a name becomes that one. Names that find no slot nearby are left out.
  func insert(_ place: TranslationFile.IndexPlace) {
    if place.name == 0 || place.position >= 1 << 44 || place.size >= 1 << 20 { return }
    if count &* 2 >= 1 &<< Int(bits) { grow() }
    for step in 0..<Self.steps {
      let slot = slot(place.name, step)
      if slot.pointee.name != 0 && slot.pointee.name != place.name { continue }
      if slot.pointee.name == 0 { count &+= 1 }
      slot.pointee = Slot(name: place.name, place: place.position &<< 20 | place.size)
      return
    }
  }

  /// Position of what turned out to be damaged.
  static let gone: UInt64 = 1

  /// Nothing is there any more; the slot stays taken, so that searches go past it.
  func remove(_ name: UInt64) {
    for step in 0..<Self.steps {
      let slot = slot(name, step)
      if slot.pointee.name == name {
        slot.pointee.place = Self.gone &<< 20
        return
      }
    }
  }

  private func grow() {
    let old = slots
    let capacity = 1 << Int(bits)
    bits += 1
    slots = Self.allocate(bits)
    count = 0
    for n in 0..<capacity where old[n].name != 0 {
      insert(
        TranslationFile.IndexPlace(
          name: old[n].name, position: old[n].place &>> 20, size: old[n].place & 0xF_FFFF))
    }
    old.deallocate()
  }
}
