// SPDX-License-Identifier: Apache-2.0
//
// The 8254 against the timing diagrams of Intel's data sheet: OUT and the count of each mode,
// tick by tick.

import InterruptChips
import TestRandom
import Testing

@Suite struct PIT8254Tests {
  /// A time in the middle of tick `ticks`.
  func at(_ ticks: UInt64) -> UInt64 {
    (ticks * 1_000_000_000 + PIT8254.frequency - 1) / PIT8254.frequency
  }

  func load(
    _ pit: inout PIT8254, channel: UInt16 = 0, mode: UInt8, count: UInt16, bcd: UInt8 = 0,
    tick: UInt64 = 0
  ) {
    let control = UInt8(channel) << 6 | 0x30 | mode << 1 | bcd
    pit.write(port: 0x43, control, at: at(tick))
    pit.write(port: 0x40 + channel, UInt8(count & 0xFF), at: at(tick))
    pit.write(port: 0x40 + channel, UInt8(count >> 8), at: at(tick))
  }

  func readCount(_ pit: inout PIT8254, channel: UInt16 = 0, tick: UInt64) -> UInt16 {
    pit.write(port: 0x43, UInt8(channel) << 6, at: at(tick))
    let low = pit.read(port: 0x40 + channel, at: at(tick))
    return UInt16(low) | UInt16(pit.read(port: 0x40 + channel, at: at(tick))) << 8
  }

  func waveform(_ pit: inout PIT8254, channel: Int, _ ticks: Range<UInt64>) -> String {
    ticks.map { pit.output(ofChannel: channel, at: at($0)) ? "H" : "_" }.joined()
  }

  /// Mode, count, OUT of channel 0 from the load on.
  @Test(
    arguments: [
      (0, 4, "____HHHHHHHH"), (2, 4, "HHH_HHH_HHH_"), (3, 4, "HH__HH__HH__"),
      (3, 5, "HHH__HHH__HH"), (4, 4, "HHHH_HHHHHHH"), (1, 4, "HHHHHHHHHHHH"),
      (5, 4, "HHHHHHHHHHHH"), (6, 4, "HHH_HHH_HHH_"), (7, 4, "HH__HH__HH__"),
    ] as [(UInt8, UInt16, String)])
  func outputs(mode: UInt8, count: UInt16, expected: String) {
    var pit = PIT8254()
    load(&pit, mode: mode, count: count, tick: 100)
    #expect(waveform(&pit, channel: 0, 100..<112) == expected)
  }

  /// Mode, count, OUT of channel 2 when its gate rises at tick 2 (of 10 shown).
  @Test(
    arguments: [
      (0, 3, "_____HHHHH"), (1, 3, "HH___HHHHH"), (2, 3, "HHHH_HH_HH"), (3, 4, "HHHH__HH__"),
      (4, 3, "HHHHH_HHHH"), (5, 3, "HHHHH_HHHH"),
    ] as [(UInt8, UInt16, String)])
  func gated(mode: UInt8, count: UInt16, expected: String) {
    var pit = PIT8254()
    load(&pit, channel: 2, mode: mode, count: count, tick: 0)
    let before = waveform(&pit, channel: 2, 0..<2)
    pit.write(port: 0x61, 1, at: at(2))
    let after = waveform(&pit, channel: 2, 2..<10)
    #expect(before + after == expected)
  }

  @Test func lowGatePausesAndRetriggers() {
    var pit = PIT8254()
    pit.write(port: 0x61, 1, at: 0)
    load(&pit, channel: 2, mode: 0, count: 10)
    pit.write(port: 0x61, 0, at: at(4))
    #expect(readCount(&pit, channel: 2, tick: 50) == 6)
    pit.write(port: 0x61, 1, at: at(100))
    #expect(readCount(&pit, channel: 2, tick: 103) == 3)
    load(&pit, channel: 2, mode: 1, count: 10, tick: 200)
    for tick: UInt64 in [210, 216] {
      pit.write(port: 0x61, 0, at: at(tick))
      pit.write(port: 0x61, 1, at: at(tick))
    }
    #expect(waveform(&pit, channel: 2, 224..<228) == "__HH")
  }

