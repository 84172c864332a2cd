// SPDX-License-Identifier: Apache-2.0
//
// The device's side of virtio's split queue, against a driver's in guest memory. Rings that lie
// end with an error; nothing is read or written outside of memory.

import Devices
import GuestMemory
import TestRandom
import Testing

/// A queue in the hands of a device.
private final class Ring {
  private var queue: SplitQueue
  private let memory: GuestMemory

  init(_ place: QueuePlace, _ features: UInt64, _ memory: GuestMemory) throws {
    queue = try #require(SplitQueue(place, features: features, memory))
    self.memory = memory
  }

  func pop() throws(QueueError) -> DescriptorChain? { try queue.pop(memory) }
  func push(_ chain: DescriptorChain, written: UInt32 = 0) throws(QueueError) -> Bool {
    try queue.push(chain.head, written: written, memory)
  }
  func askForNotification() throws(QueueError) -> Bool { try queue.askForNotification(memory) }
}

@Suite struct SplitQueueTests {
  static let all = VirtioFeature.indirectDescriptors | VirtioFeature.eventIndex
  let memory: GuestMemory
  var driver: TestQueue

  init() throws {
    memory = try GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
    driver = TestQueue(memory, at: 0x1_0000, size: 8)
  }

  private func queue(_ features: UInt64 = all) throws -> Ring {
    try Ring(driver.place, features, memory)
  }

  @Test mutating func chainsComeInOrderAndGoBack() throws {
    let queue = try queue()
    for round in 0..<20 as Range<UInt64> {
      let head = driver.add([
        .init(address: 0x2_0000, count: 16), .init(address: 0x3_0000, count: 3),
        .init(address: 0x4_0000 + round, count: 512, isWritable: true),
      ])
      let chain = try #require(try queue.pop())
      #expect(chain.head == head && chain.readable.count == 19 && chain.writable.count == 512)
      #expect(try queue.pop() == nil)
      _ = try queue.push(chain, written: 5)
      let used = driver.takeUsed()
      #expect(used.count == 1 && used[0] == (UInt32(head), 5))
    }
  }

  @Test mutating func tablesOfDescriptorsAreFollowed() throws {
    let queue = try queue()
    let table = (0..<20).map {
      TestQueue.Buffer(address: 0x2_0000 + UInt64($0), count: 1, isWritable: $0 > 9)
    }
    driver.add(table, table: 0x5_0000)
    let chain = try #require(try queue.pop())
    #expect(chain.readable.count == 10 && chain.writable.count == 10)
    let without = try self.queue(0)
    #expect(throws: QueueError.badIndirectTable) { try without.pop() }
  }

  /// An interrupt comes when the counter passes the driver's event, and not before.
  @Test mutating func theEventIndexSavesInterrupts() throws {
    let queue = try queue()
    let event = driver.place.driver + 4 + 8 * 2
    driver.put(UInt16(2), at: event)
    var wanted: [Bool] = []
    for _ in 0..<5 {
      driver.add([.init(address: 0, count: 1)])
      let chain = try #require(try queue.pop())
      wanted.append(try queue.push(chain))
    }
    #expect(wanted == [false, false, true, false, false])
  }

  @Test mutating func theFlagSavesInterrupts() throws {
    let queue = try queue(0)
    for flag in [0, 1, 0] as [UInt16] {
      driver.put(flag, at: driver.place.driver)
      driver.add([.init(address: 0, count: 1)])
      let chain = try #require(try queue.pop())
      #expect(try queue.push(chain) == (flag == 0))
    }
  }

  /// The device says which chain it wants to be notified of.
  @Test mutating func anEmptyQueueAsksForNotification() throws {
    let queue = try queue()
    let event = driver.place.device + 4 + 8 * 8
    driver.add([.init(address: 0, count: 1)])
    #expect(try queue.pop() != nil)
    #expect(try queue.pop() == nil && driver.get(UInt16.self, at: event) == 1)
    driver.add([.init(address: 0, count: 1)])
    #expect(try queue.askForNotification())
  }

  // MARK: Drivers that lie

  private func failure(_ prepare: (inout TestQueue) -> Void) throws -> QueueError? {
    var driver = driver
    let queue = try queue()
    prepare(&driver)
    do throws(QueueError) {
      _ = try queue.pop()
      return nil
    } catch {
      return error
    }
  }

