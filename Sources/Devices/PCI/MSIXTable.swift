// SPDX-License-Identifier: Apache-2.0
//
// MSI-X as a plain value (PCI Local Bus Specification, "MSI-X Capability and Table Structures"):
// the message table and the pending bits.
//
//     var table = MSIXTable(count: 3)
//     table.control = MSIXTable.enable
//     let message = table.raise(0)      // nil while vector 0 is masked: then it is pending

/// A memory write that an interrupt controller takes as an interrupt.
package struct InterruptMessage: Sendable, Hashable {
  package var address: UInt64
  package var data: UInt32
  package init(address: UInt64, data: UInt32) {
    self.address = address
    self.data = data
  }
}

package struct MSIXTable: Sendable, Hashable {
  package static let capability: UInt8 = 0x11
  /// Bits of the message control register.
  package static let enable: UInt16 = 1 << 15
  package static let functionMask: UInt16 = 1 << 14
  /// Size of an entry.
  package static let entrySize = 16
  private static let masked: UInt32 = 1

  private struct Entry: Sendable, Hashable {
    var address: UInt64 = 0
    var data: UInt32 = 0
    var control = MSIXTable.masked
  }

  private var entries: [Entry]
  private var pending: [Bool]
  /// The enable and function mask bits.
  package var control: UInt16 = 0

  package init(count: Int) {
    entries = [Entry](repeating: Entry(), count: count)
    pending = [Bool](repeating: false, count: count)
  }

  package var count: Int { entries.count }
  package var isEnabled: Bool { control & Self.enable != 0 }

  /// The table size field of the message control register.
  package var size: UInt16 { UInt16(truncatingIfNeeded: entries.count &- 1) }

  private func isOpen(_ vector: Int) -> Bool {
    control & (Self.enable | Self.functionMask) == Self.enable
      && entries[vector].control & Self.masked == 0
  }

  /// Raises an interrupt: returns the message to send, or nil if there is none or it is masked.
  package mutating func raise(_ vector: Int) -> InterruptMessage? {
    guard entries.indices.contains(vector) else { return nil }
    guard isOpen(vector) else {
      pending[vector] = true
      return nil
    }
    return InterruptMessage(address: entries[vector].address, data: entries[vector].data)
  }

  /// Takes pending messages that are no longer masked.
  package mutating func takeReleased() -> [InterruptMessage] {
    var messages: [InterruptMessage] = []
    for vector in entries.indices where pending[vector] && isOpen(vector) {
      pending[vector] = false
      messages.append(
        InterruptMessage(address: entries[vector].address, data: entries[vector].data))
    }
    return messages
  }

  /// Reads 32 bits of the table; all ones beyond its end.
  package func read(_ offset: UInt64) -> UInt32 {
    guard let index = index(offset) else { return .max }
    let entry = entries[index]
    switch offset & 0xC {
    case 0: return UInt32(truncatingIfNeeded: entry.address)
    case 4: return UInt32(truncatingIfNeeded: entry.address >> 32)
    case 8: return entry.data
    default: return entry.control
    }
  }

  /// Writes 32 bits of the table. Call `takeReleased` afterwards.
  package mutating func write(_ offset: UInt64, _ value: UInt32) {
    guard let index = index(offset) else { return }
    switch offset & 0xC {
    case 0:
      entries[index].address = entries[index].address & ~0xFFFF_FFFF | UInt64(value & ~3)
    case 4: entries[index].address = entries[index].address & 0xFFFF_FFFF | UInt64(value) << 32
    case 8: entries[index].data = value
    default: entries[index].control = value & Self.masked
    }
  }

  /// Reads 32 bits of the pending bits.
  package func pendingBits(_ offset: UInt64) -> UInt32 {
    let first = offset.multipliedReportingOverflow(by: 8)
    guard !first.overflow else { return 0 }
    return (0..<32 as Range<UInt64>).reduce(0) { bits, bit in
      guard let vector = Int(exactly: first.partialValue &+ bit), pending.indices.contains(vector)
      else { return bits }
      return pending[vector] ? bits | 1 << UInt32(truncatingIfNeeded: bit) : bits
    }
  }

  private func index(_ offset: UInt64) -> Int? {
    let index = offset / UInt64(Self.entrySize)
    return index < UInt64(entries.count) ? Int(truncatingIfNeeded: index) : nil
  }
}
