// SPDX-License-Identifier: Apache-2.0

import Devices
import Glibc
import GuestMemory
import Host
import Synchronization
import TestRandom
import Testing

/// A balloon with its driver.
private final class Balloon {
  static let features: UInt64 = 1 << 1 | 1 << 2 | 1 << 5
  let memory: GuestMemory
  let loop: EventLoop
  let device: BalloonDevice
  let driver: TestDriver
  let record: TestDriver.Wires.Record
  /// Host memory that the processor was told of.
  let written = Written()
  var queues: [TestQueue] = []

  final class Written: Sendable {
    let pages = Mutex<Set<UInt>>([])
  }

  init(_ change: (inout BalloonDevice.Options) -> Void = { _ in }) throws {
    let written = written
    memory = try GuestMemory(size: 8 << 20, lowEnd: 4 << 20, highStart: 1 << 32) { start, count in
      let first = UInt(bitPattern: start) >> 12
      let last = (UInt(bitPattern: start) + UInt(count) - 1) >> 12
      written.pages.withLock { $0.formUnion(first...last) }
    }
    loop = try EventLoop()
    let wires = TestDriver.Wires()
    record = wires.record
    var options = BalloonDevice.Options()
    change(&options)
    device = try BalloonDevice(
      VirtioConnection(memory, queueSizes: BalloonDevice.queueSizes, wires.wires), memory, options,
      loop: loop)
    driver = try TestDriver(memory, wires.record, device)
  }

  func start(_ features: UInt64 = features, queues count: Int = 4) {
    queues = (0..<count).map { TestQueue(memory, at: 0x1_0000 + UInt64($0) * 0x4000, size: 16) }
    driver.start(features: features, queues)
  }

  func run() throws { for _ in 0..<8 { try loop.runOnce(timeout: 0) } }

  func give(_ queue: Int, _ buffers: [TestQueue.Buffer]) throws {
    queues[queue].add(buffers)
    driver.notify(queue)
    try run()
  }

  /// Sends a list of pages.
  func pages(_ queue: Int, _ pages: [UInt32]) throws {
    var bytes: [UInt8] = []
    for page in pages { bytes += TestQueue.bytes(page) }
    #expect(memory.write(bytes, at: 0x8_0000))
    try give(queue, [.init(address: 0x8_0000, count: UInt32(pages.count * 4))])
  }

  func fill(_ address: UInt64, _ count: Int) {
    #expect(memory.write([UInt8](repeating: 0xAA, count: count), at: address))
    written.pages.withLock { $0 = [] }
  }

  /// Whether bytes are 0 (true), as they were filled (false), or neither.
  func isClear(_ address: UInt64, _ count: Int) -> Bool? {
    let bytes = Set(memory.read(address, count: count) ?? [1, 2])
    return bytes == [0] ? true : bytes == [0xAA] ? false : nil
  }
}

@Suite struct BalloonDeviceTests {
  @Test func theDriverFindsItsTarget() throws {
    let balloon = try Balloon { $0.size = 3 << 20 }
    balloon.start()
    #expect(balloon.driver.configuration(0, 4) == 0x1045_1AF4)
    #expect(balloon.driver.readDevice(0, 4) == 768 && balloon.driver.readDevice(4, 4) == 0)
    #expect(balloon.driver.offered & 0x3F == Balloon.features)
    balloon.driver.bus.write(balloon.driver.parts[4]! + 4, width: 4, value: 700)
    #expect(balloon.driver.readDevice(4, 4) == 700 && balloon.device.figures.inflated == 700 << 12)
    let other = try Balloon { ($0.deflatesWhenShort, $0.reportsFreePages) = (false, false) }
    #expect(other.driver.offered & 0x3F == 1 << 1)
  }

