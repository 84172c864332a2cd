// SPDX-License-Identifier: Apache-2.0
//
// The virtio disk, driven by a queue as a guest drives it, over an image in memory: contents
// are compared with the image's, statuses and byte counts with virtio's, and what the guest
// breaks breaks its disk alone.

import Devices
import Glibc
import GuestMemory
import Host
import HostTestSupport
import Synchronization
import SystemPackage
import TestRandom
import Testing

/// An image in memory whose flushes are counted, and that can be made slow or broken.
private final class TestImage: BlockImage {
  struct State {
    var bytes: [UInt8]
    var flushes = 0
    var failure: Errno?
    var cleared: [String] = []
  }
  let state: Mutex<State>
  let size: UInt64
  let isReadOnly: Bool
  let blockSize: UInt32 = 4096
  /// Reads wait while it is held.
  let gate = Mutex<Void>(())

  init(sectors: Int, isReadOnly: Bool = false) {
    size = UInt64(sectors) * 512
    self.isReadOnly = isReadOnly
    state = Mutex(State(bytes: (0..<sectors * 512).map { UInt8(truncatingIfNeeded: $0 >> 9) }))
  }

  private func attempt(_ body: (inout State) -> Void) throws(Errno) {
    let failure = state.withLock { state in
      if state.failure == nil { body(&state) }
      return state.failure
    }
    if let failure { throw failure }
  }

  func read(at offset: UInt64, into buffers: GuestBuffers) throws(Errno) {
    gate.withLock { _ in }
    try attempt { state in
      let part = Int(offset)..<Int(offset) + buffers.count
      _ = buffers.write(state.bytes.bytes.extracting(part))
    }
  }
  func write(at offset: UInt64, from buffers: GuestBuffers) throws(Errno) {
    try attempt { state in
      state.bytes.replaceSubrange(
        Int(offset)..<Int(offset) + buffers.count, with: buffers.bytes(count: buffers.count)!)
    }
  }
  func flush() throws(Errno) { try attempt { $0.flushes += 1 } }
  func discard(at offset: UInt64, count: UInt64) throws(Errno) {
    try attempt { $0.cleared.append("discard \(offset) \(count)") }
  }
  func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(Errno) {
    try attempt { $0.cleared.append("zero \(offset) \(count) \(mayDiscard)") }
  }
}

/// Counts what a disk says of a host without room.
private final class TestRoom: RoomWatch {
  let waiting = Mutex(0)
  let ends = Mutex<[Bool]>([])
  let hintCount = Atomic<UInt64>(0)
  func beginWaiting(_ error: Errno) { waiting.withLock { $0 += 1 } }
  func endWaiting(isDone: Bool) {
    waiting.withLock { $0 -= 1 }
    ends.withLock { $0.append(isDone) }
  }
  var hints: UInt64 { hintCount.load(ordering: .acquiring) }
}

/// A disk with its driver.
private final class Disk {
  let image: TestImage
  let device: BlockDevice
  let driver: TestDriver
  let memory: GuestMemory
  var queue: TestQueue
  static let header: UInt64 = 0x2_0000
  static let data: UInt64 = 0x3_0000
  static let status: UInt64 = 0x2_1000

  init(
    sectors: Int = 64, isReadOnly: Bool = false, start: Bool = true, room: TestRoom? = nil
  ) throws {
    memory = try GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
    image = TestImage(sectors: sectors, isReadOnly: isReadOnly)
    let wires = TestDriver.Wires()
    device = BlockDevice(
      VirtioConnection(memory, queueSizes: BlockDevice.queueSizes, wires.wires), image,
      serial: "a serial number that is too long", roomWatch: room)
    driver = try TestDriver(memory, wires.record, device)
    queue = TestQueue(memory, at: 0x1_0000, size: 16)
    try device.start(name: "disk-test")
    if start { driver.start(features: .max, [queue]) }
  }

  deinit { device.stop() }

