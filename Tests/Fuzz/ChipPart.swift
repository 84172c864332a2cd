// SPDX-License-Identifier: Apache-2.0
//
// Interrupt chips and timers, driven by the fuzzer's bytes: no access, line, message, time or
// state may trap.

import InterruptChips

/// Bytes become accesses of interrupt chips and timers by a guest, lines of devices, messages
/// between the chips, and states that a client loads.
struct ChipPart: ~Copyable {
  var reader: Reader
  var time = LocalAPIC.Time(nanoseconds: 0)
  var apic: LocalAPIC
  var ioapic = IOAPIC(version: 0x20)
  var pic = PIC8259Pair()
  var pit = PIT8254()
  /// Of four processors, as the local APIC's writes leave them.
  private var identities = [LocalAPICIdentity](
    repeating: LocalAPICIdentity(mode: .disabled, id: 0, logicalID: 0), count: 4)

  static func run(_ input: UnsafeRawBufferPointer) {
    var part = ChipPart(Reader(input))
    while !part.reader.isAtEnd { part.step() }
  }

  private init(_ reader: Reader) {
    self.reader = reader
    let features = LocalAPIC.Features(rawValue: self.reader.byte())
    apic = LocalAPIC(id: 1, isBootstrapProcessor: false, features: features)
  }

  private mutating func step() {
    switch reader.byte() % 8 {
    case 0: time = LocalAPIC.Time(nanoseconds: reader.number(), tsc: reader.number())
    case 1: accessLocalAPIC()
    case 2: runLocalAPIC()
    case 3: accessIOAPIC()
    case 4: accessPIC()
    case 5: accessPIT()
    case 6: sendMessage()
    default: load()
    }
  }

  // MARK: Local APIC

  private mutating func accessLocalAPIC() {
    let kind = reader.byte()
    let offset = Int(reader.word(UInt16.self) & 0xFFF)
    switch kind & 7 {
    case 0: _ = apic.readMMIO(offset, width: 1 << Int(kind >> 3 & 3), at: time)
    case 1, 2: take(apic.writeRegister(offset & 0xFF0, reader.word(UInt32.self), at: time))
    case 3: _ = apic.readMSR(0x800 &+ UInt32(offset), at: time)
    case 4: take(apic.writeMSR(0x800 &+ UInt32(offset & 0xFF), reader.number(), at: time))
    case 5: _ = apic.writeBase(reader.number(), physicalAddressWidth: 32 + offset % 32)
    case 6: take(apic.writeTSCDeadline(reader.number()))
    default: apic.cr8 = UInt8(truncatingIfNeeded: offset)
    }
    identities[Int(kind >> 6)] = apic.identity
  }

  /// What the processor and the hypervisor do with it.
  private mutating func runLocalAPIC() {
    let kind = reader.byte()
    switch kind & 7 {
    case 0: _ = apic.expireTimer(at: time)
    case 1: _ = apic.acceptHighest()
    case 2: take(apic.writeEOI())
    case 3: _ = apic.request(reader.byte(), trigger: kind & 8 == 0 ? .edge : .level)
    case 4: _ = apic.setLINT(Int(kind >> 3 & 1), asserted: kind & 16 != 0)
    case 5: _ = apic.raiseLocal(Self.localVectors[Int(kind >> 3) % Self.localVectors.count])
    case 6: apic.offerCorrectedErrors(kind & 8 != 0)
    default: if kind & 8 == 0 { apic.initialize() } else { apic.reset() }
    }
    _ = apic.currentCount(at: time)
    _ = apic.nextDeadline
  }

  /// Thermal sensor, performance counters, errors.
  private static let localVectors = [0x330, 0x340, 0x370]

  private mutating func take(_ effect: LocalAPIC.Effect?) {
    switch effect {
    case .send(let interrupt):
      for index in identities.indices {
        _ = identities[index].matches(interrupt, isSender: index == 0)
      }
    case .endOfInterrupt(let vector): _ = ioapic.endOfInterrupt(vector: vector)
    default: break
    }
  }

  private mutating func sendMessage() {
    let message = MessageSignalledInterrupt(
      addressLow: reader.word(UInt32.self), addressHigh: reader.word(UInt32.self),
      data: reader.word(UInt32.self))
    let format = MessageSignalledInterrupt.Format(rawValue: reader.byte() & 3)
    deliver(message.message(format))
  }

  private mutating func deliver(_ message: InterruptMessage) {
    if identities.contains(where: { $0.matches(message) }) { _ = apic.deliver(message) }
  }

  // MARK: Other chips

  private mutating func accessIOAPIC() {
    let kind = reader.byte()
    let pin = Int(kind >> 3) % IOAPIC.pinCount
    switch kind & 7 {
    case 0: _ = ioapic.read(Int(reader.byte()))
    case 1: _ = ioapic.write(IOAPIC.Offset.select, UInt32(reader.byte() & 0x3F))
    case 2, 3: _ = ioapic.write(IOAPIC.Offset.window, reader.word(UInt32.self))
    case 4: _ = ioapic.write(Int(reader.byte()), reader.word(UInt32.self))
    case 5: if let message = ioapic.setLine(pin, asserted: true).message { deliver(message) }
    case 6: _ = ioapic.setLine(pin, asserted: false)
    default:
      if let message = ioapic.service(pin) { deliver(message) } else { ioapic.deliveryFailed(pin) }
    }
    _ = ioapic.awaits(pin, vector: kind)
    _ = ioapic.message(of: pin)
  }

  private static let picPorts: [UInt16] = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x22, 0x4D2]
  private static let pitPorts: [UInt16] = [0x40, 0x41, 0x42, 0x43, 0x61, 0x43, 0x44, 0x62]

  private mutating func accessPIC() {
    let kind = reader.byte()
    let port = Self.picPorts[Int(kind >> 2 & 7)]
    switch kind & 3 {
    case 0: _ = pic.read(port: port)
    case 1: _ = pic.write(port: port, reader.byte())
    case 2: pic.setLine(Int(reader.byte() & 15), asserted: kind & 0x80 != 0)
    default: _ = pic.acknowledge()
    }
  }

  private mutating func accessPIT() {
    let kind = reader.byte()
    let port = Self.pitPorts[Int(kind >> 2 & 7)]
    let now = time.nanoseconds
    switch kind & 3 {
    case 0: _ = pit.read(port: port, at: now)
    case 1, 2: pit.write(port: port, reader.byte(), at: now)
    default: _ = pit.output(ofChannel: Int(kind >> 2) % 3, at: now)
    }
    if kind & 0x80 != 0 { _ = pit.advance(to: now) }
    _ = pit.nextDeadline
  }
}
