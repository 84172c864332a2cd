// SPDX-License-Identifier: Apache-2.0
//
// Open files: one owner each, which closes it; and reads and writes on others' descriptors that
// retry after a signal.

import CHost
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// The owner of an open file: closes it at the end of its life.
package struct OwnedFileDescriptor: ~Copyable, Sendable {
  /// The descriptor's number, valid as long as the owner lives.
  package let rawValue: Int32

  /// Takes over a descriptor that the caller opened.
  package init(owning rawValue: Int32) { self.rawValue = rawValue }

  /// Opens a file with O_CLOEXEC added to `flags`.
  package init(opening path: String, flags: Int32) throws(Errno) {
    rawValue = try systemCall { () -> Int32 in unsafe open(path, flags | O_CLOEXEC) }
  }

  deinit { close(rawValue) }

  /// Returns the descriptor without closing it.
  package consuming func release() -> Int32 {
    let value = rawValue
    discard self
    return value
  }

  /// The file's size in bytes.
  package func size() throws(Errno) -> Int {
    var status = stat()
    _ = try systemCall { () -> Int32 in unsafe fstat(rawValue, &status) }
    return Int(status.st_size)
  }

  /// Reads at most as many bytes as there is room for; 0 is the end of the file.
  package func read(
    into room: inout MutableRawSpan, interruption: InterruptionPolicy = .repeatCall
  ) throws(Errno) -> Int {
    try Host.read(rawValue, into: &room, interruption: interruption)
  }
}

/// Reads at most as many bytes as there is room for from a descriptor that somebody else owns; 0 is
/// the end.
package func read(
  _ descriptor: Int32, into room: inout MutableRawSpan,
  interruption: InterruptionPolicy = .repeatCall
) throws(Errno) -> Int {
  try unsafe room.withUnsafeMutableBytes { (room) throws(Errno) in
    try systemCall(interruption: interruption) { () -> Int in
      unsafe Glibc.read(descriptor, room.baseAddress, room.count)
    }
  }
}

/// Writes all bytes to a descriptor that somebody else owns, waiting where it would block.
package func writeAll(_ descriptor: Int32, _ bytes: RawSpan) throws(Errno) {
  try unsafe bytes.withUnsafeBytes { (bytes) throws(Errno) in
    try unsafe writeAll(descriptor, bytes)
  }
}

private func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) throws(Errno) {
  var done = 0
  while done < bytes.count {
    do throws(Errno) {
      done += try systemCall { () -> Int in
        unsafe write(descriptor, bytes.baseAddress.map { unsafe $0 + done }, bytes.count - done)
      }
    } catch {
      guard error == .wouldBlock else { throw error }
      var waiting = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
      _ = try systemCall { () -> Int32 in unsafe poll(&waiting, 1, -1) }
    }
  }
}

/// Writes text to a descriptor; ignores a closed reader.
package func writeText(_ descriptor: Int32, _ text: String) {
  try? writeAll(descriptor, Array(text.utf8).bytes)
}

/// Creates a file with these bytes; fails if it exists. Removes it if it cannot be written
/// completely.
package func saveFile(_ path: String, _ bytes: [UInt8]) throws(Errno) {
  let descriptor = try systemCall { () -> Int32 in
    unsafe open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
  }
  let file = OwnedFileDescriptor(owning: descriptor)
  do throws(Errno) {
    try writeAll(file.rawValue, bytes.bytes)
  } catch {
    _ = unsafe unlink(path)
    throw error
  }
}

/// The whole contents of a file.
///
/// - Parameter limit: maximum size. Users' files may be of any size, and some are
///   endless.
/// - Throws: the errno of open, fstat or read; `Errno.isDirectory` for a directory,
///   `Errno.fileTooLarge` beyond the limit.
package func contentsOfFile(_ path: String, limit: Int = 1 << 30) throws(Errno) -> [UInt8] {
  let file = try OwnedFileDescriptor(opening: path, flags: O_RDONLY)
  return try contentsOfFile(file.rawValue, limit: limit)
}

/// The rest of another owner's open file, from its current position.
package func contentsOfFile(_ file: Int32, limit: Int = 1 << 30) throws(Errno) -> [UInt8] {
  var status = stat()
  _ = try systemCall { () -> Int32 in unsafe fstat(file, &status) }
  if status.st_mode & S_IFMT == S_IFDIR { throw .isDirectory }
  guard status.st_size <= limit else { throw .fileTooLarge }
  // One byte more than the file, to detect its end without growing.
  var bytes = [UInt8](repeating: 0, count: max(Int(status.st_size) &+ 1, 4096))
  var count = 0
  while true {
    if count > limit { throw .fileTooLarge }
    if count == bytes.count {
      let more = min(count, limit &- count &+ 1)
      bytes.append(contentsOf: repeatElement(0, count: more))
    }
    let got = try bytes.withMutableBytes { (all) throws(Errno) -> Int in
      var rest = all.part(count...)
      return try read(file, into: &rest)
    }
    if got == 0 { break }
    count &+= got
  }
  bytes.removeLast(bytes.count - count)
  return bytes
}
