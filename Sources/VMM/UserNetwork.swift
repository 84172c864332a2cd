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
      let sockets = try HelperProcess.Sockets(SOCK_STREAM)
      messages = OwnedFileDescriptor(
        owning: try systemCall { () -> Int32 in unsafe memfd_create("passt", UInt32(MFD_CLOEXEC)) })
      try HelperProcess.start(
        path, Self.arguments(configuration), socket: sockets.other.rawValue,
        output: messages.rawValue)
      socket = sockets.takeOwn().release()
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
      program, "--foreground", "--quiet", "--fd", "\(HelperProcess.socketNumber)", "--address",
      Address.guest,
      "--netmask", Address.mask, "--gateway", Address.gateway, "--mtu", "\(NetworkDevice.mtu)",
    ]
    if !configuration.reachesHost { arguments.append("--no-map-gw") }
    for port in configuration.published {
      arguments += ["--tcp-ports", "\(port.host):\(port.guest)"]
    }
    return arguments
  }
}
