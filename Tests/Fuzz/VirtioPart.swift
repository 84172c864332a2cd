// SPDX-License-Identifier: Apache-2.0

import Devices
import Glibc
import GuestMemory
import Host
import Synchronization
import SystemPackage

/// A virtio device in the hands of a driver that an input plays: memory, registers, buffers, and
/// what happens at the host's side meanwhile.
enum VirtioPart {
  enum Kind { case console, sockets, balloon }

  private static let memory = try? GuestMemory(size: 1 << 16, lowEnd: 1 << 16, highStart: 1 << 32)
  private static let base: UInt64 = 0xC000_0000
  /// Parts of range 0, and MSI-X's table.
  private static let deviceConfiguration: UInt64 = 0x2000
  private static let notifications: UInt64 = 0x3000
  private static let table: UInt64 = 0xC001_0000
  private static let queueSize: UInt16 = 8

  static func run(_ kind: Kind, _ input: UnsafeRawBufferPointer) {
    signal(SIGPIPE, SIG_IGN)
    guard let memory, let loop = try? EventLoop(), let subject = Subject(kind, memory, loop) else {
      return
    }
    memory.clear()
    let driver = Driver(subject.device, memory)
    driver.start(queues: subject.queueCount)
    var reader = Reader(input)
    while !reader.isAtEnd {
      step(driver, subject, memory, loop, &reader)
      try? loop.runOnce(timeout: 0)
    }
    // A good driver finds the device well, whatever the last one did.
    driver.place()
    driver.write(20, 1, 0)
    for _ in 0..<20 { try? loop.runOnce(timeout: 0) }
    check(driver.read(20, 1) == 0, "a reset does not end")
  }

  private static func step(
    _ driver: Driver, _ subject: Subject, _ memory: GuestMemory, _ loop: EventLoop,
    _ reader: inout Reader
  ) {
    let kind = reader.byte()
    let number = Int(kind >> 4)
    switch kind & 15 {
    case 0...4: driver.offer(number % subject.queueCount, &reader)
    case 5...7: driver.notify(number % subject.queueCount)
    case 8: driver.write(reader.number() & 0x3FFF, 1 << (number & 3), reader.number())
    case 9: _ = driver.read(reader.number() & 0x3FFF, 1 << (number & 3))
    case 10: driver.write(deviceConfiguration &+ UInt64(number), 4, reader.number())
    case 11:
      let bytes = (0..<number).map { _ in reader.byte() }
      _ = memory.write(bytes, at: UInt64(reader.word(UInt16.self)))
    case 12:
      driver.write(20, 1, 0)
      driver.start(queues: subject.queueCount)
    default: subject.actAtHost(number, &reader)
    }
  }

  /// The driver's side.
  private final class Driver {
    private let bus = Bus()
    private let root: PCIRoot
    private let memory: GuestMemory
    private var available: [UInt16] = []

    init(_ device: any VirtioDevice, _ memory: GuestMemory) {
      self.memory = memory
      root = PCIRoot(
        memory: bus, ports: Bus(), windows: PCIWindows(memory: base..<0xC100_0000, ports: 0..<1),
        lines: [{ _ in }])
      root.insert(VirtioPCI(device), slot: 1)
      place()
    }

    func place() {
      let slot = PCIAddress(1 << 3)
      root.write(slot, 0x10, width: 4, value: UInt32(base))
      root.write(slot, 0x14, width: 4, value: UInt32(table))
      root.write(slot, 0x04, width: 2, value: 6)
    }

    func read(_ offset: UInt64, _ width: Int) -> UInt64 { bus.read(base &+ offset, width: width) }
    func write(_ offset: UInt64, _ width: Int, _ value: UInt64) {
      bus.write(base &+ offset, width: width, value: value)
    }
    func notify(_ queue: Int) { write(notifications &+ UInt64(queue &* 4), 2, UInt64(queue)) }

    private func place(_ queue: Int) -> UInt64 { 0x1000 &+ UInt64(queue) &* 0x400 }

