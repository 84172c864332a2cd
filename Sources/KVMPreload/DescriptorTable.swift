// SPDX-License-Identifier: Apache-2.0
//
// Which of the process's descriptors are KVM's.
//
// Each object of KVM has a file in memory (memfd), and a client's descriptors are open on it: so
// duplicates, inheritance over fork and exec, passing to other processes, poll, and the mapping of
// a vCPU's pages are the kernel's work. The table remembers descriptor numbers. One that it does
// not know (made by a raw system call, or received) is recognised by its file.
//
// Most calls of `close` and `ioctl` are not for KVM: they look at one word and take no lock.

import CHost
import Glibc
import KVM
import Synchronization
import SystemPackage

/// What a KVM descriptor is open on.
final class KVMFile: Sendable {
  enum Kind: Sendable {
    /// `/dev/kvm`.
    case system
    case machine
    case virtualCPU(RunState)
  }

  let kind: Kind
  /// The handle in the hypervisor.
  let handle: Int32
  let library: Library
  fileprivate let identity: FileIdentity
  fileprivate let references = Atomic<Int>(0)

  init(_ kind: Kind, handle: Int32, library: Library, descriptor: Int32) {
    self.kind = kind
    self.handle = handle
    self.library = library
    identity = FileIdentity(descriptor) ?? FileIdentity(device: 0, node: 0)
  }

  deinit { library.close(handle) }
}

/// What tells one open file from another.
struct FileIdentity: Hashable, Sendable {
  var device: UInt
  var node: UInt

  init(device: UInt, node: UInt) {
    self.device = device
    self.node = node
  }

  init?(_ descriptor: Int32) {
    var status = stat()
    guard let real = Real.fstat, real(descriptor, &status) == 0 else { return nil }
    device = UInt(status.st_dev)
    node = UInt(status.st_ino)
  }
}

final class DescriptorTable: @unchecked Sendable {
  static let shared = DescriptorTable()

  private struct Entries: Sendable {
    var files: [Int32: KVMFile] = [:]
    var byIdentity: [FileIdentity: KVMFile] = [:]
  }

  private static let flagCount = 1 << 20
  /// Bits of a descriptor's byte: the table has it; it is an eventfd that was given to KVM_IRQFD.
  private enum Flag {
    static let known: UInt8 = 1 << 0
    static let event: UInt8 = 1 << 1
  }
  /// One byte for each descriptor number; numbers beyond share the last. Changed under the lock of
  /// `entries`, read without: what a caller has put in order, by a system call or a lock of its own, it
  /// finds in order.
  private let flags: UnsafeMutablePointer<Atomic<UInt8>>
  private let entries = Mutex(Entries())
  /// Whether any number was an eventfd's.
  private let hasEvents = Atomic<Bool>(false)

  private init() {
    let memory = UnsafeMutableRawPointer(
      mmap(
        nil, Self.flagCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1, 0))
    flags = (memory == MAP_FAILED ? calloc(1, Self.flagCount)! : memory!)
      .bindMemory(to: Atomic<UInt8>.self, capacity: Self.flagCount)
  }

  private func has(_ place: Int, _ flag: UInt8) -> Bool {
    flags[place].load(ordering: .acquiring) & flag != 0
  }

  private func set(_ place: Int, _ flag: UInt8) {
    flags[place].bitwiseOr(flag, ordering: .releasing)
  }

  private func clear(_ place: Int, _ flag: UInt8) {
    flags[place].bitwiseAnd(~flag, ordering: .releasing)
  }

  private func flag(_ descriptor: Int32) -> Int {
    min(Int(UInt32(bitPattern: descriptor)), Self.flagCount - 1)
  }

  /// Whether a descriptor may be KVM's.
  func mayHold(_ descriptor: Int32) -> Bool { has(flag(descriptor), Flag.known) }

  func mayBeEvent(_ descriptor: Int32) -> Bool {
    descriptor >= 0 && has(flag(descriptor), Flag.event)
  }

  func setEvent(_ descriptor: Int32, _ isEvent: Bool) {
    let place = flag(descriptor)
    if isEvent == mayBeEvent(descriptor) { return }
    entries.withLock { _ in
      if isEvent {
        set(place, Flag.event)
        hasEvents.store(true, ordering: .relaxed)
      } else if place != Self.flagCount - 1 {
        clear(place, Flag.event)
      }
    }
  }

