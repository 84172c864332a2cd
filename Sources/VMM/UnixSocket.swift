// SPDX-License-Identifier: Apache-2.0
//
// Unix stream sockets that have a path, none of which ever waits.

import CHost
import Glibc
import Host
import SystemPackage

enum UnixSocket {
  /// Bytes of a path, with the 0 behind it.
  static let pathLimit = MemoryLayout.size(ofValue: sockaddr_un().sun_path)

  /// Waits for clients at a path, where an old socket without a listener may be.
  static func listen(_ path: String, backlog: Int32 = 1) throws(Errno) -> OwnedFileDescriptor {
    let owner = try make()
    let raw = owner.rawValue
    if unsafe !call(path, { unsafe bind(raw, $0, $1) }) {
      let reason = Errno(rawValue: errno)
      // Whether somebody listens there still.
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

  /// Any other file is somebody's.
  private static func isSocket(_ path: String) -> Bool {
    var status = stat()
    return unsafe lstat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFSOCK
  }

  /// The next client of a listener; nil where there is none.
  static func accept(_ listener: Int32) -> OwnedFileDescriptor? {
    let flags = Int(SOCK_CLOEXEC.rawValue) | Int(SOCK_NONBLOCK.rawValue)
    let result = chost_syscall(Int(SYS_accept4), Int(listener), 0, 0, flags, 0, 0)
    guard let client = Int32(exactly: result), client >= 0 else { return nil }
    return OwnedFileDescriptor(owning: client)
  }

  /// Connects to who listens at a path; nil where nobody does, or too many wait already.
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

  /// Calls a function with the address of a path, which has to fit; whether it succeeds.
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
