// SPDX-License-Identifier: Apache-2.0
//
// qcow2 images of the fuzzer's bytes, opened, read and written: any is refused or used without
// a trap.

import CHost
import Devices
import Glibc
import GuestMemory

/// A qcow2 image, of which requests read and write parts.
enum ImagePart {
  private static let memory = try? GuestMemory(size: 1 << 20, lowEnd: 1 << 20, highStart: 1 << 32)
  private static let file = memfd_create("image", 0)

  /// The last 32 bytes are requests, the others the image.
  static func run(_ input: UnsafeRawBufferPointer) {
    guard let memory, input.count > 32 else { return }
    let image = input.dropLast(32)
    ftruncate(file, 0)
    _ = image.withContiguousStorageIfAvailable { pwrite(file, $0.baseAddress, $0.count, 0) }
    var options = ImageOptions()
    options.format = .qcow2
    guard let image = try? DiskImage.open(path: "/proc/self/fd/\(file)", options) else { return }
    var reader = Reader(UnsafeRawBufferPointer(rebasing: input.suffix(32)))
    while !reader.isAtEnd { request(image, memory, &reader) }
    try? image.finish()
  }

  private static func request(
    _ image: any BlockImage, _ memory: GuestMemory, _ reader: inout Reader
  ) {
    let kind = reader.byte()
    let sectors = image.size / 512
    let sector = (kind & 0x80 == 0 ? UInt64(reader.byte()) : reader.number()) % sectors
    let count = min(1 + UInt64(reader.byte()), sectors - sector) * 512
    var buffers = GuestBuffers(memory)
    _ = buffers.append(0, count: UInt32(count))
    switch kind & 7 {
    case 0: try? image.discard(at: sector * 512, count: count)
    case 1: try? image.writeZeroes(at: sector * 512, count: count, mayDiscard: kind & 8 != 0)
    case 2: try? image.flush()
    case 3, 4: try? image.write(at: sector * 512, from: buffers)
    default: try? image.read(at: sector * 512, into: buffers)
    }
  }

  /// An image of 64 KiB with clusters of 512 bytes, and one cluster in it; the same with larger
  /// clusters and extended entries.
  static let seeds: [[UInt8]] = [image(bits: 9, extended: false), image(bits: 14, extended: true)]

  private static func image(bits: UInt8, extended: Bool) -> [UInt8] {
    let cluster = 1 << Int(bits)
    var bytes = [UInt8](repeating: 0, count: 6 * cluster)
    func put(_ value: Int, _ count: Int, _ offset: Int) {
      for index in 0..<count {
        bytes[offset + index] = UInt8(truncatingIfNeeded: value >> ((count - 1 - index) * 8))
      }
    }
    put(0x5146_49FB, 4, 0)
    put(3, 4, 4)
    put(Int(bits), 4, 20)
    put(64 << 10, 8, 24)
    put(extended ? 1 : 2, 4, 36)
    put(3 * cluster, 8, 40)
    put(cluster, 8, 48)
    put(1, 4, 56)
    put(extended ? 0x10 : 0, 8, 72)
    put(4, 4, 96)
    put(104, 4, 100)
    // Counts, L1, L2.
    put(2 * cluster, 8, cluster)
    for index in 0..<6 { put(1, 2, 2 * cluster + 2 * index) }
    put(1 << 63 | 4 * cluster, 8, 3 * cluster)
    put(1 << 63 | 5 * cluster, 8, 4 * cluster)
    if extended { put(0xF0_0000_000F, 8, 4 * cluster + 8) }
    return bytes + [UInt8](repeating: 3, count: 32)
  }
}
