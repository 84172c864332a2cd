// SPDX-License-Identifier: Apache-2.0
//
// The virtio network card between a driver's queues and a socket: frames come through unchanged
// and in order or are dropped whole, and what either side breaks ends at the cable.

import Devices
import Glibc
import GuestMemory
import Host
import HostTestSupport
import Synchronization
import SystemPackage
import TestRandom
import Testing

/// A card with its driver, and the other end of its cable.
private final class Card {
  let memory: GuestMemory
  let loop: EventLoop
  let device: NetworkDevice
  let driver: TestDriver
  let wire: OwnedFileDescriptor
  let hasEnded = SharedFlag()
  var receive: TestQueue
  var transmit: TestQueue

  final class SharedFlag: Sendable {
    private let value = Atomic<Bool>(false)
    func set() { value.store(true, ordering: .relaxed) }
    var isSet: Bool { value.load(ordering: .relaxed) }
  }

  init(features: UInt64 = .max) throws {
    memory = try GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
    loop = try EventLoop()
    var ends: [Int32] = [0, 0]
    try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
    wire = OwnedFileDescriptor(owning: ends[0])
    let wires = TestDriver.Wires()
    let flag = hasEnded
    device = try NetworkDevice(
      VirtioConnection(memory, queueSizes: NetworkDevice.queueSizes, wires.wires),
      address: try #require(MACAddress("52:54:00:12:34:56")),
      socket: OwnedFileDescriptor(owning: ends[1]), loop: loop,
      ended: { flag.set() })
    driver = try TestDriver(memory, wires.record, device)
    receive = TestQueue(memory, at: 0x1_0000, size: 16)
    transmit = TestQueue(memory, at: 0x1_4000, size: 16)
    start(features)
  }

  func start(_ features: UInt64) { driver.start(features: features, [receive, transmit]) }

  /// Lets the card work as long as it has something to do.
  func run() throws { for _ in 0..<8 { try loop.runOnce(timeout: 0) } }

  static func frame(_ size: Int, _ seed: UInt8 = 1) -> [UInt8] {
    (0..<size).map { UInt8(truncatingIfNeeded: $0) &* seed &+ seed }
  }

  static func prefixed(_ frame: [UInt8]) -> [UInt8] {
    withUnsafeBytes(of: UInt32(frame.count).bigEndian) { Array($0) } + frame
  }

  func put(_ bytes: [UInt8]) throws(Errno) { try writeAll(wire.rawValue, bytes.bytes) }

  /// What has come over the wire.
  func take() -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    let count = recv(wire.rawValue, &bytes, bytes.count, Int32(MSG_DONTWAIT))
    // Not a copy of a part: Swift 6.3 frees that too early where nobody uses it.
    bytes.removeLast(bytes.count - max(count, 0))
    return bytes
  }
}

@Suite struct NetworkDeviceTests {
  @Test func theConfigurationSaysWhatTheCardIs() throws {
    let card = try Card()
    #expect(card.driver.configuration(0, 4) == 0x1041_1AF4)
    #expect(card.driver.readDevice(0, 4) == 0x1200_5452 && card.driver.readDevice(6, 2) == 1)
    #expect(card.driver.readDevice(10, 2) == UInt64(NetworkDevice.mtu))
  }

  @Test func framesGoOut() throws {
    let card = try Card()
    let frame = Card.frame(1000)
    #expect(card.memory.write([UInt8](repeating: 0, count: 12) + frame, at: 0x2_0000))
    card.transmit.add([.init(address: 0x2_0000, count: 12), .init(address: 0x2_000C, count: 1000)])
    card.transmit.add([.init(address: 0x2_0000, count: 12 + 60)])
    card.driver.notify(1)
    try card.run()
    #expect(card.take() == Card.prefixed(frame) + Card.prefixed(Array(frame[..<60])))
    let used = card.transmit.takeUsed()
    #expect(used.count == 2)
  }