  /// Offers a request.
  func offer(_ kind: UInt32, sector: UInt64 = 0, _ data: [TestQueue.Buffer], slot: UInt64 = 0) {
    let (header, status) = (Self.header + slot * 16, Self.status + slot)
    queue.put(kind, at: header)
    queue.put(sector, at: header + 8)
    queue.put(UInt8(0xEE), at: status)
    queue.add(
      [.init(address: header, count: 16)] + data
        + [.init(address: status, count: 1, isWritable: true)])
    driver.notify(0)
  }

  /// Carries a request out; its status and the bytes that the device says it wrote.
  func run(
    _ kind: UInt32, sector: UInt64 = 0, _ data: [TestQueue.Buffer] = []
  ) throws -> (status: UInt8, written: UInt32) {
    offer(kind, sector: sector, data)
    var used: [(head: UInt32, written: UInt32)] = []
    try #require(
      TestDriver.wait {
        used += queue.takeUsed()
        return !used.isEmpty
      }, "\(driver.record.reports.withLock { $0 })")
    return (queue.get(UInt8.self, at: Self.status), used[0].written)
  }

  func input(_ count: UInt32) -> [TestQueue.Buffer] {
    [.init(address: Self.data, count: count, isWritable: true)]
  }
  func output(_ count: UInt32) -> [TestQueue.Buffer] { [.init(address: Self.data, count: count)] }
}

@Suite struct BlockDeviceTests {
  private static let ok: UInt8 = 0
  private static let failed: UInt8 = 1
  private static let unsupported: UInt8 = 2

  @Test func theDriverFindsTheDisk() throws {
    let disk = try Disk(sectors: 100)
    #expect(disk.driver.configuration(0, 4) == 0x1042_1AF4)
    #expect(disk.driver.read(TestDriver.Common.queueCount, 2) == 1)
    #expect(disk.driver.status == 15)
    #expect(disk.driver.readDevice(0, 8) == 100 && disk.driver.readDevice(20, 4) == 512)
    #expect(disk.driver.readDevice(4, 2) == 0 && disk.driver.readDevice(4000, 4) == 0)
    // Flush, discard, zeroes; not read-only.
    #expect(disk.driver.offered & 1 << 9 != 0 && disk.driver.offered & 3 << 13 == 3 << 13)
    #expect(disk.driver.offered & 1 << 5 == 0)
  }

  @Test func whatIsWrittenIsReadAgain() throws {
    let disk = try Disk()
    let bytes = (0..<1024).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    #expect(disk.memory.write(bytes, at: Disk.data))
    #expect(try disk.run(1, sector: 5, disk.output(1024)) == (Self.ok, 1))
    // Spread over buffers of odd sizes.
    let pieces = [100, 1, 411, 512] as [UInt32]
    var address = UInt64(0x4_0000)
    let buffers = pieces.map { count in
      defer { address += 0x1000 }
      return TestQueue.Buffer(address: address, count: count, isWritable: true)
    }
    #expect(try disk.run(0, sector: 5, buffers) == (Self.ok, 1025))
    let read = buffers.flatMap { disk.memory.read($0.address, count: Int($0.count))! }
    #expect(read == bytes)
    #expect(disk.driver.record.messages.withLock { $0.map(\.data) }.contains(0x41))
  }

  @Test func theHeaderMayBeInPieces() throws {
    let disk = try Disk()
    disk.queue.put(UInt32(0), at: Disk.header)
    disk.queue.put(UInt64(3), at: Disk.header + 8)
    // The status byte is the last of a longer buffer.
    disk.queue.add([
      .init(address: Disk.header, count: 3), .init(address: Disk.header + 3, count: 13),
      .init(address: Disk.data, count: 513, isWritable: true),
    ])
    disk.driver.notify(0)
    #expect(TestDriver.wait { !disk.queue.takeUsed().isEmpty })
    #expect(disk.memory.read(Disk.data + 511, count: 2) == [3, 0])
  }

