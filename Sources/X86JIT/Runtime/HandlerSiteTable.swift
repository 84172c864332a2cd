// SPDX-License-Identifier: Apache-2.0
//
// What translations leave to handlers: a number in the code stands for micro-op, what the call needs to
// know and where to go on. It grows at its end only, as code does.

import X86CPU

struct HandlerSiteTable {
  private(set) var sites: UnsafeMutablePointer<NativeHandlerSite>?
  private(set) var count = 0
  private var capacity = 0

  /// The sites of a translation that is placed at `address`; their first number is `count`.
  mutating func append(_ translation: BlockTranslation, at address: UInt) {
    let new = translation.handlerSites
    if count + new.count > capacity { grow(count + new.count) }
    guard let sites else { return }
    for site in new {
      let back = site.back.map { address + UInt(translation.a.position(of: $0)) } ?? 0
      (sites + count).initialize(
        to: NativeHandlerSite(op: site.op, back: UInt64(back), information: site.information))
      count += 1
    }
  }

  mutating func removeAll() { count = 0 }

  func deallocate() { sites?.deallocate() }

  /// The caller publishes the new place: translated code does not run now.
  private mutating func grow(_ wanted: Int) {
    let new = UnsafeMutablePointer<NativeHandlerSite>.allocate(capacity: max(2 * wanted, 1024))
    if let sites {
      new.update(from: sites, count: count)
      sites.deallocate()
    }
    sites = new
    capacity = max(2 * wanted, 1024)
  }
}
