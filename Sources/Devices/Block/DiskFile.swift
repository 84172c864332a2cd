// SPDX-License-Identifier: Apache-2.0
//
// The file or block device below a disk image. While it is open, a lock keeps others out (fcntl(2),
// "Open file description locks"): a writer excludes everybody, readers exclude writers.

import CHost
import Glibc
import Host
import SystemPackage

/// A file or block device of an image. Several threads may call it at the same time. Offsets are at
/// most `limit`, as system calls take signed ones.
final class DiskFile: Sendable {
  /// Two names of one file have the same identity.
  struct Identity: Hashable, Sendable {
    let device: UInt64
    let file: UInt64

    init(_ status: stat) {
      let isDevice = status.st_mode & S_IFMT == S_IFBLK
      device = isDevice ? .max : UInt64(status.st_dev)
      file = isDevice ? UInt64(status.st_rdev) : UInt64(status.st_ino)
    }

    /// nil if there is no such file.
    init?(path: String) {
      var status = stat()
      guard unsafe stat(path, &status) == 0 else { return nil }
      self.init(status)
    }
  }

  /// The exclusive limit of offsets.
  static let limit: UInt64 = 1 << 62

  private let file: OwnedFileDescriptor
  let isDevice: Bool
  let isReadOnly: Bool
  let identity: Identity
  /// Preferred multiple of write sizes in bytes.
  let blockSize: UInt32
  /// Opens and locks a file.
  convenience init(path: String, isReadOnly: Bool) throws(ImageError) {
    // Opening a pipe would wait for its other end.
    let flags = (isReadOnly ? O_RDONLY : O_RDWR) | O_NONBLOCK
    let owner: OwnedFileDescriptor
    do throws(Errno) {
      owner = try OwnedFileDescriptor(opening: path, flags: flags)
    } catch {
      throw .cannotOpen(error)
    }
    try self.init(owner, isReadOnly: isReadOnly)
    try lock()
  }

  /// A new unnamed file, deleted when it is closed.
  ///
  /// - Parameter folder: a folder of a file system with space.
  convenience init(temporaryIn folder: String) throws(ImageError) {
    var template = Array("\(folder)/martlet-overlay-XXXXXX".utf8CString)
    let raw: Int32
    do throws(Errno) {
      raw = try systemCall { () -> Int32 in unsafe mkstemp(&template) }
    } catch {
      throw .cannotOpen(error)
    }
    let owner = OwnedFileDescriptor(owning: raw)
    _ = fcntl(raw, F_SETFD, FD_CLOEXEC)
    unsafe unlink(template)
    try self.init(owner, isReadOnly: false)
  }

  init(_ owner: consuming OwnedFileDescriptor, isReadOnly: Bool) throws(ImageError) {
    let raw = owner.rawValue
    var status = stat()
    guard unsafe fstat(raw, &status) == 0 else { throw .cannotOpen(Errno(rawValue: errno)) }
    let kind = status.st_mode & S_IFMT
    guard kind == S_IFREG || kind == S_IFBLK else { throw .notAFile }
    isDevice = kind == S_IFBLK
    self.isReadOnly = isReadOnly
    identity = Identity(status)
    blockSize = UInt32(clamping: min(max(status.st_blksize, 512), 4096))
    file = owner
  }

  /// Current size in bytes; 0 if the host does not tell.
  var size: UInt64 {
    let raw = file.rawValue
    if isDevice {
      var size: UInt64 = 0
      return unsafe ioctl(raw, UInt(chost_blkgetsize64), &size) == 0 ? size : 0
    }
    var status = stat()
    return unsafe fstat(raw, &status) == 0 ? UInt64(clamping: status.st_size) : 0
  }

  /// Locks the whole file. The lock ends with the descriptor.
  private func lock() throws(ImageError) {
    var lock = flock()
    lock.l_type = Int16(isReadOnly ? F_RDLCK : F_WRLCK)
    lock.l_whence = Int16(SEEK_SET)
    guard unsafe fcntl(file.rawValue, chost_ofd_setlk, &lock) != 0 else { return }
    switch errno {
    case EAGAIN, EACCES: throw .isInUse
    // The file system does not support locks.
    case EINVAL, ENOLCK, EOPNOTSUPP: return
    default: throw .cannotOpen(Errno(rawValue: errno))
    }
  }

  // MARK: Contents