  @Test func flushesAndSerial() throws {
    let disk = try Disk()
    #expect(try disk.run(4) == (Self.ok, 1) && disk.image.state.withLock { $0.flushes } == 1)
    #expect(try disk.run(8, disk.input(20)) == (Self.ok, 21))
    #expect(disk.memory.read(Disk.data, count: 20) == Array("a serial number that".utf8))
    #expect(try disk.run(99).status == Self.unsupported)
    #expect(try disk.run(1, disk.output(512)).status == Self.ok)
    #expect(disk.image.state.withLock { $0.flushes } == 1)
  }

  @Test func withoutFlushesWritesAreDurable() throws {
    let disk = try Disk(start: false)
    disk.driver.start(features: 0, [disk.queue])
    #expect(try disk.run(1, disk.output(512)).status == Self.ok)
    #expect(disk.image.state.withLock { $0.flushes } == 1)
  }

  @Test func rangesAreDiscardedAndZeroed() throws {
    let disk = try Disk()
    func ranges(_ list: [(sector: UInt64, count: UInt32, flags: UInt32)]) -> [TestQueue.Buffer] {
      for (index, range) in list.enumerated() {
        let place = Disk.data + UInt64(index) * 16
        disk.queue.put(range.sector, at: place)
        disk.queue.put(range.count, at: place + 8)
        disk.queue.put(range.flags, at: place + 12)
      }
      return disk.output(UInt32(list.count * 16))
    }
    #expect(try disk.run(11, ranges([(1, 2, 0), (8, 8, 0)])).status == Self.ok)
    #expect(try disk.run(13, ranges([(4, 1, 1)])).status == Self.ok)
    #expect(
      disk.image.state.withLock { $0.cleared }
        == ["discard 512 1024", "discard 4096 4096", "zero 2048 512 true"])
    #expect(try disk.run(11, ranges([(63, 2, 0)])).status == Self.failed)
    #expect(try disk.run(11, ranges([(.max, 1, 0)])).status == Self.failed)
    #expect(try disk.run(11, ranges([(0, 1, 1)])).status == Self.unsupported)
    #expect(try disk.run(13, ranges([(0, 1, 2)])).status == Self.unsupported)
    #expect(try disk.run(13, disk.output(15)).status == Self.failed)
    #expect(try disk.run(13, disk.output(33 * 16)).status == Self.failed)
  }

  @Test func whatIsNotOnTheDiskIsAnError() throws {
    let disk = try Disk(sectors: 8)
    for sector in [8, 9, .max, 1 << 55, UInt64.max / 512 + 1] as [UInt64] {
      #expect(try disk.run(0, sector: sector, disk.input(512)).status == Self.failed)
      #expect(try disk.run(1, sector: sector, disk.output(512)).status == Self.failed)
    }
    #expect(try disk.run(0, sector: 7, disk.input(1024)).status == Self.failed)
    #expect(try disk.run(0, sector: 0, disk.input(100)).status == Self.failed)
    disk.image.state.withLock { $0.failure = .noSpace }
    #expect(try disk.run(1, disk.output(512)) == (Self.failed, 1))
    #expect(try disk.run(4).status == Self.failed)
  }

  @Test(arguments: [Errno.noSpace, .diskQuotaExceeded, .fileTooLarge])
  func aWriteWaitsForRoom(error: Errno) throws {
    let room = TestRoom()
    let disk = try Disk(room: room)
    disk.image.state.withLock { $0.failure = error }
    disk.offer(1, sector: 3, disk.output(512), slot: 0)
    disk.offer(4, [], slot: 1)
    #expect(TestDriver.wait { room.waiting.withLock { $0 } == 2 })
    usleep(300_000)
    #expect(disk.queue.takeUsed().isEmpty)
    disk.image.state.withLock { $0.failure = nil }
    room.hintCount.add(1, ordering: .releasing)
    var used = 0
    #expect(
      TestDriver.wait {
        used += disk.queue.takeUsed().count
        return used == 2
      })
    #expect(disk.queue.get(UInt8.self, at: Disk.status) == Self.ok)
    #expect(room.waiting.withLock { $0 } == 0 && room.ends.withLock { $0 } == [true, true])
    #expect(disk.image.state.withLock { $0.bytes[3 * 512] } == 0)
    // Other failures do not wait.
    disk.image.state.withLock { $0.failure = .ioError }
    #expect(try disk.run(1, disk.output(512)).status == Self.failed)
  }

  @Test func waitingForRoomEndsWithAResetOrTheDisk() throws {
    let room = TestRoom()
    let disk = try Disk(room: room)
    disk.image.state.withLock { $0.failure = .noSpace }
    disk.offer(1, disk.output(512))
    #expect(TestDriver.wait { room.waiting.withLock { $0 } == 1 })
    disk.driver.write(TestDriver.Common.status, 1, 0)
    #expect(TestDriver.wait { disk.driver.status == 0 })
    #expect(room.ends.withLock { $0 } == [false])
    restart(disk, 0)
    disk.offer(1, disk.output(512))
    #expect(TestDriver.wait { room.waiting.withLock { $0 } == 1 })
    disk.device.stop()
    #expect(room.waiting.withLock { $0 } == 0)
  }

  @Test func aReadOnlyDiskStaysAsItIs() throws {
    let disk = try Disk(isReadOnly: true)
    #expect(disk.driver.offered & 1 << 5 != 0 && disk.driver.offered & 3 << 13 == 0)
    for kind in [1, 11, 13] as [UInt32] {
      #expect(try disk.run(kind, disk.output(512)).status == Self.failed)
    }
    #expect(try disk.run(0, disk.input(512)).status == Self.ok)
  }

  @Test func aRequestWithoutHeaderBreaksTheDevice() throws {
    let disk = try Disk()
    disk.queue.add([.init(address: 0, count: 15), .init(address: 0, count: 1, isWritable: true)])
    disk.driver.notify(0)
    #expect(TestDriver.wait { disk.driver.status & 0x40 != 0 })
    // The driver is told by the vector for configuration changes, the user once.
    #expect(disk.driver.record.messages.withLock { $0.map(\.data) } == [0x40])
    #expect(disk.driver.record.reports.withLock { $0.count } == 1)
    // After a reset it works again.
    disk.queue = TestQueue(disk.memory, at: 0x1_4000, size: 16)
    disk.driver.start(features: .max, [disk.queue])
    #expect(disk.driver.status == 15)
    #expect(try disk.run(0, disk.input(512)).status == Self.ok)
  }

  /// A reset is over when the device does not touch the old buffers any more, and does not wait for
  /// that.
  @Test func aResetWaitsForRequestsThatRun() throws {
    let disk = try Disk()
    disk.image.gate.withLock { _ in
      disk.offer(0, disk.input(512))
      usleep(20_000)
      disk.driver.write(TestDriver.Common.status, 1, 0)
      #expect(disk.driver.status != 0)
    }
    #expect(TestDriver.wait { disk.driver.status == 0 })
    // What it has read is not told.
    let used = disk.queue.takeUsed()
    #expect(used.isEmpty)
  }

  @Test func requestsRunSideBySide() throws {
    let disk = try Disk()
    disk.image.gate.withLock { _ in
      disk.offer(0, disk.input(512), slot: 0)
      disk.offer(4, [], slot: 1)
      var used: [(head: UInt32, written: UInt32)] = []
      #expect(
        TestDriver.wait {
          used += disk.queue.takeUsed()
          return !used.isEmpty
        })
      // The flush has overtaken the read.
      #expect(used.count == 1 && used[0].head == 3)
    }
  }

  @Test func theInterruptPinIsThereWithoutMessages() throws {
    let disk = try Disk(start: false)
    disk.driver.start(features: .max, [disk.queue], vectors: false)
    #expect(try disk.run(4).status == Self.ok)
    #expect(TestDriver.wait { disk.driver.record.level.withLock { $0 } })
    #expect(disk.driver.configuration(6, 2) & 8 != 0)
    #expect(disk.driver.interruptStatus == 1 && disk.driver.interruptStatus == 0)
    #expect(!disk.driver.record.level.withLock { $0 })
    disk.driver.configure(4, 2, 0x406)
    #expect(try disk.run(4).status == Self.ok)
    #expect(!disk.driver.record.level.withLock { $0 })
  }

  @Test func featuresAreNegotiated() throws {
    let disk = try Disk(start: false)
    for features in [1 << 50, 0, UInt64(1) << 63 | VirtioFeature.version1] as [UInt64] {
      disk.driver.write(TestDriver.Common.status, 1, 0)
      disk.driver.write(TestDriver.Common.status, 1, 3)
      disk.driver.accept(features)
      disk.driver.write(TestDriver.Common.status, 1, 11)
      #expect(disk.driver.status == 3)
    }
    disk.driver.write(TestDriver.Common.queueSelect, 2, 7)
    #expect(disk.driver.read(TestDriver.Common.queueSize, 2) == 0)
    disk.driver.write(TestDriver.Common.queueSelect, 2, 0)
    disk.driver.write(TestDriver.Common.queueVector, 2, 2)
    #expect(disk.driver.read(TestDriver.Common.queueVector, 2) == 0xFFFF)
  }

  @Test func registersAreInConfigurationSpaceToo() throws {
    let disk = try Disk(sectors: 77)
    let capability = disk.driver.accessCapability
    disk.driver.configure(capability + 4, 1, 0)
    disk.driver.configure(capability + 8, 4, 0x2000)
    disk.driver.configure(capability + 12, 4, 4)
    #expect(disk.driver.configuration(capability + 16, 4) == 77)
    disk.driver.configure(capability + 12, 4, 3)
    #expect(disk.driver.configuration(capability + 16, 4) != 77)
  }

  /// A device in the hands of a driver that writes anything anywhere, rings and buffers included.
  /// It ends in any state; the next good driver finds it well.
  @Test func randomDrivers() throws {
    let disk = try Disk()
    var random = SplitMix(seed: 20_261_130)
    for round in 0..<100_000 {
      switch random.below(8) {
      case 0: scramble(disk, &random)
      case 1, 2: disk.driver.notify(0)
      case 3:
        disk.driver.bus.write(
          TestDriver.base + UInt64(random.below(0x4000)), width: 1 << random.below(4),
          value: random.next() >> UInt64(random.below(64)))
      case 4:
        _ = disk.driver.bus.read(
          TestDriver.base + UInt64(random.below(0x9000)), width: 1 << random.below(4))
      case 5:
        disk.driver.bus.write(
          TestDriver.tableBase + UInt64(random.below(0x1000)), width: 1 << random.below(4),
          value: random.next())
      case 6 where random.oneIn(16):
        disk.driver.configure(
          random.below(256), 1 << random.below(3), UInt32(truncatingIfNeeded: random.next()))
      default: if random.oneIn(64) { restart(disk, round) }
      }
    }
    restart(disk, 0)
    #expect(try disk.run(0, disk.input(512)).status == Self.ok)
  }

  private func restart(_ disk: Disk, _ round: Int) {
    disk.driver.place()
    disk.driver.write(TestDriver.Common.status, 1, 0)
    #expect(TestDriver.wait { disk.driver.status == 0 }, "round \(round)")
    let base = UInt64(0x1_0000)
    #expect(disk.memory.write([UInt8](repeating: 0, count: 0x3000), at: base))
    disk.queue = TestQueue(disk.memory, at: base, size: 16)
    disk.driver.start(features: .max, [disk.queue])
  }

  private func scramble(_ disk: Disk, _ random: inout SplitMix) {
    for index in 0..<16 as Range<UInt16> {
      disk.queue.describe(
        index,
        .init(
          address: random.oneIn(16) ? random.next() : random.next() & 0xF_FFFF,
          count: random.oneIn(16) ? UInt32.max : UInt32(random.below(2048))),
        flags: UInt16(random.below(8)) & ~(random.oneIn(8) ? 0 : 4), next: UInt16(random.below(17)))
    }
    for _ in 0..<random.below(4) { disk.queue.offer(UInt16(random.below(17))) }
  }
}
