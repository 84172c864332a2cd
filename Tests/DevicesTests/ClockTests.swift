// SPDX-License-Identifier: Apache-2.0
//
// The CMOS clock against the MC146818's data sheet, and its calendar against each day of four
// centuries. Time is injected.

import Devices
import Testing

@Suite struct CalendarTimeTests {
  @Test(arguments: [
    (0, 1970, 1, 1, 0, 0, 0, 4), (951_782_399, 2000, 2, 28, 23, 59, 59, 1),
    (951_782_400, 2000, 2, 29, 0, 0, 0, 2), (951_868_800, 2000, 3, 1, 0, 0, 0, 3),
    (4_107_542_400, 2100, 3, 1, 0, 0, 0, 1), (-1, 1969, 12, 31, 23, 59, 59, 3),
    (1_800_000_000, 2027, 1, 15, 8, 0, 0, 5),
  ])
  func secondsSplitIntoADate(
    seconds: Int64, year: Int, month: Int, day: Int, hour: Int, minute: Int, second: Int, week: Int
  ) {
    let time = CalendarTime(secondsSince1970: seconds)
    #expect((time.year, time.month, time.day) == (year, month, day))
    #expect((time.hour, time.minute, time.second) == (hour, minute, second))
    #expect(time.dayOfWeek == week && time.secondsSince1970 == seconds)
  }

  @Test func everyDayOfFourCenturiesComesBack() {
    for day in stride(from: Int64(-80_000), to: 80_000, by: 1) {
      #expect(CalendarTime(secondsSince1970: day * 86400).secondsSince1970 == day * 86400)
    }
  }
}

@Suite struct RealTimeClockTests {
  typealias Register = RealTimeClock.Register
  typealias Control = RealTimeClock.Control
  /// 2027-01-15 08:00:00 and half a second, a Friday.
  static let start: UInt64 = 1_800_000_000_500_000_000
  static let second: UInt64 = 1_000_000_000

  func read(_ clock: inout RealTimeClock, _ register: UInt8, _ now: UInt64 = start) -> UInt8 {
    clock.index = register
    return clock.readData(now: now)
  }
  func write(
    _ clock: inout RealTimeClock, _ register: UInt8, _ value: UInt8, _ now: UInt64 = start
  ) {
    clock.index = register
    clock.writeData(value, now: now)
  }

  @Test func memorySizesAreWhereFirmwareLooks() {
    var clock = RealTimeClock(now: Self.start)
    clock.setMemorySize(below4GiB: 0x8000_0000, above4GiB: 3 << 30)
    #expect(read(&clock, 0x15) == 0x80 && read(&clock, 0x16) == 2)
    #expect(read(&clock, 0x30) == 0xFF && read(&clock, 0x31) == 0xFF)
    #expect(read(&clock, 0x34) == 0x00 && read(&clock, 0x35) == 0x7F)
    #expect(read(&clock, 0x5B) == 0 && read(&clock, 0x5C) == 0xC0 && read(&clock, 0x5D) == 0)
    clock.setMemorySize(below4GiB: 4 << 20, above4GiB: 0)
    #expect(read(&clock, 0x30) == 0x00 && read(&clock, 0x31) == 0x0C)
    #expect(read(&clock, 0x34) == 0 && read(&clock, 0x35) == 0)
  }

  @Test func theTimeIsTheHosts() {
    var clock = RealTimeClock(now: Self.start)
    #expect(read(&clock, Register.year) == 0x27 && read(&clock, Register.century) == 0x20)
    #expect(read(&clock, Register.month) == 1 && read(&clock, Register.day) == 0x15)
    #expect(read(&clock, Register.dayOfWeek) == 6)
    #expect(read(&clock, Register.hours) == 8 && read(&clock, Register.minutes) == 0)
    #expect(read(&clock, Register.seconds, Self.start + 42 * Self.second) == 0x42)
    #expect(read(&clock, Register.d) == 0x80)
    write(&clock, Register.b, Control.binary)
    #expect(read(&clock, Register.year) == 27)
    // 12-hour format.
    #expect(read(&clock, Register.hours, Self.start + 5 * 3600 * Self.second) == 0x81)
  }