  /// Mode, count, tick, what reads back.
  @Test(
    arguments: [
      (0, 1000, 0, 1000), (0, 1000, 300, 700), (0, 1000, 1001, 0xFFFF), (2, 1000, 0, 1000),
      (2, 1000, 999, 1), (2, 1000, 1000, 1000), (3, 1000, 100, 800), (3, 1000, 600, 800),
      (3, 1001, 0, 1000), (3, 1001, 501, 1000), (4, 1000, 1001, 0xFFFF), (2, 0, 1, 0xFFFF),
      (2, 0, 0, 0),
    ] as [(UInt8, UInt16, UInt64, UInt16)])
  func counts(mode: UInt8, count: UInt16, tick: UInt64, expected: UInt16) {
    var pit = PIT8254()
    load(&pit, mode: mode, count: count, tick: 7)
    #expect(readCount(&pit, tick: 7 + tick) == expected)
  }

  @Test func bcd() {
    var pit = PIT8254()
    load(&pit, mode: 2, count: 0x1234, bcd: 1)
    #expect(readCount(&pit, tick: 5) == 0x1229)
    load(&pit, mode: 0, count: 0, bcd: 1)
    #expect(readCount(&pit, tick: 1) == 0x9999)
    #expect(pit.nextDeadline == at(10_000))
  }

  @Test func byteAccess() {
    var pit = PIT8254()
    pit.write(port: 0x43, 0x14, at: 0)
    pit.write(port: 0x40, 50, at: 0)
    #expect(pit.read(port: 0x40, at: at(10)) == 40)
    #expect(pit.read(port: 0x40, at: at(11)) == 39)
    pit.write(port: 0x43, 0x24, at: 0)
    pit.write(port: 0x40, 2, at: 0)
    #expect(pit.nextDeadline == at(512))
    #expect(pit.read(port: 0x40, at: at(1)) == 1)
  }

  @Test func theFirstLatchStands() {
    var pit = PIT8254()
    load(&pit, mode: 2, count: 0x1000)
    pit.write(port: 0x43, 0x00, at: at(0x10))
    pit.write(port: 0x43, 0x00, at: at(0x20))
    #expect(pit.read(port: 0x40, at: at(0x30)) == 0xF0)
    #expect(pit.read(port: 0x40, at: at(0x40)) == 0x0F)
    #expect(pit.read(port: 0x40, at: at(0x41)) == 0xBF)
  }

  @Test func readBackStatusThenCount() {
    var pit = PIT8254()
    load(&pit, mode: 3, count: 0x1000)
    // Both of channels 0 and 2.
    pit.write(port: 0x43, 0xC0 | 0x0A, at: at(0x900))
    #expect(pit.read(port: 0x40, at: at(0x901)) == 0x36)
    #expect(pit.read(port: 0x40, at: at(0x902)) == 0x00)
    #expect(pit.read(port: 0x40, at: at(0x903)) == 0x0E)
    // Status only; no count written yet: the null count flag.
    pit.write(port: 0x43, 0xB8, at: at(0x910))
    pit.write(port: 0x43, 0xE8, at: at(0x910))
    #expect(pit.read(port: 0x42, at: at(0x911)) == 0xF8)
    // A count waiting for the end of the period is a null count too.
    pit.write(port: 0x40, 0x10, at: at(0x920))
    pit.write(port: 0x40, 0x00, at: at(0x920))
    pit.write(port: 0x43, 0xE2, at: at(0x920))
    #expect(pit.read(port: 0x40, at: at(0x920)) == 0x76)
    pit.write(port: 0x43, 0xE2, at: at(0x1001))
    #expect(pit.read(port: 0x40, at: at(0x1001)) == 0xB6)
  }

  /// Mode, count, the ticks at which IRQ0 rises in the first 30.
  @Test(
    arguments: [
      (0, 10, [10]), (2, 10, [10, 20, 30]), (3, 10, [10, 20, 30]), (4, 10, [11]), (1, 10, []),
      (5, 10, []),
    ] as [(UInt8, UInt16, [UInt64])])
  func edges(mode: UInt8, count: UInt16, expected: [UInt64]) {
    var pit = PIT8254()
    load(&pit, mode: mode, count: count, tick: 1000)
    var seen: [UInt64] = []
    while let due = pit.nextDeadline, due <= at(1030) {
      #expect(pit.advance(to: due - 1) == 0)
      #expect(pit.advance(to: due) == 1)
      seen.append(PIT8254Tests.ticks(due) - 1000)
    }
    #expect(seen == expected)
  }

