// SPDX-License-Identifier: Apache-2.0
//
// A disk's request (virtio 1.2, "Block Device", "Device Operation"): a header, then bytes to or
// from the device, then a status byte, in any distribution over buffers.

import GuestMemory
import Host

/// A driver's request to a disk.
struct BlockRequest {
  enum Kind {
    static let read: UInt32 = 0
    static let write: UInt32 = 1
    static let flush: UInt32 = 4
    static let identify: UInt32 = 8
    static let discard: UInt32 = 11
    static let writeZeroes: UInt32 = 13
  }

  enum Status {
    static let ok: UInt8 = 0
    static let error: UInt8 = 1
    static let unsupported: UInt8 = 2
  }

  static let serialSize = 20
  private static let headerSize = 16

  let kind: UInt32
  let sector: UInt64
  /// Bytes from the driver, and buffers for the device's answer.
  let output: GuestBuffers
  let input: GuestBuffers

  /// nil without a header or room for the status.
  init?(_ request: VirtioRequest) {
    guard let header = request.readable.bytes(count: Self.headerSize), request.writable.count > 0,
      let kind = header.load(UInt32.self, at: 0), let sector = header.load(UInt64.self, at: 8)
    else { return nil }
    (self.kind, self.sector) = (kind, sector)
    output = request.readable.slice(from: Self.headerSize)
    input = request.writable.slice(from: 0, count: request.writable.count &- 1)
  }

  /// A range to discard or zero.
  struct ClearedRange {
    static let unmap: UInt32 = 1
    /// Limits: ranges in a request, sectors in a range.
    static let limit = 32
    static let sectorLimit: UInt32 = 1 << 22
    private static let size = 16

    let sector: UInt64
    let sectors: UInt32
    let flags: UInt32

    private init?(_ bytes: [UInt8], at offset: Int) {
      guard let sector = bytes.load(UInt64.self, at: offset),
        let sectors = bytes.load(UInt32.self, at: offset &+ 8),
        let flags = bytes.load(UInt32.self, at: offset &+ 12)
      else { return nil }
      (self.sector, self.sectors, self.flags) = (sector, sectors, flags)
    }

    /// nil if there is no whole number of them, none, or too many.
    static func all(of buffers: GuestBuffers) -> [ClearedRange]? {
      guard buffers.count > 0, buffers.count % size == 0, buffers.count <= limit * size,
        let bytes = buffers.bytes(count: buffers.count)
      else { return nil }
      let ranges = stride(from: 0, to: bytes.count, by: size).compactMap {
        ClearedRange(bytes, at: $0)
      }
      return ranges.allSatisfy { $0.sectors <= sectorLimit } ? ranges : nil
    }
  }
}