  /// Whether one of these numbers may be an eventfd's; they are no longer.
  func takeEvents(_ range: ClosedRange<Int32>) -> Bool {
    guard range.upperBound >= 0, hasEvents.load(ordering: .relaxed) else { return false }
    var found = false
    let last = Int32(Self.flagCount - 1)
    for number in range.clamped(to: 0...last) where mayBeEvent(number) {
      setEvent(number, false)
      found = true
    }
    return found
  }

  /// The file of a descriptor that an ioctl of KVM was called on.
  func file(_ descriptor: Int32) -> KVMFile? {
    if mayHold(descriptor), let file = entries.withLock({ $0.files[descriptor] }) { return file }
    guard let identity = FileIdentity(descriptor) else { return nil }
    let known = entries.withLock { $0.byIdentity[identity] }
    if let known {
      add(descriptor, known)
      return known
    }
    return SystemFile.adopt(descriptor)
  }

  /// The file of a descriptor, if the table has it.
  func known(_ descriptor: Int32) -> KVMFile? {
    mayHold(descriptor) ? entries.withLock { $0.files[descriptor] } : nil
  }

  func add(_ descriptor: Int32, _ file: KVMFile) {
    let old = entries.withLock { entries -> KVMFile? in
      set(flag(descriptor), Flag.known)
      let old = entries.files.updateValue(file, forKey: descriptor)
      file.references.add(1, ordering: .relaxed)
      entries.byIdentity[file.identity] = file
      return old.flatMap { Self.forget($0, &entries) }
    }
    _ = old  // Ends outside the lock.
  }

  /// The descriptor is about to be closed.
  func remove(_ descriptor: Int32) {
    guard mayHold(descriptor) else { return }
    let last = entries.withLock { entries -> KVMFile? in
      if flag(descriptor) != Self.flagCount - 1 {
        clear(flag(descriptor), Flag.known)
      }
      guard let file = entries.files.removeValue(forKey: descriptor) else { return nil }
      return Self.forget(file, &entries)
    }
    _ = last
  }

  func remove(_ range: ClosedRange<Int32>) {
    let all = entries.withLock { Array($0.files.keys) }
    for descriptor in all where range.contains(descriptor) { remove(descriptor) }
  }

  /// `new` is a duplicate of `old` now.
  func duplicate(_ old: Int32, as new: Int32) {
    if let file = known(old) { add(new, file) }
  }

  /// One descriptor of a file went. Returns what the caller lets go of outside the lock.
  private static func forget(_ file: KVMFile, _ entries: inout Entries) -> KVMFile? {
    let left = file.references.subtract(1, ordering: .relaxed).newValue
    if left == 0 { entries.byIdentity[file.identity] = nil }
    return file
  }
}

/// The file behind a descriptor of `/dev/kvm`: its text makes it known to a process that got the
/// descriptor by exec or by message.
enum SystemFile {
  private static let text: StaticString = "martlet: /dev/kvm"

  /// A new descriptor.
  static func make(_ flags: Int32) throws(Errno) -> Int32 {
    let cloexec = flags & O_CLOEXEC != 0 ? UInt32(MFD_CLOEXEC) : 0
    let descriptor = memfd_create("kvm", cloexec)
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    _ = pwrite(descriptor, text.utf8Start, text.utf8CodeUnitCount, 0)
    return descriptor
  }

  static func adopt(_ descriptor: Int32) -> KVMFile? {
    let count = text.utf8CodeUnitCount
    var buffer = InlineArray<32, UInt8>(repeating: 0)
    let isOurs = withUnsafeMutableBytes(of: &buffer) { bytes in
      pread(descriptor, bytes.baseAddress!, count, 0) == count
        && memcmp(bytes.baseAddress!, text.utf8Start, count) == 0
    }
    guard isOurs, let library = Library.current else { return nil }
    let file = KVMFile(
      .system, handle: library.hypervisor.open(), library: library, descriptor: descriptor)
    DescriptorTable.shared.add(descriptor, file)
    return file
  }
}
