// SPDX-License-Identifier: Apache-2.0

import Devices
import Glibc
import GuestMemory
import Host
import Synchronization
import TestRandom
import Testing

/// What connects to the host: a record of what was asked for.
private final class TestHost: VsockBackend {
  let asked = Mutex<[(port: UInt32, number: UInt64)]>([])
  let refuses = Atomic<Bool>(false)

  func connect(port: UInt32, number: UInt64) -> Bool {
    if refuses.load(ordering: .relaxed) { return false }
    asked.withLock { $0.append((port, number)) }
    return true
  }

  /// The number of the connection that was asked for last.
  var last: UInt64? { asked.withLock { $0.last?.number } }
}

/// A packet as the driver sees it.
private struct Packet: Equatable {
  static let request: UInt16 = 1
  static let response: UInt16 = 2
  static let reset: UInt16 = 3
  static let shutdown: UInt16 = 4
  static let data: UInt16 = 5
  static let creditUpdate: UInt16 = 6
  static let creditRequest: UInt16 = 7

  var operation: UInt16
  var hostPort: UInt32
  var guestPort: UInt32
  var flags: UInt32 = 0
  var length: UInt32?
  var type: UInt16 = 1
  var source: UInt64 = 3
  var destination: UInt64 = 2
  var bufferSize: UInt32 = 1 << 16
  var forwarded: UInt32 = 0
  var body: [UInt8] = []

  init(_ operation: UInt16, host: UInt32 = 1234, guest: UInt32 = 5000) {
    (self.operation, hostPort, guestPort) = (operation, host, guest)
  }

  /// As the guest sends it.
  var bytes: [UInt8] {
    TestQueue.bytes(source) + TestQueue.bytes(destination) + TestQueue.bytes(guestPort)
      + TestQueue.bytes(hostPort) + TestQueue.bytes(length ?? UInt32(body.count))
      + TestQueue.bytes(type) + TestQueue.bytes(operation) + TestQueue.bytes(flags)
      + TestQueue.bytes(bufferSize) + TestQueue.bytes(forwarded) + body
  }

  /// As the guest receives it.
  init?(_ bytes: [UInt8]) {
    guard bytes.count >= 44 else { return nil }
    func load<Value: FixedWidthInteger>(_ type: Value.Type, _ offset: Int) -> Value {
      bytes[offset..<offset + MemoryLayout<Value>.size].reversed().reduce(0) {
        $0 << 8 | Value(truncatingIfNeeded: $1)
      }
    }
    self.init(load(UInt16.self, 30), host: load(UInt32.self, 16), guest: load(UInt32.self, 20))
    (source, destination) = (load(UInt64.self, 0), load(UInt64.self, 8))
    (length, type, flags) = (load(UInt32.self, 24), load(UInt16.self, 28), load(UInt32.self, 32))
    (bufferSize, forwarded) = (load(UInt32.self, 36), load(UInt32.self, 40))
    body = Array(bytes[44...])
  }
}

/// The device with its driver.
private final class Sockets {
  static let buffers: UInt64 = 0x4_0000
  static let output: UInt64 = 0x8_0000
  static let size: UInt16 = 16

  let memory: GuestMemory
  let loop: EventLoop
  let host = TestHost()
  let device: VsockDevice
  let driver: TestDriver
  let record: TestDriver.Wires.Record
  var receive: TestQueue
  var transmit: TestQueue
  private var events: TestQueue

  init() throws {
    signal(SIGPIPE, SIG_IGN)
    memory = try GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
    loop = try EventLoop()
    let wires = TestDriver.Wires()
    record = wires.record
    device = try VsockDevice(
      VirtioConnection(memory, queueSizes: VsockDevice.queueSizes, wires.wires), address: 3,
      backend: host, loop: loop)
    driver = try TestDriver(memory, wires.record, device)
    receive = TestQueue(memory, at: 0x1_0000, size: Self.size)
    transmit = TestQueue(memory, at: 0x1_4000, size: Self.size)
    events = TestQueue(memory, at: 0x1_8000, size: Self.size)
    driver.start(features: .max, [receive, transmit, events])
  }

  /// Takes a driver's place that starts anew.
  func restart() throws {
    driver.place()
    driver.write(TestDriver.Common.status, 1, 0)
    try run()
    try #require(memory.write([UInt8](repeating: 0, count: 0xC000), at: 0x1_0000))
    receive = TestQueue(memory, at: 0x1_0000, size: Self.size)
    transmit = TestQueue(memory, at: 0x1_4000, size: Self.size)
    driver.start(features: .max, [receive, transmit, events])
  }