  @Test func addressesOutsideOfMemory() throws {
    for (address, count) in [(0xF_FFFF, 2), (1 << 20, 1), (.max, 1), (0, .max)]
      as [(UInt64, UInt32)]
    {
      let error = try failure { $0.add([.init(address: address, count: count)]) }
      #expect(error == .outsideMemory(address))
      if address == 0 { continue }
      #expect(
        try Self().failure {
          $0.describe(0, .init(address: address, count: 16), flags: SplitQueueLayout.indirect)
          $0.offer(0)
        } != nil)
    }
  }

  @Test func chainsWithoutEnd() throws {
    #expect(
      try failure {
        $0.describe(0, .init(address: 0, count: 1), flags: SplitQueueLayout.next, next: 0)
        $0.offer(0)
      } == .endlessChain)
  }

  @Test func tablesWithoutEnd() throws {
    #expect(
      try failure {
        let table = TestQueue.Buffer(address: 0x1_0000, count: 128)
        $0.describe(0, table, flags: SplitQueueLayout.indirect)
        $0.offer(0)
      } == .badIndirectTable)
  }

  @Test func indexesThatRunAway() throws {
    #expect(try failure { $0.put(UInt16(9), at: $0.place.driver + 2) } == .indexRanAway)
    #expect(try Self().failure { $0.put(UInt16.max, at: $0.place.driver + 2) } == .indexRanAway)
    #expect(try Self().failure { $0.offer(8) } == .noSuchDescriptor(8))
  }

  @Test func readableBehindWritable() throws {
    #expect(
      try failure {
        $0.add([.init(address: 0, count: 1, isWritable: true), .init(address: 0, count: 1)])
      } == .unreadableOrder)
  }

  @Test func queuesThatCannotBe() {
    var place = driver.place
    func isRefused(_ change: (inout QueuePlace) -> Void) -> Bool {
      var place = place
      change(&place)
      return SplitQueue(place, features: 0, memory) == nil
    }
    for size in [0, 3, 7, 0x8001, 0xFFFF] as [UInt16] { #expect(isRefused { $0.size = size }) }
    #expect(isRefused { $0.descriptors += 8 } && isRefused { $0.driver += 1 })
    #expect(isRefused { $0.device += 2 } && isRefused { $0.device = 0xF_FFF0 })
    #expect(isRefused { $0.descriptors = .max & ~15 } && isRefused { $0.driver = 1 << 20 })
    place.size = 1 << 15
    #expect(SplitQueue(place, features: 0, memory) != nil)
  }

  /// Random rings, descriptors and tables, which change while they are read: every call ends, and
  /// what it gives out is memory.
  @Test func randomDrivers() throws {
    var random = SplitMix(seed: 20_261_130)
    var (chains, errors) = (0, 0)
    for _ in 0..<120_000 {
      let queue = try Ring(driver.place, random.next() & Self.all, memory)
      scramble(&random)
      do throws(QueueError) {
        for _ in 0..<4 {
          guard let chain = try queue.pop() else { break }
          chains += 1
          let whole = chain.readable.bytes(count: min(chain.readable.count, 4096))
          #expect(whole != nil)
          chain.writable.slice(from: random.below(64), count: 64).clear()
          _ = try queue.push(chain, written: .max)
        }
      } catch {
        errors += 1
      }
    }
    // Both ends are reached often.
    #expect(chains > 20_000 && errors > 20_000)
  }

  private func scramble(_ random: inout SplitMix) {
    let edges: [UInt64] = [0, 0x1_0000, 0x1_0FF0, 0xF_FFF0, 1 << 20, 1 << 32, .max - 15]
    for index in 0..<8 as Range<UInt16> {
      let address = random.oneIn(8) ? edges[random.below(edges.count)] : random.next() & 0xF_FF00
      let count = random.oneIn(8) ? random.next() : UInt64(random.below(16)) * 16
      driver.describe(
        index, .init(address: address, count: UInt32(truncatingIfNeeded: count)),
        flags: UInt16(random.below(8)) & ~(random.oneIn(2) ? 4 : 0), next: UInt16(random.below(9)))
    }
    driver.put(UInt16(random.below(10)), at: driver.place.driver + 2)
    for entry in 0..<8 as Range<UInt64> {
      driver.put(UInt16(random.below(9)), at: driver.place.driver + 4 + entry * 2)
    }
  }
}
