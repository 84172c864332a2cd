// SPDX-License-Identifier: Apache-2.0
//
// The files from which firmware reads the machine's memory map and ACPI tables (QEMU's
// specification of fw_cfg, and of the script that places tables). Firmware chooses the tables'
// addresses, and computes pointers and checksums.

import GuestMemory
import Host

package enum FirmwareTables {
  private enum Name {
    static let tables = "etc/acpi/tables"
    static let root = "etc/acpi/rsdp"
  }

  /// The memory map, the tables and the script that places them.
  package static func files(
    _ memory: GuestMemory, processors: Int, pci: PCIMap = .standard
  ) -> [(name: String, bytes: [UInt8])] {
    // The first table after the RSDP is at offset 0 of its file.
    let root = UInt64(truncatingIfNeeded: ACPITables.rootSize)
    let tables = ACPITables(processors: processors, base: 0 &- root, pci: pci)
    var bytes = tables.bytes
    for table in tables.checked { bytes[table.lowerBound + 9] = 0 }
    (bytes[8], bytes[32]) = (0, 0)
    return [
      (Name.root, Array(bytes[..<36])), (Name.tables, Array(bytes[ACPITables.rootSize...])),
      ("etc/e820", memoryMap(memory, pci)), ("etc/table-loader", script(tables)),
    ]
  }

  private static func memoryMap(_ memory: GuestMemory, _ pci: PCIMap) -> [UInt8] {
    var bytes: [UInt8] = []
    for entry in MemoryMap(forFirmware: memory, pci).entries {
      bytes.append(little: entry.start)
      bytes.append(little: entry.size)
      bytes.append(little: entry.kind)
    }
    return bytes
  }

  // MARK: The script

  /// Commands, each with 124 bytes of arguments.
  private enum Command {
    static let allocate: UInt32 = 1
    static let addPointer: UInt32 = 2
    static let addChecksum: UInt32 = 3
    static let size = 128
  }
  private enum Zone {
    static let high: UInt8 = 1
    /// Where the BIOS searches for the RSDP.
    static let fSegment: UInt8 = 2
  }
  private static let nameSize = 56

  private static func script(_ tables: ACPITables) -> [UInt8] {
    var script = command(Command.allocate, [name(Name.root), little(UInt32(16)), [Zone.fSegment]])
    script += command(Command.allocate, [name(Name.tables), little(UInt32(64)), [Zone.high]])
    for link in tables.links {
      let isRoot = link.offset < ACPITables.rootSize
      let offset = isRoot ? link.offset : link.offset - ACPITables.rootSize
      script += command(
        Command.addPointer,
        [
          name(isRoot ? Name.root : Name.tables), name(Name.tables),
          little(UInt32(truncatingIfNeeded: offset)), [UInt8(truncatingIfNeeded: link.size)],
        ])
    }
    for table in tables.checked {
      script += checksum(
        Name.tables, table.lowerBound - ACPITables.rootSize, at: 9, count: table.count)
    }
    script += checksum(Name.root, 0, at: 8, count: 20)
    script += checksum(Name.root, 0, at: 32, count: 36)
    return script
  }

  private static func checksum(_ file: String, _ start: Int, at place: Int, count: Int) -> [UInt8] {
    let numbers = [start + place, start, count].map { little(UInt32(truncatingIfNeeded: $0)) }
    return command(Command.addChecksum, [name(file)] + numbers)
  }

  private static func command(_ kind: UInt32, _ arguments: [[UInt8]]) -> [UInt8] {
    let bytes = little(kind) + arguments.joined()
    return bytes + [UInt8](repeating: 0, count: Command.size - bytes.count)
  }

  private static func name(_ text: String) -> [UInt8] {
    Array(text.utf8) + [UInt8](repeating: 0, count: nameSize - text.utf8.count)
  }

  private static func little(_ value: UInt32) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(little: value)
    return bytes
  }
}
