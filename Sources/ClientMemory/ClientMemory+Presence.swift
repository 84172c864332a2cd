// SPDX-License-Identifier: Apache-2.0
//
// Pages whose access would wait: those that the client has not supplied yet (userfaultfd), and
// swapped-out ones.

extension ClientMemory {
  private static let pageSize: UInt = 4096

  /// Whether pages of a range may be absent.
  package func mayWait(_ range: Range<UInt>) -> Bool {
    PagePresence.mayBeSwapped || userFaults.overlaps(range)
  }

  /// Calls `body` with the index, in the range, of each page whose access would wait.
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