    /// Takes all features, and has all queues at their places.
    func start(queues count: Int) {
      available = [UInt16](repeating: 0, count: count)
      _ = memory.clear(0x1000, count: count * 0x400)
      write(20, 1, 3)
      for half in 0..<2 as Range<UInt64> {
        write(0, 4, half)
        let offered = read(4, 4)
        write(8, 4, half)
        write(12, 4, offered)
      }
      write(20, 1, 11)
      for queue in 0..<count {
        write(22, 2, UInt64(queue))
        write(24, 2, UInt64(queueSize))
        write(32, 8, place(queue))
        write(40, 8, place(queue) + 0x100)
        write(48, 8, place(queue) + 0x200)
        write(28, 2, 1)
      }
      write(20, 1, 15)
    }

    /// Writes one or two descriptors and makes them available.
    func offer(_ queue: Int, _ reader: inout Reader) {
      let shape = reader.byte()
      let head = available[queue] % queueSize
      let isChain = shape & 1 != 0
      for index in 0..<(isChain ? 2 : 1) as Range<UInt16> {
        let entry = place(queue) + UInt64((head &+ index) % queueSize) * 16
        let address = shape & 0x10 != 0 ? reader.number() : 0x8000 &+ UInt64(reader.byte()) << 6
        let count = shape & 0x20 != 0 ? reader.number() : UInt64(reader.byte()) << 2
        let isWritable = shape >> (1 + UInt8(index)) & 1 != 0
        var flags: UInt64 = isWritable ? 2 : 0
        if isChain, index == 0 { flags |= 1 }
        if shape & 0x40 != 0 { flags |= 4 }
        _ = memory.store64(address, at: entry)
        _ = memory.store64(
          count & 0xFFFF_FFFF | flags << 32 | UInt64((head &+ 1) % queueSize) << 48, at: entry + 8)
      }
      let ring = place(queue) + 0x100
      _ = memory.store16(head, at: ring + 4 + UInt64(available[queue] % queueSize) * 2)
      available[queue] &+= isChain ? 2 : 1
      _ = memory.store16(
        shape & 0x80 != 0 ? UInt16(truncatingIfNeeded: reader.number()) : available[queue],
        at: ring + 2)
    }
  }

  /// The device and what is behind it.
  private final class Subject {
    let device: any VirtioDevice
    let queueCount: Int
    private let act: (Int, inout Reader) -> Void

    init?(_ kind: Kind, _ memory: GuestMemory, _ loop: EventLoop) {
      let wires = DeviceWires(message: { _ in }, line: { _ in })
      func connection(_ sizes: [UInt16]) -> VirtioConnection {
        VirtioConnection(memory, queueSizes: sizes, wires)
      }
      switch kind {
      case .console:
        let ends = [ConsoleEnd(), ConsoleEnd()]
        let sizes = ConsoleDevice.queueSizes(ports: 2)
        guard
          let console = try? ConsoleDevice(
            connection(sizes), ports: ends.map { .init(name: "port", backend: $0) },
            size: .init(columns: 80, rows: 25), loop: loop)
        else { return nil }
        (device, queueCount) = (console, sizes.count)
        act = { number, reader in
          ends[number & 1].change(number, &reader)
          if number & 8 != 0 {
            console.resize(.init(columns: UInt16(reader.byte()), rows: UInt16(reader.byte())))
          }
          console.wake()
        }
      case .sockets:
        let host = SocketHost()
        guard
          let sockets = try? VsockDevice(
            connection(VsockDevice.queueSizes), address: 3, backend: host, loop: loop)
        else { return nil }
        (device, queueCount) = (sockets, VsockDevice.queueSizes.count)
        act = { number, reader in host.change(number, sockets, &reader) }
      case .balloon:
        guard
          let balloon = try? BalloonDevice(
            connection(BalloonDevice.queueSizes), memory, BalloonDevice.Options(), loop: loop)
        else { return nil }
        (device, queueCount) = (balloon, BalloonDevice.queueSizes.count)
        act = { _, _ in balloon.askForStatistics() }
      }
    }

