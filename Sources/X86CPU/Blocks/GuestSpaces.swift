// SPDX-License-Identifier: Apache-2.0
//
// Which memory of this process guests may have, according to their owners. A guest is identified by
// the address of its top EPT table.
//
//     GuestSpaces.shared.add(root) { page in slots.contain(page) }
//
// An owner reports a page as its guest's before an EPT entry maps it, and until the guest has been
// outside guest code after the last such entry was removed.

import Synchronization

package final class GuestSpaces: Sendable {
  package static let shared = GuestSpaces()

  private let owners = Mutex<[UInt64: @Sendable (UInt64) -> Bool]>([:])

  /// - Parameter mayHave: takes a host page; called from any thread, must not wait.
  package func add(_ root: UInt64, _ mayHave: @escaping @Sendable (UInt64) -> Bool) {
    owners.withLock { $0[root] = mayHave }
  }

  package func remove(_ root: UInt64) {
    owners.withLock { _ = $0.removeValue(forKey: root) }
  }

  /// Whether a guest may have a host page; true if its owner is unknown.
  func mayHave(_ page: UInt64, _ root: UInt64) -> Bool {
    guard let owner = owners.withLock({ $0[root] }) else { return true }
    return owner(page)
  }
}
