// SPDX-License-Identifier: Apache-2.0
//
// The 8259 pair against Intel's data sheet: vectors, priorities, the ways to end an interrupt,
// spurious ones.

import InterruptChips
import Testing

@Suite struct PIC8259Tests {
  /// A pair as a PC's firmware or Linux programs it: vectors 0x30 and 0x38, nothing masked.
  func makePair(icw4: UInt8 = 0x01) -> PIC8259Pair {
    var pair = PIC8259Pair()
    for (port, value) in [
      (0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, icw4), (0xA0, 0x11), (0xA1, 0x38),
      (0xA1, 0x02), (0xA1, icw4), (0x21, 0x00), (0xA1, 0x00),
    ] as [(UInt16, UInt8)] { pair.write(port: port, value) }
    return pair
  }

  func raise(_ pair: inout PIC8259Pair, _ lines: Int...) {
    for line in lines { pair.setLine(line, asserted: true) }
  }

  @Test func everyLineHasItsVector() {
    for line in 0..<16 where line != 2 {
      var pair = makePair()
      #expect(!pair.isInterruptRequested)
      raise(&pair, line)
      #expect(pair.isInterruptRequested)
      #expect(pair.acknowledge() == 0x30 + UInt8(line))
      #expect(!pair.isInterruptRequested)
    }
  }

  @Test func priorityFollowsTheCascade() {
    var pair = makePair()
    raise(&pair, 7, 3, 15, 8, 1, 0)
    var order: [UInt8] = []
    while pair.isInterruptRequested {
      let vector = pair.acknowledge()
      order.append(vector)
      if vector >= 0x38 { pair.write(port: 0xA0, 0x20) }
      pair.write(port: 0x20, 0x20)
    }
    #expect(order == [0x30, 0x31, 0x38, 0x3F, 0x33, 0x37])
  }

  @Test func nesting() {
    var pair = makePair()
    raise(&pair, 4)
    #expect(pair.acknowledge() == 0x34)
    raise(&pair, 5)
    #expect(!pair.isInterruptRequested)
    raise(&pair, 3)
    #expect(pair.acknowledge() == 0x33)
    #expect(pair.write(port: 0x20, 0x20) == 1 << 3)
    #expect(!pair.isInterruptRequested)
    #expect(pair.write(port: 0x20, 0x64) == 1 << 4)
    #expect(pair.acknowledge() == 0x35)
  }

  @Test func slaveEOIReportsItsLine() {
    var pair = makePair()
    raise(&pair, 12)
    _ = pair.acknowledge()
    #expect(pair.write(port: 0xA0, 0x20) == 1 << 12)
    #expect(pair.write(port: 0x20, 0x62) == 1 << 2)
    #expect(pair.write(port: 0x20, 0x20) == 0)
  }

  @Test func maskAndReads() {
    var pair = makePair()
    pair.write(port: 0x21, 0x10)
    raise(&pair, 4)
    #expect(!pair.isInterruptRequested)
    #expect(pair.read(port: 0x21) == 0x10)
    #expect(pair.read(port: 0x20) == 0x10)
    pair.write(port: 0x21, 0)
    _ = pair.acknowledge()
    #expect(pair.read(port: 0x20) == 0)
    pair.write(port: 0x20, 0x0B)
    #expect(pair.read(port: 0x20) == 0x10)
    pair.write(port: 0x20, 0x0A)
    #expect(pair.read(port: 0x20) == 0)
  }

  @Test func edgeNeedsTheLineToFall() {
    var pair = makePair()
    raise(&pair, 4)
    _ = pair.acknowledge()
    pair.write(port: 0x20, 0x20)
    raise(&pair, 4)
    #expect(!pair.isInterruptRequested)
    pair.setLine(4, asserted: false)
    raise(&pair, 4)
    #expect(pair.isInterruptRequested)
  }

  @Test func levelRepeatsAndTurnsSpurious() {
    var pair = makePair()
    pair.write(port: 0x4D0, 0xFF)
    pair.write(port: 0x4D1, 0xFF)
    #expect(pair.read(port: 0x4D0) == 0xF8)
    #expect(pair.read(port: 0x4D1) == 0xDE)
    raise(&pair, 5)
    #expect(pair.acknowledge() == 0x35)
    pair.write(port: 0x20, 0x20)
    #expect(pair.isInterruptRequested)
    pair.setLine(5, asserted: false)
    #expect(!pair.isInterruptRequested)
    #expect(pair.acknowledge() == 0x37)
    pair.write(port: 0x20, 0x0B)
    // The spurious interrupt is not in service.
    #expect(pair.read(port: 0x20) == 0)
  }

