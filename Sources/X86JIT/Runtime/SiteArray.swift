// SPDX-License-Identifier: Apache-2.0
//
// An array of plain values that others reach by its address: signal handlers, translated code. It grows
// at its end only, as code does.

struct SiteArray<Site> {
  private(set) var base: UnsafeMutablePointer<Site>?
  private(set) var count = 0
  private var capacity = 0

  /// May move the array: whoever knows its address is told the new one before translated code runs.
  mutating func append(_ site: Site) {
    if count == capacity { grow() }
    guard let base else { return }
    (base + count).initialize(to: site)
    count += 1
  }

  mutating func removeAll() { count = 0 }

  func deallocate() { base?.deallocate() }

  private mutating func grow() {
    capacity = max(2 * capacity, 1024)
    let new = UnsafeMutablePointer<Site>.allocate(capacity: capacity)
    if let base {
      new.update(from: base, count: count)
      base.deallocate()
    }
    base = new
  }
}
