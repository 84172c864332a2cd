// SPDX-License-Identifier: Apache-2.0
//
// The messages between the chips: an interrupt on its way to local APICs, from any source (an ICR
// write, an I/O APIC pin, an MSI). A router offers the message to each local APIC's
// `LocalAPICIdentity` and delivers it to those that match (or to one of them, for lowest priority).
//
//   if let message = ioapic.setLine(4, asserted: true).message {
//     for cpu in cpus where cpu.identity.matches(message) { cpu.apic.deliver(message) }
//   }
//
// SDM volume 3: "Message Format", "Delivery mode" of "Interrupt Command Register".

/// The delivery modes of ICR, LVT, I/O APIC and MSI, with their encoding.
package enum DeliveryMode: UInt8, Sendable, Hashable {
  case fixed = 0
  case lowestPriority = 1
  case smi = 2
  case reserved = 3
  case nmi = 4
  case initialize = 5
  case startup = 6
  case external = 7

  /// Bits 10:8 of `word`, the mode's position in every register.
  package init(bits10To8 word: UInt32) {
    self = DeliveryMode(rawValue: UInt8(truncatingIfNeeded: (word >> 8) & 7)) ?? .fixed
  }

  /// Fixed and lowest priority: the modes whose vector goes through IRR and ISR.
  package var usesVector: Bool { self == .fixed || self == .lowestPriority }
}

package enum TriggerMode: UInt8, Sendable, Hashable {
  case edge = 0
  case level = 1
}

package enum DestinationMode: UInt8, Sendable, Hashable {
  case physical = 0
  case logical = 1
}

/// One interrupt on the (virtual) APIC bus.
package struct InterruptMessage: Sendable, Hashable {
  package var destination: UInt32
  package var destinationMode: DestinationMode
  package var deliveryMode: DeliveryMode
  package var vector: UInt8
  package var trigger: TriggerMode
  /// False only for the level de-assert of INIT.
  package var asserted: Bool
  /// The destination is a 32-bit x2APIC one: all ones is the broadcast and 0xFF an ordinary
  /// identifier. Otherwise it has eight bits and 0xFF is the broadcast.
  package var isWide: Bool

  package init(
    destination: UInt32, destinationMode: DestinationMode = .physical,
    deliveryMode: DeliveryMode = .fixed, vector: UInt8, trigger: TriggerMode = .edge,
    asserted: Bool = true, isWide: Bool = false
  ) {
    self.destination = destination
    self.destinationMode = destinationMode
    self.deliveryMode = deliveryMode
    self.vector = vector
    self.trigger = trigger
    self.asserted = asserted
    self.isWide = isWide
  }

  package var isBroadcast: Bool { destination == (isWide ? 0xFFFF_FFFF : 0xFF) }
}

/// A message that a local APIC sends by its ICR, with the destination shorthand.
package struct InterprocessorInterrupt: Sendable, Hashable {
  package enum Shorthand: UInt8, Sendable, Hashable {
    case none = 0
    case selfOnly = 1
    case allIncludingSelf = 2
    case allExcludingSelf = 3
  }

  package var message: InterruptMessage
  package var shorthand: Shorthand

  package init(message: InterruptMessage, shorthand: Shorthand = .none) {
    self.message = message
    self.shorthand = shorthand
  }
}
