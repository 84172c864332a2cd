// SPDX-License-Identifier: Apache-2.0
//
// The ACPI tables of the machine (ACPI specification, "ACPI Software Programming Model"): RSDP,
// XSDT, FADT with FACS and DSDT, MADT, MCFG, contiguous from `GuestMap.acpiTables` on.

import Host

/// The tables' bytes, for `GuestMap.acpiTables`, or for firmware to place (`FirmwareTables`).
package struct ACPITables: Sendable {
  /// A pointer in the bytes to another position in them.
  struct Link: Sendable {
    let offset: Int
    let size: Int
  }

  /// Room for the RSDP.
  static let rootSize = 64

  /// The RSDP is first.
  package private(set) var bytes = [UInt8](repeating: 0, count: rootSize)
  /// All addresses in the bytes, the RSDP's pointer first.
  private(set) var links = [Link(offset: 24, size: 8)]
  /// The tables with checksums.
  private(set) var checked: [Range<Int>] = []
  private let base: UInt64

  private static let headerSize = 36
  private static let systemIO: UInt8 = 1

  /// - Parameters:
  ///   - processors: 1 to 254, with APIC identifiers from 0 on.
  ///   - base: the address of the first byte.
  ///   - pci: PCI's memory ranges.
  package init(
    processors: Int, base: UInt64 = GuestMap.acpiTables, pci: PCIMap = .standard
  ) {
    self.base = base
    let facs = append(Self.facs())
    checked = []
    let dsdt = append(Self.table("DSDT", revision: 2, Self.differentiatedSystem(pci)))
    let fadt = append(Self.table("FACP", revision: 3, Self.fixed(facs: facs, dsdt: dsdt)))
    link(fadt, [(36, 4), (40, 4), (140, 8)])
    let madt = append(Self.table("APIC", revision: 3, Self.interrupts(processors)))
    let mcfg = append(Self.table("MCFG", revision: 1, Self.configurationSpace(pci)))
    var pointers: [UInt8] = []
    for table in [fadt, madt, mcfg] { pointers.append(little: table) }
    let xsdt = append(Self.table("XSDT", revision: 1, pointers))
    link(xsdt, (0..<3).map { (Self.headerSize + 8 * $0, 8) })
    writeRootPointer(xsdt: xsdt)
  }

  /// Adds a table on a 64-byte boundary and returns its guest-physical address.
  private mutating func append(_ table: [UInt8]) -> UInt64 {
    bytes += [UInt8](repeating: 0, count: (64 - bytes.count % 64) % 64)
    let start = bytes.count
    bytes += table
    checked.append(start..<bytes.count)
    return base &+ UInt64(truncatingIfNeeded: start)
  }

  /// Notes the pointers in the table at an address.
  private mutating func link(_ table: UInt64, _ pointers: [(offset: Int, size: Int)]) {
    let start = Int(truncatingIfNeeded: table &- base)
    links += pointers.map { Link(offset: start &+ $0.offset, size: $0.size) }
  }

  /// The byte that makes the sum of all bytes 0.
  private static func checksum(_ bytes: some Sequence<UInt8>) -> UInt8 {
    0 &- bytes.reduce(0, &+)
  }

  /// A table with its common header.
  private static func table(_ signature: String, revision: UInt8, _ body: [UInt8]) -> [UInt8] {
    var table = Array(signature.utf8)
    table.append(little: UInt32(headerSize + body.count))
    table += [revision, 0]
    table += Array("MARTLT".utf8) + Array("MARTLET ".utf8)
    table.append(little: UInt32(1))
    table += Array("MRTL".utf8)
    table.append(little: UInt32(1))
    table += body
    table[9] = checksum(table)
    return table
  }

  private mutating func writeRootPointer(xsdt: UInt64) {
    var root = Array("RSD PTR ".utf8) + [0] + Array("MARTLT".utf8) + [2]
    root.append(little: UInt32(0))
    root.append(little: UInt32(36))
    root.append(little: xsdt)
    root += [0, 0, 0, 0]
    root[8] = Self.checksum(root[..<20])
    root[32] = Self.checksum(root)
    bytes.replaceSubrange(0..<root.count, with: root)
  }

  /// The firmware ACPI control structure, which contains the global lock.
  private static func facs() -> [UInt8] {
    var table = Array("FACS".utf8) + [UInt8](repeating: 0, count: 60)
    table.store(UInt32(64), at: 4)
    table[32] = 1
    return table
  }

  /// The fixed description table; offsets are the specification's.
  private static func fixed(facs: UInt64, dsdt: UInt64) -> [UInt8] {
    var table = [UInt8](repeating: 0, count: 244)
    let block = UInt32(GuestMap.Port.powerManagement)
    table.store(UInt32(truncatingIfNeeded: facs), at: 36)
    table.store(UInt32(truncatingIfNeeded: dsdt), at: 40)
    table.store(UInt16(GuestMap.Interrupt.acpi), at: 46)
    table.store(block, at: 56)  // PM1a event block
    table.store(block + 4, at: 64)  // PM1a control block
    table.store(block + 8, at: 76)  // PM timer block
    table[88] = 4
    table[89] = 2
    table[91] = 4
    table.store(UInt16(0xFFF), at: 96)  // no C2
    table.store(UInt16(0xFFF), at: 98)  // no C3
    table[108] = 0x32  // the RTC's century register
    table.store(FixedFlag.bootArchitecture, at: 109)
    table.store(FixedFlag.all, at: 112)
    store(port: UInt64(GuestMap.Port.reset), width: 8, in: &table, at: 116)
    table[128] = 0x06
    table.store(dsdt, at: 140)
    store(port: UInt64(block), width: 32, in: &table, at: 148)
    store(port: UInt64(block + 4), width: 16, in: &table, at: 172)
    store(port: UInt64(block + 8), width: 32, in: &table, at: 208)
    return Array(table[headerSize...])
  }

  private enum FixedFlag {
    /// Legacy devices, no VGA; no i8042 to search for input devices.
    static let bootArchitecture: UInt16 = 1 << 0 | 1 << 2
    private static let wbinvd: UInt32 = 1 << 0
    private static let allProcessorsC1: UInt32 = 1 << 2
    private static let noSleepButton: UInt32 = 1 << 5
    private static let noFixedRTCWake: UInt32 = 1 << 6
    private static let timer32: UInt32 = 1 << 8
    private static let resetRegister: UInt32 = 1 << 10
    static let all =
      wbinvd | allProcessorsC1 | noSleepButton | noFixedRTCWake | timer32 | resetRegister
  }

  /// A generic address structure for a port.
  private static func store(port: UInt64, width: UInt8, in table: inout [UInt8], at offset: Int) {
    table[offset] = systemIO
    table[offset + 1] = width
    table[offset + 3] = [8: 1, 16: 2, 32: 3][width] ?? 0
    table.store(port, at: offset + 4)
  }

  /// The multiple APIC description table's body.
  private static func interrupts(_ processors: Int) -> [UInt8] {
    var table: [UInt8] = []
    table.append(little: UInt32(GuestMap.localAPIC))
    table.append(little: UInt32(1))  // 8259 pair present
    for processor in 0..<processors {
      let number = UInt8(truncatingIfNeeded: processor)
      table += [0, 8, number, number, 1, 0, 0, 0]
    }
    table += [1, 12, 0, 0]
    table.append(little: UInt32(GuestMap.ioAPIC))
    table.append(little: UInt32(0))
    table += interruptOverride(0, pin: GuestMap.Interrupt.timerPin, flags: 0)
    // Level-triggered, active high.
    table += interruptOverride(9, pin: GuestMap.Interrupt.acpi, flags: 0xD)
    table += [4, 6, 0xFF, 0, 0, 1]  // NMI on LINT1 of all
    return table
  }

  private static func interruptOverride(_ source: UInt8, pin: UInt32, flags: UInt16) -> [UInt8] {
    var entry: [UInt8] = [2, 10, 0, source]
    entry.append(little: pin)
    entry.append(little: flags)
    return entry
  }

  /// The address of PCI configuration space (PCI Firmware Specification, "MCFG Table Description").
  private static func configurationSpace(_ pci: PCIMap) -> [UInt8] {
    var table = [UInt8](repeating: 0, count: 8)
    table.append(little: pci.configuration.lowerBound)
    // Segment 0, bus 0 to bus 0.
    return table + [0, 0, 0, 0, 0, 0, 0, 0]
  }

  /// The DSDT's body: the power-off state, and devices that cannot be enumerated.
  private static func differentiatedSystem(_ pci: PCIMap) -> [UInt8] {
    let powerOff = AML.byte(5)
    return AML.assign("\\_S5", AML.package([powerOff, powerOff, AML.byte(0), AML.byte(0)]))
      + AML.scope(
        "\\_SB",
        [
          AML.device(
            "COM1",
            [
              AML.assign("_HID", AML.eisaIdentifier("PNP0501")),
              AML.assign("_UID", AML.byte(1)),
              AML.assign(
                "_CRS",
                AML.resources([
                  AML.ports(UInt16(GuestMap.Port.serial), count: 8),
                  AML.interrupt(GuestMap.Interrupt.serial),
                ])),
            ]),
          AML.device(
            "RTC",
            [
              AML.assign("_HID", AML.eisaIdentifier("PNP0B00")),
              AML.assign(
                "_CRS",
                AML.resources([
                  AML.ports(UInt16(GuestMap.Port.realTimeClock), count: 2),
                  AML.interrupt(GuestMap.Interrupt.realTimeClock),
                ])),
            ]),
          pciRoot(pci), configurationReservation(pci),
        ])
  }

  /// The host bridge of bus 0: its windows and interrupt routes.
  private static func pciRoot(_ pci: PCIMap) -> [UInt8] {
    let ports = GuestMap.Port.pci
    // Configuration space is in the middle.
    let (memory, space) = (pci.memory, pci.configuration)
    return AML.device(
      "PCI0",
      [
        AML.assign("_HID", AML.eisaIdentifier("PNP0A08")),
        AML.assign("_CID", AML.eisaIdentifier("PNP0A03")),
        AML.assign("_UID", AML.byte(0)),
        AML.assign(
          "_CRS",
          AML.resources([
            AML.window16(.buses, 0, 0),
            AML.ports(UInt16(GuestMap.Port.pciAddress), count: 8),
            AML.window16(.ports, UInt16(ports.lowerBound), UInt16(ports.upperBound - 1)),
            AML.window32(.memory, UInt32(memory.lowerBound), UInt32(space.lowerBound - 1)),
            AML.window32(.memory, UInt32(space.upperBound), UInt32(memory.upperBound - 1)),
          ])),
        AML.assign("_PRT", AML.package(interruptRoutes())),
      ])
  }

  /// INTA# of each slot; devices here have one function and no other pin (ACPI specification, "_PRT
  /// (PCI Routing Table)").
  private static func interruptRoutes() -> [[UInt8]] {
    (1..<32 as Range<UInt32>).map { slot in
      AML.package([
        AML.dword(slot << 16 | 0xFFFF), AML.byte(0), AML.byte(0),
        AML.byte(UInt8(truncatingIfNeeded: GuestMap.Interrupt.pciLine(slot: slot))),
      ])
    }
  }

  /// Reserves configuration space.
  private static func configurationReservation(_ pci: PCIMap) -> [UInt8] {
    let space = pci.configuration
    return AML.device(
      "MBRD",
      [
        AML.assign("_HID", AML.eisaIdentifier("PNP0C02")),
        AML.assign("_UID", AML.byte(1)),
        AML.assign(
          "_CRS",
          AML.resources([
            AML.fixedMemory(
              UInt32(space.lowerBound), size: UInt32(space.upperBound - space.lowerBound))
          ])),
      ])
  }
}
