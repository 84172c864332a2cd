// SPDX-License-Identifier: Apache-2.0
//
// The I/O APIC against the 82093AA's data sheet: registers, edges and levels, Remote IRR, and
// when a level is sent again.

import InterruptChips
import Testing

@Suite struct IOAPICTests {
  /// Writes one 32-bit register through the window.
  @discardableResult
  func set(_ chip: inout IOAPIC, _ index: UInt32, _ value: UInt32) -> IOAPIC.Effect {
    chip.write(IOAPIC.Offset.select, index)
    return chip.write(IOAPIC.Offset.window, value)
  }

  let none = IOAPIC.Pins(bits: 0)

  func pins(_ list: [Int]) -> IOAPIC.Pins {
    let set = IOAPIC.Pins(bits: list.reduce(0) { $0 | 1 << UInt32($1) })
    #expect(Array(set) == list)
    return set
  }

  func get(_ chip: inout IOAPIC, _ index: UInt32) -> UInt32 {
    chip.write(IOAPIC.Offset.select, index)
    return chip.read(IOAPIC.Offset.window)
  }

  func program(_ chip: inout IOAPIC, pin: UInt32, _ low: UInt32, destination: UInt32 = 0) {
    set(&chip, 0x11 + 2 * pin, destination << 24)
    set(&chip, 0x10 + 2 * pin, low)
  }

  @Test func resetValues() {
    var chip = IOAPIC()
    #expect(get(&chip, 0) == 0)
    #expect(get(&chip, 1) == 0x0017_0011)
    #expect(get(&chip, 2) == 0)
    for pin: UInt32 in 0..<24 {
      #expect(get(&chip, 0x10 + 2 * pin) == 0x1_0000)
      #expect(get(&chip, 0x11 + 2 * pin) == 0)
    }
    #expect(get(&chip, 0x40) == 0)
    #expect(get(&chip, 0xFF) == 0)
  }

  @Test func reservedAndReadOnlyBits() {
    var chip = IOAPIC()
    set(&chip, 0, 0xFFFF_FFFF)
    #expect(get(&chip, 0) == 0x0F00_0000)
    #expect(get(&chip, 2) == 0x0F00_0000)
    set(&chip, 1, 0)
    #expect(get(&chip, 1) == 0x0017_0011)
    set(&chip, 0x10, 0xFFFF_FFFF)
    set(&chip, 0x11, 0xFFFF_FFFF)
    #expect(get(&chip, 0x10) == 0x1_AFFF)
    #expect(get(&chip, 0x11) == 0xFF00_0000)
    #expect(chip.read(IOAPIC.Offset.select) == 0x11)
  }

  @Test func messageFields() {
    var chip = IOAPIC()
    program(&chip, pin: 5, 0x0000_0935, destination: 0x0C)
    let expected = InterruptMessage(
      destination: 0x0C, destinationMode: .logical, deliveryMode: .lowestPriority, vector: 0x35)
    #expect(chip.setLine(5, asserted: true) == .send(expected))
  }

  @Test func edge() {
    var chip = IOAPIC()
    #expect(chip.setLine(4, asserted: true) == .masked)
    #expect(chip.setLine(4, asserted: true) == .coalesced)
    program(&chip, pin: 4, 0x34)
    // An edge under the mask is lost.
    #expect(chip.setLine(4, asserted: true) == .coalesced)
    #expect(chip.setLine(4, asserted: false) == .idle)
    let message = InterruptMessage(destination: 0, vector: 0x34)
    #expect(chip.setLine(4, asserted: true) == .send(message))
    #expect(chip.setLine(4, asserted: true) == .coalesced)
    #expect(get(&chip, 0x18) == 0x34)
    #expect(chip.endOfInterrupt(vector: 0x34) == none)
    _ = chip.setLine(4, asserted: false)
    #expect(chip.setLine(4, asserted: true) == .send(message))
  }

