// SPDX-License-Identifier: Apache-2.0
//
// Which memory of this process is shared memory of one mapping, so that parts of it can be mapped
// a second time. A signal's handler asks.

import Synchronization

package enum SharedRanges {
  private static let capacity = 8
  nonisolated(unsafe) private static let ranges: UnsafeMutablePointer<(start: UInt, size: Int)> = {
    let ranges = UnsafeMutablePointer<(start: UInt, size: Int)>.allocate(capacity: capacity)
    unsafe ranges.initialize(repeating: (0, 0), count: capacity)
    return unsafe ranges
  }()
  private static let count = Atomic<Int>(0)

  /// The range stays as long as the process lives. Ranges too many are left out.
  package static func add(_ start: UInt, _ size: Int) {
    let n = count.load(ordering: .relaxed)
    if n == capacity { return }
    unsafe ranges[n] = (start, size)
    count.store(n + 1, ordering: .releasing)
  }

  /// Whether all of a part is in one of them.
  package static func contain(_ start: UInt, _ size: Int) -> Bool {
    for n in 0..<count.load(ordering: .acquiring) {
      let range = unsafe ranges[n]
      let offset = start &- range.start
      if offset < UInt(range.size), UInt(range.size) - offset >= UInt(size) { return true }
    }
    return false
  }
}
