// SPDX-License-Identifier: Apache-2.0
//
// The machine's interrupt chips and their wiring: GSIs to the 8259 pair and the I/O APIC, outputs
// and MSIs to local APICs, the 8254 to IRQ0.
//
//     setLine(gsi, level) -> 8259 pin -> INTR -> vCPUs whose LINT0 lets it through
//                         -> I/O APIC pin -> message -> the local APICs that it names
//
// The chips are values under one lock. The lock may be held while a message is delivered, which
// takes the CPU list's lock and then a local APIC's. It is never taken while one of those is held.

import Host
import InterruptChips
import Synchronization
import X86

/// Sendable: chips and routes are in mutexes.
final class InterruptController: @unchecked Sendable {
  struct Chips: Sendable {
    var pic = PIC8259Pair()
    var ioapic = IOAPIC()
    var pit: PIT8254?
    /// The 8254 was made with its speaker port.
    var hasSpeaker = false
    var pitFlags: UInt32 = 0
    var ticks = TickReinjection()
    var routing = GSIRoutingTable.standard
    /// How message destinations are decoded.
    var messageFormat: MessageSignalledInterrupt.Format = []
    /// The sources that assert each GSI: bit 0 the client, bit 1 the 8254.
    var levels: [UInt8] = Array(repeating: 0, count: 64)
    /// Resampling irqfds by GSI: signalled when the guest ends the interrupt.
    var resamplers: [UInt32: [ClientEvent]] = [:]
    /// Last CPU that took a lowest-priority message.
    var lastLowest = 0
  }

  enum Source {
    static let client: UInt8 = 1 << 0
    static let pit: UInt8 = 1 << 1
    static let resample: UInt8 = 1 << 2
  }

  /// The client has the 8259 pair, I/O APIC and 8254; we have only the local APICs.
  let isSplit: Bool
  /// GSIs below this are the pins of the client's I/O APIC.
  let reservedRoutes: UInt32
  private let cpus: VirtualCPUList
  let timers: TimerThread
  let chips: Mutex<Chips>
  /// The 8259's INTR.
  let isPICRequesting = Atomic<Bool>(false)
  /// The vector of the 8254's last tick at a local APIC; 0: none.
  let tickVector = Atomic<UInt8>(0)
  /// When OUT of the 8254's channel 0 rises next, in monotonic nanoseconds.
  let pitDeadline = Atomic<UInt64>(.max)

  /// - Parameter splitRoutes: the pins of the client's I/O APIC; nil if all chips are ours.
  init(cpus: VirtualCPUList, timers: TimerThread, splitRoutes: UInt32? = nil) {
    isSplit = splitRoutes != nil
    reservedRoutes = splitRoutes ?? 0
    self.cpus = cpus
    self.timers = timers
    var initial = Chips()
    if splitRoutes != nil { initial.routing = GSIRoutingTable() }
    chips = Mutex(initial)
  }

  // MARK: Lines

  /// Drives a GSI.
  ///
  /// - Returns: above 0 when a CPU (or the 8259) took it, 0 when it merged with a pending one or
  ///   delivered nothing, -1 when there is no such route or it is masked.
  @discardableResult
  func setLine(_ gsi: UInt32, _ level: Bool, source: UInt8 = Source.client) -> Int32 {
    chips.withLock { chips in
      let combined = Self.combine(&chips, gsi, level, source)
      var result: Int32 = -1
      for route in chips.routing[gsi: gsi] {
        result = max(result, drive(&chips, route, combined))
      }
      return result
    }
  }

  static func combine(
    _ chips: inout Chips, _ gsi: UInt32, _ level: Bool, _ source: UInt8
  ) -> Bool {
    guard Int(gsi) < chips.levels.count else { return level }
    if level { chips.levels[Int(gsi)] |= source } else { chips.levels[Int(gsi)] &= ~source }
    return chips.levels[Int(gsi)] != 0
  }

  @discardableResult
  func drive(_ chips: inout Chips, _ route: GSIRoute, _ level: Bool) -> Int32 {
    if let line = route.picLine {
      chips.pic.setLine(line, asserted: level)
      updatePIC(&chips)
      return 1
    }
    switch route {
    case .ioapic(let pin):
      switch chips.ioapic.setLine(Int(pin), asserted: level) {
      case .idle: return level ? 0 : 1
      case .send(let message): return send(message, pin: Int(pin), &chips)
      case .masked: return -1
      case .coalesced: return 0
      }
    case .message(let message):
      return level ? deliver(message.message(chips.messageFormat), &chips) : 0
    case .picMaster, .picSlave: return -1
    }
  }

  @discardableResult
  func send(_ message: InterruptMessage, pin: Int, _ chips: inout Chips) -> Int32 {
    let result = deliver(message, &chips)
    if result < 0 { chips.ioapic.deliveryFailed(pin) }
    return result
  }

  /// KVM_SIGNAL_MSI.
  func signal(_ message: MessageSignalledInterrupt) -> Int32 {
    chips.withLock { deliver(message.message($0.messageFormat), &$0) }
  }

  // MARK: Messages

  /// Delivers a message to its destination local APICs.
  ///
  /// - Returns: how many took it; 0 when it merged with pending ones; -1 without a destination.
  @discardableResult
  private func deliver(_ message: InterruptMessage, _ chips: inout Chips) -> Int32 {
    cpus.list.withLock { cpus in
      if message.deliveryMode == .lowestPriority {
        return deliverLowest(message, cpus, &chips.lastLowest)
      }
      var result: Int32 = -1
      for index in cpus.all.indices where cpus.identities[index].matches(message) {
        result = max(result, 0) + (cpus.all[index].accept(message) ? 1 : 0)
      }
      return result
    }
  }

