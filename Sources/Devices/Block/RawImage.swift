// SPDX-License-Identifier: Apache-2.0
//
// A disk whose bytes are those of a file or a block device. While it is open, others are kept out
// of it by a lock (fcntl(2), "Open file description locks"): a writer keeps everybody out, readers
// each other's writers.

import CHost
import Glibc
import GuestMemory
import Host
import SystemPackage

/// Why a disk image cannot be used.
package enum ImageError: Error, Hashable {
  case cannotOpen(Errno)
  case isInUse
  case notAFile
  case badSize(UInt64)
  case isEmpty
}

package final class RawImage: BlockImage {
  private let file: OwnedFileDescriptor
  private let isDevice: Bool
  package let size: UInt64
  package let isReadOnly: Bool
  package let blockSize: UInt32

  package init(path: String, isReadOnly: Bool) throws(ImageError) {
    do throws(Errno) {
      file = try OwnedFileDescriptor(opening: path, flags: isReadOnly ? O_RDONLY : O_RDWR)
    } catch {
      throw .cannotOpen(error)
    }
    let raw = file.rawValue
    var status = stat()
    guard fstat(raw, &status) == 0 else { throw .cannotOpen(Errno(rawValue: errno)) }
    let kind = status.st_mode & S_IFMT
    guard kind == S_IFREG || kind == S_IFBLK else { throw .notAFile }
    isDevice = kind == S_IFBLK
    size = isDevice ? Self.deviceSize(raw) : UInt64(clamping: status.st_size)
    guard size > 0 else { throw .isEmpty }
    guard size % BlockSector.size == 0 else { throw .badSize(size) }
    blockSize = UInt32(clamping: min(max(status.st_blksize, 512), 4096))
    self.isReadOnly = isReadOnly
    try Self.lock(raw, shared: isReadOnly)
  }

  private static func deviceSize(_ file: Int32) -> UInt64 {
    var size: UInt64 = 0
    return ioctl(file, UInt(chost_blkgetsize64), &size) == 0 ? size : 0
  }

  /// The whole file. The lock ends with the descriptor.
  private static func lock(_ file: Int32, shared: Bool) throws(ImageError) {
    var lock = flock()
    lock.l_type = Int16(shared ? F_RDLCK : F_WRLCK)
    lock.l_whence = Int16(SEEK_SET)
    guard fcntl(file, chost_ofd_setlk, &lock) != 0 else { return }
    switch errno {
    case EAGAIN, EACCES: throw .isInUse
    // A file system without locks keeps nobody out.
    case EINVAL, ENOLCK, EOPNOTSUPP: return
    default: throw .cannotOpen(Errno(rawValue: errno))
    }
  }

  // MARK: Contents

  package func read(at offset: UInt64, into buffers: GuestBuffers) throws(Errno) {
    let file = file.rawValue
    try Self.all(of: buffers, offset) { preadv(file, $0, $1, $2) }
    buffers.noteWritten(buffers.count)
  }

  package func write(at offset: UInt64, from buffers: GuestBuffers) throws(Errno) {
    let file = file.rawValue
    try Self.all(of: buffers, offset) { pwritev(file, $0, $1, $2) }
  }

  /// Repeats a call until it has done all of the buffers.
  private static func all(
    of buffers: GuestBuffers, _ offset: UInt64,
    _ call: (UnsafePointer<iovec>?, Int32, off_t) -> Int
  ) throws(Errno) {
    var rest = buffers
    var place = offset
    while !rest.isEmpty {
      var failure: Errno?
      let done = rest.withVectors { vectors in
        do throws(Errno) {
          return try systemCall { () -> Int in
            call(vectors.baseAddress, Int32(clamping: vectors.count), off_t(clamping: place))
          }
        } catch {
          failure = error
          return 0
        }
      }
      if let failure { throw failure }
      // The end of a file that somebody has cut.
      if done <= 0 { throw .ioError }
      if done >= rest.count { return }
      rest = rest.slice(from: done)
      place &+= UInt64(done)
    }
  }

  package func flush() throws(Errno) {
    let file = file.rawValue
    _ = try systemCall { () -> Int32 in fdatasync(file) }
  }

  package func discard(at offset: UInt64, count: UInt64) throws(Errno) {
    do throws(Errno) {
      if isDevice { return try deviceCall(chost_blkdiscard, offset, count) }
      try allocate(FileMode.punchHole | FileMode.keepSize, offset, count)
    } catch {
      // The contents may as well stay.
      guard Self.isUnsupported(error) else { throw error }
    }
  }

  private static func isUnsupported(_ error: Errno) -> Bool {
    error == .notSupportedOnSocket || error == .notSupported
  }

  package func writeZeroes(
    at offset: UInt64, count: UInt64, mayDiscard: Bool
  ) throws(Errno) {
    do throws(Errno) {
      if isDevice { return try deviceCall(chost_blkzeroout, offset, count) }
      let mode = mayDiscard ? FileMode.punchHole : FileMode.zeroRange
      try allocate(mode | FileMode.keepSize, offset, count)
    } catch {
      guard Self.isUnsupported(error) else { throw error }
      try writeOutZeroes(offset, count)
    }
  }

  /// fallocate(2)'s modes.
  private enum FileMode {
    static let keepSize: Int32 = 1
    static let punchHole: Int32 = 2
    static let zeroRange: Int32 = 16
  }

  private func allocate(_ mode: Int32, _ offset: UInt64, _ count: UInt64) throws(Errno) {
    let file = file.rawValue
    _ = try systemCall { () -> Int in
      chost_syscall(
        Int(SYS_fallocate), Int(file), Int(mode), Int(truncatingIfNeeded: offset),
        Int(truncatingIfNeeded: count), 0, 0)
    }
  }

  private func deviceCall(
    _ request: UInt32, _ offset: UInt64, _ count: UInt64
  ) throws(Errno) {
    let file = file.rawValue
    var range = (offset, count)
    _ = try systemCall { () -> Int32 in ioctl(file, UInt(request), &range) }
  }

  /// For file systems that cannot do better.
  private func writeOutZeroes(_ offset: UInt64, _ count: UInt64) throws(Errno) {
    let file = file.rawValue
    let zeroes = [UInt8](repeating: 0, count: 64 << 10)
    var done: UInt64 = 0
    while done < count {
      let size = Int(min(count &- done, UInt64(zeroes.count)))
      let place = off_t(clamping: offset &+ done)
      let written = try systemCall { () -> Int in pwrite(file, zeroes, size, place) }
      if written <= 0 { throw .ioError }
      done &+= UInt64(written)
    }
  }
}
