// SPDX-License-Identifier: Apache-2.0
//
// A driver for tests of virtio devices. It finds its device the way a guest does, by
// configuration space, capabilities and registers, so a device that hides them fails.

import Devices
import Glibc
import GuestMemory
import Synchronization
import Testing

final class TestDriver {
  struct Wires: Sendable {
    final class Record: Sendable {
      let messages = Mutex<[InterruptMessage]>([])
      let level = Mutex(false)
      let reports = Mutex<[String]>([])
    }
    let record = Record()
    var wires: DeviceWires {
      let record = record
      return DeviceWires(
        message: { message in record.messages.withLock { $0.append(message) } },
        line: { level in record.level.withLock { $0 = level } },
        report: { text in record.reports.withLock { $0.append(text) } })
    }
  }

  /// Offsets in the common configuration.
  enum Common {
    static let deviceFeatureSelect: UInt64 = 0
    static let deviceFeature: UInt64 = 4
    static let driverFeatureSelect: UInt64 = 8
    static let driverFeature: UInt64 = 12
    static let configurationVector: UInt64 = 16
    static let queueCount: UInt64 = 18
    static let status: UInt64 = 20
    static let queueSelect: UInt64 = 22
    static let queueSize: UInt64 = 24
    static let queueVector: UInt64 = 26
    static let queueEnable: UInt64 = 28
    static let queueNotify: UInt64 = 30
    static let descriptors: UInt64 = 32
    static let driver: UInt64 = 40
    static let device: UInt64 = 48
  }

  static let base: UInt64 = 0xC000_0000
  static let tableBase: UInt64 = 0xC000_8000

  let memory: GuestMemory
  let bus = Bus()
  let ports = Bus()
  let root: PCIRoot
  let record: Wires.Record
  /// Where the parts are, by capability type.
  private(set) var parts: [UInt8: UInt64] = [:]
  private var notifyMultiplier: UInt64 = 0

  init(
    _ memory: GuestMemory, _ record: Wires.Record, _ device: any VirtioDevice
  ) throws {
    self.memory = memory
    self.record = record
    root = PCIRoot(
      memory: bus, ports: ports, windows: PCIWindows(memory: Self.base..<0xC100_0000, ports: 0..<1),
      lines: [{ _ in }])
    root.insert(VirtioPCI(device), slot: 1)
    place()
    try find()
  }

  /// Puts the ranges where this driver looks for them.
  func place() {
    configure(0x10, 4, UInt32(Self.base))
    configure(0x14, 4, UInt32(Self.tableBase))
    configure(0x04, 2, 6)
  }

  private static let slot = PCIAddress(1 << 3)
  func configuration(_ offset: Int, _ width: Int) -> UInt32 {
    root.read(Self.slot, offset, width: width)
  }
  func configure(_ offset: Int, _ width: Int, _ value: UInt32) {
    root.write(Self.slot, offset, width: width, value: value)
  }

  /// Offset of MSI-X's capability.
  private(set) var messageCapability = 0
  private(set) var accessCapability = 0

  private func find() throws {
    var offset = Int(configuration(0x34, 1))
    while offset != 0 {
      if configuration(offset, 1) == 0x09 {
        let type = UInt8(configuration(offset + 3, 1))
        parts[type] = Self.base + UInt64(configuration(offset + 8, 4))
        if type == 2 { notifyMultiplier = UInt64(configuration(offset + 16, 4)) }
        if type == 5 { accessCapability = offset }
      } else if configuration(offset, 1) == 0x11 {
        messageCapability = offset
      }
      offset = Int(configuration(offset + 1, 1))
    }
    try #require(Set(parts.keys) == [1, 2, 3, 4, 5] && messageCapability != 0)
  }

  func read(_ field: UInt64, _ width: Int) -> UInt64 { bus.read(parts[1]! + field, width: width) }
  func write(_ field: UInt64, _ width: Int, _ value: UInt64) {
    bus.write(parts[1]! + field, width: width, value: value)
  }
  func readDevice(_ offset: UInt64, _ width: Int) -> UInt64 {
    bus.read(parts[4]! + offset, width: width)
  }
  var interruptStatus: UInt64 { bus.read(parts[3]!, width: 1) }
  var status: UInt64 { read(Common.status, 1) }

  var offered: UInt64 {
    (0..<2 as Range<UInt64>).reduce(0) { features, half in
      write(Common.deviceFeatureSelect, 4, half)
      return features | read(Common.deviceFeature, 4) << (half * 32)
    }
  }

  func accept(_ features: UInt64) {
    for half in 0..<2 as Range<UInt64> {
      write(Common.driverFeatureSelect, 4, half)
      write(Common.driverFeature, 4, features >> (half * 32) & 0xFFFF_FFFF)
    }
  }

  /// Reset, features, queues, ready.
  func start(features wanted: UInt64, _ queues: [TestQueue], vectors: Bool = true) {
    write(Common.status, 1, 0)
    write(Common.status, 1, 3)
    accept(wanted & offered | VirtioFeature.version1)
    write(Common.status, 1, 11)
    if vectors { enableMessages(count: queues.count + 1) }
    write(Common.configurationVector, 2, 0)
    for (index, queue) in queues.enumerated() {
      write(Common.queueSelect, 2, UInt64(index))
      write(Common.queueSize, 2, UInt64(queue.place.size))
      write(Common.queueVector, 2, UInt64(index + 1))
      write(Common.descriptors, 4, queue.place.descriptors & 0xFFFF_FFFF)
      write(Common.descriptors + 4, 4, queue.place.descriptors >> 32)
      write(Common.driver, 8, queue.place.driver)
      write(Common.device, 8, queue.place.device)
      write(Common.queueEnable, 2, 1)
    }
    write(Common.status, 1, 15)
  }

  /// Vector N sends the data 0x40 + N.
  func enableMessages(count: Int) {
    for vector in 0..<UInt64(count) {
      let entry = Self.tableBase + vector * 16
      bus.write(entry, width: 8, value: 0xFEE0_0000)
      bus.write(entry + 8, width: 4, value: 0x40 + vector)
      bus.write(entry + 12, width: 4, value: 0)
    }
    configure(messageCapability + 2, 2, 0x8000)
  }

  func notify(_ queue: Int) {
    write(Common.queueSelect, 2, UInt64(queue))
    let offset = read(Common.queueNotify, 2) * notifyMultiplier
    bus.write(parts[2]! + offset, width: 2, value: UInt64(queue))
  }

  /// Waits for what another thread does.
  static func wait(_ condition: () -> Bool) -> Bool {
    for _ in 0..<20_000 {
      if condition() { return true }
      usleep(500)
    }
    return false
  }
}
