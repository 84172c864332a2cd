// SPDX-License-Identifier: Apache-2.0
//
// Handler calls of translations: a number in the code stands for the micro-op, the information for
// the call and the address of the return.

import X86CPU

struct HandlerSiteTable {
  private(set) var sites = SiteArray<NativeHandlerSite>()

  /// The sites of a translation that is placed at `address`; their first number is the array's
  /// count.
  mutating func append(_ translation: BlockTranslation, at address: UInt) {
    for site in translation.handlerSites {
      let back = site.back.map { address + UInt(translation.a.position(of: $0)) } ?? 0
      sites.append(
        NativeHandlerSite(op: site.op, back: UInt64(back), information: site.information))
    }
  }

  /// The sites of a kept translation whose `start` is at `address`.
  mutating func append(
    _ translation: KeptTranslation, _ ops: (UInt8) -> MicroOpPointer, at address: UInt
  ) {
    for n in translation.sites.indices {
      let site = translation.sites[n]
      sites.append(
        NativeHandlerSite(
          op: ops(site.block) + Int(site.op),
          back: site.back == 0 ? 0 : UInt64(address) + UInt64(site.back),
          information: site.information))
    }
  }

  mutating func removeAll() { sites.removeAll() }

  func deallocate() { sites.deallocate() }
}
