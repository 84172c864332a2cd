// SPDX-License-Identifier: Apache-2.0
//
// The virtio console with two ports: bytes and control messages arrive whole and in order, and
// a driver that does not play by the rules breaks the device or is held back, no more.

import Devices
import GuestMemory
import Host
import Synchronization
import TestRandom
import Testing

/// The host's side of a port, which keeps what the guest sends.
private final class TestBackend: ConsoleBackend {
  struct State {
    var isOpen = true
    var room = Int.max
    var input: [UInt8] = []
    var output: [UInt8] = []
  }
  let state = Mutex(State())

  var isOpen: Bool { state.withLock { $0.isOpen } }
  var hasRoom: Bool { state.withLock { $0.output.count < $0.room } }
  var hasInput: Bool { state.withLock { !$0.input.isEmpty } }
  func put(_ bytes: [UInt8]) { state.withLock { $0.output += bytes } }
  func take(_ limit: Int) -> [UInt8] {
    state.withLock { state in
      defer { state.input.removeFirst(min(limit, state.input.count)) }
      return Array(state.input.prefix(limit))
    }
  }
}

/// A console with two ports and its driver.
private final class Console {
  static let count = 2
  static let buffers: UInt64 = 0x8_0000
  let memory: GuestMemory
  let loop: EventLoop
  let device: ConsoleDevice
  let driver: TestDriver
  let record: TestDriver.Wires.Record
  let backends = [TestBackend(), TestBackend()]
  var queues: [TestQueue] = []

  init(features: UInt64 = .max) throws {
    memory = try GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
    loop = try EventLoop()
    let wires = TestDriver.Wires()
    record = wires.record
    device = try ConsoleDevice(
      VirtioConnection(
        memory, queueSizes: ConsoleDevice.queueSizes(ports: Self.count), wires.wires),
      ports: zip(["console", "data"], backends).map { .init(name: $0, backend: $1) },
      size: .init(columns: 80, rows: 24), loop: loop)
    driver = try TestDriver(memory, wires.record, device)
    start(features)
  }

  func start(_ features: UInt64) {
    queues = (0..<6).map { TestQueue(memory, at: 0x1_0000 + UInt64($0) * 0x4000, size: 16) }
    driver.start(features: features, queues)
  }

  func run() throws { for _ in 0..<8 { try loop.runOnce(timeout: 0) } }

  /// Gives the device buffers of a size, one after the other from an address on.
  func offer(_ queue: Int, _ count: Int, size: UInt32, at address: UInt64) {
    for index in 0..<UInt64(count) {
      queues[queue].add([
        .init(address: address + index * UInt64(size), count: size, isWritable: true)
      ])
    }
  }

  func send(_ queue: Int, _ bytes: [UInt8]) throws {
    #expect(memory.write(bytes, at: Self.buffers))
    queues[queue].add([.init(address: Self.buffers, count: UInt32(bytes.count))])
    driver.notify(queue)
    try run()
  }

  func control(_ port: UInt32, _ event: UInt16, _ value: UInt16) throws {
    try send(3, TestQueue.bytes(port) + TestQueue.bytes(event) + TestQueue.bytes(value))
  }

  /// Control messages that have come into buffers of 64 bytes at an address.
  func messages(at address: UInt64) throws -> [[UInt8]] {
    try queues[2].takeUsed().enumerated().map { index, used in
      try #require(memory.read(address + UInt64(index) * 64, count: Int(used.written)))
    }
  }
}

@Suite struct ConsoleDeviceTests {
  @Test func theConfigurationHasSizeAndPorts() throws {
    let console = try Console()
    #expect(console.driver.configuration(0, 4) == 0x1043_1AF4)
    #expect(console.driver.readDevice(0, 4) == 80 | 24 << 16)
    #expect(console.driver.readDevice(4, 4) == 2)
  }