  @Test func anUpdateIsAnnounced() {
    var clock = RealTimeClock(now: Self.start)
    #expect(read(&clock, Register.a) == 0x26)
    #expect(read(&clock, Register.a, Self.start + 499_900_000) == 0xA6)
    #expect(read(&clock, Register.a, Self.start + 500_000_000) == 0x26)
  }

  @Test func theGuestSetsTheTime() {
    var clock = RealTimeClock(now: Self.start)
    write(&clock, Register.b, Control.hours24 | Control.halt)
    write(&clock, Register.year, 0x31)
    write(&clock, Register.month, 0x02)
    write(&clock, Register.hours, 0x23)
    #expect(read(&clock, Register.seconds, Self.start + 9 * Self.second) == 0)
    write(&clock, Register.b, Control.hours24, Self.start + 10 * Self.second)
    #expect(read(&clock, Register.year, Self.start + 10 * Self.second) == 0x31)
    #expect(read(&clock, Register.month, Self.start + 10 * Self.second) == 2)
    #expect(read(&clock, Register.seconds, Self.start + 12 * Self.second) == 2)
    #expect(read(&clock, Register.hours, Self.start + 12 * Self.second) == 0x23)
  }

  @Test func flagsAndInterruptsFollowTheTime() {
    var clock = RealTimeClock(now: Self.start)
    #expect(read(&clock, Register.c) == 0 && clock.nextEvent(now: Self.start) == nil)
    write(&clock, Register.b, Control.hours24 | Control.updateInterrupt)
    #expect(clock.nextEvent(now: Self.start) == Self.start + Self.second / 2)
    clock.advance(now: Self.start + Self.second / 2)
    #expect(clock.interruptLevel)
    #expect(read(&clock, Register.c, Self.start + Self.second / 2) & 0x90 == 0x90)
    #expect(!clock.interruptLevel)
  }

  @Test func theAlarmRings() {
    var clock = RealTimeClock(now: Self.start)
    write(&clock, Register.secondsAlarm, 0x05)
    write(&clock, Register.minutesAlarm, 0x00)
    write(&clock, Register.hoursAlarm, 0xFF)
    write(&clock, Register.b, Control.hours24 | Control.alarmInterrupt)
    clock.advance(now: Self.start + 4 * Self.second)
    #expect(!clock.interruptLevel)
    clock.advance(now: Self.start + 5 * Self.second)
    #expect(clock.interruptLevel)
    #expect(read(&clock, Register.c, Self.start + 5 * Self.second) & 0xA0 == 0xA0)
  }

  @Test func periodicInterruptsHaveTheirRate() {
    var clock = RealTimeClock(now: Self.start)
    write(&clock, Register.a, 0x26)  // 1024 Hz
    write(&clock, Register.b, Control.hours24 | Control.periodicInterrupt)
    let next = clock.nextEvent(now: Self.start)
    #expect(next.map { $0 - Self.start <= 976_563 } == true)
    clock.advance(now: Self.start + 976_563)
    #expect(clock.interruptLevel)
  }

  @Test func theMemoryKeepsBytes() {
    var clock = RealTimeClock(now: Self.start)
    for register in 14..<128 as Range<UInt8> where register != Register.century {
      write(&clock, register, register ^ 0x5A)
    }
    for register in 14..<128 as Range<UInt8> where register != Register.century {
      #expect(read(&clock, register) == register ^ 0x5A)
    }
  }

  @Test func noValueTraps() {
    for register in 0..<128 as Range<UInt8> {
      for control in [0, Control.binary, Control.hours24, Control.halt] {
        for value in 0...255 as ClosedRange<UInt8> {
          var clock = RealTimeClock(now: Self.start)
          write(&clock, Register.b, control)
          write(&clock, register, value)
          _ = read(&clock, Register.hours, .max)
          _ = clock.nextEvent(now: Self.start)
        }
      }
    }
  }
}
