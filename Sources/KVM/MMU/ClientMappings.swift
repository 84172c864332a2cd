// SPDX-License-Identifier: Apache-2.0
//
// The lowest and highest address of any slot's memory, for the code that intercepts the client's
// mmap: it reads two words, because most calls concern no slot.

import Host
import Synchronization

package enum ClientMappings {
  /// Signed, as `min` compares so; addresses have 47 bits.
  private static let lowest = Atomic<Int>(.max)
  private static let highest = Atomic<Int>(0)

  /// Whether a slot's memory may lie in the range.
  package static func mayConcern(_ address: UInt, _ length: UInt) -> Bool {
    let end = Int(clamping: address.addingReportingOverflow(length).partialValue)
    return Int(clamping: address) < highest.load(ordering: .acquiring)
      && end > lowest.load(ordering: .acquiring)
  }

  /// What lies between the first slot's memory and the last one's.
  static func part(of range: Range<UInt>) -> Range<UInt> {
    let end = UInt(clamping: highest.load(ordering: .acquiring))
    let start = UInt(clamping: lowest.load(ordering: .acquiring))
    return range.clamped(to: min(start, end)..<end)
  }

  package static var areSlots: Bool { highest.load(ordering: .acquiring) != 0 }

  /// A mapping of this process changed that concerns no slot.
  package static func changed() {
    if areSlots { HostMemoryMap.shared.changed() }
  }

  /// A slot names this memory.
  static func note(_ range: Range<UInt>) {
    lowest.min(Int(clamping: range.lowerBound), ordering: .acquiringAndReleasing)
    highest.max(Int(clamping: range.upperBound), ordering: .acquiringAndReleasing)
  }
}
