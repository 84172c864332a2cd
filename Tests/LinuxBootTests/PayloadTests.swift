// SPDX-License-Identifier: Apache-2.0

import Foundation
import HostTestSupport
import LinuxBoot
import Testing

/// Kernels whose payload is a small ELF file with relocations behind it.
private enum PackedKernel {
  static let preferred: UInt64 = 0x100_0000
  static let entry: UInt64 = 0x40
  /// Of the second segment, from the kernel's start.
  static let dataOffset: UInt64 = 0x20_0000
  static let memorySize: UInt64 = 0x20_3000

  /// Values that relocations change, by their offset: as they are in the file.
  static let grow32: (place: UInt64, value: UInt32) = (0x10, 0x8100_0123)
  static let shrink32: (place: UInt64, value: UInt32) = (0x18, 0x7000_0000)
  static let grow64: (place: UInt64, value: UInt64) = (dataOffset + 8, 0xFFFF_FFFF_8100_0456)

  private static func store<Value: FixedWidthInteger>(
    _ value: Value, _ offset: Int, _ file: inout [UInt8]
  ) {
    for index in 0..<MemoryLayout<Value>.size {
      file[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
    }
  }

  static func elf() -> [UInt8] {
    var file = [UInt8](repeating: 0, count: 0x400)
    store(0x464C_457F as UInt32, 0, &file)
    file[4] = 2
    store(62 as UInt16, 18, &file)
    store(preferred + entry, 24, &file)
    store(64 as UInt64, 32, &file)
    store(2 as UInt16, 56, &file)
    let segments: [(offset: UInt64, place: UInt64, memory: UInt64)] = [
      (0x200, 0, 0x1000), (0x300, dataOffset, 0x3000),
    ]
    for (n, segment) in segments.enumerated() {
      let header = 64 + n * 56
      store(1 as UInt32, header, &file)
      store(segment.offset, header + 8, &file)
      store(preferred + segment.place, header + 24, &file)
      store(0x100 as UInt64, header + 32, &file)
      store(segment.memory, header + 40, &file)
    }
    store(grow32.value, 0x200 + Int(grow32.place), &file)
    store(shrink32.value, 0x200 + Int(shrink32.place), &file)
    file[0x200 + Int(entry)] = 0xF4
    store(grow64.value, 0x300 + 8, &file)
    return file
  }

  /// With the list of values that shrink, as kernels before 6.15 have it.
  static func relocations(shrinking: Bool = true) -> [UInt8] {
    func address(_ place: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: 0x8100_0000 + place) }
    var words: [UInt32] = [0, address(grow64.place), 0]
    if shrinking { words += [address(shrink32.place), 0] }
    words.append(address(grow32.place))
    return words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
  }

  static func size(_ bytes: [UInt8]) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: bytes.count >> (8 * $0)) }
  }

  /// LZ4's legacy frame of literals alone.
  static func stored(_ bytes: [UInt8]) -> [UInt8] {
    var block: [UInt8] = [0xF0]
    var rest = bytes.count - 15
    while rest >= 255 {
      block.append(255)
      rest -= 255
    }
    block.append(UInt8(rest))
    block += bytes
    return [0x02, 0x21, 0x4C, 0x18] + size(block) + block + size(bytes)
  }

  /// A bzImage with a payload.
  static func image(_ payload: [UInt8]) -> [UInt8] {
    var image = TinyKernel([UInt8](repeating: 0x90, count: 32) + payload).bytes
    store(UInt32(0x200 + 32), 0x248, &image)
    store(UInt32(payload.count), 0x24C, &image)
    return image
  }

  static func compressed(_ bytes: [UInt8], _ command: [String]) throws -> [UInt8] {
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
