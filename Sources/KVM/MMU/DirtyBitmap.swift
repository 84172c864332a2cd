// SPDX-License-Identifier: Apache-2.0

/// Which pages of a slot were written: one bit each, in words of 64 as KVM_GET_DIRTY_LOG gives them.
/// Guarded by the lock of the slots that it belongs to.
final class DirtyBitmap: @unchecked Sendable {
  private(set) var words: [UInt64]
  let pageCount: Int

  /// - Parameter full: all pages count as written.
  init(pages: Int, full: Bool) {
    pageCount = pages
    words = Array(repeating: full ? .max : 0, count: (pages + 63) / 64)
    if full, pages & 63 != 0, let last = words.indices.last {
      words[last] = 1 &<< UInt64(pages & 63) &- 1
    }
  }

  func contains(_ page: Int) -> Bool {
    let word = page >> 6
    return words.indices.contains(word) && words[word] & (1 &<< UInt64(page & 63)) != 0
  }

  /// - Returns: whether the page was clean.
  func insert(_ page: Int) -> Bool {
    guard page >= 0, page < pageCount, !contains(page) else { return false }
    words[page >> 6] |= 1 &<< UInt64(page & 63)
    return true
  }

  /// Takes bits of a word out; returns those that were set.
  func remove(word: Int, _ mask: UInt64) -> UInt64 {
    guard words.indices.contains(word) else { return 0 }
    let old = words[word] & mask
    words[word] &= ~mask
    return old
  }
}
