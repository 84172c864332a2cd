// SPDX-License-Identifier: Apache-2.0
//
// Every register of every device with random and edge values, at every offset and width and at
// times from the first to the last: nothing that a guest writes may trap.

import Devices
import Synchronization
import TestRandom
import Testing

@Suite struct DeviceFuzzTests {
  private static let seed: UInt64 = 20_261_130
  private static let steps = 40_000
  private static let edges: [UInt64] = [
    0, 1, 0x7F, 0x80, 0xFF, 0x99, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, .max,
  ]

  /// A clock that jumps: forwards, backwards, to either end.
  private final class Time: Sendable {
    private let value = Atomic<UInt64>(0)
    var now: UInt64 { value.load(ordering: .relaxed) }
    func step(_ random: inout SplitMix) {
      let edge = DeviceFuzzTests.edges[random.below(DeviceFuzzTests.edges.count)]
      switch random.below(4) {
      case 0: value.store(edge, ordering: .relaxed)
      // The last second of what 64 bits of nanoseconds with a sign hold.
      case 1: value.store(0x7FFF_FFFF_FFFF_FFFF - random.next() >> 34, ordering: .relaxed)
      default: value.store(now &+ random.next() >> UInt64(random.below(64)), ordering: .relaxed)
      }
    }
  }

  private func fuzz(
    _ device: any BusDevice, size: UInt64, time: Time, steps: Int = Self.steps,
    _ step: () -> Void = {}
  ) {
    var random = SplitMix(seed: Self.seed)
    let bus = Bus()
    bus.attach(device, at: 0x100, size: size)
    for _ in 0..<steps {
      if random.oneIn(8) { time.step(&random) }
      let address = 0x100 + UInt64(random.below(Int(size)))
      let width = 1 << random.below(4)
      if random.oneIn(3) {
        _ = bus.read(address, width: width)
      } else {
        let value = random.oneIn(2) ? random.next() : Self.edges[random.below(Self.edges.count)]
        bus.write(address, width: width, value: value)
      }
      step()
    }
  }

  @Test func clock() {
    let time = Time()
    let clock = RealTimeClockDevice(interrupt: { _ in }, now: { time.now })
    // A day in which the clock was not looked at is searched for alarms.
    fuzz(clock, size: 2, time: time, steps: 2000) { _ = clock.runEvents() }
  }

  @Test func powerManagement() {
    let time = Time()
    let device = PowerManagement(interrupt: { _ in }, now: { time.now }, powerOff: {})
    fuzz(device, size: PowerManagement.size, time: time) { device.pressPowerButton() }
  }

  @Test func serialPort() {
    let port = SerialPort(interrupt: { _ in }, output: { _ in })
    fuzz(port, size: 8, time: Time()) {
      if port.pendingInput < 64 { port.receive([0, 0x41, 0xFF]) }
    }
  }

  @Test func smallDevices() {
    fuzz(KeyboardController {}, size: 5, time: Time())
    fuzz(ResetRegister {}, size: 1, time: Time())
    fuzz(DebugExit { _ in }, size: 1, time: Time())
  }
}

extension RealTimeClockTests {
  /// 64 bits of nanoseconds since 1970 end at 2262-04-11 23:47:16.
  @Test func theGuestSetsTheTimeBeyond2262() {
    var clock = RealTimeClock(now: Self.start)
    for (register, value) in [
      (Register.century, 0x22), (Register.year, 0x62), (Register.month, 0x04), (Register.day, 0x11),
      (Register.hours, 0x23), (Register.minutes, 0x47), (Register.seconds, 0x17),
    ] as [(UInt8, UInt8)] { write(&clock, register, value) }
    #expect(read(&clock, Register.seconds) == 0x17 && read(&clock, Register.minutes) == 0x47)
    #expect(read(&clock, Register.year) == 0x62 && read(&clock, Register.century) == 0x22)
    // A Friday, and 13 minutes later a Saturday.
    #expect(read(&clock, Register.dayOfWeek) == 6)
    let later = Self.start + 13 * 60 * Self.second
    #expect(read(&clock, Register.dayOfWeek, later) == 7)
    #expect(clock.nextEvent(now: later) == nil)
    write(&clock, Register.century, 0x25, later)
    write(&clock, Register.year, 0x99, later)
    #expect(read(&clock, Register.year, later + Self.second) == 0x99)
  }
}
