// SPDX-License-Identifier: Apache-2.0
//
// ACPI tables as firmware puts them together: the test carries the script out, and what comes
// of it must be the tables that a kernel is given.

import GuestMemory
import Host
import LinuxBoot
import Testing

@Suite struct FirmwareTableTests {
  /// Carries out the script as firmware does, each file at an address of its own.
  private func place(
    _ files: [String: [UInt8]]
  ) throws -> (bytes: [String: [UInt8]], addresses: [String: UInt64]) {
    var bytes: [String: [UInt8]] = [:]
    var addresses: [String: UInt64] = [:]
    let script = try #require(files["etc/table-loader"])
    #expect(script.count % 128 == 0)
    func name(_ start: Int) -> String {
      String(decoding: script[start..<start + 56].prefix { $0 != 0 }, as: UTF8.self)
    }
    func word(_ start: Int) throws -> Int { Int(try #require(script.load(UInt32.self, at: start))) }
    for start in stride(from: 0, to: script.count, by: 128) {
      let file = name(start + 4)
      switch try word(start) {
      case 1:
        bytes[file] = files[file]
        #expect(bytes[file] != nil, "\(file)")
        addresses[file] = UInt64(addresses.count + 1) << 24
      case 2:
        let (offset, size) = (try word(start + 116), Int(script[start + 120]))
        let address = try #require(addresses[name(start + 60)])
        var value: UInt64 = 0
        for index in 0..<size { value |= UInt64(bytes[file]![offset + index]) << (8 * index) }
        value += address
        for index in 0..<size {
          bytes[file]![offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
        }
      case 3:
        let (place, first) = (try word(start + 60), try word(start + 64))
        let count = try word(start + 68)
        let sum = bytes[file]![first..<first + count].reduce(0, &+)
        bytes[file]![place] &-= sum
      default: Issue.record("unknown command")
      }
    }
    return (bytes, addresses)
  }

  @Test func theScriptMakesWholeTables() throws {
    let memory = try GuestMemory(size: 64 << 20)
    let files = Dictionary(
      uniqueKeysWithValues: FirmwareTables.files(memory, processors: 3).map { ($0.name, $0.bytes) })
    let (bytes, addresses) = try place(files)
    let root = try #require(bytes["etc/acpi/rsdp"])
    let tables = try #require(bytes["etc/acpi/tables"])
    let base = try #require(addresses["etc/acpi/tables"])
    #expect(root[..<20].reduce(0, &+) == 0 && root.reduce(0, &+) == 0)
    func table(_ address: UInt64?) throws -> [UInt8] {
      let offset = Int(try #require(address) - base)
      let size = Int(try #require(tables.load(UInt32.self, at: offset + 4)))
      return Array(tables[offset..<offset + size])
    }
    let list = try table(root.load(UInt64.self, at: 24))
    let entries = try stride(from: 36, to: list.count, by: 8).map {
      try table(list.load(UInt64.self, at: $0))
    }
    let names = entries.map { String(decoding: $0[..<4], as: UTF8.self) }
    #expect(names == ["FACP", "APIC", "MCFG"])
    let fixed = entries[0]
    let system = try table(fixed.load(UInt64.self, at: 140))
    #expect(try system == table(fixed.load(UInt32.self, at: 40).map { UInt64($0) }))
    for table in entries + [list, system] { #expect(table.reduce(0, &+) == 0) }
    let control = try table(fixed.load(UInt32.self, at: 36).map { UInt64($0) })
    #expect(control[..<4].elementsEqual("FACS".utf8))
  }

  /// Tables of another place of configuration space differ in nothing but numbers, because firmware
  /// has read their sizes.
  @Test func tablesFollowConfigurationSpace() throws {
    let memory = try GuestMemory(size: 64 << 20)
    let sizes = [0xB000_0000, 0xE000_0000, 0, 0x8000_0000, 0xFEC0_0000, .max].map { base in
      FirmwareTables.files(memory, processors: 2, pci: .firmware(base: base)).map(\.bytes.count)
    }
    #expect(Set(sizes).count == 1)
    let files = FirmwareTables.files(memory, processors: 2, pci: .firmware(base: 0xB000_0000))
    let tables = try #require(files.first { $0.name == "etc/acpi/tables" }?.bytes)
    let place = try #require(
      (0..<tables.count - 4).first { tables[$0..<$0 + 4].elementsEqual("MCFG".utf8) })
    #expect(tables.load(UInt64.self, at: place + 44) == 0xB000_0000)
  }

  @Test func theMapHasAllOfMemory() throws {
    let memory = try GuestMemory(size: 64 << 20)
    let map = try #require(
      FirmwareTables.files(memory, processors: 1).first { $0.name == "etc/e820" }?.bytes)
    #expect(map.count % 20 == 0)
    #expect(map.load(UInt64.self, at: 0) == 0 && map.load(UInt64.self, at: 8) == 64 << 20)
    #expect(map.load(UInt32.self, at: 16) == 1)
  }
}