  /// What is no frame is not sent, and does the card no harm.
  @Test func oddFramesAreNotSent() throws {
    let card = try Card()
    for size in [1, 12, 25, 12 + 65_535 + 19] as [UInt32] {
      card.transmit.add([.init(address: 0, count: size)])
    }
    card.transmit.add([.init(address: 0, count: 26)])
    card.driver.notify(1)
    try card.run()
    #expect(card.take().count == 18 && card.driver.status == 15)
  }

  @Test func framesComeIn() throws {
    let card = try Card(features: 0)
    let frame = Card.frame(700, 3)
    card.receive.add([
      .init(address: 0x3_0000, count: 12, isWritable: true),
      .init(address: 0x3_1000, count: 1514, isWritable: true),
    ])
    card.driver.notify(0)
    // In two parts.
    let bytes = Card.prefixed(frame)
    try card.put(Array(bytes[..<100]))
    try card.run()
    try card.put(Array(bytes[100...]))
    try card.run()
    let used = card.receive.takeUsed()
    #expect(used.count == 1 && used[0].written == 712)
    #expect(card.memory.read(0x3_0000, count: 12) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    #expect(card.memory.read(0x3_1000, count: 700) == frame)
  }

  @Test func framesWaitForBuffers() throws {
    let card = try Card()
    try card.put(Card.prefixed(Card.frame(100)))
    try card.run()
    let none = card.receive.takeUsed()
    #expect(none.isEmpty)
    card.receive.add([.init(address: 0x3_0000, count: 200, isWritable: true)])
    card.driver.notify(0)
    try card.run()
    let used = card.receive.takeUsed()
    #expect(used.count == 1 && card.memory.read(0x3_000C, count: 100) == Card.frame(100))
  }

  @Test func aFrameMaySpreadOverBuffers() throws {
    let card = try Card()
    let frame = Card.frame(1000, 5)
    for index in 0..<2 as Range<UInt64> {
      card.receive.add([.init(address: 0x3_0000 + index * 0x1000, count: 400, isWritable: true)])
    }
    card.driver.notify(0)
    try card.put(Card.prefixed(frame))
    try card.run()
    let none = card.receive.takeUsed()
    #expect(none.isEmpty)
    card.receive.add([.init(address: 0x3_2000, count: 400, isWritable: true)])
    card.driver.notify(0)
    try card.run()
    let used = card.receive.takeUsed()
    #expect(used.map(\.written) == [400, 400, 212])
    #expect(card.memory.read(0x3_000A, count: 1) == [3])
    let pieces = [(0x3_000C, 388), (0x3_1000, 400), (0x3_2000, 212)] as [(UInt64, Int)]
    #expect(pieces.flatMap { card.memory.read($0, count: $1) ?? [] } == frame)
  }

  /// What can never fit is dropped, and the next frame comes through.
  @Test func aFrameThatIsTooLargeIsDropped() throws {
    let card = try Card(features: 0)
    card.receive.add([.init(address: 0x3_0000, count: 200, isWritable: true)])
    try card.put(Card.prefixed(Card.frame(1000)) + Card.prefixed(Card.frame(60, 7)))
    card.driver.notify(0)
    try card.run()
    let used = card.receive.takeUsed()
    #expect(used.count == 1 && card.memory.read(0x3_000C, count: 60) == Card.frame(60, 7))
  }

  /// A wire that takes nothing holds the guest's queue back; nothing is lost.
  @Test func aFullWireHoldsTheQueue() throws {
    let card = try Card()
    let size = 60_000
    #expect(card.memory.write([UInt8](repeating: 0, count: 12) + Card.frame(size), at: 0x4_0000))
    var (sent, arrived) = (0, 0)
    for _ in 0..<10 {
      for _ in 0..<8 {
        card.transmit.add([.init(address: 0x4_0000, count: UInt32(size + 12))])
        sent += 1
      }
      card.driver.notify(1)
      try card.run()
      var done = card.transmit.takeUsed().count
      while done < 8 {
        let bytes = card.take()
        #expect(!bytes.isEmpty || done > 0)
        arrived += bytes.count
        try card.run()
        done += card.transmit.takeUsed().count
      }
    }
    while true {
      let bytes = card.take()
      if bytes.isEmpty { break }
      arrived += bytes.count
      try card.run()
    }
    #expect(arrived == sent * (size + 4))
  }

