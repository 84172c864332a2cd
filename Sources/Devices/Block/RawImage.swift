// SPDX-License-Identifier: Apache-2.0
//
// A disk whose bytes are those of a file or a block device.

import Glibc
import GuestMemory
import Host
import SystemPackage

package final class RawImage: BlockImage, ImageLayer {
  private let file: DiskFile
  package let size: UInt64
  /// The raw format was guessed, not given. Then the guest must not write another format's magic at
  /// the start: it would choose how the next run reads the file, and thereby access host files.
  private let isGuessed: Bool

  package convenience init(path: String, isReadOnly: Bool) throws(ImageError) {
    try self.init(DiskFile(path: path, isReadOnly: isReadOnly), isGuessed: false)
  }

  /// - Parameter isLayer: it is a backing file, whose size may be any.
  init(_ file: DiskFile, isGuessed: Bool, isLayer: Bool = false) throws(ImageError) {
    size = file.size
    if !isLayer {
      guard size > 0 else { throw .isEmpty }
      guard size % BlockSector.size == 0 else { throw .badSize(size) }
    }
    self.file = file
    self.isGuessed = isGuessed
  }

  package var isReadOnly: Bool { file.isReadOnly }
  package var blockSize: UInt32 { file.blockSize }

  package func read(at offset: UInt64, into buffers: GuestBuffers) throws(Errno) {
    try file.read(at: offset, into: IOPieces(buffers))
    buffers.noteWritten(buffers.count)
  }

  func read(at offset: UInt64, into pieces: IOPieces) throws(Errno) {
    try file.read(at: offset, into: pieces)
  }

  package func write(at offset: UInt64, from buffers: GuestBuffers) throws(Errno) {
    guard isGuessed, offset < BlockSector.size else {
      return try file.write(at: offset, from: IOPieces(buffers))
    }
    // A copy, which the guest cannot change after the check.
    let head = buffers.bytes(count: min(buffers.count, Int(BlockSector.size))) ?? []
    if offset == 0, ImageFormat(start: head) != .raw { throw .notPermitted }
    try file.write(head, at: offset)
    let rest = IOPieces(buffers).slice(from: head.count)
    try file.write(at: offset &+ UInt64(truncatingIfNeeded: head.count), from: rest)
  }

  package func flush() throws(Errno) { try file.flush() }

  package func discard(at offset: UInt64, count: UInt64) throws(Errno) {
    try file.discard(at: offset, count: count)
  }

  package func writeZeroes(
    at offset: UInt64, count: UInt64, mayDiscard: Bool
  ) throws(Errno) {
    try file.writeZeroes(at: offset, count: count, mayDiscard: mayDiscard)
  }
}
