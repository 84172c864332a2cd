// SPDX-License-Identifier: Apache-2.0
//
// Which device a bus finds for an address, and that nobody there reads as all ones.

import Devices
import Synchronization
import Testing

@Suite struct BusTests {
  final class Recorder: BusDevice {
    let last = Mutex<(UInt64, Int, UInt64)?>(nil)
    func read(offset: UInt64, width: Int) -> UInt64 { 0xFFFF_FF00 + offset }
    func write(offset: UInt64, width: Int, value: UInt64) {
      last.withLock { $0 = (offset, width, value) }
    }
  }

  @Test func accessesFindTheirDeviceByOffset() throws {
    let bus = Bus()
    let (first, second) = (Recorder(), Recorder())
    #expect(bus.attach(second, at: 0x200, size: 16) == true)
    #expect(bus.attach(first, at: 0x100, size: 8) == true)
    #expect(bus.read(0x100, width: 1) == 0 && bus.read(0x107, width: 1) == 7)
    #expect(bus.read(0x20F, width: 2) == 0xFF0F)
    bus.write(0x203, width: 2, value: 0x12345)
    let seen = try #require(second.last.withLock { $0 })
    #expect(seen == (3, 2, 0x2345))
    #expect(first.last.withLock { $0 } == nil)
  }

  @Test(arguments: [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF), (8, UInt64.max)])
  func nobodyAnswersAllOnes(width: Int, value: UInt64) {
    let bus = Bus()
    bus.attach(Recorder(), at: 0x100, size: 8)
    for address in [0, 0xFF, 0x108, UInt64.max] {
      #expect(bus.read(address, width: width) == value)
      bus.write(address, width: width, value: 1)
    }
  }

  @Test func overlapsAreRefused() {
    let bus = Bus()
    #expect(bus.attach(Recorder(), at: 0x100, size: 8) == true)
    #expect(bus.attach(Recorder(), at: 0x107, size: 1) == false)
    #expect(bus.attach(Recorder(), at: 0xFF, size: 2) == false)
    #expect(bus.attach(Recorder(), at: 0x80, size: 0x1000) == false)
    #expect(bus.attach(Recorder(), at: 0x50, size: 0) == false)
    #expect(bus.attach(Recorder(), at: .max, size: 2) == false)
    #expect(bus.attach(Recorder(), at: 0x108, size: 1) == true)
    #expect(bus.attach(Recorder(), at: 0xFF, size: 1) == true)
  }
}