  static func ticks(_ nanoseconds: UInt64) -> UInt64 {
    nanoseconds * PIT8254.frequency / 1_000_000_000
  }

  @Test func lateAdvanceCountsAllAndDoesNotDrift() {
    var pit = PIT8254()
    load(&pit, mode: 2, count: 11932)
    #expect(pit.advance(to: 1_000_000_000) == 99)
    #expect(pit.advance(to: 1_000_000_000) == 0)
    #expect(pit.nextDeadline == at(100 * 11932))
    #expect(pit.advance(to: 3_600_000_000_000) == 3600 * PIT8254.frequency / 11932 - 99)
  }

  @Test func newPeriodBeginsAtTheEndOfTheOld() {
    var pit = PIT8254()
    load(&pit, mode: 2, count: 100)
    #expect(pit.advance(to: at(150)) == 1)
    pit.write(port: 0x40, 10, at: at(150))
    pit.write(port: 0x40, 0, at: at(150))
    #expect(pit.nextDeadline == at(200))
    #expect(pit.advance(to: at(215)) == 2)
    #expect(pit.nextDeadline == at(220))
  }

  @Test func nothingBeforeTheCount() {
    var pit = PIT8254()
    #expect(pit.nextDeadline == nil)
    #expect(pit.output(ofChannel: 0, at: 0) == true)
    pit.write(port: 0x43, 0x30, at: 0)
    #expect(pit.output(ofChannel: 0, at: 0) == false)
    pit.write(port: 0x40, 5, at: 0)
    #expect(pit.nextDeadline == nil)
    pit.write(port: 0x40, 0, at: 0)
    #expect(pit.nextDeadline == at(5))
  }

  @Test func port61() {
    var pit = PIT8254()
    load(&pit, channel: 2, mode: 0, count: 100)
    pit.write(port: 0x61, 0xF3, at: 0)
    #expect(pit.isSpeakerOn)
    let values = [1, 100].map { pit.read(port: 0x61, at: at($0)) & 0x2F }
    #expect(values == [0x03, 0x23])
    let refresh = (0..<4).map { pit.read(port: 0x61, at: 7_000 + $0 * 15_085) & 0x10 }
    #expect(refresh == [0, 0x10, 0, 0x10])
  }

  @Test func stateRestores() {
    var pit = PIT8254()
    load(&pit, mode: 2, count: 1000, tick: 5)
    pit.write(port: 0x61, 3, at: 0)
    load(&pit, channel: 2, mode: 3, count: 200, tick: 6)
    pit.write(port: 0x43, 0x80, at: at(40))
    _ = pit.read(port: 0x42, at: at(40))
    _ = pit.advance(to: at(3500))
    let state = pit.state(at: at(3500))
    #expect(state.channels[0].count == 1000)
    #expect(state.channels[0].countLoadTime == Int64(at(5)))
    #expect(state.channels[1].mode == 0xFF)
    #expect(state.channels[2].countLatched == 4)
    #expect(state.isSpeakerDataOn)
    var copy = PIT8254()
    copy.load(state, at: at(3500))
    #expect(copy.nextDeadline == pit.nextDeadline)
    let byte = pit.read(port: 0x42, at: at(3500))
    #expect(copy.read(port: 0x42, at: at(3500)) == byte)
    let expected = waveform(&pit, channel: 2, 3500..<3900)
    #expect(waveform(&copy, channel: 2, 3500..<3900) == expected)
  }

  @Test func anyWritesAreSafe() {
    var generator = SplitMix(seed: 0x8254)
    var pit = PIT8254()
    var now: UInt64 = 0
    for _ in 0..<50_000 {
      now &+= UInt64.random(in: 0..<(1 << UInt64.random(in: 1..<40)), using: &generator)
      let port = [0x40, 0x41, 0x42, 0x43, 0x61].randomElement(using: &generator) ?? 0x40
      pit.write(port: UInt16(port), UInt8.random(in: 0...255, using: &generator), at: now)
      _ = pit.read(port: UInt16(port), at: now)
      if let due = pit.nextDeadline, due <= now {
        let edges = pit.advance(to: now)
        #expect(edges > 0)
      }
    }
  }
}