  func run() throws { for _ in 0..<20 { try loop.runOnce(timeout: 0) } }

  /// Gives the device buffers.
  func offer(_ count: Int, size: UInt32 = 4096) throws {
    for _ in 0..<count {
      // Descriptors are used in turn, each with its own buffer.
      let head = receive.add([.init(address: 0, count: size, isWritable: true)])
      receive.describe(
        head, .init(address: Self.buffers + UInt64(head) * 4096, count: size, isWritable: true))
    }
    driver.notify(0)
    try run()
  }

  /// Sends packets one after the other, each when the one before was taken.
  func send(_ packets: Packet...) throws {
    for packet in packets { try send(bytes: packet.bytes) }
  }

  func send(bytes: [UInt8]) throws {
    #expect(memory.write(bytes, at: Self.output))
    transmit.add([.init(address: Self.output, count: UInt32(bytes.count))])
    driver.notify(1)
    try run()
  }

  /// What has come since the last look.
  func packets() throws -> [Packet] {
    try run()
    return try receive.takeUsed().map { used in
      let bytes = memory.read(Self.buffers + UInt64(used.head) * 4096, count: Int(used.written))
      return try #require(bytes.flatMap { Packet($0) })
    }
  }

  /// A pair of sockets: one for the device, and the program's at the other end.
  static func pair() throws -> (device: Int32, program: Int32) {
    var ends: [Int32] = [0, 0]
    try #require(
      socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue), 0, &ends) == 0)
    return (ends[0], ends[1])
  }

  /// A connection that the guest has asked for.
  func open(guest: UInt32 = 5000, bufferSize: UInt32 = 1 << 16) throws -> Int32 {
    var request = Packet(Packet.request, guest: guest)
    request.bufferSize = bufferSize
    try send(request)
    let (end, program) = try Self.pair()
    device.connected(try #require(host.last), OwnedFileDescriptor(owning: end))
    try offer(1)
    let answer = try packets()
    #expect(answer.map(\.operation) == [Packet.response] && answer.first?.guestPort == guest)
    return program
  }
}

private func read(_ file: Int32, _ limit: Int = 1 << 20) -> [UInt8]? {
  var bytes = [UInt8](repeating: 0, count: limit)
  let count = Glibc.read(file, &bytes, limit)
  return count < 0 ? nil : Array(bytes[..<count])
}

private func write(_ file: Int32, _ bytes: [UInt8]) -> Int { Glibc.write(file, bytes, bytes.count) }

@Suite struct VsockDeviceTests {
  @Test func theDriverFindsItsAddress() throws {
    let sockets = try Sockets()
    #expect(sockets.driver.configuration(0, 4) == 0x1053_1AF4)
    #expect(sockets.driver.readDevice(0, 8) == 3 && sockets.driver.offered & 3 == 1)
  }

  @Test func theGuestConnects() throws {
    let sockets = try Sockets()
    let program = try sockets.open()
    defer { close(program) }
    #expect(sockets.host.asked.withLock { $0.map(\.port) } == [1234])
    var data = Packet(Packet.data)
    data.body = Array("to the host".utf8)
    try sockets.send(data)
    #expect(read(program) == data.body)
    try sockets.offer(2)
    #expect(write(program, Array("to the guest".utf8)) == 12)
    let packets = try sockets.packets()
    #expect(packets.map(\.operation) == [Packet.data])
    #expect(packets.first?.body == Array("to the guest".utf8) && packets.first?.source == 2)
    #expect(packets.first?.forwarded == 11 && packets.first?.destination == 3)
  }

  @Test func halvesCloseAlone() throws {
    let sockets = try Sockets()
    let program = try sockets.open()
    var end = Packet(Packet.shutdown)
    end.flags = 2
    try sockets.send(end)
    #expect(read(program) == [])
    #expect(write(program, [1, 2, 3]) == 3)
    try sockets.offer(4)
    #expect(try sockets.packets().map(\.body) == [[1, 2, 3]])
    // The program's end, of which the guest hears, then its answer.
    close(program)
    let told = try sockets.packets()
    #expect(told.map(\.operation) == [Packet.shutdown] && told.first?.flags == 3)
    try sockets.send(Packet(Packet.reset))
    #expect(try sockets.packets().isEmpty)
    // Nobody knows of it any more.
    try sockets.send(Packet(Packet.data))
    #expect(try sockets.packets().map(\.operation) == [Packet.reset])
  }

