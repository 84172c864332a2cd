// SPDX-License-Identifier: Apache-2.0
//
// The entries of translations: code that sets a translation's linear page and jumps to it. A
// program that is started again has its code at other linear pages, so entries are looked up and
// made by the thousand. The table is a cache: entries that it has evicted are made again.

import Glibc
import Host
import SystemPackage

/// Ways into translations, by the translation's address and the linear page: two to a set.
package struct EntryTable: ~Copyable {
  private struct Way {
    /// 0: none.
    var code: UInt = 0
    var page: UInt64 = 0
    var start: UInt = 0
    /// Makes a set a cache line.
    private var padding: UInt = 0

    init(code: UInt, page: UInt64, start: UInt) {
      self.code = code
      self.page = page
      self.start = start
    }
  }

  private static let setBits: UInt64 = 14
  private static let byteCount = (1 << Int(setBits)) * 2 * MemoryLayout<Way>.stride

  /// It is 0, and not there until it is touched.
  private let memory: Mapping
  private var ways: UnsafeMutablePointer<Way> {
    memory.address.assumingMemoryBound(to: Way.self)
  }

  package init() throws(Errno) { memory = try Mapping(anonymous: Self.byteCount) }

  @inline(__always) private func set(_ code: UInt, _ page: UInt64) -> UnsafeMutablePointer<Way> {
    let hash = ((UInt64(code) &+ page) &* 0x9E37_79B9_7F4A_7C15) >> (64 - Self.setBits)
    return ways + Int(hash) * 2
  }

  /// The way to a translation for a page, or 0.
  package func find(code: UInt, page: UInt64) -> UInt {
    let set = set(code, page)
    if set[0].code == code && set[0].page == page { return set[0].start }
    if set[1].code == code && set[1].page == page { return set[1].start }
    return 0
  }

  /// Forgets the older one of the set.
  package func add(code: UInt, page: UInt64, start: UInt) {
    let set = set(code, page)
    set[1] = set[0]
    set[0] = Way(code: code, page: page, start: start)
  }

  package func removeAll() { memset(ways, 0, Self.byteCount) }
}
