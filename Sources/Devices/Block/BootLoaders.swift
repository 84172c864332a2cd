// SPDX-License-Identifier: Apache-2.0
//
// Which firmware can boot a disk, from its first sectors: a master boot record with code, or an EFI
// system partition in its table or in the GUID partition table behind it (UEFI specification, "GUID
// Partition Table (GPT) Disk Layout").

import GuestMemory
import Host
import SystemPackage

package struct BootLoaders: Sendable, Hashable {
  /// The first sector has boot code for a BIOS.
  package private(set) var hasBIOS = false
  /// There is an EFI system partition.
  package private(set) var hasEFI = false

  private static let sector = 512
  /// Number of sectors to read: those of a table of the usual size.
  private static let count = 34
  private static let table = 446
  private static let signature: [UInt8] = [0x55, 0xAA]
  private static let efiPartition: UInt8 = 0xEF
  private static let protective: UInt8 = 0xEE
  /// C12A7328-F81F-11D2-BA4B-00A0C93EC93B, in the table's byte order.
  private static let efiType: [UInt8] = [
    0x28, 0x73, 0x2A, 0xC1, 0x1F, 0xF8, 0xD2, 0x11, 0xBA, 0x4B, 0x00, 0xA0, 0xC9, 0x3E, 0xC9, 0x3B,
  ]

  /// Reads a disk's first sectors.
  package init(_ image: any BlockImage) throws(Errno) {
    let size = Int(clamping: min(image.size, UInt64(Self.count * Self.sector)))
    let memory = try unsafe GuestMemory(size: 64 << 10, lowEnd: 64 << 10, highStart: 1 << 32)
    var buffers = GuestBuffers(memory)
    guard buffers.append(0, count: UInt32(size)) else { throw .invalidArgument }
    try image.read(at: 0, into: buffers)
    self.init(start: memory.read(0, count: size) ?? [])
  }

  /// - Parameter bytes: the start of a disk.
  package init(start bytes: [UInt8]) {
    guard bytes.count >= Self.sector, bytes[510..<512].elementsEqual(Self.signature) else { return }
    hasBIOS = bytes[..<Self.table].contains { $0 != 0 }
    let kinds = (0..<4).map { bytes[Self.table &+ $0 &* 16 &+ 4] }
    hasEFI = kinds.contains(Self.efiPartition)
    if kinds.contains(Self.protective) { readTable(bytes) }
  }

  private mutating func readTable(_ bytes: [UInt8]) {
    let header = Self.sector
    guard bytes.count >= 2 * Self.sector,
      bytes[header..<header + 8].elementsEqual("EFI PART".utf8),
      let first = bytes.load(UInt64.self, at: header + 72),
      let count = bytes.load(UInt32.self, at: header + 80),
      let size = bytes.load(UInt32.self, at: header + 84), size >= 128,
      first < UInt64(Self.count)
    else { return }
    let start = Int(truncatingIfNeeded: first) &* Self.sector
    let step = Int(truncatingIfNeeded: size)
    for index in 0..<min(Int(truncatingIfNeeded: count), 128) {
      let place = start &+ index &* step
      guard place <= bytes.count &- 16 else { return }
      if bytes[place..<place &+ 16].elementsEqual(Self.efiType) { hasEFI = true }
    }
  }
}