  @Test(
    arguments: [[], [0, 0, 0, 0], [0xFF, 0xFF, 0xFF, 0xFF, 1], [0, 0, 0, 5, 1, 2, 3, 4, 5]]
      as [[UInt8]])
  func aWireThatIsCutPullsTheCable(bytes: [UInt8]) throws {
    let card = try Card()
    try card.run()
    if bytes.isEmpty { shutdown(card.wire.rawValue, Int32(SHUT_RDWR)) } else { try card.put(bytes) }
    try card.run()
    #expect(card.hasEnded.isSet)
    #expect(card.driver.readDevice(6, 2) == 0)
    #expect(card.driver.record.messages.withLock { $0.map(\.data) } == [0x40])
    // The driver goes on as if nothing was.
    card.transmit.add([.init(address: 0, count: 100)])
    card.driver.notify(1)
    try card.run()
  }

  /// A frame waits for buffers when the wire is cut: the cable is pulled, and the loop does not
  /// spin.
  @Test func aWireThatIsCutWhileAFrameWaits() throws {
    let card = try Card()
    try card.put(Card.prefixed(Card.frame(100)))
    try card.run()
    shutdown(card.wire.rawValue, Int32(SHUT_RDWR))
    try card.run()
    #expect(card.hasEnded.isSet && card.driver.readDevice(6, 2) == 0)
  }

  /// A driver that lies, and a wire with anything on it.
  @Test func randomDriversAndWires() throws {
    var random = SplitMix(seed: 20_261_130)
    var received = 0
    for _ in 0..<200 {
      let card = try Card(features: random.oneIn(2) ? .max : 0)
      for _ in 0..<500 {
        switch random.below(5) {
        case 0:
          let frame = Card.prefixed(Card.frame(14 + random.below(3000)))
          let bytes = random.oneIn(64) ? frame.shuffled(using: &random) : frame
          // What the wire does not take is lost, and the frame is cut.
          _ = send(card.wire.rawValue, bytes, bytes.count, Int32(MSG_DONTWAIT) | 0x4000)
        case 1, 2:
          let isReceive = random.oneIn(2)
          let buffers = (0...random.below(3)).map { _ in
            TestQueue.Buffer(
              address: random.oneIn(256) ? random.next() : random.next() & 0xF_0000,
              count: UInt32(random.below(0x8000)), isWritable: isReceive != random.oneIn(64))
          }
          if isReceive { card.receive.add(buffers) } else { card.transmit.add(buffers) }
        case 3: card.driver.notify(random.below(2))
        default:
          try card.loop.runOnce(timeout: 0)
          received += card.take().count
        }
      }
    }
    #expect(received > 0)
  }
}

@Suite struct EntropyDeviceTests {
  @Test func requestsAreFilled() throws {
    let memory = try GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
    let loop = try EventLoop()
    let wires = TestDriver.Wires()
    let device = try EntropyDevice(
      VirtioConnection(memory, queueSizes: EntropyDevice.queueSizes, wires.wires), loop: loop)
    let driver = try TestDriver(memory, wires.record, device)
    var queue = TestQueue(memory, at: 0x1_0000, size: 16)
    driver.start(features: .max, [queue])
    for count in [64, 0x1_0000] as [UInt32] {
      queue.add([.init(address: 0x4_0000, count: count, isWritable: true)])
    }
    driver.notify(0)
    for _ in 0..<4 { try loop.runOnce(timeout: 0) }
    let used = queue.takeUsed()
    #expect(used.map(\.written) == [64, 4096])
    let bytes = try #require(memory.read(0x4_0000, count: 4096))
    #expect(Set(bytes).count > 200 && memory.read(0x4_1000, count: 1) == [0])
  }
}
