// SPDX-License-Identifier: Apache-2.0
//
// The structs of the KVM API that have no fixed size: how many entries there are, padding, and the
// entries.
//
//     var list = EntryList(entries)
//     _ = try list.call { (argument) throws(Errno) in
//       try transport.ioctl(handle, CKVM_SET_CPUID2, argument)
//     }

import Host
import SystemPackage

/// The argument of an ioctl: a struct with entries, which are structs of the kernel.
struct EntryList<Entry> {
  private var words: [UInt64]
  private let capacity: Int
  private let headerSize: Int

  /// A list for the kernel to fill.
  ///
  /// - Parameter headerSize: bytes of the struct before its first entry.
  init(capacity: Int, headerSize: Int = 8) {
    let size = headerSize + capacity * MemoryLayout<Entry>.stride
    words = [UInt64](repeating: 0, count: (size + 7) / 8)
    self.capacity = capacity
    self.headerSize = headerSize
    store(UInt32(truncatingIfNeeded: capacity), at: 0)
  }

  init(_ entries: [Entry]) {
    self.init(capacity: entries.count)
    for n in entries.indices { store(entries[n], at: offset(n)) }
  }

  private func offset(_ n: Int) -> Int { headerSize + n * MemoryLayout<Entry>.stride }

  /// Swift does not see of structs with unions that they are plain bytes.
  private mutating func store<Value>(_ value: Value, at offset: Int) {
    unsafe words.withUnsafeMutableBytes {
      unsafe $0.storeBytes(of: value, toByteOffset: offset, as: Value.self)
    }
  }

  /// Calls an ioctl with the struct's address.
  mutating func call(_ body: (UInt) throws(Errno) -> Int32) throws(Errno) -> Int32 {
    try unsafe words.withUnsafeMutableBufferPointer { (words) throws(Errno) in
      try body(UInt(bitPattern: words.baseAddress))
    }
  }

  /// The entries that there are now, of those that there is room for.
  var entries: [Entry] {
    let bytes = RawSpan(_elements: words.span)
    let count = min(Int(bytes.load(UInt32.self, at: 0) ?? 0), capacity)
    var entries: [Entry] = []
    for n in 0..<count {
      unsafe entries.append(bytes.unsafeLoad(fromByteOffset: offset(n), as: Entry.self))
    }
    return entries
  }

  /// The entries of a list that the kernel fills, with as much room as it wants.
  ///
  /// - Parameters:
  ///   - capacity: what to begin with.
  ///   - limit: where that is not enough, the kernel's error stands.
  static func read(
    capacity: Int, limit: Int, headerSize: Int = 8, _ body: (UInt) throws(Errno) -> Int32
  ) throws(Errno) -> [Entry] {
    var capacity = capacity
    while true {
      var list = Self(capacity: capacity, headerSize: headerSize)
      do throws(Errno) {
        _ = try list.call(body)
        return list.entries
      } catch {
        guard error == .argListTooLong, capacity < limit else { throw error }
        capacity *= 2
      }
    }
  }
}
