// SPDX-License-Identifier: Apache-2.0
//
// Eventfds from a client. Each is duplicated once and closed once, even if two sides release it.

import CHost
import Host
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// A client's eventfd, held under a descriptor of our own: later changes of the client's descriptor
/// cannot redirect us to another file.
final class ClientEvent: Sendable {
  let descriptor: Int32
  /// The kernel's identifier of this eventfd, or the client's descriptor if there is none.
  private let identity: Identity
  private let released = Atomic<Bool>(false)
  /// The descriptors of all live instances.
  private static let own = Mutex<Set<Int32>>([])

  enum Identity: Hashable, Sendable {
    case kernel(Int)
    case descriptor(Int32)
  }

  /// - Throws: EBADF if the descriptor is not open, EINVAL if it is not an eventfd.
  init(_ client: Int32) throws(Errno) {
    identity = try Self.identity(client)
    // By raw system calls, because the preload library intercepts the client's calls.
    let new = chost_syscall(Int(SYS_fcntl), Int(client), Int(F_DUPFD_CLOEXEC), 3, 0, 0, 0)
    guard new >= 0 else { throw Errno(rawValue: errno) }
    descriptor = Int32(new)
    _ = Self.own.withLock { $0.insert(Int32(new)) }
  }

  deinit { release() }

  /// Closes our descriptor: the client has closed its own.
  func release() {
    if released.exchange(true, ordering: .sequentiallyConsistent) { return }
    _ = Self.own.withLock { $0.remove(descriptor) }
    _ = chost_syscall(Int(SYS_close), Int(descriptor), 0, 0, 0, 0, 0)
  }

  var isReleased: Bool { released.load(ordering: .sequentiallyConsistent) }

  /// Whether the client's descriptor is this eventfd.
  func isSame(as client: Int32) -> Bool { (try? Self.identity(client)) == identity }
  func isSame(as other: ClientEvent) -> Bool { identity == other.identity }

  /// Whether this eventfd is in the set.
  func isAmong(_ open: Set<Identity>) -> Bool {
    if case .descriptor = identity { return true }
    return open.contains(identity)
  }

  /// The eventfds that are open in this process except ours; nil if they cannot be identified.
  static var clients: Set<Identity>? {
    guard let directory = unsafe opendir("/proc/self/fd") else { return nil }
    defer { unsafe closedir(directory) }
    let own = own.withLock { $0 }
    var all: Set<Identity> = []
    while let entry = unsafe readdir(directory) {
      let name = unsafe withUnsafeBytes(of: entry.pointee.d_name) { bytes in
        unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      guard let number = Int32(name), !own.contains(number),
        let identity = try? identity(number)
      else { continue }
      all.insert(identity)
    }
    return all
  }

  func signal() {
    var one: UInt64 = 1
    if !isReleased { _ = unsafe write(descriptor, &one, 8) }
  }

  /// Resets the counter. Blocks if it is 0.
  func consume() {
    var value: UInt64 = 0
    if !isReleased { _ = unsafe read(descriptor, &value, 8) }
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
