// SPDX-License-Identifier: Apache-2.0
//
// Firmware's configuration device: items read at the port and by commands in memory are those
// that it was made with, whatever a guest writes.

import Devices
import GuestMemory
import Host
import TestRandom
import Testing

@Suite struct FirmwareConfigurationTests {
  private static let address: UInt64 = 0x1000
  private let memory: GuestMemory
  private let device: FirmwareConfiguration

  init() throws {
    memory = try GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
    device = FirmwareConfiguration(
      memory, numbers: [FirmwareConfiguration.Item.processorCount: 3],
      files: [("a", [1, 2, 3]), ("etc/b", [UInt8](repeating: 7, count: 300))])
  }

  private func read(_ item: UInt16, _ count: Int) -> [UInt8] {
    device.write(offset: 0, width: 2, value: UInt64(item))
    return (0..<count).map { _ in UInt8(device.read(offset: 1, width: 1)) }
  }

  /// Has a command carried out; its answer.
  private func run(_ control: UInt32, _ count: UInt32, _ target: UInt64) throws -> UInt32 {
    var command: [UInt8] = []
    command.append(big: control)
    command.append(big: count)
    command.append(big: target)
    #expect(memory.write(command, at: Self.address))
    device.write(offset: 4, width: 4, value: 0)
    device.write(offset: 8, width: 4, value: UInt64(UInt32(Self.address).byteSwapped))
    return try #require(memory.read(Self.address, count: 4)?.load(big: UInt32.self, at: 0))
  }

  @Test func itemsAndFilesAreReadAtThePort() {
    #expect(read(0, 5) == Array("QEMU".utf8) + [0])
    #expect(read(1, 4) == [3, 0, 0, 0] && read(5, 2) == [3, 0] && read(0x77, 2) == [0, 0])
    let directory = read(0x19, 4 + 2 * 64)
    #expect(directory.load(big: UInt32.self, at: 0) == 2)
    #expect(directory.load(big: UInt32.self, at: 4) == 3)
    #expect(directory.load(big: UInt16.self, at: 8) == 0x20)
    #expect(directory[12..<14].elementsEqual([UInt8(ascii: "a"), 0]))
    #expect(directory[76..<82].elementsEqual(Array("etc/b".utf8) + [0]))
    #expect(read(0x20, 4) == [1, 2, 3, 0])
  }

  @Test func commandsCopyToMemory() throws {
    #expect(device.read(offset: 4, width: 8).byteSwapped == 0x5145_4D55_2043_4647)
    #expect(memory.write([UInt8](repeating: 9, count: 16), at: 0x2000))
    // Select and read, with more bytes than the file has.
    #expect(try run(0x20 << 16 | 8 | 2, 5, 0x2000) == 0)
    #expect(memory.read(0x2000, count: 6) == [1, 2, 3, 0, 0, 9])
    // Select, skip, read.
    #expect(try run(0x20 << 16 | 8 | 4, 2, 0) == 0)
    #expect(try run(2, 1, 0x2000) == 0 && memory.read(0x2000, count: 1) == [3])
    // What is not in memory, and writes.
    #expect(try run(0x20 << 16 | 8 | 2, 5, (1 << 20) - 2) == 1)
    #expect(try run(0x20 << 16 | 8 | 2, .max, 0) == 1)
    #expect(try run(0x20 << 16 | 8 | 2, 1, .max) == 1)
    #expect(try run(0x20 << 16 | 8 | 16, 1, 0x2000) == 1)
    #expect(read(0x20, 1) == [1])
  }

  @Test func filesAreReplacedByOthersOfTheirSize() {
    device.replace([("a", [4, 5, 6]), ("etc/b", [1]), ("c", [1])])
    #expect(read(0x20, 4) == [4, 5, 6, 0] && read(0x21, 2) == [7, 7])
    device.resetWithMachine()
    #expect(read(0x20, 1) == [4])
  }

  @Test func anythingMayBeWritten() {
    var random = SplitMix(seed: 4)
    let bus = Bus()
    bus.attach(device, at: 0x510, size: FirmwareConfiguration.size)
    for _ in 0..<40_000 {
      let address = 0x510 + UInt64(random.below(12))
      let width = 1 << random.below(4)
      let value = random.oneIn(2) ? random.next() : UInt64(random.below(64)).byteSwapped
      if random.oneIn(3) {
        _ = bus.read(address, width: width)
      } else {
        bus.write(address, width: width, value: value)
      }
      if random.oneIn(16) { _ = memory.write([random.byte()], at: UInt64(random.below(64))) }
    }
  }
}
