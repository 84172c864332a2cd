// SPDX-License-Identifier: Apache-2.0
//
// Memory slots and the nested page tables that make them the guest's memory.
//
// A slot names a range of this process's memory for a range of guest-physical addresses. The nested
// tables are filled from the slots when the guest first touches an address; taking a slot away
// empties them, and the guest's next touch fills them anew. So the tables never have an entry that
// the slots do not, and nothing outside the slots can be reached.

import CHost
import Synchronization
import SystemPackage
import X86

/// A range of guest-physical memory.
struct MemorySlot: Sendable, Equatable {
  var id: UInt32
  /// First guest-physical byte, a multiple of 4096.
  var base: UInt64
  /// Bytes, a multiple of 4096.
  var size: UInt64
  /// Address in this process of the first byte.
  var host: UInt64
  var flags: UInt32

  var end: UInt64 { base &+ size }
  var isReadOnly: Bool { flags & UInt32(KVM_MEM_READONLY) != 0 }
  /// Host address minus guest-physical address.
  var offset: UInt64 { host &- base }
  func contains(_ address: UInt64) -> Bool { address &- base < size }
  func overlaps(_ other: MemorySlot) -> Bool { base < other.end && other.base < end }
}

final class MachineMemory: @unchecked Sendable {
  private let slots = Mutex<[MemorySlot]>([])
  private let tables: Mutex<NestedPageTables>
  /// The root of the nested tables; it never changes.
  let root: UInt64
  /// Not 0 while vCPUs have to stay out of guest code.
  let gate = Atomic<Int>(0)

  init() throws(Errno) {
    let tables = NestedPageTables()
    root = tables.root
    self.tables = Mutex(tables)
  }

  /// The slot of a guest-physical address.
  func slot(at address: UInt64) -> MemorySlot? {
    slots.withLock { slots in slots.first { $0.contains(address) } }
  }

  var all: [MemorySlot] { slots.withLock { $0 } }

  /// The host address of `count` bytes of guest memory, all in one slot.
  func pointer(_ address: UInt64, count: Int, writing: Bool) -> UnsafeMutableRawPointer? {
    guard let slot = slot(at: address), count >= 0,
      UInt64(count) <= slot.end &- address, !(writing && slot.isReadOnly)
    else { return nil }
    return UnsafeMutableRawPointer(bitPattern: UInt(address &+ slot.offset))
  }

  /// Reads an integer of guest memory; nil where there is none.
  func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) -> T? {
    pointer(address, count: MemoryLayout<T>.size, writing: false)?.loadUnaligned(as: T.self)
  }

  /// Maps the page (or large page) of `address`.
  ///
  /// - Returns: false where no slot lets the guest access it so.
  func map(_ address: UInt64, writing: Bool) -> Bool {
    // Under the slots' lock, so that no entry of a slot is made after it went.
    slots.withLock { slots in
      guard let slot = slots.first(where: { $0.contains(address) }),
        !(writing && slot.isReadOnly)
      else { return false }
      tables.withLock { $0.map(address, slot) }
      return true
    }
  }

  // MARK: Changes; the caller holds the machine's ioctl lock.

  func find(_ id: UInt32) -> MemorySlot? { slots.withLock { $0.first { $0.id == id } } }

  /// Whether a slot other than `slot.id` overlaps it.
  func isTaken(_ slot: MemorySlot) -> Bool {
    slots.withLock { $0.contains { $0.id != slot.id && $0.overlaps(slot) } }
  }

  func add(_ slot: MemorySlot) { slots.withLock { $0.append(slot) } }

  /// Removes a slot, or replaces it by `replacement`. No vCPU is in guest code.
  func remove(_ id: UInt32, replacement: MemorySlot? = nil) {
    slots.withLock { slots in
      slots.removeAll { $0.id == id }
      if let replacement { slots.append(replacement) }
      tables.withLock { $0.clear() }
    }
  }
}