  @Test func levelHasRemoteIRR() {
    var chip = IOAPIC()
    program(&chip, pin: 9, 0x8039)
    let message = InterruptMessage(destination: 0, vector: 0x39, trigger: .level)
    #expect(chip.setLine(9, asserted: true) == .send(message))
    #expect(get(&chip, 0x22) == 0xC039)
    #expect(chip.setLine(9, asserted: true) == .coalesced)
    #expect(chip.endOfInterrupt(vector: 0x38) == none)
    #expect(chip.endOfInterrupt(vector: 0x39) == pins([9]))
    #expect(chip.service(9) == message)
    #expect(chip.service(9) == nil)
    #expect(chip.setLine(9, asserted: false) == .idle)
    #expect(chip.endOfInterrupt(vector: 0x39) == none)
    #expect(get(&chip, 0x22) == 0x8039)
    #expect(chip.setLine(9, asserted: true) == .send(message))
  }

  @Test func sharedVectorServicesAllPins() {
    var chip = IOAPIC()
    for pin: UInt32 in [3, 17, 23] {
      program(&chip, pin: pin, 0x8050)
      _ = chip.setLine(Int(pin), asserted: true)
    }
    _ = chip.setLine(17, asserted: false)
    #expect(chip.endOfInterrupt(vector: 0x50) == pins([3, 23]))
  }

  @Test func maskedLevelIsSentWhenUnmasked() {
    var chip = IOAPIC()
    program(&chip, pin: 10, 0x1_8041)
    #expect(chip.setLine(10, asserted: true) == .masked)
    let message = InterruptMessage(destination: 0, vector: 0x41, trigger: .level)
    #expect(set(&chip, 0x24, 0x8041) == .send(message, pin: 10))
    // Masked between acceptance and EOI: the EOI still clears remote IRR.
    set(&chip, 0x24, 0x1_8041)
    #expect(get(&chip, 0x24) == 0x1_C041)
    #expect(chip.endOfInterrupt(vector: 0x41) == none)
    #expect(set(&chip, 0x24, 0x8041) == .send(message, pin: 10))
  }

  @Test func edgeEntryClearsRemoteIRR() {
    var chip = IOAPIC()
    program(&chip, pin: 10, 0x8041)
    _ = chip.setLine(10, asserted: true)
    set(&chip, 0x24, 0x1_0041)
    #expect(get(&chip, 0x24) == 0x1_0041)
  }

  @Test func failedDeliveryWaitsForNoEOI() {
    var chip = IOAPIC()
    program(&chip, pin: 10, 0x8041)
    _ = chip.setLine(10, asserted: true)
    chip.deliveryFailed(10)
    #expect(chip.service(10) != nil)
  }

  @Test func eoiRegisterOfLaterVersions() {
    for version: UInt8 in [0x11, 0x20] {
      var chip = IOAPIC(version: version)
      program(&chip, pin: 10, 0x8041)
      _ = chip.setLine(10, asserted: true)
      let effect = chip.write(IOAPIC.Offset.eoi, 0x41)
      let expected = IOAPIC.Effect.service(IOAPIC.Pins(bits: 1 << 10))
      #expect(effect == (version == 0x20 ? expected : .none))
    }
  }

  @Test func snapshotLeavesOutSentEdges() {
    var chip = IOAPIC()
    program(&chip, pin: 4, 0x34)
    program(&chip, pin: 9, 0x8039)
    for pin in [4, 9, 11] { _ = chip.setLine(pin, asserted: true) }
    #expect(chip.snapshot.irr == 1 << 9 | 1 << 11)
    var copy = IOAPIC()
    #expect(copy.load(chip.snapshot) == pins([9, 11]))
    #expect(copy.service(9) == nil)
    #expect(copy.endOfInterrupt(vector: 0x39) == pins([9]))
  }

  @Test func linesOutOfRangeAreIgnored() {
    var chip = IOAPIC()
    #expect(chip.setLine(24, asserted: true) == .idle)
    #expect(chip.setLine(-1, asserted: true) == .idle)
    #expect(chip.service(99) == nil)
    #expect(chip.message(of: 24) == nil)
  }
}
