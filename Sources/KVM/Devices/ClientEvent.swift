// SPDX-License-Identifier: Apache-2.0
//
// Eventfds that a client hands over. Each is duplicated once and closed once; a release from two
// sides closes it once, too.

import CHost
import Host
import Synchronization
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
  private let released = Atomic<Bool>(false)
  /// The descriptors of all that live.
  private static let own = Mutex<Set<Int32>>([])

  enum Identity: Hashable, Sendable {
    case kernel(Int)
    case descriptor(Int32)
  }

  /// - Throws: EBADF where nothing is open there, EINVAL where it is not an eventfd.
  init(_ client: Int32) throws(Errno) {
    identity = try Self.identity(client)
    // By system calls: what intercepts the client's calls must not take this for one of them.
    let new = chost_syscall(Int(SYS_fcntl), Int(client), Int(F_DUPFD_CLOEXEC), 3, 0, 0, 0)
    guard new >= 0 else { throw Errno(rawValue: errno) }
    descriptor = Int32(new)
    _ = Self.own.withLock { $0.insert(Int32(new)) }
  }

  deinit { release() }

  /// Lets go of the descriptor: the client has none any more.
  func release() {
    if released.exchange(true, ordering: .sequentiallyConsistent) { return }
    _ = Self.own.withLock { $0.remove(descriptor) }
    _ = chost_syscall(Int(SYS_close), Int(descriptor), 0, 0, 0, 0, 0)
  }

  var isReleased: Bool { released.load(ordering: .sequentiallyConsistent) }

  /// Whether the client's descriptor is this eventfd.
  func isSame(as client: Int32) -> Bool { (try? Self.identity(client)) == identity }
  func isSame(as other: ClientEvent) -> Bool { identity == other.identity }

  /// Whether one of these eventfds is this one.
  func isAmong(_ open: Set<Identity>) -> Bool {
    if case .descriptor = identity { return true }
    return open.contains(identity)
  }

  /// The eventfds that descriptors of this process but ours are open on; nil where they cannot be
  /// told.
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

  /// Takes the events that came. Not called where none came, which would block.
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
