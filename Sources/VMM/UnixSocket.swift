// SPDX-License-Identifier: Apache-2.0
//
// Nonblocking Unix stream sockets with a path.

import CHost
import Glibc
import Host
import SystemPackage

enum UnixSocket {
  /// The limit of a path in bytes, with its terminating 0.
  static let pathLimit = MemoryLayout.size(ofValue: sockaddr_un().sun_path)

  /// Listens at a path. Replaces a socket there that nobody listens at.
  static func listen(_ path: String, backlog: Int32 = 1) throws(Errno) -> OwnedFileDescriptor {
    let owner = try make()
    let raw = owner.rawValue
    if unsafe !call(path, { unsafe bind(raw, $0, $1) }) {
      let reason = Errno(rawValue: errno)
      // Check whether another process still listens there.
      let probe = try make()
      let other = probe.rawValue
      guard reason == .addressInUse, isSocket(path),
        unsafe !call(path, { unsafe Glibc.connect(other, $0, $1) }), errno == ECONNREFUSED
      else { throw reason }
      unsafe unlink(path)
      guard unsafe call(path, { unsafe bind(raw, $0, $1) }) else { throw Errno(rawValue: errno) }
    }
    _ = try systemCall { () -> Int32 in Glibc.listen(raw, backlog) }
    return owner
  }

  /// Any other kind of file stays.
  private static func isSocket(_ path: String) -> Bool {
    var status = stat()
    return unsafe lstat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFSOCK
  }

  /// Accepts the next client; nil if none waits.
  static func accept(_ listener: Int32) -> OwnedFileDescriptor? {
    let flags = Int(SOCK_CLOEXEC.rawValue) | Int(SOCK_NONBLOCK.rawValue)
    let result = chost_syscall(Int(SYS_accept4), Int(listener), 0, 0, flags, 0, 0)
    guard let client = Int32(exactly: result), client >= 0 else { return nil }
    return OwnedFileDescriptor(owning: client)
  }

  /// Connects to the listener at a path; nil if there is none, or its backlog is full.
  static func connect(_ path: String) -> OwnedFileDescriptor? {
    guard path.utf8.count < pathLimit, let owner = try? make() else { return nil }
    let raw = owner.rawValue
    guard unsafe call(path, { unsafe Glibc.connect(raw, $0, $1) }) else { return nil }
    return owner
  }

  private static func make() throws(Errno) -> OwnedFileDescriptor {
    let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    return OwnedFileDescriptor(
      owning: try systemCall { () -> Int32 in socket(AF_UNIX, type, 0) })
  }

  /// Calls a function with the address of a path, which must fit; returns whether it succeeds.
  private static func call(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) -> Bool {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
    return unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
      }
    }
  }
}
