// SPDX-License-Identifier: Apache-2.0
//
// States that a client loads into interrupt chips, of the fuzzer's bytes: any may come, and
// none may trap.

import InterruptChips

/// States as KVM_SET_IRQCHIP, KVM_SET_PIT2, KVM_SET_LAPIC and KVM_SET_GSI_ROUTING bring them.
extension ChipPart {
  mutating func load() {
    switch reader.byte() % 6 {
    case 0: loadLocalAPIC()
    case 1: _ = apic.restoreBase(reader.number())
    case 2: apic.restoreTSCDeadline(reader.number())
    case 3: loadIOAPIC()
    case 4: pic.load(master: picState(isMaster: true), slave: picState(isMaster: false))
    default: loadPIT()
    }
    loadRoutes()
  }

  private mutating func loadLocalAPIC() {
    let kind = reader.byte()
    var image = apic.registerImage(at: time, wideID: kind & 1 != 0)
    for _ in 0..<(kind >> 1 & 15) { image[Int(reader.byte())] = reader.word(UInt32.self) }
    _ = apic.load(registerImage: image, at: time, wideID: kind & 1 != 0)
  }

  private mutating func loadIOAPIC() {
    var state = ioapic.snapshot
    state.baseAddress = reader.number()
    state.select = UInt32(truncatingIfNeeded: reader.number())
    state.id = UInt32(truncatingIfNeeded: reader.number())
    state.irr = UInt32(truncatingIfNeeded: reader.number())
    for _ in 0..<(reader.byte() & 7) {
      state.entries[Int(reader.byte()) % IOAPIC.pinCount] = reader.number()
    }
    for pin in ioapic.load(state) { _ = ioapic.service(pin) }
  }

  private mutating func picState(isMaster: Bool) -> PIC8259 {
    var state = PIC8259(isMaster: isMaster)
    (state.lastIRR, state.irr, state.imr) = (reader.byte(), reader.byte(), reader.byte())
    (state.isr, state.priorityAdd, state.vectorBase) = (reader.byte(), reader.byte(), reader.byte())
    let flags = reader.byte()
    (state.readsISR, state.isPolling) = (flags & 1 != 0, flags & 2 != 0)
    (state.specialMask, state.autoEOI) = (flags & 4 != 0, flags & 8 != 0)
    (state.rotateOnAutoEOI, state.specialFullyNested) = (flags & 16 != 0, flags & 32 != 0)
    state.initialization = .init(rawValue: flags >> 6) ?? .done
    state.elcr = reader.byte()
    return state
  }

  private mutating func loadPIT() {
    var state = pit.state(at: time.nanoseconds)
    for index in 0..<3 {
      var channel = PIT8254.ChannelState()
      channel.count = UInt32(truncatingIfNeeded: reader.number())
      channel.latchedCount = reader.word(UInt16.self)
      (channel.countLatched, channel.statusLatched) = (reader.byte(), reader.byte())
      (channel.status, channel.readState) = (reader.byte(), reader.byte())
      (channel.writeState, channel.writeLatch) = (reader.byte(), reader.byte())
      (channel.rwMode, channel.mode) = (reader.byte(), reader.byte())
      (channel.bcd, channel.gate) = (reader.byte(), reader.byte())
      channel.countLoadTime = Int64(bitPattern: reader.number())
      state.channels[index] = channel
    }
    pit.load(state, at: time.nanoseconds)
    _ = pit.state(at: time.nanoseconds)
  }

  private mutating func loadRoutes() {
    var entries: [(gsi: UInt32, route: GSIRoute)] = []
    for _ in 0..<(reader.byte() & 7) {
      let gsi = UInt32(truncatingIfNeeded: reader.number())
      let pin = reader.byte()
      switch pin >> 6 {
      case 0: entries.append((gsi, .picMaster(pin: pin & 15)))
      case 1: entries.append((gsi, .picSlave(pin: pin & 15)))
      case 2: entries.append((gsi, .ioapic(pin: pin & 63)))
      default: entries.append((gsi, .message(.init(addressLow: 0, data: 0))))
      }
    }
    guard let table = GSIRoutingTable(entries) else { return }
    for entry in entries { check(!table[gsi: entry.gsi].isEmpty, "a route is lost") }
    _ = table[gsi: UInt32(truncatingIfNeeded: reader.number())]
  }
}
