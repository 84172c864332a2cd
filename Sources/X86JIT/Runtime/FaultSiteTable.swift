// SPDX-License-Identifier: Apache-2.0
//
// Where a translator's code accesses guest memory, for signal handlers (X86CPU,
// PhysicalCPU+HostFault). It grows at its end only, as code does.

import X86CPU

struct FaultSiteTable {
  private(set) var sites: UnsafeMutablePointer<NativeFaultSite>?
  private(set) var count = 0
  private var capacity = 0

  /// The sites of a translation that stands at `position` of the code memory, behind all others.
  mutating func append(_ translation: BlockTranslation, at position: Int) {
    let new = translation.faultSites
    if count + new.count > capacity { grow(count + new.count) }
    guard let sites else { return }
    for site in new {
      let target = translation.a.position(of: site.target)
      (sites + count).initialize(
        to: NativeFaultSite(
          position: UInt32(truncatingIfNeeded: position + site.position),
          target: UInt32(truncatingIfNeeded: position + target)))
      count += 1
    }
  }

  mutating func removeAll() { count = 0 }

  func deallocate() { sites?.deallocate() }

  /// The caller publishes the new place before anything faults: translated code does not run now.
  private mutating func grow(_ wanted: Int) {
    let new = UnsafeMutablePointer<NativeFaultSite>.allocate(capacity: max(2 * wanted, 1024))
    if let sites {
      new.update(from: sites, count: count)
      sites.deallocate()
    }
    sites = new
    capacity = max(2 * wanted, 1024)
  }
}
