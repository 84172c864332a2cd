// SPDX-License-Identifier: Apache-2.0
//
// A network without privileges: passt, a separate program, translates the guest's packets to host
// connections. It has the other end of a socket, and exits when that is closed. It confines itself.
// The monitor must start it before it is confined itself.

import CHost
import Devices
import Glibc
import Host
import SystemPackage

/// A running passt.
final class UserNetwork: Sendable {
  private static let program = "passt"
  /// The guest's network, the same on all hosts.
  private enum Address {
    static let guest = "10.0.2.15"
    static let gateway = "10.0.2.2"
    static let mask = "255.255.255.0"
  }
  /// passt's descriptor of the socket.
  private static let socketNumber: Int32 = 3

  let configuration: NetworkConfiguration
  /// The monitor's end, until `takeSocket`.
  private let socket: Int32
  /// passt's output.
  private let messages: OwnedFileDescriptor

  /// Starts passt.
  init(_ configuration: NetworkConfiguration) throws(RunError) {
    guard let path = Self.find() else {
      throw RunError("--net user: passt is missing; apt-get install passt")
    }
    do throws(Errno) {
      var ends: [Int32] = [0, 0]
      let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
      _ = try systemCall { () -> Int32 in unsafe socketpair(AF_UNIX, kind, 0, &ends) }
      let own = OwnedFileDescriptor(owning: ends[0])
      let other = OwnedFileDescriptor(owning: ends[1])
      messages = OwnedFileDescriptor(
        owning: try systemCall { () -> Int32 in unsafe memfd_create("passt", UInt32(MFD_CLOEXEC)) })
      try Self.start(
        path, Self.arguments(configuration), socket: other.rawValue, errors: messages.rawValue)
      socket = own.release()
      self.configuration = configuration
    } catch {
      throw RunError(
        "--net user: \(path) does not start: \(error)", status: ExitStatus.engineFailed)
    }
  }

  /// The monitor's end. Call it once.
  func takeSocket() -> OwnedFileDescriptor { OwnedFileDescriptor(owning: socket) }

  /// The last line of passt's output, except lines about a missing system log.
  var lastWords: String {
    var bytes = [UInt8](repeating: 0, count: 4096)
    let count = unsafe pread(messages.rawValue, &bytes, bytes.count, 0)
    let lines = String(decoding: bytes[..<max(count, 0)], as: UTF8.self).split(separator: "\n")
    return lines.last { !$0.hasPrefix("Failed to send") }.map(String.init) ?? "no reason given"
  }

  /// The path of passt.
  static func find() -> String? {
    let path = unsafe getenv("PATH").map { unsafe String(cString: $0) } ?? "/usr/bin:/bin"
    return path.split(separator: ":").map { "\($0)/\(program)" }.first {
      unsafe access($0, X_OK) == 0
    }
  }

  private static func arguments(_ configuration: NetworkConfiguration) -> [String] {
    var arguments = [
      program, "--foreground", "--quiet", "--fd", "\(socketNumber)", "--address", Address.guest,
      "--netmask", Address.mask, "--gateway", Address.gateway, "--mtu", "\(NetworkDevice.mtu)",
    ]
    if !configuration.reachesHost { arguments.append("--no-map-gw") }
    for port in configuration.published {
      arguments += ["--tcp-ports", "\(port.host):\(port.guest)"]
    }
    return arguments
  }

  private static func start(
    _ path: String, _ arguments: [String], socket: Int32, errors: Int32
  ) throws(Errno) {
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    unsafe posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
    unsafe posix_spawn_file_actions_adddup2(&actions, errors, STDOUT_FILENO)
    unsafe posix_spawn_file_actions_adddup2(&actions, errors, STDERR_FILENO)
    unsafe posix_spawn_file_actions_adddup2(&actions, socket, socketNumber)
    // Only the monitor handles the terminal's signals; passt exits with the socket.
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