  @Test func portsAreIntroduced() throws {
    let console = try Console()
    console.backends[1].state.withLock { $0.isOpen = false }
    console.offer(2, 12, size: 64, at: 0x9_0000)
    try console.control(0, 0, 1)
    #expect(
      try console.messages(at: 0x9_0000) == [[0, 0, 0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 1, 0, 1, 0]])
    try console.control(0, 3, 1)
    try console.control(1, 3, 1)
    try console.control(1, 3, 1)
    try console.control(77, 3, 1)
    #expect(
      try console.messages(at: 0x9_0080) == [
        [0, 0, 0, 0, 4, 0, 1, 0], [0, 0, 0, 0, 5, 0, 0, 0, 80, 0, 24, 0],
        [0, 0, 0, 0, 6, 0, 1, 0], [1, 0, 0, 0, 7, 0, 1, 0] + Array("data".utf8) + [0],
      ])
    console.backends[1].state.withLock { $0.isOpen = true }
    console.device.resize(.init(columns: 132, rows: 50))
    try console.run()
    #expect(
      try console.messages(at: 0x9_0180) == [
        [0, 0, 0, 0, 5, 0, 0, 0, 132, 0, 50, 0], [1, 0, 0, 0, 6, 0, 1, 0],
      ])
    #expect(console.driver.readDevice(0, 4) == 132 | 50 << 16)
  }

  @Test func bytesGoBothWays() throws {
    let console = try Console()
    try console.control(1, 3, 1)
    try console.send(5, Array("to the host".utf8))
    #expect(console.backends[1].state.withLock { $0.output } == Array("to the host".utf8))
    console.backends[1].state.withLock { $0.input = Array(0..<100) }
    console.device.wake()
    try console.run()
    // Nothing is taken without a buffer.
    #expect(console.backends[1].state.withLock { $0.input.count } == 100)
    console.offer(4, 2, size: 64, at: 0xA_0000)
    console.driver.notify(4)
    try console.run()
    #expect(console.queues[4].takeUsed().map(\.written) == [64, 36])
    #expect(console.memory.read(0xA_0000, count: 100) == Array(0..<100))
  }

  @Test func aFullHostHoldsTheGuestBack() throws {
    let console = try Console(features: 0)
    console.backends[0].state.withLock { $0.room = 1 }
    for text in ["a", "b"] { try console.send(1, Array(text.utf8)) }
    #expect(console.queues[1].takeUsed().count == 1)
    console.backends[0].state.withLock { $0.room = 9 }
    console.device.wake()
    try console.run()
    #expect(console.queues[1].takeUsed().count == 1)
    // Without several ports the console needs no introduction.
    console.backends[0].state.withLock { $0.input = [7] }
    console.offer(0, 1, size: 8, at: 0xA_0000)
    console.driver.notify(0)
    try console.run()
    #expect(console.queues[0].takeUsed().map(\.written) == [1])
  }

  @Test func aShortMessageBreaksTheDevice() throws {
    let console = try Console()
    try console.send(3, [1, 2, 3])
    #expect(console.driver.status & 64 != 0)
    #expect(console.record.reports.withLock { $0.first?.contains("control message") } == true)
    console.start(.max)
    #expect(console.driver.status == 15)
  }

  /// A driver that asks again and again gets no more messages than are kept.
  @Test func messagesAreBounded() throws {
    let console = try Console()
    for _ in 0..<16 { try console.control(0, 0, 1) }
    for _ in 0..<64 {
      _ = console.queues[3].takeUsed()
      try console.control(0, 0, 1)
      if console.queues[3].takeUsed().isEmpty { return }
    }
    Issue.record("the device goes on reading")
  }

  @Test func randomQueues() throws {
    let console = try Console()
    var random = SplitMix(seed: 0xC0)
    for round in 0..<3000 {
      if round % 50 == 0 { console.start(random.next()) }
      let queue = random.below(6)
      for _ in 0..<4 {
        _ = console.memory.write(
          [random.byte()], at: 0x1_0000 + UInt64(queue) * 0x4000 + UInt64(random.below(0x2100)))
      }
      let address = random.oneIn(8) ? random.next() : UInt64(random.below(1 << 20))
      console.queues[queue].add([
        .init(address: address, count: UInt32(random.below(4096)), isWritable: queue % 2 == 0)
      ])
      if random.oneIn(4) {
        console.backends[random.below(2)].state.withLock { $0.input = [1, 2, 3] }
      }
      console.driver.notify(queue)
      try console.run()
    }
  }
}
