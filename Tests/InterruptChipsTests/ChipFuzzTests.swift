// SPDX-License-Identifier: Apache-2.0
//
// Every register of every chip with random and edge values, at times from the first to the last:
// nothing that a guest writes, and nothing that a client loads, may trap.

import InterruptChips
import TestRandom
import Testing
import X86

@Suite struct ChipFuzzTests {
  private static let seed: UInt64 = 20_261_130
  private static let steps = 40_000
  private static let edges: [UInt64] = [
    0, 1, 0xF, 0x10, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000, 0x7FFF_FFFF, 0x8000_0000,
    0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, .max,
  ]

  private func value(_ random: inout SplitMix) -> UInt64 {
    random.oneIn(2) ? random.next() : Self.edges[random.below(Self.edges.count)]
  }

  @Test func localAPIC() {
    var random = SplitMix(seed: Self.seed)
    for features in [[], [.x2APIC, .tscDeadline]] as [LocalAPIC.Features] {
      var apic = makeAPIC(features: features)
      for _ in 0..<Self.steps {
        let time = LocalAPIC.Time(nanoseconds: value(&random), tsc: value(&random))
        let number = UInt32(0x800 + random.below(0x100))
        switch random.below(9) {
        case 0: _ = apic.readMMIO(random.below(0x1000), width: 1 << random.below(4), at: time)
        case 1...3:
          let value = UInt32(truncatingIfNeeded: value(&random))
          _ = apic.writeRegister(random.below(0x100) << 4, value, at: time)
        case 4: _ = apic.writeMSR(number, value(&random), at: time)
        case 5: _ = apic.readMSR(number, at: time)
        case 6: _ = apic.writeBase(value(&random), physicalAddressWidth: 36 + random.below(17))
        case 7:
          _ = apic.writeTSCDeadline(value(&random))
          _ = apic.expireTimer(at: time)
        default:
          _ = apic.request(random.byte())
          _ = apic.acceptHighest()
          _ = apic.endOfInterrupt()
        }
        _ = apic.currentCount(at: time)
      }
    }
  }

  @Test func ioAPIC() {
    var random = SplitMix(seed: Self.seed)
    var chip = IOAPIC()
    for _ in 0..<Self.steps {
      let offset = random.oneIn(4) ? random.below(0x100) : [0, 0x10, 0x40][random.below(3)]
      switch random.below(4) {
      case 0: _ = chip.read(offset)
      case 1, 2: _ = chip.write(offset, UInt32(truncatingIfNeeded: value(&random)))
      default:
        let pin = random.below(24)
        _ = chip.setLine(pin, asserted: random.oneIn(2))
        _ = chip.service(pin)
        _ = chip.endOfInterrupt(vector: random.byte())
      }
    }
  }

  @Test func timer() {
    var random = SplitMix(seed: Self.seed)
    var chip = PIT8254()
    for _ in 0..<Self.steps {
      let now = value(&random)
      let port = [0x40, 0x41, 0x42, 0x43, 0x61][random.below(5)] as UInt16
      if random.oneIn(3) {
        _ = chip.read(port: port, at: now)
      } else {
        chip.write(port: port, UInt8(truncatingIfNeeded: value(&random)), at: now)
      }
      if random.oneIn(4) { _ = chip.output(ofChannel: random.below(3), at: value(&random)) }
      if random.oneIn(4) { _ = chip.advance(to: value(&random)) }
      if random.oneIn(16) {
        let state = chip.state(at: value(&random))
        chip.load(state, at: value(&random))
      }
    }
  }

  @Test func interruptControllers() {
    var random = SplitMix(seed: Self.seed)
    var chips = PIC8259Pair()
    for _ in 0..<Self.steps {
      let port = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1][random.below(6)] as UInt16
      switch random.below(4) {
      case 0: _ = chips.read(port: port)
      case 1: _ = chips.acknowledge()
      case 2: chips.setLine(random.below(16), asserted: random.oneIn(2))
      default: _ = chips.write(port: port, UInt8(truncatingIfNeeded: value(&random)))
      }
    }
  }
}
