// SPDX-License-Identifier: Apache-2.0
//
// The 8254 programmable interval timer of a PC, with port 0x61. The clock is injected in
// nanoseconds; nothing runs by itself: the count and OUT of a channel are computed from the ticks
// since it was loaded. 8254 data sheet: "Control Word Format", "Read-Back Command", "Mode
// Definitions"; port 0x61: 82371SB data sheet, "NMI Status and Control Register".
//
// OUT of channel 0 drives IRQ0. The owner arms a host timer for `nextDeadline` and then calls
// `advance`, which returns the number of rising edges since:
//
//   pit.write(port: 0x43, 0x34, at: now)    // channel 0, low then high byte, mode 2
//   pit.write(port: 0x40, 0x9C, at: now)
//   pit.write(port: 0x40, 0x2E, at: now)    // 11932 ticks: 100 Hz
//   let due = pit.nextDeadline               // nanoseconds
//   for _ in 0..<pit.advance(to: now) { pulse(irq: 0) }
//
// Count 1, illegal in modes 2 and 3, gives an edge each tick; the owner limits its wake-ups.

package struct PIT8254: Sendable {
  /// Ticks per second.
  package static let frequency: UInt64 = 1_193_182
  /// The period at which the refresh request, bit 4 of port 0x61, toggles.
  static let refreshNanoseconds: UInt64 = 15_085

  var channels: InlineArray<3, Channel>
  /// The written bits 3:0 of port 0x61: timer 2 gate, speaker data, two NMI masks.
  var port61: UInt8 = 0

  package init() {
    channels = InlineArray(repeating: Channel())
    channels[2].gate = false
  }

  package mutating func reset() { self = PIT8254() }

  /// Ticks that have passed at `nanoseconds`.
  static func ticks(at nanoseconds: UInt64) -> UInt64 {
    let product = nanoseconds.multipliedFullWidth(by: frequency)
    return (1_000_000_000 as UInt64).dividingFullWidth(product).quotient
  }

  /// The first nanosecond at which `ticks` have passed.
  static func nanoseconds(at ticks: UInt64) -> UInt64 {
    let product = ticks.multipliedFullWidth(by: 1_000_000_000)
    guard product.high < frequency else { return .max }
    let (quotient, remainder) = frequency.dividingFullWidth(product)
    return remainder == 0 ? quotient : quotient &+ 1
  }
}

// MARK: - Ports

extension PIT8254 {
  /// Reads port 0x40 to 0x43 or 0x61; 0 for others.
  package mutating func read(port: UInt16, at nanoseconds: UInt64) -> UInt8 {
    let tick = Self.ticks(at: nanoseconds)
    switch port {
    case 0x40...0x42: return channels[Int(port & 3)].read(at: tick)
    case 0x61:
      let refresh: UInt8 = (nanoseconds / Self.refreshNanoseconds) & 1 == 0 ? 0 : 1 << 4
      let out: UInt8 = channels[2].output(at: tick) ? 1 << 5 : 0
      return port61 | refresh | out
    default: return 0
    }
  }

  /// Writes port 0x40 to 0x43 or 0x61. `nextDeadline` may have changed.
  package mutating func write(port: UInt16, _ value: UInt8, at nanoseconds: UInt64) {
    let tick = Self.ticks(at: nanoseconds)
    switch port {
    case 0x40...0x42: channels[Int(port & 3)].write(value, at: tick)
    case 0x43: writeControl(value, at: tick)
    case 0x61:
      port61 = value & 0x0F
      channels[2].setGate(value & 1 != 0, at: tick)
    default: break
    }
  }

  /// OUT of channel 0, 1 or 2.
  package mutating func output(ofChannel index: Int, at nanoseconds: UInt64) -> Bool {
    guard index >= 0, index < 3 else { return false }
    return channels[index].output(at: Self.ticks(at: nanoseconds))
  }

  /// The speaker is driven: gate and data bits of port 0x61.
  package var isSpeakerOn: Bool { port61 & 3 == 3 }

  private mutating func writeControl(_ value: UInt8, at tick: UInt64) {
    let selected = Int(value >> 6)
    guard selected == 3 else {
      channels[selected].control(value, at: tick)
      return
    }
    for index in 0..<3 where value & (2 &<< UInt8(truncatingIfNeeded: index)) != 0 {
      // Read-back: the bits are active low.
      if value & 0x20 == 0 { channels[index].latchCount(at: tick) }
      if value & 0x10 == 0 { channels[index].latchStatus(at: tick) }
    }
  }
}

// MARK: - IRQ0

extension PIT8254 {
  /// When OUT of channel 0 rises next, in nanoseconds; nil if it does not.
  package var nextDeadline: UInt64? {
    channels[0].nextEdge.map { Self.nanoseconds(at: $0) }
  }

  /// The number of rising edges of channel 0's OUT since the last call (or since the channel was
  /// loaded): each is a pulse on IRQ0.
  package mutating func advance(to nanoseconds: UInt64) -> UInt64 {
    channels[0].takeEdges(at: Self.ticks(at: nanoseconds))
  }
}
