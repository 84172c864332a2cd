// SPDX-License-Identifier: Apache-2.0
//
// Pages that a guest would have to wait for: those that the client has not brought in yet
// (userfaultfd), and swapped-out ones. For guests with asynchronous page faults, a machine maps
// only present pages, page by page if some are missing, so that the first touch of any other exits.
// The guest waits for pages that are swapped out later.
//
// Other machines, and those whose memory is always present, do none of this.

import ClientMemory
import Host
import Synchronization
import X86

/// Which of the 512 pages around an address are present.
struct PresentPages: Sendable {
  var words = InlineArray<8, UInt64>(repeating: 0)

  static let everything = PresentPages(words: InlineArray(repeating: .max))

  /// Number of a page in its 2 MiB.
  static func index(_ address: UInt64) -> Int { Int((address >> 12) & 511) }

  func contains(_ index: Int) -> Bool { words[index >> 6] & (1 &<< UInt64(index & 63)) != 0 }

  mutating func set(_ index: Int, _ isPresent: Bool) {
    let bit: UInt64 = 1 &<< UInt64(index & 63)
    if isPresent { words[index >> 6] |= bit } else { words[index >> 6] &= ~bit }
  }

  var isEverything: Bool { words.indices.allSatisfy { words[$0] == .max } }
}

extension MachineMemory {
  private static let regionSize: UInt64 = 2 << 20

  /// Whether any slot's memory may be absent.
  var mayWait: Bool { withSlots { $0.ordered.contains { client.mayWait($0.hostRange) } } }

  /// The pages of a slot in the 2 MiB around a guest-physical address that can be accessed without
  /// waiting; nil if all memory of the slot can, or presence is not watched.
  func presentPages(
    _ address: UInt64, _ slot: MemorySlot, _ area: HostMemoryMap.Area
  ) -> PresentPages? {
    guard watchesPresence.load(ordering: .relaxed), client.mayWait(slot.hostRange) else {
      return nil
    }
    let region = address & ~(Self.regionSize &- 1)
    let first = max(region, slot.base)
    let end = min(region &+ Self.regionSize, slot.end)
    let mapped = (first &+ slot.offset..<end &+ slot.offset).clamped(to: area.range)
    if mapped.isEmpty { return nil }
    let host = UInt(mapped.lowerBound)..<UInt(mapped.upperBound)
    var pages = PresentPages.everything
    let index = PresentPages.index(mapped.lowerBound &- slot.offset)
    client.forEachAbsentPage(of: host) { pages.set(index &+ $0, false) }
    return pages
  }
}

extension Machine {
  /// Starts asynchronous page faults for a guest of the machine.
  func watchPresence() {
    let was = memory.watchesPresence.exchange(true, ordering: .sequentiallyConsistent)
    if !was, memory.mayWait { forgetMappings() }
  }

  /// Has all mappings rebuilt.
  func forgetMappings() {
    withGuestsStopped(until: HostClock.monotonic() &+ Self.patience) {
      memory.withMappingsChanging {}
    }
  }
}