  @Test func theHostsHalfClosesAlone() throws {
    let sockets = try Sockets()
    let program = try sockets.open()
    defer { close(program) }
    #expect(write(program, [9]) == 1)
    shutdown(program, Int32(SHUT_WR))
    try sockets.offer(4)
    let packets = try sockets.packets()
    #expect(packets.map(\.operation) == [Packet.data, Packet.shutdown])
    #expect(packets.last?.flags == 2)
    var data = Packet(Packet.data)
    data.body = [1, 2]
    try sockets.send(data)
    #expect(read(program) == [1, 2])
  }

  /// The guest closes while the host's program has read nothing: it is told at once, and the
  /// program gets everything.
  @Test func whatWasSentArrivesAfterTheEnd() throws {
    let sockets = try Sockets()
    let program = try sockets.open()
    defer { close(program) }
    var size: Int32 = 4096
    setsockopt(program, SOL_SOCKET, SO_RCVBUF, &size, 4)
    var data = Packet(Packet.data)
    data.body = [UInt8](repeating: 7, count: 4096)
    for _ in 0..<30 { try sockets.send(data) }
    var end = Packet(Packet.shutdown)
    end.flags = 3
    try sockets.send(end)
    try sockets.offer(2)
    #expect(try sockets.packets().map(\.operation).contains(Packet.reset))
    var got = 0
    for _ in 0..<1000 {
      try sockets.run()
      guard let bytes = read(program), !bytes.isEmpty else { break }
      got += bytes.count
    }
    #expect(got == 30 * 4096)
  }

