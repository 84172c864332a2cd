// SPDX-License-Identifier: Apache-2.0
//
// The pair of 8259A interrupt controllers of a PC, with the edge/level control registers of the
// PIIX. 8259A data sheet: "Initialization Command Words", "Operation Command Words", "Interrupt
// Sequence"; 82371SB data sheet, "ELCR1, ELCR2".
//
// `PIC8259` is one chip as a value; `PIC8259Pair` wires two, the slave to IR2 of the master. The
// owner drives lines 0 to 15, watches `isInterruptRequested` (the master's INT) and, when the
// processor takes the interrupt, runs the INTA cycle with `acknowledge()`.
//
//   pair.setLine(4, asserted: true)
//   if pair.isInterruptRequested { let vector = pair.acknowledge() }
//
// ICW1's level bit (LTIM) is ignored, as in PC chip sets, where ELCR replaces it. As in KVM, an
// edge stays latched if its line falls before INTA: a client may pulse a line.

package struct PIC8259: Sendable, Hashable {
  /// The next word of the initialization sequence (`init_state` of KVM).
  package enum Initialization: UInt8, Sendable {
    case done = 0
    case icw2 = 1
    case icw3 = 2
    case icw4 = 3
  }

  /// Levels of the lines, for edge detection.
  package var lastIRR: UInt8 = 0
  package var irr: UInt8 = 0
  package var imr: UInt8 = 0
  package var isr: UInt8 = 0
  /// The line of highest priority; 0 unless rotated.
  package var priorityAdd: UInt8 = 0
  package var vectorBase: UInt8 = 0
  /// Reads of the command port return ISR, not IRR.
  package var readsISR = false
  /// The next read is a poll.
  package var isPolling = false
  package var specialMask = false
  package var initialization: Initialization = .done
  package var autoEOI = false
  package var rotateOnAutoEOI = false
  package var specialFullyNested = false
  package var needsICW4 = false
  /// Level-triggered lines.
  package var elcr: UInt8 = 0
  /// The lines that ELCR can change.
  package let elcrMask: UInt8
  package let isMaster: Bool
  /// ICW1 selected single mode, so ICW3 is skipped. Not in KVM's state.
  var isSingle = false

  package init(isMaster: Bool) {
    self.isMaster = isMaster
    elcrMask = isMaster ? 0xF8 : 0xDE
  }

  mutating func setLine(_ line: Int, asserted: Bool) {
    let bit: UInt8 = 1 &<< UInt8(truncatingIfNeeded: line & 7)
    if elcr & bit != 0 {
      if asserted { irr |= bit } else { irr &= ~bit }
    } else if asserted, lastIRR & bit == 0 {
      irr |= bit
    }
    if asserted { lastIRR |= bit } else { lastIRR &= ~bit }
  }

  /// The line whose service the chip requests.
  package var requestedLine: Int? {
    guard let request = rank(irr & ~imr) else { return nil }
    var inService = isr
    // Under special mask, a masked line in service blocks no other.
    if specialMask { inService &= ~imr }
    // Under the special fully nested mode, the slave may interrupt its own service.
    if specialFullyNested, isMaster { inService &= ~(1 << 2) }
    if let current = rank(inService), request >= current { return nil }
    return line(ofRank: request)
  }

  /// The chip's part of INTA: moves `line` from IRR to ISR. Returns the line if its service ends at
  /// once (automatic EOI).
  @discardableResult
  mutating func acknowledge(_ line: Int) -> UInt8 {
    let bit: UInt8 = 1 &<< UInt8(truncatingIfNeeded: line & 7)
    if autoEOI {
      if rotateOnAutoEOI { priorityAdd = UInt8(truncatingIfNeeded: (line &+ 1) & 7) }
    } else {
      isr |= bit
    }
    if elcr & bit == 0 { irr &= ~bit }
    return autoEOI ? bit : 0
  }

  /// Rank of the highest-priority line in `set`, 0 being the highest.
  private func rank(_ set: UInt8) -> Int? {
    guard set != 0 else { return nil }
    let shift = priorityAdd & 7
    let rotated = set &>> shift | (shift == 0 ? 0 : set &<< (8 &- shift))
    return rotated.trailingZeroBitCount
  }

  private func line(ofRank rank: Int) -> Int { (rank &+ Int(priorityAdd)) & 7 }
}

// MARK: - Registers

extension PIC8259 {
  /// Writes the command port (`isData` false) or the data port. Returns the lines whose service
  /// ended.
  mutating func write(isData: Bool, _ value: UInt8) -> UInt8 {
    if isData {
      writeData(value)
    } else if value & 0x10 != 0 {
      return writeICW1(value)
    } else if value & 0x08 != 0 {
      writeOCW3(value)
    } else {
      return writeOCW2(value)
    }
    return 0
  }

  mutating func read(isData: Bool) -> UInt8 {
    if isPolling {
      isPolling = false
      guard let line = requestedLine else { return 0 }
      acknowledge(line)
      return 0x80 | UInt8(truncatingIfNeeded: line)
    }
    return isData ? imr : (readsISR ? isr : irr)
  }

  /// Returns the lines that will never be ended: in service, or forgotten edges.
  private mutating func writeICW1(_ value: UInt8) -> UInt8 {
    let ended = isr | irr & ~elcr
    let lines = lastIRR
    let oldELCR = elcr
    let level = irr & elcr
    self = PIC8259(isMaster: isMaster)
    elcr = oldELCR
    lastIRR = lines
    irr = level
    needsICW4 = value & 0x01 != 0
    isSingle = value & 0x02 != 0
    initialization = .icw2
    return ended
  }

  private mutating func writeData(_ value: UInt8) {
    switch initialization {
    case .done: imr = value
    case .icw2:
      vectorBase = value & 0xF8
      initialization = isSingle ? (needsICW4 ? .icw4 : .done) : .icw3
    // The wiring of the pair is fixed, so ICW3 is ignored.
    case .icw3: initialization = needsICW4 ? .icw4 : .done
    case .icw4:
      specialFullyNested = value & 0x10 != 0
      autoEOI = value & 0x02 != 0
      initialization = .done
    }
  }

  private mutating func writeOCW2(_ value: UInt8) -> UInt8 {
    let line = Int(value & 7)
    let following = UInt8(truncatingIfNeeded: (line &+ 1) & 7)
    switch value >> 5 {
    case 0, 4:
      rotateOnAutoEOI = value >> 5 == 4
      return 0
    case 1, 5:
      // Under special mask, unspecific EOI skips masked lines.
      guard let rank = rank(specialMask ? isr & ~imr : isr) else { return 0 }
      let ended = self.line(ofRank: rank)
      if value >> 5 == 5 { priorityAdd = UInt8(truncatingIfNeeded: (ended &+ 1) & 7) }
      return end(ended)
    case 3: return end(line)
    case 6:
      priorityAdd = following
      return 0
    case 7:
      priorityAdd = following
      return end(line)
    default: return 0
    }
  }

  private mutating func end(_ line: Int) -> UInt8 {
    let bit: UInt8 = 1 &<< UInt8(truncatingIfNeeded: line & 7)
    let ended = isr & bit
    isr &= ~bit
    return ended
  }

  private mutating func writeOCW3(_ value: UInt8) {
    if value & 0x04 != 0 { isPolling = true }
    if value & 0x02 != 0 { readsISR = value & 0x01 != 0 }
    if value & 0x40 != 0 { specialMask = value & 0x20 != 0 }
  }
}
