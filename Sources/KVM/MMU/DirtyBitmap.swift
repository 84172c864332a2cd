// SPDX-License-Identifier: Apache-2.0
//
// A slot's dirty log as a bitmap. The slot that owns it checks page indices.

import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// Words of 64 pages each, which are 0 at first. How many it is the client who says: where there is
/// no memory for them, that is an error, and memory is taken for those that are written to.
@safe struct DirtyWords: ~Copyable {
  private let start: UnsafeMutablePointer<UInt64>
  let count: Int

  init(count: Int) throws(Errno) {
    guard let memory = unsafe calloc(max(count, 1), 8) else { throw .noMemory }
    unsafe start = memory.bindMemory(to: UInt64.self, capacity: count)
    self.count = count
  }

  deinit { unsafe free(start) }

  /// A word that is not there is 0, and stays so.
  subscript(_ word: Int) -> UInt64 {
    get { word >= 0 && word < count ? unsafe start[word] : 0 }
    set { if word >= 0 && word < count { unsafe start[word] = newValue } }
  }

  /// As KVM_GET_DIRTY_LOG gives them.
  func withBytes<Result>(_ body: (RawSpan) throws(Errno) -> Result) throws(Errno) -> Result {
    try unsafe body(RawSpan(_unsafeStart: start, byteCount: count * 8))
  }

  mutating func withMutableBytes<Result>(
    _ body: (inout MutableRawSpan) throws(Errno) -> Result
  ) throws(Errno) -> Result {
    var bytes = unsafe MutableRawSpan(_unsafeStart: start, byteCount: count * 8)
    return try body(&bytes)
  }
}

/// Which pages of a slot were written. Guarded by the lock of the slots that it belongs to.
/// Sendable: guarded by the lock of the slots.
final class DirtyBitmap: @unchecked Sendable {
  private var words: DirtyWords
  let pageCount: Int
  var wordCount: Int { words.count }

  /// - Parameter full: mark all pages as written.
  init(pages: Int, full: Bool) throws(Errno) {
    words = try DirtyWords(count: (pages + 63) / 64)
    pageCount = pages
    guard full else { return }
    for word in 0..<words.count { words[word] = .max }
    if pages & 63 != 0 { words[words.count &- 1] = 1 &<< UInt64(pages & 63) &- 1 }
  }

  func contains(_ page: Int) -> Bool { words[page >> 6] & (1 &<< UInt64(page & 63)) != 0 }

  /// - Returns: whether the page was clean.
  func insert(_ page: Int) -> Bool {
    guard page >= 0, page < pageCount, !contains(page) else { return false }
    words[page >> 6] |= 1 &<< UInt64(page & 63)
    return true
  }

  /// Clears bits of a word; returns those that were set.
  func remove(word: Int, _ mask: UInt64) -> UInt64 {
    let old = words[word] & mask
    words[word] &= ~mask
    return old
  }

  /// Copies everything to as many words.
  func copy(to target: inout DirtyWords) {
    for word in 0..<min(target.count, words.count) { target[word] = words[word] }
  }
}