  @Test func whoIsNotThereRefuses() throws {
    let sockets = try Sockets()
    try sockets.offer(4)
    try sockets.send(Packet(Packet.request))
    sockets.device.connected(try #require(sockets.host.last), nil)
    #expect(try sockets.packets().map(\.operation) == [Packet.reset])
    sockets.host.refuses.store(true, ordering: .relaxed)
    try sockets.send(Packet(Packet.request))
    let packets = try sockets.packets()
    #expect(packets.map(\.operation) == [Packet.reset])
    #expect(packets.first?.hostPort == 1234 && packets.first?.guestPort == 5000)
  }

  @Test func theHostConnects() throws {
    let sockets = try Sockets()
    let (end, program) = try Sockets.pair()
    defer { close(program) }
    sockets.device.offer(port: 52, socket: OwnedFileDescriptor(owning: end))
    try sockets.offer(6)
    let request = try #require(try sockets.packets().first)
    #expect(request.operation == Packet.request && request.guestPort == 52)
    #expect(request.bufferSize > 0 && request.type == 1)
    // What it sends before the answer waits.
    #expect(write(program, [5]) == 1)
    #expect(try sockets.packets().isEmpty)
    try sockets.send(Packet(Packet.response, host: request.hostPort, guest: 52))
    #expect(read(program) == Array("OK \(request.hostPort)\n".utf8))
    #expect(try sockets.packets().map(\.body) == [[5]])
    // Another one that the guest does not want.
    let (second, other) = try Sockets.pair()
    defer { close(other) }
    sockets.device.offer(port: 52, socket: OwnedFileDescriptor(owning: second))
    let next = try #require(try sockets.packets().first)
    #expect(next.hostPort != request.hostPort)
    try sockets.send(Packet(Packet.reset, host: next.hostPort, guest: 52))
    #expect(read(other) == [])
    // And one whose client does not wait for the answer.
    let (third, gone) = try Sockets.pair()
    sockets.device.offer(port: 52, socket: OwnedFileDescriptor(owning: third))
    #expect(try sockets.packets().map(\.operation) == [Packet.request])
    close(gone)
    #expect(try sockets.packets().map(\.operation) == [Packet.reset])
  }

  @Test func theGuestsCreditIsKept() throws {
    let sockets = try Sockets()
    let program = try sockets.open(bufferSize: 100)
    defer { close(program) }
    #expect(write(program, (0..<250).map { UInt8($0) }) == 250)
    try sockets.offer(8)
    var packets = try sockets.packets()
    #expect(packets.map(\.operation) == [Packet.data, Packet.creditRequest])
    #expect(packets[0].body == (0..<100).map { UInt8($0) })
    var update = Packet(Packet.creditUpdate)
    (update.bufferSize, update.forwarded) = (100, 60)
    try sockets.send(update)
    packets = try sockets.packets()
    #expect(packets.map(\.operation) == [Packet.data, Packet.creditRequest])
    #expect(packets[0].body == (100..<160).map { UInt8($0) })
    // Nonsense is no credit: more forwarded than was sent, and a buffer that shrinks.
    for (size, forwarded) in [(100, 161), (0, 160), (100, .max)] as [(UInt32, UInt32)] {
      (update.bufferSize, update.forwarded) = (size, forwarded)
      try sockets.send(update)
      #expect(!(try sockets.packets().contains { $0.operation == Packet.data }))
    }
  }

  @Test func theHostsCreditIsKept() throws {
    let sockets = try Sockets()
    let program = try sockets.open()
    defer { close(program) }
    var data = Packet(Packet.data)
    data.body = [UInt8](repeating: 1, count: 4096)
    try sockets.offer(8)
    // As much as the socket and the buffer take, then one packet too many.
    var count = 0
    var isRefused = false
    while count < 1000, !isRefused {
      try sockets.send(data)
      count += 1
      isRefused = try sockets.packets().contains { $0.operation == Packet.reset }
    }
    #expect(isRefused && count > 32 && count < 400, "\(count)")
    // With a program that reads, the guest is told that it may go on.
    let reader = try sockets.open(guest: 5001)
    defer { close(reader) }
    data.guestPort = 5001
    var updates: [UInt32] = []
    try sockets.offer(5)
    for _ in 0..<64 {
      try sockets.send(data)
      _ = read(reader)
      updates += try sockets.packets().filter { $0.operation == Packet.creditUpdate }
        .map(\.forwarded)
    }
    #expect(updates.count >= 2 && updates == updates.sorted() && updates[0] >= 4096, "\(updates)")
    var ask = Packet(Packet.creditRequest, guest: 5001)
    ask.forwarded = 0
    try sockets.send(ask)
    #expect(try sockets.packets().map(\.forwarded) == [64 * 4096])
  }

  @Test func connectionsAreLimited() throws {
    let sockets = try Sockets()
    for port in 0..<VsockDevice.connectionLimit {
      try sockets.send(Packet(Packet.request, guest: UInt32(port)))
    }
    _ = sockets.transmit.takeUsed()
    #expect(sockets.host.asked.withLock { $0.count } == VsockDevice.connectionLimit)
    try sockets.send(Packet(Packet.request, guest: 9999))
    try sockets.offer(2)
    #expect(try sockets.packets().map(\.guestPort) == [9999])
    // The host's are no exception.
    let (end, program) = try Sockets.pair()
    defer { close(program) }
    sockets.device.offer(port: 52, socket: OwnedFileDescriptor(owning: end))
    #expect(read(program) == [])
    // One ends, and there is a place again.
    try sockets.send(
      Packet(Packet.reset, guest: 0), Packet(Packet.request, guest: 9999))
    #expect(sockets.host.asked.withLock { $0.count } == VsockDevice.connectionLimit + 1)
  }

  /// A guest that sends nonsense and takes no answers: at some time nothing more is read of it.
  @Test func refusalsDoNotPileUp() throws {
    let sockets = try Sockets()
    var taken = 0
    for port in 0..<400 {
      try sockets.send(Packet(Packet.data, guest: UInt32(port)))
      let used = sockets.transmit.takeUsed().count
      taken += used
      // The driver's queue is full.
      if port - taken >= 15 { break }
    }
    #expect(taken >= 64 && taken < 200, "\(taken)")
    var refusals = 0
    for _ in 0..<40 {
      try sockets.offer(8)
      refusals += try sockets.packets().count
      taken += sockets.transmit.takeUsed().count
    }
    #expect(refusals == taken && refusals > 128)
  }

  @Test func whatMakesNoSenseIsRefused() throws {
    let sockets = try Sockets()
    let program = try sockets.open()
    defer { close(program) }
    try sockets.offer(12)
    func answers(_ operation: UInt16, _ change: (inout Packet) -> Void) throws -> [UInt16] {
      var packet = Packet(operation, guest: 6000)
      change(&packet)
      try sockets.send(packet)
      return try sockets.packets().map(\.operation)
    }
    #expect(try answers(Packet.request) { $0.type = 2 } == [Packet.reset])
    #expect(try answers(Packet.request) { $0.destination = 7 } == [Packet.reset])
    #expect(try answers(Packet.request) { $0.destination = .max } == [Packet.reset])
    #expect(try answers(Packet.data) { _ in } == [Packet.reset])
    #expect(try answers(99) { _ in } == [Packet.reset])
    #expect(try answers(Packet.reset) { _ in } == [])
    // Somebody else's address.
    #expect(try answers(Packet.request) { $0.source = 4 } == [])
    #expect(sockets.host.asked.withLock { $0.count } == 1)
    // A length without bytes ends the connection.
    #expect(
      try answers(Packet.data) {
        ($0.guestPort, $0.length) = (5000, .max)
      } == [Packet.reset])
    #expect(read(program) == [])
    // So does a second request for the same ports.
    let second = try sockets.open()
    defer { close(second) }
    #expect(try answers(Packet.request) { $0.guestPort = 5000 } == [Packet.reset])
    #expect(read(second) == [])
  }