    func actAtHost(_ number: Int, _ reader: inout Reader) { act(number, &reader) }
  }

  /// A port's end at the host.
  private final class ConsoleEnd: ConsoleBackend {
    private struct State {
      var isOpen = true
      var hasRoom = true
      var input = 0
    }
    private let state = Mutex(State())

    var isOpen: Bool { state.withLock { $0.isOpen } }
    var hasRoom: Bool { state.withLock { $0.hasRoom } }
    var hasInput: Bool { state.withLock { $0.input > 0 } }
    func put(_ bytes: [UInt8]) {}
    func take(_ limit: Int) -> [UInt8] {
      state.withLock { state in
        let count = min(limit, state.input)
        state.input -= count
        return [UInt8](repeating: 1, count: count)
      }
    }

    func change(_ number: Int, _ reader: inout Reader) {
      state.withLock { state in
        state.isOpen = number & 2 == 0
        state.hasRoom = number & 4 == 0
        state.input = Int(reader.byte()) * 16
      }
    }
  }

  /// Programs of the host.
  private final class SocketHost: VsockBackend {
    private struct State {
      var asked: [UInt64] = []
      var files: [Int32] = []
    }
    private let state = Mutex(State())

    deinit { state.withLock { $0.files.forEach { close($0) } } }

    func connect(port: UInt32, number: UInt64) -> Bool {
      if port & 1 != 0 { return false }
      state.withLock { $0.asked.append(number) }
      return true
    }

    /// One end of a pair of sockets; the other is kept.
    private func file() -> OwnedFileDescriptor? {
      var ends: [Int32] = [0, 0]
      let type = Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue)
      let count = state.withLock { $0.files.count }
      guard count < 32, socketpair(AF_UNIX, type, 0, &ends) == 0 else { return nil }
      state.withLock { $0.files.append(ends[1]) }
      return OwnedFileDescriptor(owning: ends[0])
    }

    func change(_ number: Int, _ device: VsockDevice, _ reader: inout Reader) {
      switch number & 7 {
      case 0, 1:
        let asked = state.withLock { $0.asked.isEmpty ? nil : $0.asked.removeFirst() }
        if let asked { device.connected(asked, number & 1 == 0 ? file() : nil) }
      case 2:
        if let file = file() { device.offer(port: UInt32(reader.byte()), socket: file) }
      case 3: take { close($0) }
      case 4: take(keeps: true) { shutdown($0, Int32(SHUT_WR)) }
      case 5:
        take(keeps: true) { file in
          var bytes = [UInt8](repeating: 0, count: 4096)
          _ = Glibc.read(file, &bytes, bytes.count)
        }
      default:
        let count = Int(reader.byte()) * 64
        take(keeps: true) { file in
          _ = Glibc.write(file, [UInt8](repeating: 1, count: count), count)
        }
      }
    }

    /// Does something with the program that is there longest.
    private func take(keeps: Bool = false, _ body: (Int32) -> Void) {
      state.withLock { state in
        guard let file = state.files.first else { return }
        state.files.removeFirst()
        body(file)
        if keeps { state.files.append(file) }
      }
    }
  }

  /// Buffers in each queue, notifications, and something from the host.
  static let seeds: [[UInt8]] = [
    (0..<6).flatMap { [UInt8($0 << 4), 2, 8, 64, UInt8($0 << 4 | 5)] } + [13, 200, 0x1D, 9],
    // A message of the console's driver, a request of the sockets', a list of pages.
    [0xFB, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0x30, 0, 0, 2, 0x35],
    [0x8B, 3, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0x8B, 2, 0, 0, 0, 0, 0, 0, 0, 0x80, 8]
      + [0x4B, 1, 0, 1, 0, 0x80, 28, 0x10, 0, 0, 11, 0x15, 0x0D, 0, 2, 8, 200, 0x05],
  ]
}
