// SPDX-License-Identifier: Apache-2.0
//
// Where a translator's code accesses guest memory, for signal handlers (X86CPU,
// PhysicalCPU+HostFault).

import X86CPU

struct FaultSiteTable {
  private(set) var sites = SiteArray<NativeFaultSite>()

  /// The sites of a translation that stands at `position` of the code memory, behind all others.
  mutating func append(_ translation: BlockTranslation, at position: Int) {
    for site in translation.faultSites {
      let target = translation.a.position(of: site.target)
      sites.append(
        NativeFaultSite(
          position: UInt32(truncatingIfNeeded: position + site.position),
          target: UInt32(truncatingIfNeeded: position + target)))
    }
  }

  /// The sites of a kept translation whose `start` is at `position`.
  mutating func append(_ translation: KeptTranslation, at position: Int) {
    for n in translation.faults.indices {
      let site = translation.faults[n]
      sites.append(
        NativeFaultSite(
          position: UInt32(truncatingIfNeeded: position + Int(site.position)),
          target: UInt32(truncatingIfNeeded: position + Int(site.target))))
    }
  }

  mutating func removeAll() { sites.removeAll() }

  func deallocate() { sites.deallocate() }
}
