// SPDX-License-Identifier: Apache-2.0
//
// The chips wired to each other as on a board: an interrupt makes its way from line to EOI, and
// random accesses to all of them never trap.

import InterruptChips
import TestRandom
import Testing
import X86

@Suite struct WiringTests {
  @Test func levelInterruptFromLineToEOIAndBack() throws {
    var ioapic = IOAPIC()
    var apic = makeAPIC(id: 2)
    ioapic.write(IOAPIC.Offset.select, 0x11 + 2 * 11)
    ioapic.write(IOAPIC.Offset.window, 2 << 24)
    ioapic.write(IOAPIC.Offset.select, 0x10 + 2 * 11)
    ioapic.write(IOAPIC.Offset.window, 0x8061)
    let outcome = ioapic.setLine(11, asserted: true)
    let message = try #require(outcome.message)
    let identity = apic.identity
    #expect(identity.matches(message))
    #expect(apic.deliver(message) == .requested)
    for _ in 0..<3 {
      #expect(apic.acceptHighest() == 0x61)
      #expect(apic.isLevelTriggered(0x61) == true)
      let effect = apic.writeRegister(APICRegister.eoi, 0, at: start)
      #expect(effect == .endOfInterrupt(0x61))
      for pin in ioapic.endOfInterrupt(vector: 0x61) {
        let again = ioapic.service(pin)
        apic.deliver(try #require(again))
      }
    }
    _ = ioapic.setLine(11, asserted: false)
    #expect(apic.acceptHighest() == 0x61)
    #expect(apic.endOfInterrupt() == 0x61)
    let pins = ioapic.endOfInterrupt(vector: 0x61)
    #expect(pins.isEmpty)
    #expect(apic.hasDeliverableInterrupt == false)
  }

  @Test func timerThroughVirtualWire() throws {
    var pit = PIT8254()
    var pic = PIC8259Pair()
    var apic = LocalAPIC(id: 0, isBootstrapProcessor: true)
    apic.presetVirtualWire()
    for (port, value) in [(0x20, 0x11), (0x21, 0x08), (0x21, 4), (0x21, 1)] as [(UInt16, UInt8)] {
      pic.write(port: port, value)
    }
    for (port, value) in [(0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)] as [(UInt16, UInt8)] {
      pit.write(port: port, value, at: 0)
    }
    for _ in 0..<5 {
      let due = try #require(pit.nextDeadline)
      #expect(pit.advance(to: due) == 1)
      pic.setLine(0, asserted: true)
      pic.setLine(0, asserted: false)
      #expect(pic.isInterruptRequested)
      #expect(apic.acceptsExternalInterrupts == true)
      #expect(pic.acknowledge() == 0x08)
      #expect(pic.write(port: 0x20, 0x20) == 1)
    }
  }

  @Test func anyAccessIsSafe() {
    var generator = SplitMix(seed: 0xC41F)
    var apic = makeX2APIC()
    var ioapic = IOAPIC()
    var pic = PIC8259Pair()
    for step in UInt64(0)..<100_000 {
      let random = generator.next()
      let time = Time(nanoseconds: step * 1000, tsc: random)
      let value = UInt32(truncatingIfNeeded: random >> 32)
      switch random % 8 {
      case 0: _ = apic.writeBase(0xFEE0_0000 | (random >> 8 & 0xD00), physicalAddressWidth: 40)
      case 1: apic.writeRegister(Int(random >> 8 & 0xFFF), value, at: time)
      case 2: _ = apic.writeMSR(0x800 + UInt32(random >> 8 & 0x3F), UInt64(value), at: time)
      case 3: _ = apic.readMMIO(Int(random >> 8 & 0xFFF), width: Int(random >> 20 & 15), at: time)
      case 4: _ = apic.setLINT(Int(random >> 8 & 1), asserted: random >> 9 & 1 == 0)
      case 5: ioapic.write(Int(random >> 8 & 0xFF), value)
      case 6: _ = ioapic.setLine(Int(random >> 8 & 31), asserted: random >> 13 & 1 == 0)
      default:
        pic.write(port: [0x20, 0x21, 0xA0, 0xA1][Int(random >> 8 & 3)], UInt8(value & 0xFF))
        pic.setLine(Int(random >> 10 & 15), asserted: random >> 14 & 1 == 0)
        if pic.isInterruptRequested { _ = pic.acknowledge() }
      }
      apic.expireTimer(at: time)
      let requested = apic.highestPendingVector
      #expect(apic.acceptHighest() == requested)
      if random >> 16 & 3 == 0 { _ = apic.endOfInterrupt() }
    }
  }
}
