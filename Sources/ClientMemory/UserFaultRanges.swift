// SPDX-License-Identifier: Apache-2.0
//
// Memory of this process that the client supplies page by page (userfaultfd's missing mode): an
// access to a missing page waits until the client has supplied it. The code that intercepts the
// client's ioctls reports the ranges.
//
//     memory.userFaults.add(range, descriptor)      // after UFFDIO_REGISTER
//     memory.userFaults.remove(range)               // after UFFDIO_UNREGISTER

import Synchronization

package final class UserFaultRanges: Sendable {
  package init() {}

  private struct Entry: Sendable {
    var range: Range<UInt>
    var descriptor: Int32
  }

  private let entries = Mutex<[Entry]>([])
  private let count = Atomic<Int>(0)

  /// Reads one word.
  package var isEmpty: Bool { count.load(ordering: .acquiring) == 0 }

  package func add(_ range: Range<UInt>, _ descriptor: Int32) {
    if range.isEmpty { return }
    change { entries in
      Self.remove(range, &entries)
      entries.append(Entry(range: range, descriptor: descriptor))
    }
  }

  package func remove(_ range: Range<UInt>) {
    if !isEmpty { change { Self.remove(range, &$0) } }
  }

  /// A descriptor was closed: its memory is ordinary again.
  package func close(_ descriptor: Int32) {
    if !isEmpty { change { $0.removeAll { $0.descriptor == descriptor } } }
  }

  package func close(_ descriptors: ClosedRange<Int32>) {
    if !isEmpty { change { $0.removeAll { descriptors.contains($0.descriptor) } } }
  }

  package func overlaps(_ range: Range<UInt>) -> Bool {
    !isEmpty && entries.withLock { $0.contains { $0.range.overlaps(range) } }
  }

  private func change(_ body: (inout [Entry]) -> Void) {
    entries.withLock { entries in
      body(&entries)
      count.store(entries.count, ordering: .releasing)
    }
  }

  private static func remove(_ range: Range<UInt>, _ entries: inout [Entry]) {
    entries = entries.flatMap { entry -> [Entry] in
      guard entry.range.overlaps(range) else { return [entry] }
      let rest = [
        entry.range.lowerBound..<max(entry.range.lowerBound, range.lowerBound),
        min(entry.range.upperBound, range.upperBound)..<entry.range.upperBound,
      ]
      return rest.filter { !$0.isEmpty }.map { Entry(range: $0, descriptor: entry.descriptor) }
    }
  }
}
