// SPDX-License-Identifier: Apache-2.0
//
// Programs that the monitor starts before it confines itself, each at the other end of a socket. A
// helper exits when its socket is closed.

import CHost
import Glibc
import Host
import SystemPackage

enum HelperProcess {
  /// The helper's number for its socket.
  static let socketNumber: Int32 = 3

  /// The ends of a pair of sockets: the monitor's and the helper's.
  struct Sockets: ~Copyable {
    let own: OwnedFileDescriptor
    let other: OwnedFileDescriptor

    init(_ type: __socket_type) throws(Errno) {
      var ends: [Int32] = [0, 0]
      let kind = Int32(type.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
      _ = try systemCall { () -> Int32 in unsafe socketpair(AF_UNIX, kind, 0, &ends) }
      own = OwnedFileDescriptor(owning: ends[0])
      other = OwnedFileDescriptor(owning: ends[1])
    }

    /// Closes the helper's end and returns the monitor's.
    consuming func takeOwn() -> OwnedFileDescriptor { own }
  }

  /// Starts a program.
  ///
  /// - Parameter output: its standard output and error; nil: /dev/null.
  static func start(
    _ path: String, _ arguments: [String], socket: Int32, output: Int32?
  ) throws(Errno) {
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    unsafe posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
    for number in [STDOUT_FILENO, STDERR_FILENO] {
      if let output {
        unsafe posix_spawn_file_actions_adddup2(&actions, output, number)
      } else {
        unsafe posix_spawn_file_actions_addopen(&actions, number, "/dev/null", O_WRONLY, 0)
      }
    }
    unsafe posix_spawn_file_actions_adddup2(&actions, socket, socketNumber)
    // Only the monitor handles the terminal's signals; the helper exits with the socket.
    var attributes = posix_spawnattr_t()
    unsafe posix_spawnattr_init(&attributes)
    defer { unsafe posix_spawnattr_destroy(&attributes) }
    unsafe posix_spawnattr_setpgroup(&attributes, 0)
    unsafe posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP))
    var words: [UnsafeMutablePointer<CChar>?] = unsafe arguments.map { unsafe strdup($0) }
    defer { unsafe words.forEach { unsafe free($0) } }
    unsafe words.append(nil)
    var process = pid_t()
    try threadCall { unsafe posix_spawn(&process, path, &actions, &attributes, words, environ) }
  }
}
