// SPDX-License-Identifier: Apache-2.0
//
// A counter for what several threads of a test report.

import Synchronization

/// A number that threads of a test share.
package final class SharedNumber: Sendable {
  private let storage = Atomic<Int>(0)
  package init() {}

  package var value: Int {
    get { storage.load(ordering: .acquiring) }
    set { storage.store(newValue, ordering: .releasing) }
  }
}
