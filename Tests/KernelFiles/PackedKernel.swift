// SPDX-License-Identifier: Apache-2.0

/// Kernels whose payload is a small ELF file with relocations behind it.
package enum PackedKernel {
  package static let preferred: UInt64 = 0x100_0000
  package static let entry: UInt64 = 0x40
  /// Of the second segment, from the kernel's start.
  package static let dataOffset: UInt64 = 0x20_0000
  package static let memorySize: UInt64 = 0x20_3000

  /// Values that relocations change, by their offset: as they are in the file.
  package static let grow32: (place: UInt64, value: UInt32) = (0x10, 0x8100_0123)
  package static let shrink32: (place: UInt64, value: UInt32) = (0x18, 0x7000_0000)
  package static let grow64: (place: UInt64, value: UInt64) = (
    dataOffset + 8, 0xFFFF_FFFF_8100_0456
  )

  private static func store<Value: FixedWidthInteger>(
    _ value: Value, _ offset: Int, _ file: inout [UInt8]
  ) {
    for index in 0..<MemoryLayout<Value>.size {
      file[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
    }
  }

  package static func elf() -> [UInt8] {
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
  package static func relocations(shrinking: Bool = true) -> [UInt8] {
    func address(_ place: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: 0x8100_0000 + place) }
    var words: [UInt32] = [0, address(grow64.place), 0]
    if shrinking { words += [address(shrink32.place), 0] }
    words.append(address(grow32.place))
    return words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
  }

  package static func size(_ bytes: [UInt8]) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: bytes.count >> (8 * $0)) }
  }

  /// LZ4's legacy frame of literals alone.
  package static func stored(_ bytes: [UInt8]) -> [UInt8] {
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
  package static func image(_ payload: [UInt8]) -> [UInt8] {
    var image = TinyKernel([UInt8](repeating: 0x90, count: 32) + payload).bytes
    store(UInt32(0x200 + 32), 0x248, &image)
    store(UInt32(payload.count), 0x24C, &image)
    return image
  }
}
