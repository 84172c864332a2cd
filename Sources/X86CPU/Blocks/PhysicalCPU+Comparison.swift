// SPDX-License-Identifier: Apache-2.0
//
// Pages with code that somebody may write to undetected: a copy of each is kept from before its
// first block is decoded. When contents may have changed, all links to code are dropped, and the
// first new one into a page compares it with its copy; a page that differs loses its code.

import Host
import Synchronization
import X86

#if canImport(Glibc)
  import Glibc
#endif

/// What a CPU knows of the contents of a page that it has code of.
struct CodeCopy {
  /// nil: nobody writes to the page unseen.
  var bytes: UnsafeMutableRawPointer?
  /// `PhysicalCPU.comparison` when it was last compared.
  var comparison: UInt64
}

extension PhysicalCPU {
  /// Contents may have changed: every way to code is found anew, by `compareCode`.
  package func beginComparison() {
    if !blocks.hasCopies { return }
    comparison &+= 1
    newJumpEpoch()
    cpu.updateBlockContext()
  }

  /// Before code of a page is entered otherwise than from the page itself.
  @inline(__always) func compareCode(_ page: UInt64) {
    if blocks.hasCopies { compareCopy(page) }
  }

  @inline(never) private func compareCopy(_ page: UInt64) {
    guard let known = blocks.copies[page], known.comparison != comparison,
      let bytes = known.bytes, let now = UnsafeRawPointer(bitPattern: UInt(page))
    else { return }
    // A page that has gone is different: who decodes from it finds out.
    let size = Int(Page.size)
    if GuardedCopy.copy(from: now, to: bounce, count: size), memcmp(bounce, bytes, size) == 0 {
      blocks.copies[page]?.comparison = comparison
    } else {
      blocks.drop(page: page)
    }
  }

  /// After a page was marked, before anything is decoded from it.
  func keepCopy(_ page: UInt64) {
    if blocks.copies[page] != nil { return }
    guard let watch = CodePages.shared.watch else { return }
    var copy = CodeCopy(bytes: nil, comparison: comparison)
    if watch.needsComparison(page), let now = UnsafeRawPointer(bitPattern: UInt(page)) {
      let bytes = UnsafeMutableRawPointer.allocate(byteCount: Int(Page.size), alignment: 64)
      // Where the page has gone, whoever decodes it finds out.
      _ = GuardedCopy.copy(from: now, to: bytes, count: Int(Page.size))
      copy.bytes = bytes
      CodePages.shared.copies.add(1, ordering: .relaxed)
      blocks.hasCopies = true
    }
    blocks.copies[page] = copy
  }
}

extension BlockCache {
  /// A page has no code any more.
  func dropCopy(_ page: UInt64) {
    if copies.isEmpty { return }
    if let copy = copies.removeValue(forKey: page) { Self.free(copy) }
  }

  func dropCopies() {
    for copy in copies.values { Self.free(copy) }
    copies.removeAll(keepingCapacity: true)
    hasCopies = false
  }

  private static func free(_ copy: CodeCopy) {
    guard let bytes = copy.bytes else { return }
    bytes.deallocate()
    CodePages.shared.copies.subtract(1, ordering: .relaxed)
  }
}
