// SPDX-License-Identifier: Apache-2.0

import CHost
import Host
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// A client's eventfd, held under a descriptor of our own: what the client does with its descriptor
/// later cannot lead us to another file.
final class ClientEvent: Sendable {
  let descriptor: Int32
  /// What the kernel calls this eventfd, or the client's descriptor where it does not say.
  private let identity: Identity

  enum Identity: Equatable, Sendable {
    case kernel(Int)
    case descriptor(Int32)
  }

  /// - Throws: EBADF where nothing is open there, EINVAL where it is not an eventfd.
  init(_ client: Int32) throws(Errno) {
    identity = try Self.identity(client)
    descriptor = try systemCall { () -> Int32 in fcntl(client, F_DUPFD_CLOEXEC, CInt(3)) }
  }

  deinit { close(descriptor) }

  /// Whether the client's descriptor is this eventfd.
  func isSame(as client: Int32) -> Bool { (try? Self.identity(client)) == identity }
  func isSame(as other: ClientEvent) -> Bool { identity == other.identity }

  func signal() {
    var one: UInt64 = 1
    _ = write(descriptor, &one, 8)
  }

  /// Takes the events that came. Not called where none came, which would block.
  func consume() {
    var value: UInt64 = 0
    _ = read(descriptor, &value, 8)
  }

  private static func identity(_ client: Int32) throws(Errno) -> Identity {
    _ = try systemCall { () -> Int32 in fcntl(client, F_GETFD) }
    // Linux, "/proc/<pid>/fdinfo": the lines of an eventfd.
    guard let info = try? contentsOfFile("/proc/self/fdinfo/\(client)") else {
      return .descriptor(client)
    }
    var isEvent = false
    for line in info.split(separator: UInt8(ascii: "\n")) {
      let text = String(decoding: line, as: UTF8.self)
      if text.hasPrefix("eventfd-count:") { isEvent = true }
      if text.hasPrefix("eventfd-id:"), let number = Int(text.dropFirst(11).trimmed) {
        return .kernel(number)
      }
    }
    guard isEvent else { throw .invalidArgument }
    return .descriptor(client)
  }
}

extension Substring {
  fileprivate var trimmed: Substring { drop { $0 == " " || $0 == "\t" } }
}
