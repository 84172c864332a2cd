// SPDX-License-Identifier: Apache-2.0
//
// Guest memory, and kernels loaded by the boot protocol: what lies where afterwards is the
// protocol's. Damaged and truncated files give an error, and none traps.

import CHost
import GuestMemory
import Host
import KernelFiles
import LinuxBoot
import Testing

func load<Value: FixedWidthInteger>(_ bytes: [UInt8], _ type: Value.Type, _ offset: Int) -> Value {
  (0..<MemoryLayout<Value>.size).reversed().reduce(0) { $0 << 8 | Value(bytes[offset + $1]) }
}

@Suite struct GuestMemoryTests {
  @Test func accessesAreChecked() throws {
    let memory = try GuestMemory(size: 0x10000)
    #expect(memory.write([1, 2, 3], at: 0xFFFD))
    #expect(memory.read(0xFFFE, count: 2) == [2, 3])
    #expect(!memory.write([1, 2, 3], at: 0xFFFE))
    #expect(memory.host(.max, count: 1) == nil && memory.host(0, count: -1) == nil)
    #expect(memory.host(0x10001, count: 0) == nil)
  }

  @Test func memoryGoesOnAbove4GiB() throws {
    let size = Int(GuestMap.memoryHole) + 0x20_0000
    let memory = try GuestMemory(size: size)
    #expect(memory.regions.count == 2)
    #expect(memory.write([7], at: GuestMap.fourGiB + 0x1F_FFFF))
    #expect(!memory.write([7], at: GuestMap.memoryHole))
    #expect(!memory.write([7, 8], at: GuestMap.memoryHole - 1))
    #expect(
      memory.host(GuestMap.fourGiB, count: 1) == memory.regions[0].hostAddress
        + Int(GuestMap.memoryHole))
    let map = MemoryMap(memory)
    let last = try #require(map.entries.last)
    #expect((last.start, last.size, last.kind) == (GuestMap.fourGiB, 0x20_0000, 1))
    for (entry, next) in zip(map.entries, map.entries.dropFirst()) {
      #expect(entry.start + entry.size <= next.start)
    }
  }
}

@Suite struct BootLoaderTests {
  static let kernel = TinyKernel([0xF4]).bytes

  func load(
    _ kernel: [UInt8], memory: GuestMemory, initrd: [UInt8]? = nil, commandLine: String = "hello"
  ) throws -> EntryPoint {
    try BootLoader(memory: memory, processors: 2).load(
      kernel: kernel, kernelName: "K", initrd: initrd.map { .init(bytes: $0, name: "I") },
      commandLine: commandLine)
  }

  @Test func aBzImageIsLoadedByTheProtocol() throws {
    let memory = try GuestMemory(size: 64 << 20)
    let initrd = [UInt8](repeating: 0x77, count: 5000)
    let entry = try load(Self.kernel, memory: memory, initrd: initrd)
    #expect(entry == .linux64(address: 0x100_0200))
    #expect(memory.read(0x100_0200, count: 1) == [0xF4])
    #expect(memory.read(GuestMap.commandLine, count: 6) == Array("hello\0".utf8))
    let page = try #require(memory.read(GuestMap.zeroPage, count: 4096))
    #expect(LinuxBootTests.load(page, UInt32.self, 0x202) == 0x5372_6448)
    #expect(page[0x210] == 0xFF)
    #expect(LinuxBootTests.load(page, UInt32.self, 0x228) == UInt32(GuestMap.commandLine))
    #expect(LinuxBootTests.load(page, UInt64.self, 0x70) == GuestMap.acpiTables)
    let address = UInt64(LinuxBootTests.load(page, UInt32.self, 0x218))
    #expect(LinuxBootTests.load(page, UInt32.self, 0x21C) == 5000)
    #expect(address % 4096 == 0 && address + 5000 <= 64 << 20)
    #expect(memory.read(address, count: 5000) == initrd)
    #expect(page[0x1E8] == 6 && LinuxBootTests.load(page, UInt64.self, 0x2D0 + 60) == 0x10_0000)
    #expect(LinuxBootTests.load(page, UInt64.self, 0x2D0 + 68) == 63 << 20)
  }

