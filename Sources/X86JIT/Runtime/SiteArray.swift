// SPDX-License-Identifier: Apache-2.0
//
// An array of plain values that others reach by its address: signal handlers, translated code. It
// grows at its end only, as code does.

import Glibc
import Host

struct SiteArray<Site> {
  private(set) var base: UnsafeMutablePointer<Site>?
  private(set) var count = 0
  private var capacity = 0

  /// May move the array: its users get the new address before translated code runs.
  mutating func append(_ site: Site) {
    if count == capacity { grow() }
    guard let base else { return }
    (base + count).initialize(to: site)
    count += 1
  }

  mutating func removeAll() { count = 0 }

  func deallocate() { if let base { UnsafeMutableRawPointer(base).deallocate() } }

  /// In huge pages if it is large, because accesses are random.
  private static func allocate(_ capacity: Int) -> UnsafeMutablePointer<Site> {
    let bytes = capacity * MemoryLayout<Site>.stride
    let isLarge = bytes >= Mapping.hugePageSize
    let new = UnsafeMutableRawPointer.allocate(
      byteCount: bytes, alignment: isLarge ? Mapping.hugePageSize : 64)
    if isLarge { madvise(new, bytes & ~(Mapping.hugePageSize - 1), MADV_HUGEPAGE) }
    return new.bindMemory(to: Site.self, capacity: capacity)
  }

  private mutating func grow() {
    capacity = max(2 * capacity, 1024)
    let new = Self.allocate(capacity)
    if let base {
      new.update(from: base, count: count)
      UnsafeMutableRawPointer(base).deallocate()
    }
    base = new
  }
}
