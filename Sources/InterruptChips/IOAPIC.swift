// SPDX-License-Identifier: Apache-2.0
//
// The I/O APIC with 24 pins: 82093AA data sheet, "I/O APIC Registers". Version 0x11 as the chip,
// or 0x20 with the EOI register that later ones have.
//
// It does not route messages itself: each operation returns the message to send, and at the EOI of
// a level-triggered vector the pins to service again. A returned message counts as accepted (remote
// IRR is set); `deliveryFailed` undoes that.
//
// Invariant: bit n of `irr` is the level of line n, which for an edge-triggered pin also
// distinguishes a new edge from a line that is still high.
//
//   if case .send(let message) = ioapic.setLine(9, asserted: true) { route(message) }
//   for pin in ioapic.endOfInterrupt(vector: 0x39) { ioapic.service(pin).map(route) }

package struct IOAPIC: Sendable {
  package static let pinCount = 24
  package static let defaultAddress: UInt64 = 0xFEC0_0000
  /// Length of the register window.
  package static let windowSize: UInt64 = 0x100

  /// Offsets into the window.
  package enum Offset {
    package static let select = 0x00
    package static let window = 0x10
    package static let eoi = 0x40
  }

  /// Bits of a redirection table entry.
  package enum Entry {
    package static let logical: UInt64 = 1 << 11
    package static let deliveryStatus: UInt64 = 1 << 12
    package static let polarity: UInt64 = 1 << 13
    package static let remoteIRR: UInt64 = 1 << 14
    package static let level: UInt64 = 1 << 15
    package static let masked: UInt64 = 1 << 16
    static let readOnly = deliveryStatus | remoteIRR
    static let writableLow: UInt64 = 0x1_FFFF & ~readOnly
  }

  /// The result of a line change.
  package enum LineOutcome: Sendable, Hashable {
    /// Nothing to signal: the line fell, or did not change.
    case idle
    case send(InterruptMessage)
    case masked
    /// The previous interrupt is still pending.
    case coalesced

    package var message: InterruptMessage? {
      if case .send(let message) = self { return message }
      return nil
    }
  }

  /// The state in the layout of `kvm_ioapic_state`.
  package struct State: Sendable {
    package var baseAddress: UInt64 = IOAPIC.defaultAddress
    package var select: UInt32 = 0
    package var id: UInt32 = 0
    package var irr: UInt32 = 0
    package var entries: InlineArray<24, UInt64> = InlineArray(repeating: Entry.masked)
    package init() {}
  }

  package internal(set) var state = State()
  /// Edges in `irr` that were already sent: the line is still high, but no message is due.
  private var delivered: UInt32 = 0
  /// 0x11 or 0x20.
  package let version: UInt8

  package init(version: UInt8 = 0x11) { self.version = version }

  package mutating func reset() {
    let lines = state.irr
    state = State()
    state.irr = lines
  }

  /// The state for a snapshot: its `irr` omits edges that were already sent.
  package var snapshot: State {
    var copy = state
    copy.irr &= ~delivered
    return copy
  }

  /// Restores a state. Returns the requests in its `irr` as pins to service, since nothing else
  /// will deliver them.
  package mutating func load(_ new: State) -> Pins {
    state = new
    delivered = 0
    state.irr &= (1 << 24) - 1
    return Pins(bits: state.irr)
  }
}

// MARK: - Lines

extension IOAPIC {
  /// A set of pins, iterated from the lowest.
  package struct Pins: Sendable, Hashable, Sequence, IteratorProtocol {
    package var bits: UInt32
    package init(bits: UInt32) { self.bits = bits }
    package var isEmpty: Bool { bits == 0 }
    package mutating func next() -> Int? {
      guard bits != 0 else { return nil }
      let pin = bits.trailingZeroBitCount
      bits &= bits &- 1
      return pin
    }
  }

  /// Drives line `pin`; `asserted` is logical, as polarity depends on the board.
  package mutating func setLine(_ pin: Int, asserted: Bool) -> LineOutcome {
    guard pin >= 0, pin < Self.pinCount else { return .idle }
    let bit: UInt32 = 1 &<< UInt32(truncatingIfNeeded: pin)
    guard asserted else {
      state.irr &= ~bit
      delivered &= ~bit
      return .idle
    }
    let wasAsserted = state.irr & bit != 0
    state.irr |= bit
    let entry = state.entries[pin]
    if entry & Entry.level == 0, wasAsserted { return .coalesced }
    if entry & Entry.masked != 0 { return .masked }
    if entry & Entry.level != 0, entry & Entry.remoteIRR != 0 { return .coalesced }
    return fire(pin).map { .send($0) } ?? .masked
  }

  /// The message of `pin` if its line requests one now: asserted, not masked, and, if
  /// level-triggered, not waiting for an EOI.
  package mutating func service(_ pin: Int) -> InterruptMessage? {
    guard pin >= 0, pin < Self.pinCount else { return nil }
    let entry = state.entries[pin]
    guard state.irr & (1 &<< UInt32(truncatingIfNeeded: pin)) != 0, entry & Entry.masked == 0,
      entry & Entry.level == 0 || entry & Entry.remoteIRR == 0
    else { return nil }
    return fire(pin)
  }