  @Test func thePageTablesMapFourGiBToThemselves() throws {
    let memory = try GuestMemory(size: 32 << 20)
    _ = try load(Self.kernel, memory: memory)
    func entry(_ table: UInt64, _ index: UInt64) throws -> UInt64 {
      LinuxBootTests.load(try #require(memory.read(table + index * 8, count: 8)), UInt64.self, 0)
    }
    for address in [0, 0x20_0000, 0x4000_0000, 0xFFE0_0000] as [UInt64] {
      let pointers = try entry(GuestMap.pageTables, 0) & ~0xFFF
      let directory = try entry(pointers, address >> 30) & ~0xFFF
      #expect(try entry(directory, (address >> 21) & 511) == address | 0x83)
    }
  }

  @Test func everyTruncationIsReported() throws {
    let memory = try GuestMemory(size: 32 << 20)
    for count in 0..<Self.kernel.count {
      #expect(throws: LoadError.self) {
        _ = try load(Array(Self.kernel[..<count]), memory: memory)
      }
    }
    let error = #expect(throws: LoadError.self) {
      _ = try load(Array(Self.kernel.dropLast()), memory: memory)
    }
    #expect(error?.description.contains("K: truncated") == true)
  }

  @Test func noHeaderTraps() throws {
    let memory = try GuestMemory(size: 32 << 20)
    var generator = Seeded(state: 42)
    for _ in 0..<3000 {
      var kernel = Self.kernel
      for _ in 0..<4 {
        kernel[0x1F1 + Int(generator.next() % 0x80)] = UInt8(generator.next() & 0xFF)
      }
      _ = try? load(kernel, memory: memory, initrd: [1])
      var elf = ELFKernel.bytes
      for _ in 0..<4 { elf[Int(generator.next() % 240)] = UInt8(generator.next() & 0xFF) }
      _ = try? load(elf, memory: memory, initrd: [1])
    }
  }

  @Test func whatDoesNotFitIsReported() throws {
    let small = try GuestMemory(size: 8 << 20)
    #expect(throws: LoadError("K: does not fit into 8M of memory; give --memory 17M")) {
      _ = try load(Self.kernel, memory: small)
    }
    let memory = try GuestMemory(size: 17 << 20)
    let error = #expect(throws: LoadError.self) {
      _ = try load(Self.kernel, memory: memory, initrd: .init(repeating: 1, count: 2 << 20))
    }
    #expect(error?.description.hasPrefix("I: an initrd of 2048K does not fit") == true)
    #expect(throws: LoadError.self) {
      _ = try load(Self.kernel, memory: memory, commandLine: String(repeating: "x", count: 256))
    }
    #expect(throws: LoadError.self) { _ = try load(Array("#!/bin/sh".utf8), memory: memory) }
  }

  @Test func anELFKernelIsEnteredByItsNote() throws {
    let memory = try GuestMemory(size: 32 << 20)
    let entry = try load(ELFKernel.bytes, memory: memory, initrd: [9, 9])
    #expect(entry == .pvh(address: 0x20_0010))
    #expect(memory.read(0x20_0000, count: 4) == [1, 2, 3, 4])
    let info = try #require(memory.read(GuestMap.startInfo, count: 256))
    #expect(LinuxBootTests.load(info, UInt32.self, 0) == 0x336E_C578)
    #expect(LinuxBootTests.load(info, UInt32.self, 12) == 1)
    #expect(LinuxBootTests.load(info, UInt64.self, 24) == GuestMap.commandLine)
    #expect(LinuxBootTests.load(info, UInt64.self, 32) == GuestMap.acpiTables)
    let module = Int(LinuxBootTests.load(info, UInt64.self, 16) - GuestMap.startInfo)
    #expect(LinuxBootTests.load(info, UInt64.self, module + 8) == 2)
    #expect(entry.registers.rbx == GuestMap.startInfo && entry.registers.rip == 0x20_0010)
  }

  @Test func theEntryRegistersAreTheProtocols() {
    var special = kvm_sregs()
    EntryPoint.linux64(address: 0x100_0200).apply(to: &special)
    #expect(special.cs.selector == 0x10 && special.cs.l == 1 && special.cs.db == 0)
    #expect(special.ss.selector == 0x18 && special.ss.limit == 0xFFFF_FFFF && special.ss.g == 1)
    #expect(special.efer == 0x500 && special.cr0 & 0x8000_0001 == 0x8000_0001)
    EntryPoint.pvh(address: 0x20_0010).apply(to: &special)
    #expect(special.cs.l == 0 && special.cs.db == 1 && special.cr0 & 0x8000_0000 == 0)
    #expect(special.tr.type == 11 && special.tr.s == 0 && special.tr.limit == 0x67)
  }
}

/// Random numbers that repeat (xorshift).
struct Seeded {
  var state: UInt64
  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }
}
