// SPDX-License-Identifier: Apache-2.0
//
// A disk's reads and writes: the protocol of all image formats.

import GuestMemory
import SystemPackage

/// A disk's contents. Several threads may call it at the same time, and each call may take as long
/// as the host's disk does. Offsets and counts are bytes, inside the image.
package protocol BlockImage: Sendable {
  /// Bytes, a multiple of `BlockSector.size`.
  var size: UInt64 { get }
  var isReadOnly: Bool { get }
  /// Preferred multiple of write sizes in bytes: the block size of the storage below.
  var blockSize: UInt32 { get }
  /// Discarded ranges must be multiples of this many bytes to free space.
  var discardSize: UInt32 { get }

  /// Fills all of the buffers.
  func read(at offset: UInt64, into buffers: GuestBuffers) throws(Errno)
  /// Writes all of the buffers.
  func write(at offset: UInt64, from buffers: GuestBuffers) throws(Errno)
  /// Returns when all previous writes are durable.
  func flush() throws(Errno)
  /// The contents of a range are no longer needed.
  func discard(at offset: UInt64, count: UInt64) throws(Errno)
  /// - Parameter mayDiscard: the range's space may be freed.
  func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(Errno)
  /// Ends use of the image: writes what is in memory to the file.
  func finish() throws(Errno)
}

extension BlockImage {
  package var discardSize: UInt32 { blockSize }
  package func finish() throws(Errno) {}
}

/// An image as the backing file of another.
protocol ImageLayer: Sendable {
  /// Bytes; reads beyond them do not occur.
  var size: UInt64 { get }
  func read(at offset: UInt64, into pieces: IOPieces) throws(Errno)
}

extension Errno {
  /// The host has no room for what is written: on the disk, of the user's quota, by the limit of a
  /// file's size.
  package var isLackOfRoom: Bool {
    self == .noSpace || self == .diskQuotaExceeded || self == .fileTooLarge
  }
}

/// Told when there is no room for what a disk writes, by the disk's threads.
package protocol RoomWatch: AnyObject, Sendable {
  /// A request has found no room, and waits.
  func beginWaiting(_ error: Errno)
  /// A request that waited goes on.
  ///
  /// - Parameter isDone: it has found room; otherwise nobody wants it any more, or it has failed.
  func endWaiting(isDone: Bool)
  /// Changes when somebody says that there may be room.
  var hints: UInt64 { get }
}

/// The unit that disks are addressed in.
package enum BlockSector {
  package static let size: UInt64 = 512
}

/// Why a disk image cannot be used.
package indirect enum ImageError: Error, Hashable {
  case cannotOpen(Errno)
  case isInUse
  case notAFile
  case badSize(UInt64)
  case isEmpty
  /// What is wrong with its format, and a remedy.
  case unusable(String)
  /// Its backing file has an error.
  case backing(path: String, ImageError)
}
