// SPDX-License-Identifier: Apache-2.0
//
// What a disk reads and writes: the protocol of all image formats.

import GuestMemory
import SystemPackage

/// What a disk's contents are kept in. Several threads may call it at the same time, and each call
/// may take as long as the host's disk does. Offsets and counts are bytes, inside of the image.
package protocol BlockImage: Sendable {
  /// Bytes, a multiple of `BlockSector.size`.
  var size: UInt64 { get }
  var isReadOnly: Bool { get }
  /// Bytes that a write is best a multiple of: what lies below has blocks of this size.
  var blockSize: UInt32 { get }

  /// Fills all of the buffers.
  func read(at offset: UInt64, into buffers: GuestBuffers) throws(Errno)
  /// Writes all of the buffers.
  func write(at offset: UInt64, from buffers: GuestBuffers) throws(Errno)
  /// Returns when everything that was written is where a loss of power does not reach it.
  func flush() throws(Errno)
  /// The contents of a range are not needed any more.
  func discard(at offset: UInt64, count: UInt64) throws(Errno)
  /// - Parameter mayDiscard: the range need not keep its place.
  func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(Errno)
}

/// The unit that disks are addressed in.
package enum BlockSector {
  package static let size: UInt64 = 512
}
