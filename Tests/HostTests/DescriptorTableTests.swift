// SPDX-License-Identifier: Apache-2.0
//
// The table of descriptors: what a number stands for goes exactly once, when its last
// descriptor does, also with threads that close and replace the same numbers.

import Host
import HostTestSupport
import Synchronization
import TestRandom
import Testing

/// Counts those that are there.
private final class Counted: Sendable {
  private let count: Count
  final class Count: Sendable { let value = Atomic<Int>(0) }

  private init(_ count: Count) {
    self.count = count
    count.value.add(1, ordering: .relaxed)
  }

  deinit { count.value.subtract(1, ordering: .relaxed) }

  static func file(_ node: UInt, _ count: Count) -> DescribedFile {
    DescribedFile(FileIdentity(device: 1, node: node), Counted(count))
  }
}

@Suite struct DescriptorTableTests {
  private static let last: Int32 = 1 << 20 - 1

  @Test func aFileGoesWithItsLastDescriptor() {
    let table = DescriptorTable()
    let count = Counted.Count()
    table.add(5, Counted.file(1, count))
    table.duplicate(5, as: 6)
    table.duplicate(7, as: 8)
    #expect(table.mayHold(5) && table.mayHold(6) && !table.mayHold(7) && !table.mayHold(8))
    #expect(table.held(5) === table.held(6))
    table.remove(5)
    #expect(table.held(5) == nil && count.value.load(ordering: .relaxed) == 1)
    #expect(table.file(FileIdentity(device: 1, node: 1)) != nil)
    // A descriptor that is used again.
    table.add(6, Counted.file(2, count))
    #expect(count.value.load(ordering: .relaxed) == 1)
    #expect(table.file(FileIdentity(device: 1, node: 1)) == nil)
    table.remove(0...6)
    #expect(!table.mayHold(6) && count.value.load(ordering: .relaxed) == 0)
  }

  @Test func numbersBeyondTheTableShareAPlace() {
    let table = DescriptorTable()
    let count = Counted.Count()
    for number in [Self.last, Self.last + 7, .max] { table.add(number, Counted.file(1, count)) }
    table.remove(Self.last + 7)
    #expect(table.held(Self.last + 7) == nil && table.held(.max) != nil)
    table.setEvent(.max, true)
    table.setEvent(Self.last + 1, false)
    #expect(table.mayBeEvent(.max))
    #expect(!table.mayHold(-1) || table.held(-1) == nil)
    table.remove(0 ... .max)
    #expect(count.value.load(ordering: .relaxed) == 0)
  }

  @Test func eventsAreTakenOnce() {
    let table = DescriptorTable()
    #expect(!table.takeEvents(0...100))
    table.setEvent(3, true)
    #expect(table.mayBeEvent(3) && !table.mayBeEvent(-1) && !table.mayHold(3))
    #expect(!table.takeEvents(4...100) && table.takeEvents(0...3) && !table.takeEvents(0...3))
  }

  /// Threads use the same few numbers at once.
  @Test func threads() throws {
    let table = DescriptorTable()
    let count = Counted.Count()
    try HostThread.all(4) { thread in
      var random = SplitMix(seed: UInt64(thread))
      for _ in 0..<5000 {
        let number = Int32(random.below(8))
        switch random.below(8) {
        case 0, 1: table.add(number, Counted.file(UInt(random.below(4)), count))
        case 2, 3: table.remove(number)
        case 4: table.duplicate(number, as: Int32(random.below(8)))
        case 5: table.remove(number...7)
        case 6: if let file = table.held(number) { table.add(number, file) }
        default:
          table.setEvent(number, random.oneIn(2))
          _ = table.takeEvents(number...7)
          _ = table.file(FileIdentity(device: 1, node: UInt(number)))
        }
      }
    }
    table.remove(0...7)
    for number in 0..<8 as Range<Int32> { #expect(table.held(number) == nil) }
    #expect(count.value.load(ordering: .relaxed) == 0)
  }
}
