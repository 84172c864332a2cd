// SPDX-License-Identifier: Apache-2.0
//
// The guest-physical address map, defined only here.
//
//     0x0000_0500   boot GDT                     (boot, the guest's afterwards)
//     0x0000_6000   PVH start info               (boot)
//     0x0000_7000   Linux's zero page            (boot)
//     0x0000_9000   boot page tables, 6 pages    (boot)
//     0x0002_0000   kernel command line          (boot)
//     0x0009_FC00   end of the first memory range; reserved up to the tables
//     0x000E_0000   ACPI tables, RSDP first      (reserved)
//     0x0010_0000   memory again; the kernel at the address it prefers, the initrd at the end
//     0xC000_0000   highest end of low memory (0x8000_0000 with UEFI), the rest is above 4 GiB;
//                   ranges of PCI devices
//     0xE000_0000   PCI configuration space of bus 0
//     0xFEC0_0000   IOAPIC
//     0xFEE0_0000   local APICs
//     0xFEFF_C000   4 pages that KVM needs for itself on Intel processors
//     0xFF00_0000   firmware, at the end; the last 128 KiB of it also below 1 MiB
//     0x1_0000_0000 high memory
//
// I/O ports:
//
//     0x20 0xA0 8259 pair   0x40 8254   0x61 speaker   (in the hypervisor)
//     0x60 0x64 i8042       0x70 real-time clock       0xF4 debug exit
//     0x3F8 serial          0x600 ACPI block           0xCF9 reset register
//     0x402 firmware's debug output (--log debug)     0x510 configuration for firmware
//     0xCF8 0xCFC PCI configuration                    0x1000 and above: PCI devices' ranges
//
// Interrupts: 0 timer (IOAPIC pin 2), 4 serial, 8 real-time clock, 9 ACPI, 16 to 23 PCI's pins.

/// PCI's address ranges for devices, and the configuration space of bus 0, which may be in the
/// middle of them.
package struct PCIMap: Sendable, Hashable {
  package var memory: Range<UInt64>
  package var configuration: Range<UInt64>

  /// For machines without firmware or with a BIOS.
  package static let standard = PCIMap(
    memory: GuestMap.pciMemory, configuration: GuestMap.pciConfiguration)

  /// For machines with UEFI.
  ///
  /// - Parameter base: address of configuration space.
  package static func firmware(base: UInt64 = GuestMap.pciConfiguration.lowerBound) -> PCIMap {
    let memory = GuestMap.firmwareMemoryHole..<GuestMap.pciMemory.upperBound
    let size = UInt64(GuestMap.pciConfiguration.count)
    // Firmware may choose any address; the tables need a range of devices on either side.
    let start = min(max(base, memory.lowerBound + size), memory.upperBound - 2 * size)
    return PCIMap(memory: memory, configuration: start..<start + size)
  }

  private init(memory: Range<UInt64>, configuration: Range<UInt64>) {
    self.memory = memory
    self.configuration = configuration
  }
}

/// Guest-physical addresses, ports and interrupt lines.
package enum GuestMap {
  package static let bootGDT: UInt64 = 0x500
  package static let startInfo: UInt64 = 0x6000
  package static let zeroPage: UInt64 = 0x7000
  package static let pageTables: UInt64 = 0x9000
  package static let commandLine: UInt64 = 0x2_0000
  package static let commandLineSize = 0x1_0000
  package static let lowMemoryEnd: UInt64 = 0x9_FC00
  package static let acpiTables: UInt64 = 0xE_0000
  package static let acpiTablesEnd: UInt64 = 0x10_0000
  package static let highLoadAddress: UInt64 = 0x10_0000
  package static let memoryHole: UInt64 = 0xC000_0000
  /// Contains configuration space.
  package static let pciMemory: Range<UInt64> = 0xC000_0000..<0xFEC0_0000
  package static let pciConfiguration: Range<UInt64> = 0xE000_0000..<0xE010_0000
  package static let ioAPIC: UInt64 = 0xFEC0_0000
  package static let localAPIC: UInt64 = 0xFEE0_0000
  package static let identityMapPage: UInt64 = 0xFEFF_C000
  package static let taskStatePages: UInt64 = 0xFEFF_D000
  package static let hypervisorPagesEnd: UInt64 = 0xFF00_0000
  package static let fourGiB: UInt64 = 0x1_0000_0000
  /// The address of a BIOS's copy, and its size, from the end of the firmware.
  package static let firmwareCopy: UInt64 = 0xE_0000
  package static let firmwareCopySize = 0x2_0000
  package static let firmwareLimit = Int(fourGiB - hypervisorPagesEnd)

  /// Start of PCI's memory on a machine with UEFI, which needs all addresses from 2 GiB on for it,
  /// and places configuration space itself.
  package static let firmwareMemoryHole: UInt64 = 0x8000_0000

  package enum Port {
    package static let keyboardController: UInt64 = 0x60
    package static let realTimeClock: UInt64 = 0x70
    package static let debugExit: UInt64 = 0xF4
    package static let serial: UInt64 = 0x3F8
    package static let firmwareDebug: UInt64 = 0x402
    package static let firmwareConfiguration: UInt64 = 0x510
    package static let powerManagement: UInt64 = 0x600
    package static let reset: UInt64 = 0xCF9
    package static let pciAddress: UInt64 = 0xCF8
    package static let pciData: UInt64 = 0xCFC
    /// For devices' ranges.
    package static let pci: Range<UInt64> = 0x1000..<0x1_0000
  }

  package enum Interrupt {
    package static let timerPin: UInt32 = 2
    package static let serial: UInt32 = 4
    package static let realTimeClock: UInt32 = 8
    package static let acpi: UInt32 = 9
    /// Lines of the IOAPIC that PCI's interrupt pins share.
    package static let pci: Range<UInt32> = 16..<24
    /// The line of a slot's INTA#.
    package static func pciLine(slot: UInt32) -> UInt32 {
      pci.lowerBound + slot % UInt32(pci.count)
    }
  }

  /// The smallest and largest memory of a machine, bytes.
  package static let minimumMemory = 4 << 20
  package static let maximumMemory = 1 << 40
}