  @Test func pagesInTheBalloonAreGivenBack() throws {
    let balloon = try Balloon()
    balloon.start()
    balloon.fill(0x10_0000, 0x8000)
    balloon.fill(1 << 32, 0x1000)
    // In any order, some twice, some that do not exist.
    try balloon.pages(0, [0x103, 0x101, 0x102, 0x101, 0x10_0000, 0x500, 0xFFFF_FFFF, 0x106])
    #expect(balloon.queues[0].takeUsed().count == 1)
    #expect(
      balloon.isClear(0x10_1000, 0x3000) == true && balloon.isClear(0x10_6000, 0x1000) == true)
    #expect(
      balloon.isClear(0x10_0000, 0x1000) == false && balloon.isClear(0x10_4000, 0x2000) == false)
    #expect(balloon.isClear(0x10_7000, 0x1000) == false && balloon.isClear(1 << 32, 0x1000) == true)
    #expect(balloon.device.figures.discarded == 5 << 12)
    // The processor forgets code of those pages.
    let start = balloon.memory.host(0x10_0000, count: 1)!
    let told = balloon.written.pages.withLock { $0 }
    let first = UInt(bitPattern: start) >> 12
    #expect([1, 2, 3, 6].allSatisfy { told.contains(first + $0) })
    #expect([0, 4, 5, 7].allSatisfy { !told.contains(first + $0) })
    try balloon.pages(1, [0x101])
    #expect(balloon.queues[1].takeUsed().count == 1)
  }

  @Test func reportedPagesAreGivenBack() throws {
    let balloon = try Balloon()
    balloon.start()
    balloon.fill(0x10_0000, 0x8000)
    try balloon.give(
      3,
      [
        .init(address: 0x10_2000, count: 0x2000, isWritable: true),
        // Only what is a whole page.
        .init(address: 0x10_5800, count: 0x1000, isWritable: true),
        .init(address: 0x10_6800, count: 0x1800, isWritable: true),
      ])
    #expect(balloon.queues[3].takeUsed().count == 1)
    #expect(
      balloon.isClear(0x10_2000, 0x2000) == true && balloon.isClear(0x10_7000, 0x1000) == true)
    #expect(balloon.isClear(0x10_4000, 0x3000) == false)
    #expect(balloon.device.figures.reported == 3 << 12)
    // Without statistics the reports come in the queue before.
    balloon.start(1 << 5, queues: 3)
    balloon.fill(0x10_0000, 0x1000)
    try balloon.give(2, [.init(address: 0x10_0000, count: 0x1000, isWritable: true)])
    #expect(balloon.isClear(0x10_0000, 0x1000) == true)
  }

  @Test func statisticsAreAskedForAndRead() throws {
    let balloon = try Balloon()
    balloon.start()
    func statistics(_ rows: [(UInt16, UInt64)]) throws {
      var bytes: [UInt8] = []
      for row in rows { bytes += TestQueue.bytes(row.0) + TestQueue.bytes(row.1) }
      bytes += [1, 2, 3]
      #expect(balloon.memory.write(bytes, at: 0x9_0000))
      try balloon.give(2, [.init(address: 0x9_0000, count: UInt32(bytes.count))])
    }
    try statistics([(4, 100 << 20), (77, 5)])
    #expect(balloon.device.figures.statistics == [4: 100 << 20, 77: 5])
    // The buffer stays with the device until it wants new ones.
    #expect(balloon.queues[2].takeUsed().isEmpty)
    balloon.device.askForStatistics()
    balloon.device.askForStatistics()
    #expect(balloon.queues[2].takeUsed().count == 1)
    try statistics([(4, 50 << 20)])
    #expect(balloon.device.figures.statistics == [4: 50 << 20])
    // It does not hold up a reset.
    balloon.driver.write(TestDriver.Common.status, 1, 0)
    #expect(balloon.driver.status == 0)
    #expect(balloon.device.figures.statistics.isEmpty)
  }

  @Test func aListOfHalfPagesBreaksTheDevice() throws {
    let balloon = try Balloon()
    balloon.start()
    try balloon.give(0, [.init(address: 0x8_0000, count: 6)])
    #expect(balloon.driver.status & 0x40 != 0)
    balloon.start()
    try balloon.give(0, [.init(address: 0x8_0000, count: 1 << 17)])
    #expect(balloon.driver.status & 0x40 != 0)
  }

  @Test func randomDrivers() throws {
    let balloon = try Balloon()
    balloon.start()
    var random = SplitMix(seed: 5)
    for _ in 0..<20_000 {
      let queue = random.below(4)
      let buffers = (0...random.below(3)).map { _ in
        TestQueue.Buffer(
          // Not where the queues are.
          address: random.oneIn(16) ? random.next() : 0x10_0000 + random.next() & 0x2F_FFFF,
          count: UInt32(truncatingIfNeeded: random.next() >> UInt64(32 + random.below(32))),
          isWritable: queue == 3)
      }
      try balloon.give(queue, buffers)
      for queue in 0..<4 { _ = balloon.queues[queue].takeUsed() }
      if random.oneIn(8) { balloon.device.askForStatistics() }
      if balloon.driver.status & 0x40 != 0 || random.oneIn(256) {
        balloon.driver.write(TestDriver.Common.status, 1, 0)
        try #require(balloon.driver.status == 0)
        #expect(balloon.memory.write([UInt8](repeating: 0, count: 0x1_0000), at: 0x1_0000))
        balloon.start()
      }
    }
    #expect(balloon.device.figures.discarded > 0 && balloon.device.figures.reported > 0)
  }
}
