// SPDX-License-Identifier: Apache-2.0
//
// Pages for which an access would wait: those that the client has not brought yet (userfaultfd),
// and those that are swapped out.

extension ClientMemory {
  private static let pageSize: UInt = 4096

  /// Whether a part of a range may have to be waited for.
  package func mayWait(_ range: Range<UInt>) -> Bool {
    PagePresence.mayBeSwapped || userFaults.overlaps(range)
  }

  /// Calls `body` with the number, in the range, of each page for which an access would wait.
  package func forEachAbsentPage(of range: Range<UInt>, _ body: (Int) -> Void) {
    if userFaults.overlaps(range), let resident = PagePresence.resident(range) {
      for (number, isResident) in resident.enumerated() where !isResident {
        let page = range.lowerBound &+ UInt(truncatingIfNeeded: number) &* Self.pageSize
        if userFaults.overlaps(page..<(page &+ Self.pageSize)) { body(number) }
      }
    }
    if PagePresence.mayBeSwapped, let swapped = PagePresence.swapped(range) {
      for (number, isSwapped) in swapped.enumerated() where isSwapped { body(number) }
    }
  }
}
