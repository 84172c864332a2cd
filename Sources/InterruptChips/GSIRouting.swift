// SPDX-License-Identifier: Apache-2.0
//
// Routes of global system interrupts: to a chip's pin, or as a message. The table is a value, built
// when the client sets it and then only looked up.
// Linux, "KVM_SET_GSI_ROUTING"; SDM volume 3, "Message Signalled Interrupts".

/// An MSI: the device's memory write.
package struct MessageSignalledInterrupt: Sendable, Hashable {
  package var addressLow: UInt32
  package var addressHigh: UInt32
  package var data: UInt32

  package init(addressLow: UInt32, addressHigh: UInt32 = 0, data: UInt32) {
    self.addressLow = addressLow
    self.addressHigh = addressHigh
    self.data = data
  }

  /// How the destination is decoded (the flags of KVM_CAP_X2APIC_API).
  package struct Format: OptionSet, Sendable {
    package var rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Bits 31:8 of the upper address are bits 31:8 of the destination.
    package static let extendedDestination = Format(rawValue: 1 << 0)
    /// 0xFF is an ordinary x2APIC identifier, not the broadcast.
    package static let noNarrowBroadcast = Format(rawValue: 1 << 1)
  }

  /// False when the upper address has bits set that `format` reserves (Linux: EINVAL).
  package func isValid(_ format: Format) -> Bool {
    !format.contains(.extendedDestination) || addressHigh & 0xFF == 0
  }

  /// The message on the APIC bus.
  package func message(_ format: Format = []) -> InterruptMessage {
    var destination = addressLow >> 12 & 0xFF
    if format.contains(.extendedDestination) { destination |= addressHigh & 0xFFFF_FF00 }
    let isWide = format.contains(.noNarrowBroadcast) || destination > 0xFF
    var delivery = DeliveryMode(bits10To8: data)
    // The redirection hint asks for the one destination of lowest priority.
    if delivery == .fixed, addressLow & 0x8 != 0, addressLow & 0x4 != 0 {
      delivery = .lowestPriority
    }
    let isLevel = data & 0x8000 != 0
    return InterruptMessage(
      destination: destination,
      destinationMode: addressLow & 0x4 == 0 ? .physical : .logical, deliveryMode: delivery,
      vector: UInt8(truncatingIfNeeded: data), trigger: isLevel ? .level : .edge,
      asserted: !isLevel || data & 0x4000 != 0, isWide: isWide)
  }
}

package enum GSIRoute: Sendable, Hashable {
  /// Pins 0 to 7 of a chip of the 8259 pair.
  case picMaster(pin: UInt8)
  case picSlave(pin: UInt8)
  case ioapic(pin: UInt8)
  case message(MessageSignalledInterrupt)

  /// The IRQ of the 8259 pair, 0 to 15, if the route goes there.
  package var picLine: Int? {
    switch self {
    case .picMaster(let pin): Int(pin & 7)
    case .picSlave(let pin): Int(pin & 7) &+ 8
    case .ioapic, .message: nil
    }
  }
}

package struct GSIRoutingTable: Sendable, Hashable {
  /// As KVM_MAX_IRQ_ROUTES.
  package static let limit = 4096

  private var routes: [GSIRoute] = []
  /// The routes of GSI n are `routes[starts[n]..<starts[n + 1]]`.
  private var starts: [Int32] = [0]

  package init() {}

  /// Builds the table. nil for a GSI or a number of routes at or over `limit`, a pin that the chip
  /// lacks, or a second route of one GSI to the same chip or beside a message (Linux: EINVAL).
  package init?(_ entries: [(gsi: UInt32, route: GSIRoute)]) {
    guard entries.count <= Self.limit,
      entries.allSatisfy({ $0.gsi < Self.limit && $0.route.isValid })
    else { return nil }
    // Stable, so that routes of one GSI keep the client's order.
    let sorted = entries.enumerated()
      .sorted { ($0.element.gsi, $0.offset) < ($1.element.gsi, $1.offset) }
      .map(\.element)
    var gsi: UInt32 = 0
    for entry in sorted {
      while gsi < entry.gsi {
        starts.append(Int32(routes.count))
        gsi &+= 1
      }
      let sameGSI = routes[Int(starts[Int(gsi)])...]
      guard sameGSI.allSatisfy({ $0.canShareGSI(with: entry.route) }) else { return nil }
      routes.append(entry.route)
    }
    starts.append(Int32(routes.count))
  }

  /// The routes of `gsi`; empty if it has none.
  package subscript(gsi gsi: UInt32) -> ArraySlice<GSIRoute> {
    let index = Int(gsi)
    guard index < starts.count - 1 else { return [] }
    return routes[Int(starts[index])..<Int(starts[index + 1])]
  }

  /// KVM's routes after KVM_CREATE_IRQCHIP: GSI 0 to 15 to the 8259 pair and the I/O APIC, 16 to 23
  /// to the I/O APIC.
  package static var standard: GSIRoutingTable {
    var entries: [(gsi: UInt32, route: GSIRoute)] = []
    for gsi in 0..<UInt8(IOAPIC.pinCount) {
      entries.append((UInt32(gsi), .ioapic(pin: gsi)))
      if gsi < 8 { entries.append((UInt32(gsi), .picMaster(pin: gsi))) }
      if gsi >= 8, gsi < 16 { entries.append((UInt32(gsi), .picSlave(pin: gsi - 8))) }
    }
    return GSIRoutingTable(entries) ?? GSIRoutingTable()
  }
}

extension GSIRoute {
  fileprivate var isValid: Bool {
    switch self {
    case .picMaster(let pin), .picSlave(let pin): pin < 8
    case .ioapic(let pin): Int(pin) < IOAPIC.pinCount
    case .message: true
    }
  }

  /// One GSI may drive one pin of each chip, or send one message.
  fileprivate func canShareGSI(with other: GSIRoute) -> Bool {
    switch (self, other) {
    case (.message, _), (_, .message), (.ioapic, .ioapic), (.picMaster, .picMaster),
      (.picSlave, .picSlave):
      false
    default: true
    }
  }
}
