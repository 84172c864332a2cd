// SPDX-License-Identifier: Apache-2.0
//
// A slot's dirty log as a bitmap. The slot that owns it checks page indices.

import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// Which pages of a slot were written: one bit each, in words of 64 as in KVM_GET_DIRTY_LOG.
/// Sendable: guarded by the lock of its slots.
@safe final class DirtyBitmap: @unchecked Sendable {
  typealias Words = UnsafeMutableBufferPointer<UInt64>

  private let words: Words
  let pageCount: Int
  var wordCount: Int { unsafe words.count }

  /// - Parameter full: mark all pages as written.
  init(pages: Int, full: Bool) throws(Errno) {
    unsafe words = try unsafe Self.allocate((pages + 63) / 64)
    pageCount = pages
    guard full else { return }
    unsafe words.update(repeating: .max)
    if pages & 63 != 0, let last = unsafe words.indices.last {
      unsafe words[last] = 1 &<< UInt64(pages & 63) &- 1
    }
  }

  deinit { unsafe Self.free(words) }

  /// Zeroed words. The client chooses the size: without memory for them this fails, and pages are
  /// allocated only when written.
  static func allocate(_ count: Int) throws(Errno) -> Words {
    guard let memory = unsafe calloc(max(count, 1), 8) else { throw .noMemory }
    return unsafe Words(start: memory.bindMemory(to: UInt64.self, capacity: count), count: count)
  }

  static func free(_ words: Words) { unsafe Glibc.free(words.baseAddress) }

  func contains(_ page: Int) -> Bool {
    let word = page >> 6
    return unsafe words.indices.contains(word) && words[word] & (1 &<< UInt64(page & 63)) != 0
  }

  /// - Returns: whether the page was clean.
  func insert(_ page: Int) -> Bool {
    guard page >= 0, page < pageCount, !contains(page) else { return false }
    unsafe words[page >> 6] |= 1 &<< UInt64(page & 63)
    return true
  }

  /// Clears bits of a word; returns those that were set.
  func remove(word: Int, _ mask: UInt64) -> UInt64 {
    guard unsafe words.indices.contains(word) else { return 0 }
    let old = unsafe words[word] & mask
    unsafe words[word] &= ~mask
    return old
  }

  /// Copies everything to as many words.
  func copy(to target: Words) {
    for word in unsafe 0..<min(target.count, words.count) { unsafe target[word] = words[word] }
  }
}