  @Test func aPacketWithoutHeaderBreaksTheDevice() throws {
    let sockets = try Sockets()
    try sockets.send(bytes: [UInt8](repeating: 0, count: 43))
    #expect(sockets.driver.status & 0x40 != 0)
    #expect(sockets.record.reports.withLock { $0.count } == 1)
    try sockets.restart()
    close(try sockets.open())
    // A buffer without room for a byte behind the header.
    try sockets.offer(1, size: 44)
    #expect(sockets.driver.status & 0x40 != 0)
  }

  @Test func aResetForgetsConnections() throws {
    let sockets = try Sockets()
    let program = try sockets.open()
    defer { close(program) }
    try sockets.restart()
    #expect(read(program) == [])
    #expect(sockets.driver.status == 15)
    close(try sockets.open())
  }

  /// Drivers that send anything, and programs that come and go.
  @Test func randomTalk() throws {
    let sockets = try Sockets()
    var random = SplitMix(seed: 20_261_201)
    var programs: [Int32] = []
    var answered = 0
    for _ in 0..<30_000 {
      switch random.below(8) {
      case 0:
        if sockets.receive.takeUsed().count > 0 || random.oneIn(8) { try sockets.offer(1) }
      case 1:
        let all = sockets.host.asked.withLock { $0 }
        guard answered < all.count else { break }
        let (end, program) = try Sockets.pair()
        if random.oneIn(4) {
          for file in [end, program] { close(file) }
          sockets.device.connected(all[answered].number, nil)
        } else {
          sockets.device.connected(all[answered].number, OwnedFileDescriptor(owning: end))
          programs.append(program)
        }
        answered += 1
      case 2 where programs.count < 64:
        let (end, program) = try Sockets.pair()
        sockets.device.offer(
          port: UInt32(random.below(4)), socket: OwnedFileDescriptor(owning: end))
        programs.append(program)
      case 3 where !programs.isEmpty:
        let place = random.below(programs.count)
        switch random.below(4) {
        case 0: close(programs.remove(at: place))
        case 1: _ = read(programs[place])
        default: _ = write(programs[place], [UInt8](repeating: 1, count: random.below(5000)))
        }
      default: try talk(sockets, &random)
      }
    }
    for program in programs { close(program) }
    try sockets.restart()
    close(try sockets.open())
  }

  private func talk(_ sockets: Sockets, _ random: inout SplitMix) throws {
    // As long as the driver's queue has room.
    _ = sockets.transmit.takeUsed()
    var packet = Packet(
      UInt16(random.below(9)),
      host: random.oneIn(2) ? UInt32(random.below(4)) : 1 << 30 + UInt32(random.below(64)),
      guest: UInt32(random.below(4)))
    packet.flags = UInt32(random.below(5))
    (packet.bufferSize, packet.forwarded) = (
      UInt32(truncatingIfNeeded: random.next() >> UInt64(random.below(64))),
      UInt32(truncatingIfNeeded: random.next() >> UInt64(random.below(64)))
    )
    packet.body = [UInt8](repeating: 3, count: random.below(3000))
    if random.oneIn(16) { packet.length = UInt32(truncatingIfNeeded: random.next()) }
    if random.oneIn(16) { packet.type = UInt16(random.below(4)) }
    if random.oneIn(16) { packet.source = random.next() }
    if random.oneIn(16) { packet.destination = random.next() }
    try sockets.send(packet)
  }
}