  /// A local APIC ended a level-triggered vector: clears remote IRR of its pins and returns those
  /// whose line is still asserted, unless masked.
  package mutating func endOfInterrupt(vector: UInt8) -> Pins {
    var again = Pins(bits: 0)
    for pin in 0..<Self.pinCount {
      let entry = state.entries[pin]
      guard entry & 0xFF == UInt64(vector), entry & Entry.level != 0 else { continue }
      state.entries[pin] = entry & ~Entry.remoteIRR
      let bit: UInt32 = 1 &<< UInt32(truncatingIfNeeded: pin)
      if entry & Entry.masked == 0 { again.bits |= state.irr & bit }
    }
    return again
  }

  /// Whether `pin` is level-triggered with this vector, so that it awaits its EOI.
  package func awaits(_ pin: Int, vector: UInt8) -> Bool {
    guard pin >= 0, pin < Self.pinCount else { return false }
    let entry = state.entries[pin]
    return entry & 0xFF == UInt64(vector) && entry & Entry.level != 0
  }

  /// No local APIC accepted the message of `pin`: it does not wait for an EOI.
  package mutating func deliveryFailed(_ pin: Int) {
    guard pin >= 0, pin < Self.pinCount else { return }
    delivered &= ~(1 &<< UInt32(truncatingIfNeeded: pin))
    state.entries[pin] &= ~Entry.remoteIRR
  }

  /// The message of `pin` as programmed, masked or not.
  package func message(of pin: Int) -> InterruptMessage? {
    guard pin >= 0, pin < Self.pinCount else { return nil }
    let entry = state.entries[pin]
    let low = UInt32(truncatingIfNeeded: entry)
    return InterruptMessage(
      destination: UInt32(truncatingIfNeeded: entry >> 56),
      destinationMode: entry & Entry.logical == 0 ? .physical : .logical,
      deliveryMode: DeliveryMode(bits10To8: low), vector: UInt8(truncatingIfNeeded: low),
      trigger: entry & Entry.level == 0 ? .edge : .level)
  }

  /// Whether the entry of `pin` is masked.
  package func isMasked(_ pin: Int) -> Bool {
    pin < 0 || pin >= Self.pinCount || state.entries[pin] & Entry.masked != 0
  }

  private mutating func fire(_ pin: Int) -> InterruptMessage? {
    guard let message = message(of: pin), message.deliveryMode != .reserved else { return nil }
    if message.trigger == .edge {
      delivered |= 1 &<< UInt32(truncatingIfNeeded: pin)
    } else if message.deliveryMode.usesVector {
      state.entries[pin] |= Entry.remoteIRR
    }
    return message
  }
}

// MARK: - Registers

extension IOAPIC {
  /// Reads the window at `offset`. Registers are 32 bits wide; the caller truncates to its width.
  package func read(_ offset: Int) -> UInt32 {
    switch offset & 0xFF {
    case Offset.select: return state.select
    case Offset.window: return readIndirect(Int(state.select & 0xFF))
    default: return 0
    }
  }

  /// The owner's work after a register write.
  package enum Effect: Sendable, Hashable {
    case none
    /// A level-triggered line was waiting to be unmasked.
    case send(InterruptMessage, pin: Int)
    /// A write to the EOI register: service these.
    case service(Pins)
  }

  @discardableResult
  package mutating func write(_ offset: Int, _ value: UInt32) -> Effect {
    switch offset & 0xFF {
    case Offset.select:
      state.select = value & 0xFF
      return .none
    case Offset.window: return writeIndirect(Int(state.select & 0xFF), value)
    case Offset.eoi where version >= 0x20:
      return .service(endOfInterrupt(vector: UInt8(truncatingIfNeeded: value)))
    default: return .none
    }
  }

  private func readIndirect(_ index: Int) -> UInt32 {
    switch index {
    case 0, 2: return (state.id & 0xF) << 24
    case 1: return UInt32(version) | UInt32(Self.pinCount - 1) << 16
    case 0x10..<(0x10 + 2 * Self.pinCount):
      let entry = state.entries[(index &- 0x10) >> 1]
      return UInt32(truncatingIfNeeded: index & 1 == 0 ? entry : entry >> 32)
    default: return 0
    }
  }

  private mutating func writeIndirect(_ index: Int, _ value: UInt32) -> Effect {
    switch index {
    case 0:
      state.id = value >> 24 & 0xF
      return .none
    case 0x10..<(0x10 + 2 * Self.pinCount):
      let pin = (index &- 0x10) >> 1
      if index & 1 == 0 { return writeLow(pin, UInt64(value)) }
      let low = state.entries[pin] & 0xFFFF_FFFF
      state.entries[pin] = low | UInt64(value & 0xFF00_0000) << 32
      return .none
    default: return .none
    }
  }

  private mutating func writeLow(_ pin: Int, _ value: UInt64) -> Effect {
    var entry = state.entries[pin] & ~Entry.writableLow | value & Entry.writableLow
    // An edge-triggered entry never waits for EOI. Guests use this to clear a stuck remote IRR.
    if entry & Entry.level == 0 { entry &= ~Entry.remoteIRR }
    state.entries[pin] = entry
    guard entry & Entry.level != 0, let message = service(pin) else { return .none }
    return .send(message, pin: pin)
  }
}
