// SPDX-License-Identifier: Apache-2.0
//
// The PC's real-time clock with its battery-backed memory (MC146818): an index register and a data
// register. The time is the host's plus an offset that changes when the guest sets the clock.
// Interrupt flags are computed from the elapsed time on each access; the owner calls `advance` at
// `nextEvent` so that interrupts are raised in time.
//
//     var clock = RealTimeClock(now: HostClock.realtime())
//     clock.index = RealTimeClock.Register.hours
//     let hours = clock.readData(now: HostClock.realtime())   // BCD

/// The chip as a plain value; times are nanoseconds since 1970 UTC. The guest's need more than 64
/// bits: it may set any year up to 2599, and an `Int64` ends in April 2262.
package struct RealTimeClock: Sendable, Hashable {
  package enum Register {
    package static let seconds: UInt8 = 0
    package static let secondsAlarm: UInt8 = 1
    package static let minutes: UInt8 = 2
    package static let minutesAlarm: UInt8 = 3
    package static let hours: UInt8 = 4
    package static let hoursAlarm: UInt8 = 5
    package static let dayOfWeek: UInt8 = 6
    package static let day: UInt8 = 7
    package static let month: UInt8 = 8
    package static let year: UInt8 = 9
    package static let a: UInt8 = 10
    package static let b: UInt8 = 11
    package static let c: UInt8 = 12
    package static let d: UInt8 = 13
    package static let century: UInt8 = 0x32
  }

  /// Register B.
  package enum Control {
    package static let daylight: UInt8 = 0x01
    package static let hours24: UInt8 = 0x02
    package static let binary: UInt8 = 0x04
    package static let updateInterrupt: UInt8 = 0x10
    package static let alarmInterrupt: UInt8 = 0x20
    package static let periodicInterrupt: UInt8 = 0x40
    package static let halt: UInt8 = 0x80
  }

  private typealias Nanoseconds = Int128
  private static let second: Nanoseconds = 1_000_000_000
  /// How long before an update register A announces it.
  private static let updateWarning: Nanoseconds = 244_000
  private static let updateInProgress: UInt8 = 0x80
  private static let interruptRequest: UInt8 = 0x80

  /// The register that the data port accesses.
  package var index: UInt8 = 0
  private var memory = [UInt8](repeating: 0, count: 128)
  private var flags: UInt8 = 0
  /// The guest's time minus the host's, nanoseconds.
  private var offset: Nanoseconds = 0
  /// The guest's time at the last `advance`.
  private var lastTime: Nanoseconds
  /// The stopped guest time while register B's halt bit is set.
  private var halted: Nanoseconds?

  package init(now: UInt64) {
    lastTime = Nanoseconds(now)
    memory[Int(Register.a)] = 0x26
    memory[Int(Register.b)] = Control.hours24
    memory[Int(Register.d)] = 0x80
  }

  /// Stores the memory size where firmware reads it: below 1 MiB and above in units of 1 KiB, above
  /// 16 MiB and above 4 GiB in units of 64 KiB.
  package mutating func setMemorySize(below4GiB low: UInt64, above4GiB high: UInt64) {
    func set(_ register: Int, _ count: Int, _ value: UInt64) {
      let limit: UInt64 = 1 << UInt64(count &* 8)
      let value = min(value, limit &- 1)
      for index in 0..<count {
        memory[register &+ index] = UInt8(
          truncatingIfNeeded: value >> UInt64(truncatingIfNeeded: index &* 8))
      }
    }
    set(0x15, 2, 640)
    for register in [0x17, 0x30] { set(register, 2, low > 1 << 20 ? (low &- 1 << 20) >> 10 : 0) }
    set(0x34, 2, low > 16 << 20 ? (low &- 16 << 20) >> 16 : 0)
    set(0x5B, 3, high >> 16)
  }

  private var control: UInt8 { memory[Int(Register.b)] }
  private func time(_ now: UInt64) -> Nanoseconds { halted ?? Nanoseconds(now) &+ offset }

  /// The chip's RESET pin: disables and clears all interrupts.
  package mutating func reset() {
    let enables =
      Control.updateInterrupt | Control.alarmInterrupt | Control.periodicInterrupt
    memory[Int(Register.b)] &= ~enables
    flags = 0
  }

  /// The level of the interrupt line.
  package var interruptLevel: Bool { flags & control & 0x70 != 0 }

  /// Reads the register selected by `index`.
  package mutating func readData(now: UInt64) -> UInt8 {
    advance(now: now)
    let moment = time(now)
    switch index {
    case Register.a:
      let rest = Self.second - Self.remainder(moment, Self.second)
      let updating = halted == nil && rest <= Self.updateWarning
      return memory[Int(Register.a)] & 0x7F | (updating ? Self.updateInProgress : 0)
    case Register.c:
      let value = flags | (interruptLevel ? Self.interruptRequest : 0)
      flags = 0
      return value
    case Register.seconds, Register.minutes, Register.hours, Register.dayOfWeek, Register.day,
      Register.month, Register.year, Register.century:
      return field(index, of: CalendarTime(secondsSince1970: Self.seconds(moment)))
    default: return memory[Int(index & 0x7F)]
    }
  }

  /// Writes the register selected by `index`.
  package mutating func writeData(_ value: UInt8, now: UInt64) {
    advance(now: now)
    switch index {
    case Register.c, Register.d: break
    case Register.a: memory[Int(Register.a)] = value & 0x7F
    case Register.b: setControl(value, now)
    case Register.seconds, Register.minutes, Register.hours, Register.day, Register.month,
      Register.year, Register.century:
      var calendar = CalendarTime(secondsSince1970: Self.seconds(time(now)))
      set(index, value, in: &calendar)
      moveTo(calendar, now)
    case Register.dayOfWeek: break
    default: memory[Int(index & 0x7F)] = value
    }
  }

  private mutating func setControl(_ value: UInt8, _ now: UInt64) {
    let halt = value & Control.halt != 0
    if halt, halted == nil { halted = time(now) }
    if !halt, let stood = halted {
      halted = nil
      offset = stood &- Nanoseconds(now)
      lastTime = stood
    }
    memory[Int(Register.b)] = halt ? value & ~Control.updateInterrupt : value
  }

  private mutating func moveTo(_ calendar: CalendarTime, _ now: UInt64) {
    let old = time(now)
    let seconds = Nanoseconds(calendar.secondsSince1970)
    let new = seconds &* Self.second &+ Self.remainder(old, Self.second)
    if halted != nil { halted = new } else { offset = offset &+ (new &- old) }
    lastTime = new
  }

  // Division that rounds down, for times before 1970.
  private static func seconds(_ value: Nanoseconds) -> Int64 {
    Int64(truncatingIfNeeded: (value &- remainder(value, second)) / second)
  }
  private static func remainder(_ value: Nanoseconds, _ divisor: Nanoseconds) -> Nanoseconds {
    let rest = value % divisor
    return rest < 0 ? rest &+ divisor : rest
  }
}