  /// Delivers to one of the destination CPUs, in turn.
  private func deliverLowest(
    _ message: InterruptMessage, _ cpus: VirtualCPUList.List, _ last: inout Int
  ) -> Int32 {
    let count = cpus.all.count
    for step in 1...max(count, 1) where count > 0 {
      let index = (last &+ step) % count
      let identity = cpus.identities[index]
      if identity.isSoftwareEnabled, identity.matches(message) {
        last = index
        return cpus.all[index].accept(message) ? 1 : 0
      }
    }
    return -1
  }

  /// Routes an interprocessor interrupt.
  func send(_ interrupt: InterprocessorInterrupt, from sender: VirtualCPU) {
    if interrupt.message.deliveryMode == .lowestPriority {
      chips.withLock { _ = deliver(interrupt.message, &$0) }
      return
    }
    cpus.list.withLock { cpus in
      for index in cpus.all.indices {
        let vcpu = cpus.all[index]
        if cpus.identities[index].matches(interrupt, isSender: vcpu === sender) {
          vcpu.accept(interrupt.message)
        }
      }
    }
  }

  /// Sends a message to the CPUs of a bitmap: bit n of word w is the APIC identifier
  /// `first + w * wordWidth + n`.
  ///
  /// - Returns: the number of destination CPUs.
  func send(
    _ message: InterruptMessage, to words: [UInt64], wordWidth: Int, first: UInt32
  ) -> Int64 {
    cpus.list.withLock { cpus in
      var count: Int64 = 0
      for index in cpus.all.indices where cpus.identities[index].mode != .disabled {
        let (place, isBelow) = cpus.identities[index].id.subtractingReportingOverflow(first)
        let word = Int(place) / wordWidth
        guard !isBelow, word < words.count,
          words[word] & (1 &<< UInt64(Int(place) % wordWidth)) != 0
        else { continue }
        cpus.all[index].accept(message)
        count += 1
      }
      return count
    }
  }

  /// KVM_SET_GSI_ROUTING.
  func setRouting(_ table: GSIRoutingTable) { chips.withLock { $0.routing = table } }

  /// A local APIC ended a level-triggered vector.
  ///
  /// - Returns: whether the client's I/O APIC has such a pin.
  func endOfInterrupt(_ vector: UInt8) -> Bool {
    chips.withLock { chips in
      if isSplit { return isClientPin(vector, chips) }
      if !chips.resamplers.isEmpty {
        for pin in 0..<IOAPIC.pinCount where chips.ioapic.awaits(pin, vector: vector) {
          resample(.ioapic(pin: UInt8(pin)), &chips)
        }
      }
      service(chips.ioapic.endOfInterrupt(vector: vector), &chips)
      if isTick(vector) { acknowledgeTick(&chips) }
      return false
    }
  }

  private func isClientPin(_ vector: UInt8, _ chips: Chips) -> Bool {
    (0..<reservedRoutes).contains { gsi in
      chips.routing[gsi: gsi].contains {
        guard case .message(let interrupt) = $0 else { return false }
        let message = interrupt.message(chips.messageFormat)
        return message.trigger == .level && message.vector == vector
      }
    }
  }

  func service(_ pins: IOAPIC.Pins, _ chips: inout Chips) {
    for pin in pins {
      if let message = chips.ioapic.service(pin) { send(message, pin: pin, &chips) }
    }
  }

  // MARK: Resampling

  func addResampler(_ gsi: UInt32, _ event: ClientEvent) {
    chips.withLock { $0.resamplers[gsi, default: []].append(event) }
  }

  func removeResampler(_ gsi: UInt32, _ event: ClientEvent) {
    chips.withLock { chips in
      chips.resamplers[gsi]?.removeAll { $0 === event }
      if chips.resamplers[gsi]?.isEmpty == true {
        chips.resamplers[gsi] = nil
        lower(gsi, &chips)
      }
    }
  }

  /// The guest ended a pin's interrupt: lowers its lines before the pin is evaluated again.
  func resample(_ pin: GSIRoute, _ chips: inout Chips) {
    for (gsi, events) in chips.resamplers where chips.routing[gsi: gsi].contains(pin) {
      lower(gsi, &chips)
      for event in events { event.signal() }
    }
  }

  private func lower(_ gsi: UInt32, _ chips: inout Chips) {
    let level = Self.combine(&chips, gsi, false, Source.resample)
    for route in chips.routing[gsi: gsi] { drive(&chips, route, level) }
  }

  // MARK: 8259

  /// A command ended the service of these 8259 lines.
  func endedLines(_ lines: UInt16, _ chips: inout Chips) {
    var ended = lines
    while ended != 0, !chips.resamplers.isEmpty {
      let line = UInt8(ended.trailingZeroBitCount)
      resample(line < 8 ? .picMaster(pin: line) : .picSlave(pin: line &- 8), &chips)
      ended &= ended &- 1
    }
    if lines != 0 { endedTick(lines, &chips) }
  }

  /// Reports a change of INTR to the vCPUs.
  func updatePIC(_ chips: inout Chips) {
    let requested = chips.pic.isInterruptRequested
    let was = isPICRequesting.exchange(requested, ordering: .sequentiallyConsistent)
    guard requested != was else { return }
    for vcpu in cpus.all { vcpu.picChanged(requested) }
  }

  /// The INTA cycle.
  func acknowledgePIC() -> UInt8 {
    chips.withLock { chips in
      let (vector, ended) = chips.pic.acknowledgeNotingEnd()
      if ended != 0 { endedLines(ended, &chips) }
      updatePIC(&chips)
      return vector
    }
  }
}
