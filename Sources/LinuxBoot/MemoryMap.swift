// SPDX-License-Identifier: Apache-2.0
//
// Firmware's memory map for Linux (E820).

import GuestMemory

/// The guest's memory map (E820).
package struct MemoryMap: Sendable, Hashable {
  package struct Entry: Sendable, Hashable {
    package let start: UInt64
    package let size: UInt64
    package let kind: UInt32
  }

  package static let usable: UInt32 = 1
  package static let reserved: UInt32 = 2

  /// In ascending order.
  package private(set) var entries: [Entry] = []

  /// The map of a machine with this memory.
  package init(_ memory: GuestMemory) {
    add(0, to: GuestMap.lowMemoryEnd, Self.usable)
    add(GuestMap.lowMemoryEnd, to: 0xA_0000, Self.reserved)
    add(GuestMap.acpiTables, to: GuestMap.acpiTablesEnd, Self.reserved)
    add(GuestMap.highLoadAddress, to: memory.lowEnd, Self.usable)
    add(
      GuestMap.pciConfiguration.lowerBound, to: GuestMap.pciConfiguration.upperBound,
      Self.reserved)
    add(GuestMap.identityMapPage, to: GuestMap.hypervisorPagesEnd, Self.reserved)
    for region in memory.regions.dropFirst() {
      add(region.guestAddress, to: region.end, Self.usable)
    }
  }

  /// The map for firmware, which removes the memory that it uses itself.
  init(forFirmware memory: GuestMemory, _ pci: PCIMap) {
    add(0, to: memory.lowEnd, Self.usable)
    for region in memory.regions.dropFirst() {
      add(region.guestAddress, to: region.end, Self.usable)
    }
    add(pci.configuration.lowerBound, to: pci.configuration.upperBound, Self.reserved)
    add(GuestMap.identityMapPage, to: GuestMap.hypervisorPagesEnd, Self.reserved)
  }

  private mutating func add(_ start: UInt64, to end: UInt64, _ kind: UInt32) {
    if end > start { entries.append(Entry(start: start, size: end - start, kind: kind)) }
  }
}