  @Test func spurious15() {
    var pair = makePair()
    pair.write(port: 0x4D1, 0x02)
    raise(&pair, 9)
    #expect(pair.isInterruptRequested)
    // A restored state in which the master latched IR2 and the slave's request went away.
    var master = pair.master
    master.irr |= 1 << 2
    var slave = pair.slave
    slave.irr = 0
    pair.load(master: master, slave: slave)
    #expect(pair.acknowledge() == 0x3F)
  }

  @Test func autoEOI() {
    var pair = makePair(icw4: 0x03)
    raise(&pair, 4)
    #expect(pair.acknowledge() == 0x34)
    raise(&pair, 5)
    #expect(pair.acknowledge() == 0x35)
    #expect(pair.master.isr == 0)
    pair.write(port: 0x20, 0x80)
    raise(&pair, 6)
    _ = pair.acknowledge()
    #expect(pair.master.priorityAdd == 7)
    pair.write(port: 0x20, 0x00)
    #expect(!pair.master.rotateOnAutoEOI)
  }

  @Test func rotation() {
    var pair = makePair()
    // Line 4 becomes the lowest, so 5 is the highest.
    pair.write(port: 0x20, 0xC4)
    raise(&pair, 4, 0, 6)
    #expect(pair.acknowledge() == 0x36)
    // Rotate on the unspecific EOI: 6 becomes the lowest.
    #expect(pair.write(port: 0x20, 0xA0) == 1 << 6)
    #expect(pair.master.priorityAdd == 7)
    #expect(pair.acknowledge() == 0x30)
    #expect(pair.write(port: 0x20, 0xE0) == 1 << 0)
    #expect(pair.master.priorityAdd == 1)
    #expect(pair.acknowledge() == 0x34)
  }

  @Test func specialMask() {
    var pair = makePair()
    raise(&pair, 1)
    _ = pair.acknowledge()
    raise(&pair, 5)
    #expect(!pair.isInterruptRequested)
    pair.write(port: 0x21, 0x02)
    pair.write(port: 0x20, 0x68)
    #expect(pair.isInterruptRequested)
    #expect(pair.acknowledge() == 0x35)
    #expect(pair.write(port: 0x20, 0x20) == 1 << 5)
    // The masked line in service is not ended unspecifically.
    #expect(pair.write(port: 0x20, 0x20) == 0)
    pair.write(port: 0x20, 0x48)
    #expect(pair.write(port: 0x20, 0x20) == 1 << 1)
  }

  @Test func specialFullyNested() {
    for icw4: UInt8 in [0x01, 0x11] {
      var pair = makePair(icw4: icw4)
      raise(&pair, 12)
      #expect(pair.acknowledge() == 0x3C)
      raise(&pair, 9)
      #expect(pair.isInterruptRequested == (icw4 == 0x11))
    }
  }

  @Test func poll() {
    var pair = makePair()
    pair.write(port: 0x20, 0x0C)
    #expect(pair.read(port: 0x20) == 0)
    raise(&pair, 6)
    pair.write(port: 0x20, 0x0C)
    #expect(pair.read(port: 0x20) == 0x86)
    #expect(pair.master.isr == 1 << 6)
    #expect(!pair.isInterruptRequested)
  }

  @Test func initializationClears() {
    var pair = makePair()
    pair.write(port: 0x20, 0xC3)
    pair.write(port: 0x4D0, 0x20)
    raise(&pair, 4, 5)
    pair.write(port: 0x21, 0xFF)
    pair.write(port: 0x20, 0x10)
    #expect(pair.master.imr == 0)
    #expect(pair.master.priorityAdd == 0)
    // The edge is forgotten, the level is not.
    #expect(pair.master.irr == 0x20)
    #expect(pair.master.elcr == 0x20)
    // No ICW4: ICW1, ICW2, ICW3, and then OCW1.
    for value: UInt8 in [0x48, 0x04, 0x5A] { pair.write(port: 0x21, value) }
    #expect(pair.master.imr == 0x5A)
    #expect(pair.master.vectorBase == 0x48)
    // A single chip has no ICW3.
    pair.write(port: 0x20, 0x13)
    for value: UInt8 in [0x48, 0x01, 0xA5] { pair.write(port: 0x21, value) }
    #expect(pair.master.imr == 0xA5)
  }
}
