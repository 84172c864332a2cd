// SPDX-License-Identifier: Apache-2.0
//
// Kernels that the loader decompresses and relocates. They are packed by the host's own
// programs; each relocated value is checked, and what is not understood is left to the guest.

import Foundation
import GuestMemory
import KernelFiles
import LinuxBoot
import Testing

extension PackedKernel {
  fileprivate static func compressed(_ bytes: [UInt8], _ command: [String]) throws -> [UInt8] {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = command
    let (input, output) = (Foundation.Pipe(), Foundation.Pipe())
    process.standardInput = input
    process.standardOutput = output
    try process.run()
    input.fileHandleForWriting.write(Data(bytes))
    try input.fileHandleForWriting.close()
    let result = [UInt8](output.fileHandleForReading.readDataToEndOfFile())
    process.waitUntilExit()
    return result
  }
}

@Suite struct PayloadTests {
  private func load(
    _ kernel: [UInt8], _ memory: GuestMemory, initrd: [UInt8]? = nil, commandLine: String = "quiet",
    random: @escaping (UInt64) -> UInt64
  ) throws -> EntryPoint {
    try BootLoader(memory: memory, processors: 1, random: random).load(
      kernel: kernel, kernelName: "K", initrd: initrd.map { .init(bytes: $0, name: "I") },
      commandLine: commandLine)
  }

