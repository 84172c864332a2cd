// SPDX-License-Identifier: Apache-2.0
//
// Which descriptors of the process refer to files of the table's owner.
//
//     table.add(descriptor, file)
//     if table.mayHold(descriptor), let file = table.held(descriptor) { ... }
//     table.remove(descriptor)         // before it is closed
//
// Most calls of `close` and `ioctl` are for other descriptors: they read one word and take no lock.

import Glibc
import Synchronization

/// The file behind descriptors of the table. It is released with the last of them.
package final class DescribedFile: Sendable {
  package let identity: FileIdentity
  /// The owner's object.
  package let object: any AnyObject & Sendable
  fileprivate let references = Atomic<Int>(0)

  package init(_ identity: FileIdentity, _ object: any AnyObject & Sendable) {
    self.identity = identity
    self.object = object
  }
}

/// Identifies an open file.
package struct FileIdentity: Hashable, Sendable {
  package var device: UInt
  package var node: UInt

  package init(device: UInt, node: UInt) {
    self.device = device
    self.node = node
  }
}

/// Sendable: flags are atomic, entries in a mutex.
@safe package final class DescriptorTable: @unchecked Sendable {
  private struct Entries: Sendable {
    var files: [Int32: DescribedFile] = [:]
    var byIdentity: [FileIdentity: DescribedFile] = [:]
  }

  private static let flagCount = 1 << 20
  /// Bits of a descriptor's byte: it is in the table; it is an eventfd that was given to KVM_IRQFD.
  private enum Flag {
    static let known: UInt8 = 1 << 0
    static let event: UInt8 = 1 << 1
  }
  /// One byte for each descriptor number; numbers beyond the limit share the last. Changed under
  /// the lock of `entries`, read without it: readers see the order that they established
  /// themselves, by a system call or another lock.
  private let flags: UnsafeMutablePointer<Atomic<UInt8>>
  private let entries = Mutex(Entries())
  /// Whether any descriptor was an eventfd's.
  private let hasEvents = Atomic<Bool>(false)

  package init() {
    let memory = unsafe UnsafeMutableRawPointer(
      mmap(
        nil, Self.flagCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1, 0))
    unsafe flags = unsafe (memory == MAP_FAILED ? calloc(1, Self.flagCount)! : memory!)
      .bindMemory(to: Atomic<UInt8>.self, capacity: Self.flagCount)
  }

  private func has(_ place: Int, _ flag: UInt8) -> Bool {
    unsafe flags[place].load(ordering: .acquiring) & flag != 0
  }

  private func set(_ place: Int, _ flag: UInt8) {
    unsafe flags[place].bitwiseOr(flag, ordering: .releasing)
  }

  private func clear(_ place: Int, _ flag: UInt8) {
    unsafe flags[place].bitwiseAnd(~flag, ordering: .releasing)
  }

  private func flag(_ descriptor: Int32) -> Int {
    min(Int(UInt32(bitPattern: descriptor)), Self.flagCount - 1)
  }

  /// Whether the table may contain a descriptor.
  package func mayHold(_ descriptor: Int32) -> Bool { has(flag(descriptor), Flag.known) }

  package func mayBeEvent(_ descriptor: Int32) -> Bool {
    descriptor >= 0 && has(flag(descriptor), Flag.event)
  }

  package func setEvent(_ descriptor: Int32, _ isEvent: Bool) {
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

  /// Whether one of these descriptors may be an eventfd's; clears their bits.
  package func takeEvents(_ range: ClosedRange<Int32>) -> Bool {
    guard range.upperBound >= 0, hasEvents.load(ordering: .relaxed) else { return false }
    var found = false
    let last = Int32(Self.flagCount - 1)
    for number in range.clamped(to: 0...last) where mayBeEvent(number) {
      setEvent(number, false)
      found = true
    }
    return found
  }

  /// The file of the table with this identity.
  package func file(_ identity: FileIdentity) -> DescribedFile? {
    entries.withLock { $0.byIdentity[identity] }
  }

  /// The file of a descriptor, if the table has it.
  package func held(_ descriptor: Int32) -> DescribedFile? {
    mayHold(descriptor) ? entries.withLock { $0.files[descriptor] } : nil
  }

  package func add(_ descriptor: Int32, _ file: DescribedFile) {
    let old = entries.withLock { entries -> DescribedFile? in
      set(flag(descriptor), Flag.known)
      let old = entries.files.updateValue(file, forKey: descriptor)
      file.references.add(1, ordering: .relaxed)
      entries.byIdentity[file.identity] = file
      return old.flatMap { Self.forget($0, &entries) }
    }
    _ = old  // Freed outside the lock.
  }

  /// Call it before a descriptor is closed.
  package func remove(_ descriptor: Int32) {
    guard mayHold(descriptor) else { return }
    let last = entries.withLock { entries -> DescribedFile? in
      if flag(descriptor) != Self.flagCount - 1 {
        clear(flag(descriptor), Flag.known)
      }
      guard let file = entries.files.removeValue(forKey: descriptor) else { return nil }
      return Self.forget(file, &entries)
    }
    _ = last
  }

  package func remove(_ range: ClosedRange<Int32>) {
    let all = entries.withLock { Array($0.files.keys) }
    for descriptor in all where range.contains(descriptor) { remove(descriptor) }
  }

  /// `new` is now a duplicate of `old`.
  package func duplicate(_ old: Int32, as new: Int32) {
    if let file = held(old) { add(new, file) }
  }

  /// Releases one descriptor of a file. Returns what the caller must free outside the lock.
  private static func forget(_ file: DescribedFile, _ entries: inout Entries) -> DescribedFile? {
    let left = file.references.subtract(1, ordering: .relaxed).newValue
    if left == 0 { entries.byIdentity[file.identity] = nil }
    return file
  }
}
