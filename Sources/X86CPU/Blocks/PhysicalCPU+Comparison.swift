// SPDX-License-Identifier: Apache-2.0
//
// Code pages that others may write undetected: the CPU copies each page before it decodes its first
// block. When contents may have changed, it drops all links to code, and the first new link into a
// page compares the page with its copy; if they differ, the page's code is dropped.

import Host
import Synchronization
import X86

#if canImport(Glibc)
  import Glibc
#endif

/// A CPU's copy of a page with decoded code.
struct CodeCopy {
  /// nil: no undetected writes are possible.
  var bytes: UnsafeMutableRawPointer?
  /// `PhysicalCPU.comparison` at the last comparison.
  var comparison: UInt64
}

extension PhysicalCPU {
  /// Contents may have changed: drops all links to code, so that new ones go through `compareCode`.
  package func beginComparison() {
    if !blocks.hasCopies { return }
    comparison &+= 1
    newJumpEpoch()
    cpu.updateBlockContext()
  }

  /// Called before code of a page is entered from outside the page.
  @inline(__always) func compareCode(_ page: UInt64) {
    if blocks.hasCopies { compareCopy(page) }
  }

  @inline(never) private func compareCopy(_ page: UInt64) {
    guard let known = blocks.copies[page], known.comparison != comparison,
      let bytes = known.bytes, let now = UnsafeRawPointer(bitPattern: UInt(page))
    else { return }
    // A vanished page counts as different; decoding from it then fails.
    let size = Int(Page.size)
    if GuardedCopy.copy(from: now, to: bounce, count: size), memcmp(bounce, bytes, size) == 0 {
      blocks.copies[page]?.comparison = comparison
    } else {
      blocks.drop(page: page)
    }
  }

  /// Called after a page was marked, before anything is decoded from it.
  func keepCopy(_ page: UInt64) {
    if blocks.copies[page] != nil { return }
    guard let watch = CodePages.shared.watch else { return }
    var copy = CodeCopy(bytes: nil, comparison: comparison)
    if watch.needsComparison(page), let now = UnsafeRawPointer(bitPattern: UInt(page)) {
      let bytes = UnsafeMutableRawPointer.allocate(byteCount: Int(Page.size), alignment: 64)
      // If the page has vanished, decoding from it fails later.
      _ = GuardedCopy.copy(from: now, to: bytes, count: Int(Page.size))
      copy.bytes = bytes
      CodePages.shared.copies.add(1, ordering: .relaxed)
      blocks.hasCopies = true
    }
    blocks.copies[page] = copy
  }
}

extension BlockCache {
  /// A page's code was dropped.
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