// MARK: - Formats

extension RealTimeClock {
  private func encode(_ value: Int) -> UInt8 {
    let value = UInt8(truncatingIfNeeded: value)
    return control & Control.binary != 0 ? value : (value / 10) << 4 | value % 10
  }

  private func decode(_ value: UInt8) -> Int {
    control & Control.binary != 0 ? Int(value) : Int(value >> 4) * 10 + Int(value & 0xF)
  }

  /// Hours in the 12-hour format have bit 7 for p.m.
  private func encodeHours(_ hours: Int) -> UInt8 {
    if control & Control.hours24 != 0 { return encode(hours) }
    return encode((hours + 11) % 12 + 1) | (hours >= 12 ? 0x80 : 0)
  }

  private func decodeHours(_ value: UInt8) -> Int {
    if control & Control.hours24 != 0 { return decode(value) }
    return decode(value & 0x7F) % 12 + (value & 0x80 != 0 ? 12 : 0)
  }

  private func field(_ register: UInt8, of time: CalendarTime) -> UInt8 {
    switch register {
    case Register.seconds: encode(time.second)
    case Register.minutes: encode(time.minute)
    case Register.hours: encodeHours(time.hour)
    case Register.dayOfWeek: encode(time.dayOfWeek + 1)
    case Register.day: encode(time.day)
    case Register.month: encode(time.month)
    case Register.year: encode(time.year % 100)
    default: encode(time.year / 100)
    }
  }

  private func set(_ register: UInt8, _ value: UInt8, in time: inout CalendarTime) {
    switch register {
    case Register.seconds: time.second = min(decode(value), 59)
    case Register.minutes: time.minute = min(decode(value), 59)
    case Register.hours: time.hour = min(decodeHours(value), 23)
    case Register.day: time.day = min(max(decode(value), 1), 31)
    case Register.month: time.month = min(max(decode(value), 1), 12)
    case Register.year: time.year = time.year / 100 * 100 + min(decode(value), 99)
    default: time.year = min(max(decode(value), 17), 25) * 100 + time.year % 100
    }
  }
}

// MARK: - Interrupts

extension RealTimeClock {
  private static let updateFlag: UInt8 = 0x10
  private static let alarmFlag: UInt8 = 0x20
  private static let periodicFlag: UInt8 = 0x40
  /// How many elapsed seconds are searched for an alarm: a day, after which it repeats.
  private static let alarmSearch: Int64 = 86400

  /// Nanoseconds between periodic interrupts; nil when register A selects none.
  private var period: Nanoseconds? {
    let rate = Int(memory[Int(Register.a)] & 0xF)
    guard rate > 0 else { return nil }
    return Self.second << (rate <= 2 ? rate + 6 : rate - 1) / 32768
  }

  /// Sets the flags of events since the last call.
  package mutating func advance(now: UInt64) {
    let moment = time(now)
    defer { lastTime = moment }
    guard moment > lastTime, halted == nil else { return }
    if let period, moment / period != lastTime / period { flags |= Self.periodicFlag }
    let first = Self.seconds(lastTime) &+ 1
    let last = Self.seconds(moment)
    guard first <= last else { return }
    flags |= Self.updateFlag
    guard control & Control.alarmInterrupt != 0 else { return }
    for second in max(first, last &- Self.alarmSearch)...last where alarmMatches(second) {
      flags |= Self.alarmFlag
      break
    }
  }

  /// Alarm registers of 0xC0 and more match anything.
  private func alarmMatches(_ second: Int64) -> Bool {
    let time = CalendarTime(secondsSince1970: second)
    func matches(_ register: UInt8, _ value: UInt8) -> Bool {
      let alarm = memory[Int(register)]
      return alarm >= 0xC0 || alarm == value
    }
    return matches(Register.secondsAlarm, encode(time.second))
      && matches(Register.minutesAlarm, encode(time.minute))
      && matches(Register.hoursAlarm, encodeHours(time.hour))
  }

  /// The host's time of the next interrupt check; nil while no interrupt is enabled.
  package func nextEvent(now: UInt64) -> UInt64? {
    guard halted == nil, control & 0x70 != 0 else { return nil }
    let moment = time(now)
    var wait = Self.second - Self.remainder(moment, Self.second)
    if control & Control.periodicInterrupt != 0, let period {
      wait = min(wait, period - Self.remainder(moment, period))
    }
    return now &+ UInt64(truncatingIfNeeded: wait)
  }
}
