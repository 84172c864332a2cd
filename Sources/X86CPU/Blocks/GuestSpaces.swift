// SPDX-License-Identifier: Apache-2.0
//
// Which memory of this process the guests may have, as far as their owners say. A guest is known by
// the address of its top EPT table.
//
//     GuestSpaces.shared.add(root) { page in slots.contain(page) }
//
// An owner says of a page that its guest may have it before an EPT entry names it, and until the
// guest has been outside after the last such entry went.

import Synchronization

package final class GuestSpaces: Sendable {
  package static let shared = GuestSpaces()

  private let owners = Mutex<[UInt64: @Sendable (UInt64) -> Bool]>([:])

  /// - Parameter mayHave: takes a host page, from any thread, and waits for nobody.
  package func add(_ root: UInt64, _ mayHave: @escaping @Sendable (UInt64) -> Bool) {
    owners.withLock { $0[root] = mayHave }
  }

  package func remove(_ root: UInt64) {
    owners.withLock { _ = $0.removeValue(forKey: root) }
  }

  /// Whether a guest may have a host page: also where nobody has said.
  func mayHave(_ page: UInt64, _ root: UInt64) -> Bool {
    guard let owner = owners.withLock({ $0[root] }) else { return true }
    return owner(page)
  }
}
