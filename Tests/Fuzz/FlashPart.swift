// SPDX-License-Identifier: Apache-2.0

import CHost
import Devices
import Glibc
import SystemPackage

/// Bytes become accesses of a flash chip whose contents are kept in a file: what can be read as
/// memory is what the file has.
enum FlashPart {
  private static let size = 4 * FlashMemory.blockSize
  private static let file = memfd_create("flash", 0)

  static func run(_ input: UnsafeRawBufferPointer) {
    ftruncate(file, 0)
    ftruncate(file, off_t(size))
    guard let kept = try? FlashFile(path: "/proc/self/fd/\(file)"),
      let bytes = try? kept.contents(),
      let chip = try? FlashMemory(
        bytes, visibility: { _ in },
        keep: { (start, bytes) throws(Errno) in try kept.write(at: start, bytes) })
    else { return }
    var reader = Reader(input)
    while !reader.isAtEnd {
      let kind = reader.byte()
      // Near the ends of the chip and of its blocks, or anywhere.
      let offset =
        switch kind >> 4 & 3 {
        case 0: UInt64(reader.byte()) &* 67
        case 1: UInt64(size) &- UInt64(reader.byte() & 15)
        case 2: UInt64(FlashMemory.blockSize) &+ UInt64(reader.byte()) &- 128
        default: reader.number()
        }
      let width = 1 << Int(kind >> 2 & 3)
      switch kind & 3 {
      case 0, 1: chip.write(offset: offset, width: width, value: UInt64(reader.byte()))
      case 2: chip.write(offset: offset, width: width, value: reader.number())
      default: _ = chip.read(offset: offset, width: width)
      }
      if kind & 0x80 != 0, kind & 0x40 != 0 { chip.resetWithMachine() }
    }
    chip.resetWithMachine()
    let contents = UnsafeRawBufferPointer(start: chip.address, count: size)
    check((try? kept.contents()).map { $0.elementsEqual(contents) } == true, "the file differs")
  }

  /// A byte is erased, programmed and read; the identifier and the table of queries.
  static let seeds: [[UInt8]] = [
    [0, 1, 0x20, 0, 1, 0xD0, 0, 1, 0x10, 0, 1, 0x55, 3, 1, 0, 1, 0xFF, 3, 1],
    [0, 0, 0x90, 3, 0, 0, 0, 0x98, 3, 16, 0, 0, 0x70, 0x1F, 1, 0x10, 0x1E, 1, 7],
  ]
}
