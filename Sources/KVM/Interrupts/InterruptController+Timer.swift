// SPDX-License-Identifier: Apache-2.0
//
// The 8254 at IRQ0. Missed ticks are not lost (Linux, "KVM_REINJECT_CONTROL"): they are counted,
// and the next is raised when the guest has ended the previous one's interrupt.

import InterruptChips
import Synchronization

/// Which ticks are due.
struct TickReinjection: Sendable {
  /// KVM_REINJECT_CONTROL; if off, every edge raises an interrupt or merges with a pending one.
  var isOn = true
  /// Ticks whose interrupts have not ended, including the one in service.
  private(set) var pending: UInt64 = 0
  private var isAcknowledged = true

  /// Drops pending ticks: the counter was set, or the interrupt unmasked.
  mutating func reset() {
    pending = 0
    isAcknowledged = true
  }

  /// Counts edges. Returns whether to raise an interrupt now.
  mutating func add(_ edges: UInt64) -> Bool {
    guard isOn else { return true }
    pending = min(pending &+ edges, UInt64(Int32.max))
    return take()
  }

  /// The guest ended an interrupt. Returns whether to raise another.
  mutating func acknowledge() -> Bool {
    guard isOn else { return false }
    isAcknowledged = true
    if pending > 0 { pending &-= 1 }
    return pending > 0 && take()
  }

  private mutating func take() -> Bool {
    defer { isAcknowledged = false }
    return isAcknowledged
  }
}

extension InterruptController {
  /// Raises IRQ0's edges that are due at `now`.
  func firePIT(_ now: UInt64) {
    chips.withLock { chips in
      guard chips.pit != nil else {
        pitDeadline.store(.max, ordering: .sequentiallyConsistent)
        return
      }
      let edges = chips.pit?.advance(to: now) ?? 0
      armPIT(&chips, now)
      if edges > 0, chips.ticks.add(edges) { tick(&chips) }
    }
  }

  /// Publishes the 8254's next edge to the timer thread; at most 10000 wake-ups a second.
  func armPIT(_ chips: inout Chips, _ now: UInt64) {
    let next = chips.pit?.nextDeadline ?? .max
    pitDeadline.store(
      next == .max ? .max : max(next, now &+ 100_000), ordering: .sequentiallyConsistent)
    timers.note(pitDeadline.load(ordering: .relaxed))
  }

  private func tick(_ chips: inout Chips) {
    var vector: UInt8 = 0
    for route in chips.routing[gsi: 0] {
      if case .ioapic(let pin) = route, !chips.ioapic.isMasked(Int(pin)) {
        vector = chips.ioapic.message(of: Int(pin))?.vector ?? 0
      }
    }
    tickVector.store(vector, ordering: .relaxed)
    for level in [true, false] {
      let combined = Self.combine(&chips, 0, level, Source.pit)
      for route in chips.routing[gsi: 0] { drive(&chips, route, combined) }
    }
  }

  // MARK: End of interrupt

  /// Whether the end of a vector must be reported.
  func isTick(_ vector: UInt8) -> Bool { tickVector.load(ordering: .relaxed) == vector }

  /// A local APIC ended an edge-triggered vector.
  func edgeEnded(_ vector: UInt8) {
    if isTick(vector) { chips.withLock { acknowledgeTick(&$0) } }
  }

  /// The 8259 pair ended the service of these lines.
  func endedTick(_ lines: UInt16, _ chips: inout Chips) {
    let isOurs = chips.routing[gsi: 0].contains { route in
      route.picLine.map { lines & 1 &<< UInt16($0) != 0 } ?? false
    }
    if isOurs { acknowledgeTick(&chips) }
  }

  func acknowledgeTick(_ chips: inout Chips) {
    if chips.pit != nil, chips.ticks.acknowledge() { tick(&chips) }
  }

  // MARK: Masks

  /// Runs a write to a chip; if it unmasks the 8254's interrupt, drops earlier ticks.
  func noticingUnmasking<R>(_ chips: inout Chips, _ write: (inout Chips) -> R) -> R {
    guard chips.pit != nil else { return write(&chips) }
    let before = Self.maskedTickPins(chips)
    let result = write(&chips)
    if before & ~Self.maskedTickPins(chips) != 0 { chips.ticks.reset() }
    return result
  }

  /// Bit n: the pin of GSI 0's route n is masked.
  private static func maskedTickPins(_ chips: Chips) -> UInt32 {
    var masked: UInt32 = 0
    var bit: UInt32 = 1
    for route in chips.routing[gsi: 0] {
      let isMasked =
        switch route {
        case .picMaster(let pin): chips.pic.master.imr & 1 &<< (pin & 7) != 0
        case .picSlave(let pin): chips.pic.slave.imr & 1 &<< (pin & 7) != 0
        case .ioapic(let pin): chips.ioapic.isMasked(Int(pin))
        case .message: false
        }
      if isMasked { masked |= bit }
      bit &<<= 1
    }
    return masked
  }
}
