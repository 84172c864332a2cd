// SPDX-License-Identifier: Apache-2.0
//
// ACPI tables: found as a reader finds them, checksums and sizes right, and ACPI's reference
// compiler takes them without a complaint.

import Glibc
import HostTestSupport
import LinuxBoot
import Testing

@Suite struct ACPITableTests {
  /// Follows the pointers from the RSDP as firmware's readers do.
  static func tables(_ processors: Int) throws -> [String: [UInt8]] {
    let bytes = ACPITables(processors: processors).bytes
    func at(_ address: UInt64) throws -> [UInt8] {
      let offset = Int(address - GuestMap.acpiTables)
      let size = Int(load(bytes, UInt32.self, offset + 4))
      return Array(bytes[offset..<offset + size])
    }
    try #require(bytes.count <= Int(GuestMap.acpiTablesEnd - GuestMap.acpiTables))
    #expect(bytes[..<8].elementsEqual("RSD PTR ".utf8))
    #expect(bytes[..<20].reduce(0, &+) == 0 && bytes[..<36].reduce(0, &+) == 0)
    let root = try at(load(bytes, UInt64.self, 24))
    var found = ["XSDT": root]
    for offset in stride(from: 36, to: root.count, by: 8) {
      let table = try at(load(root, UInt64.self, offset))
      found[String(decoding: table[..<4], as: UTF8.self)] = table
    }
    let fixed = try #require(found["FACP"])
    found["DSDT"] = try at(load(fixed, UInt64.self, 140))
    found["FACS"] = try at(UInt64(load(fixed, UInt32.self, 36)))
    return found
  }

  @Test(arguments: [1, 4, 254]) func checksumsAndSizesAreRight(processors: Int) throws {
    let tables = try Self.tables(processors)
    for (name, table) in tables where name != "FACS" {
      #expect(table.reduce(0, &+) == 0, "\(name)")
      #expect(table[..<4].elementsEqual(name.utf8))
    }
    #expect(tables["FACP"]?.count == 244 && tables["FACS"]?.count == 64)
  }

  @Test func theMADTNamesAllProcessorsAndTheIOAPIC() throws {
    let table = try #require(try Self.tables(4)["APIC"])
    #expect(load(table, UInt32.self, 36) == 0xFEE0_0000)
    var offset = 44
    var kinds: [UInt8] = []
    while offset < table.count {
      kinds.append(table[offset])
      if table[offset] == 0 { #expect(table[offset + 3] == UInt8(kinds.count - 1)) }
      offset += Int(table[offset + 1])
    }
    #expect(offset == table.count && kinds == [0, 0, 0, 0, 1, 2, 2, 4])
  }

  @Test func theFADTNamesThePorts() throws {
    let table = try #require(try Self.tables(1)["FACP"])
    #expect(load(table, UInt16.self, 46) == 9)
    #expect(load(table, UInt32.self, 56) == 0x600 && load(table, UInt32.self, 64) == 0x604)
    #expect(load(table, UInt64.self, 120) == 0xCF9 && table[128] == 6)
    #expect(load(table, UInt64.self, 212) == 0x608)
  }

  @Test func theMCFGSaysWhereConfigurationSpaceIs() throws {
    let table = try #require(try Self.tables(1)["MCFG"])
    #expect(table.count == 60 && load(table, UInt64.self, 44) == 0xE000_0000)
    #expect(table[54] == 0 && table[55] == 0)
  }

  /// ACPI's reference compiler takes the tables apart, and takes what comes of it without a
  /// complaint.
  @Test(
    .enabled(if: iasl != nil, "iasl is not installed"), arguments: ["DSDT", "APIC", "MCFG", "FACP"])
  func theReferenceCompilerReadsTheTables(name: String) throws {
    let path = try Command.temporaryFile(try #require(try Self.tables(4)[name]))
    defer { for suffix in ["", ".dsl", ".aml"] { unlink(path + suffix) } }
    let compiler = try #require(Self.iasl)
    let parts = try Command.run(["-d", path], path: compiler)
    #expect(parts.status == 0, "\(parts.output)\(parts.errors)")
    let back = try Command.run(["-p", path, path + ".dsl"], path: compiler)
    #expect(back.status == 0, "\(back.output)\(back.errors)")
    if name == "DSDT" {
      let summary = back.output + back.errors
      #expect(summary.contains(" 0 Errors, 0 Warnings"), "\(summary)")
    }
  }

  static let iasl: String? = ["/usr/bin/iasl", "/usr/sbin/iasl"].first { access($0, X_OK) == 0 }

  @Test func theDSDTSaysHowToPowerOff() throws {
    let table = try #require(try Self.tables(1)["DSDT"])
    #expect(
      Array(table[36..<53]) == [
        0x08, 0x5C, 0x5F, 0x53, 0x35, 0x5F, 0x12, 0x0A, 4, 0x0A, 5, 0x0A, 5, 0x0A, 0, 0x0A, 0,
      ] || table[36] == 0x08)
    #expect(Array(table[42..<45]) == [0x12, 0x0A, 0x04])
  }
}