  /// Reads all of the pieces.
  ///
  /// - Parameter padsWithZeroes: bytes beyond the end of the file read as 0; otherwise they are an
  ///   error.
  func read(
    at offset: UInt64, into pieces: IOPieces, padsWithZeroes: Bool = false
  ) throws(Errno) {
    let file = file.rawValue
    let rest = try unsafe Self.all(of: pieces, offset) { unsafe preadv(file, $0, $1, $2) }
    if rest.isEmpty { return }
    // The file was truncated.
    guard padsWithZeroes else { throw .ioError }
    rest.clear()
  }

  /// Writes all of the pieces.
  func write(at offset: UInt64, from pieces: IOPieces) throws(Errno) {
    let file = file.rawValue
    let rest = try unsafe Self.all(of: pieces, offset) { unsafe pwritev(file, $0, $1, $2) }
    guard rest.isEmpty else { throw .ioError }
  }

  /// The vector limit of pwritev(2).
  private static let vectorLimit = 1024

  /// Repeats a call until it has transferred all of the pieces, or makes no progress; returns the
  /// rest.
  private static func all(
    of pieces: IOPieces, _ offset: UInt64,
    _ call: (UnsafePointer<iovec>?, Int32, off_t) -> Int
  ) throws(Errno) -> IOPieces {
    var rest = pieces
    var place = offset
    while !rest.isEmpty {
      guard place < limit else { throw .fileTooLarge }
      let count = unsafe Int32(truncatingIfNeeded: min(rest.vectors.count, vectorLimit))
      let start = off_t(truncatingIfNeeded: place)
      let vectors = unsafe rest.vectors
      let done = try systemCall { () -> Int in
        unsafe vectors.withUnsafeBufferPointer { unsafe call($0.baseAddress, count, start) }
      }
      if done <= 0 { return rest }
      if done >= rest.count { return IOPieces() }
      rest = rest.slice(from: done)
      place &+= UInt64(truncatingIfNeeded: done)
    }
    return rest
  }

  /// Bytes of the file; those beyond its end are 0.
  func bytes(at offset: UInt64, count: Int) throws(Errno) -> [UInt8] {
    let buffer = HostBuffer(count: count)
    try read(at: offset, into: buffer.pieces(count: count), padsWithZeroes: true)
    return buffer.withBytes { $0.array }
  }

  func write(_ bytes: [UInt8], at offset: UInt64) throws(Errno) {
    let buffer = HostBuffer(count: bytes.count)
    buffer.fill(from: bytes.bytes)
    try write(at: offset, from: buffer.pieces(count: bytes.count))
  }

  /// After a failure the kernel may have dropped what was written, and succeeds the next time. So
  /// lack of room is no reason here to try again.
  func flush() throws(Errno) {
    let file = file.rawValue
    do throws(Errno) {
      _ = try systemCall { () -> Int32 in fdatasync(file) }
    } catch {
      throw error.isLackOfRoom ? .ioError : error
    }
  }

  // MARK: Ranges

  /// fallocate(2)'s modes.
  private enum Mode {
    static let keepSize: Int32 = 1
    static let punchHole: Int32 = 2
    static let zeroRange: Int32 = 16
  }

  /// Frees the space of a range if possible.
  func discard(at offset: UInt64, count: UInt64) throws(Errno) {
    do throws(Errno) {
      if isDevice { return try deviceCall(chost_blkdiscard, offset, count) }
      try allocate(Mode.punchHole | Mode.keepSize, offset, count)
    } catch {
      // Keeping the contents is allowed.
      guard Self.isUnsupported(error) else { throw error }
    }
  }

  private static func isUnsupported(_ error: Errno) -> Bool {
    error == .notSupportedOnSocket || error == .notSupported
  }

  func writeZeroes(at offset: UInt64, count: UInt64, mayDiscard: Bool) throws(Errno) {
    do throws(Errno) {
      if isDevice { return try deviceCall(chost_blkzeroout, offset, count) }
      let mode = mayDiscard ? Mode.punchHole : Mode.zeroRange
      try allocate(mode | Mode.keepSize, offset, count)
    } catch {
      guard Self.isUnsupported(error) else { throw error }
      try writeOutZeroes(offset, count)
    }
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
    _ = try systemCall { () -> Int32 in unsafe ioctl(file, UInt(request), &range) }
  }

  /// Fallback for file systems without zeroing.
  private func writeOutZeroes(_ offset: UInt64, _ count: UInt64) throws(Errno) {
    let size = 64 << 10
    let zeroes = HostBuffer(count: size)
    var done: UInt64 = 0
    while done < count {
      let part = Int(truncatingIfNeeded: min(count &- done, UInt64(truncatingIfNeeded: size)))
      try write(at: offset &+ done, from: zeroes.pieces(count: part))
      done &+= UInt64(truncatingIfNeeded: part)
    }
  }
}