  private func value<Value: FixedWidthInteger>(
    _ type: Value.Type, _ memory: GuestMemory, _ address: UInt64
  ) throws -> Value {
    LinuxBootTests.load(
      try #require(memory.read(address, count: MemoryLayout<Value>.size)), type, 0)
  }

  /// Checks the values that relocations change.
  private func check(
    _ memory: GuestMemory, at address: UInt64, offset: UInt64, shrinking: Bool = true
  ) throws {
    typealias Kernel = PackedKernel
    let small = UInt32(offset)
    #expect(
      try value(UInt32.self, memory, address + Kernel.grow32.place) == Kernel.grow32.value &+ small)
    #expect(
      try value(UInt32.self, memory, address + Kernel.shrink32.place)
        == Kernel.shrink32.value &- (shrinking ? small : 0))
    #expect(
      try value(UInt64.self, memory, address + Kernel.grow64.place)
        == Kernel.grow64.value &+ offset)
  }

  private func isRandomized(_ memory: GuestMemory) throws -> Bool {
    try value(UInt8.self, memory, GuestMap.zeroPage + 0x211) & 2 != 0
  }

  @Test(arguments: [
    ["gzip", "-9"], ["xz", "--check=crc32", "--x86", "--lzma2=preset=6"], ["lz4", "-l"],
    ["zstd", "-19"],
  ])
  func everyFormatIsDecompressed(_ command: [String]) throws {
    let payload = PackedKernel.elf() + PackedKernel.relocations()
    var packed = try PackedKernel.compressed(payload, command)
    try #require(packed.count > 16, "\(command[0]) is missing")
    if command[0] != "gzip" { packed += PackedKernel.size(payload) }
    let memory = try GuestMemory(size: 64 << 20)
    let entry = try load(
      PackedKernel.image(packed), memory, commandLine: "a nokaslr b", random: { $0 - 1 })
    #expect(entry == .linux64(address: PackedKernel.preferred + PackedKernel.entry))
    #expect(try value(UInt8.self, memory, PackedKernel.preferred + PackedKernel.entry) == 0xF4)
    try check(memory, at: PackedKernel.preferred, offset: 0)
    #expect(try !isRandomized(memory))
  }

  @Test(arguments: [true, false])
  func addressesAreChosenAtRandom(_ shrinking: Bool) throws {
    let kernel = PackedKernel.image(
      PackedKernel.stored(PackedKernel.elf() + PackedKernel.relocations(shrinking: shrinking)))
    for last in [false, true] {
      let memory = try GuestMemory(size: 64 << 20)
      let initrd = [UInt8](repeating: 7, count: 3 << 20)
      let entry = try load(kernel, memory, initrd: initrd, random: { last ? $0 - 1 : 0 })
      // Below the initrd at 61 MiB, and inside of the 1 GiB of virtual addresses.
      let address = last ? UInt64(58 << 20) : PackedKernel.preferred
      let offset: UInt64 =
        last
        ? (0x4000_0000 - PackedKernel.preferred - PackedKernel.memorySize) & ~0x1F_FFFF : 0
      #expect(entry == .linux64(address: address + PackedKernel.entry))
      try check(memory, at: address, offset: offset, shrinking: shrinking)
      #expect(try isRandomized(memory))
      #expect(try value(UInt32.self, memory, GuestMap.zeroPage + 0x218) == 61 << 20)
      #expect(memory.read(61 << 20, count: initrd.count) == initrd)
    }
  }

  @Test func aKernelWithoutRelocationsStays() throws {
    let memory = try GuestMemory(size: 64 << 20)
    let kernel = PackedKernel.image(PackedKernel.stored(PackedKernel.elf()))
    let entry = try load(kernel, memory, random: { $0 - 1 })
    #expect(entry == .linux64(address: PackedKernel.preferred + PackedKernel.entry))
    try check(memory, at: PackedKernel.preferred, offset: 0)
    #expect(try !isRandomized(memory))
  }

  /// What is not understood is left to the guest: the image is loaded as it is.
  @Test func whatIsNotUnderstoodDecompressesItself() throws {
    let payload = PackedKernel.elf() + PackedKernel.relocations()
    var badRelocation = payload
    badRelocation.replaceSubrange(payload.count - 4..<payload.count, with: [0, 0, 0, 0x90])
    var other32 = payload
    other32[4] = 1
    var bzip2 = PackedKernel.stored(payload)
    bzip2.replaceSubrange(0..<4, with: Array("BZh9".utf8))
    var damaged = PackedKernel.stored(payload)
    damaged[8] = 0x00
    for packed in [
      PackedKernel.stored(badRelocation), PackedKernel.stored(other32), bzip2, damaged,
      PackedKernel.stored(payload + [1, 2, 3, 4]),
    ] {
      let memory = try GuestMemory(size: 64 << 20)
      let kernel = PackedKernel.image(packed)
      #expect(try load(kernel, memory, random: { $0 - 1 }) == .linux64(address: 0x100_0200))
      #expect(try !isRandomized(memory))
      #expect(memory.read(0x100_0200 + 32, count: packed.count) == packed)
      // Nothing is left behind by the attempt.
      #expect(memory.read(58 << 20, count: 4096) == [UInt8](repeating: 0, count: 4096))
    }
    let memory = try GuestMemory(size: 64 << 20)
    let loader = BootLoader(memory: memory, processors: 1, decompresses: false)
    let entry = try loader.load(
      kernel: PackedKernel.image(PackedKernel.stored(payload)), kernelName: "K", initrd: nil,
      commandLine: "")
    #expect(entry == .linux64(address: 0x100_0200))
  }

  /// The table names 8 bytes of a kernel that has 4.
  @Test func aKernelSmallerThanItsRelocations() throws {
    var payload = PackedKernel.elf()
    func store(_ value: UInt64, _ offset: Int) {
      for n in 0..<8 { payload[offset + n] = UInt8(truncatingIfNeeded: value >> (8 * n)) }
    }
    let header = 64
    payload[56] = 1
    store(PackedKernel.preferred, 24)
    store(UInt64(payload.count), header + 8)
    store(0, header + 32)
    store(4, header + 40)
    let table: [UInt8] = [0, 0, 0, 0, 0, 0, 0, 0x81, 0, 0, 0, 0]
    let memory = try GuestMemory(size: 64 << 20)
    let kernel = PackedKernel.image(PackedKernel.stored(payload + table))
    #expect(try load(kernel, memory, random: { $0 - 1 }) == .linux64(address: 0x100_0200))
  }

  @Test func noPayloadTraps() throws {
    let memory = try GuestMemory(size: 64 << 20)
    let payload = PackedKernel.elf() + PackedKernel.relocations()
    var generator = Seeded(state: 7)
    var understood = 0
    for _ in 0..<3000 {
      var damaged = payload
      for _ in 0..<2 {
        // Headers and the table.
        let place = Int(generator.next() % 200)
        let offset = place < 176 ? place : damaged.count - 24 + place - 176
        damaged[offset] = UInt8(generator.next() & 0xFF)
      }
      var kernel = PackedKernel.image(PackedKernel.stored(damaged))
      if generator.next() & 3 == 0 {
        kernel[0x230 + Int(generator.next() % 0x30)] = UInt8(generator.next() & 0xFF)
      }
      let random = generator.next()
      let entry = try? load(kernel, memory, random: { random % $0 })
      if let entry, entry != .linux64(address: 0x100_0200) { understood += 1 }
    }
    #expect(understood > 0)
  }
}
