// SPDX-License-Identifier: Apache-2.0
//
// The master and the slave wired together, at ports 0x20, 0x21, 0xA0, 0xA1, 0x4D0 and 0x4D1. 8259A
// data sheet: "Cascade Mode", "Interrupt Sequence" (with the default IR7 for a request that
// disappeared).

package struct PIC8259Pair: Sendable, Hashable {
  package private(set) var master = PIC8259(isMaster: true)
  package private(set) var slave = PIC8259(isMaster: false)

  package init() {}

  package mutating func reset() { self = PIC8259Pair() }

  /// Restores both chips.
  package mutating func load(master: PIC8259, slave: PIC8259) {
    guard master.isMaster, !slave.isMaster else { return }
    self.master = master
    self.slave = slave
  }

  /// The master's INT: it requests an INTA cycle.
  package var isInterruptRequested: Bool { master.requestedLine != nil }

  /// Drives line `irq`, 0 to 15. Line 2 is the cascade and cannot be driven.
  package mutating func setLine(_ irq: Int, asserted: Bool) {
    switch irq {
    case 2: break
    case 0..<8: master.setLine(irq, asserted: asserted)
    case 8..<16:
      slave.setLine(irq &- 8, asserted: asserted)
      updateCascade()
    default: break
    }
  }

  /// The INTA cycle: accepts the request of highest priority and returns its vector; IR7 of its
  /// chip (the spurious interrupt) if the request disappeared.
  package mutating func acknowledge() -> UInt8 { acknowledgeNotingEnd().vector }

  /// The same, with the IRQs (bit n is IRQ n) that automatic EOI ended.
  package mutating func acknowledgeNotingEnd() -> (vector: UInt8, ended: UInt16) {
    guard let line = master.requestedLine else { return (master.vectorBase &+ 7, 0) }
    var ended = UInt16(master.acknowledge(line))
    guard line == 2 else { return (master.vectorBase &+ UInt8(truncatingIfNeeded: line), ended) }
    let vector: UInt8
    if let cascaded = slave.requestedLine {
      ended |= UInt16(slave.acknowledge(cascaded)) << 8
      vector = slave.vectorBase &+ UInt8(truncatingIfNeeded: cascaded)
    } else {
      vector = slave.vectorBase &+ 7
    }
    updateCascade()
    return (vector, ended)
  }

  /// Reads `port`; 0xFF if it is not the pair's.
  package mutating func read(port: UInt16) -> UInt8 {
    switch port {
    case 0x20, 0x21: return master.read(isData: port & 1 != 0)
    case 0xA0, 0xA1:
      let value = slave.read(isData: port & 1 != 0)
      updateCascade()
      return value
    case 0x4D0: return master.elcr
    case 0x4D1: return slave.elcr
    default: return 0xFF
    }
  }

  /// Writes `port`. Returns the IRQs (bit n is IRQ n) that an EOI command ended.
  @discardableResult
  package mutating func write(port: UInt16, _ value: UInt8) -> UInt16 {
    var ended: UInt16 = 0
    switch port {
    case 0x20, 0x21: ended = UInt16(master.write(isData: port & 1 != 0, value))
    case 0xA0, 0xA1: ended = UInt16(slave.write(isData: port & 1 != 0, value)) << 8
    case 0x4D0: master.elcr = value & master.elcrMask
    case 0x4D1: slave.elcr = value & slave.elcrMask
    default: break
    }
    updateCascade()
    return ended
  }

  /// Connects the slave's INT to IR2. INT falls at INTA, so a second request of the slave is a new
  /// edge.
  private mutating func updateCascade() {
    let requested = slave.requestedLine != nil
    if !requested { master.irr &= ~(1 << 2) }
    master.setLine(2, asserted: false)
    master.setLine(2, asserted: requested)
  }
}
