// SPDX-License-Identifier: Apache-2.0
//
// Memory slots, and the nested page tables that map them for the guest.
//
// A slot maps a range of this process's memory to a range of guest-physical addresses. A guest's
// first touch of an address fills the nested tables from the slots; removing a slot empties them,
// and the guest's next touch fills them again. So the tables never have an entry without a slot,
// and the guest reaches nothing outside the slots.
//
// A slot with a dirty log is mapped in 4 KiB pages, and a page is writable exactly while its bit in
// the log is set: the first write to a clean page exits, sets the bit and makes the page writable.
// Code that clears bits runs while no vCPU is in guest code and write-protects the pages.
//
// Entries cover only memory that the client has mapped, with the client's rights (HostMemoryMap);
// when the client changes its mappings, all entries are dropped (Hypervisor+ClientMappings).

import CHost
import ClientMemory
import Host
import Synchronization
import SystemPackage
import X86
import X86CPU

/// A range of guest-physical memory.
struct MemorySlot: Sendable {
  var id: UInt32
  /// First guest-physical byte, a multiple of 4096.
  var base: UInt64
  /// Bytes, a multiple of 4096.
  var size: UInt64
  /// Address in this process of the first byte.
  var host: UInt64
  var flags: UInt32
  /// With KVM_MEM_LOG_DIRTY_PAGES in the flags.
  var log: DirtyBitmap?

  var end: UInt64 { base &+ size }
  var hostRange: Range<UInt> { UInt(host)..<UInt(host &+ size) }
  var pageCount: Int { Int(size >> 12) }
  var isReadOnly: Bool { flags & UInt32(KVM_MEM_READONLY) != 0 }
  var isLogged: Bool { flags & UInt32(KVM_MEM_LOG_DIRTY_PAGES) != 0 }
  /// Host address minus guest-physical address.
  var offset: UInt64 { host &- base }
  func contains(_ address: UInt64) -> Bool { address &- base < size }
  func overlaps(_ other: MemorySlot) -> Bool { base < other.end && other.base < end }
  func page(of address: UInt64) -> Int { Int((address &- base) >> 12) }
}

/// The slots in the order of their addresses, and by number.
struct MemorySlots: Sendable {
  private(set) var ordered: [MemorySlot] = []
  private var bases: [UInt32: UInt64] = [:]

  /// The index of the first slot that ends beyond `address`.
  private func place(_ address: UInt64) -> Int {
    var low = 0
    var high = ordered.count
    while low < high {
      let middle = (low + high) / 2
      if ordered[middle].end > address { high = middle } else { low = middle + 1 }
    }
    return low
  }

  func slot(at address: UInt64) -> MemorySlot? {
    let index = place(address)
    guard index < ordered.count, ordered[index].contains(address) else { return nil }
    return ordered[index]
  }

  subscript(id: UInt32) -> MemorySlot? { bases[id].flatMap { slot(at: $0) } }

  /// Whether a slot with another number overlaps `slot`.
  func isTaken(_ slot: MemorySlot) -> Bool {
    var index = place(slot.base)
    while index < ordered.count, ordered[index].overlaps(slot) {
      if ordered[index].id != slot.id { return true }
      index += 1
    }
    return false
  }

  mutating func insert(_ slot: MemorySlot) {
    ordered.insert(slot, at: place(slot.base))
    bases[slot.id] = slot.base
  }

  mutating func remove(_ id: UInt32) {
    guard let base = bases.removeValue(forKey: id) else { return }
    ordered.remove(at: place(base))
  }
}

/// The memory of this process that slots use, for CPUs of other machines, which do not take the
/// slots' lock.
private final class SlotHostMemory: Sendable {
  private let ranges = Mutex<[UInt32: Range<UInt>]>([:])

  func set(_ id: UInt32, _ range: Range<UInt>) { ranges.withLock { $0[id] = range } }
  func remove(_ id: UInt32) { ranges.withLock { _ = $0.removeValue(forKey: id) } }
  func contains(_ address: UInt) -> Bool {
    ranges.withLock { $0.values.contains { $0.contains(address) } }
  }
}

/// Sendable: slots and tables are in mutexes, the rest is atomic or never changes.
final class MachineMemory: @unchecked Sendable {
  private let slots = Mutex(MemorySlots())
  private let tables: Mutex<NestedPageTables>
  private let hostMemory = SlotHostMemory()
  /// Tables of the guest's own guests, which are made of these.
  let shadows = ShadowList()
  /// The root of the nested tables; it never changes.
  let root: UInt64
  /// Nonzero while vCPUs must stay out of guest code.
  let gate = Atomic<Int>(0)
  /// Whether the last change left a vCPU in guest code: dropped tables may still be in use.
  let mayBeWalked = Atomic<Bool>(false)
  /// Whether a guest uses asynchronous page faults.
  let watchesPresence = Atomic<Bool>(false)
  let client: ClientMemory
  /// The client's mappings; nil if they never change.
  let host: HostMemoryMap?

  /// - Parameters:
  ///   - client: the memory that slots use.
  ///   - format: the format of the nested tables, by the processor's vendor.
  init(client: ClientMemory, format: NestedTableFormat = .extended) throws(Errno) {
    self.client = client
    host = client.map
    let tables = NestedPageTables(format)
    root = tables.root
    self.tables = Mutex(tables)
    claim(root)
  }

  deinit { GuestSpaces.shared.remove(root) }

  /// The slot of a guest-physical address.
  func slot(at address: UInt64) -> MemorySlot? { slots.withLock { $0.slot(at: address) } }

  var all: [MemorySlot] { slots.withLock { $0.ordered } }

  /// Runs `body` under the slots' lock.
  func withSlots<R>(_ body: (MemorySlots) -> R) -> R { slots.withLock { body($0) } }

  /// The result of an access that the nested tables did not allow.
  enum Mapping {
    /// No slot allows the access.
    case none
    /// The client has not mapped the memory for such accesses.
    case fault
    case mapped
    /// Mapped, and this was the first write to the page since its dirty log was cleared.
    case dirtied(slot: UInt32, page: UInt64)
    /// Not mapped: the page at this host address must be brought in first.
    case waits(host: UInt64)
  }

  /// Maps the page (or large page) of `address`.
  ///
  /// - Parameter mayWait: do not map a page that would have to be brought in.
  func map(_ address: UInt64, writing: Bool, mayWait: Bool = false) -> Mapping {
    guard let slot = slot(at: address), !(writing && slot.isReadOnly) else { return .none }
    guard let area = area(slot, address, writing: writing) else { return .fault }
    var present = presentPages(address, slot, area)
    let index = PresentPages.index(address)
    if mayWait, present?.contains(index) == false {
      return .waits(host: (address & Page.mask) &+ slot.offset)
    }
    present?.set(index, true)
    // Under the slots' lock, so that a removed slot gets no new entry.
    return slots.withLock { slots in
      guard let now = slots.slot(at: address), now.offset == slot.offset,
        now.isReadOnly == slot.isReadOnly, host == nil || host?.generation == area.generation
      else {
        // Changed meanwhile: let the guest retry.
        return .mapped
      }
      var result = Mapping.mapped
      if writing, let log = now.log {
        let page = now.page(of: address)
        if log.insert(page) { result = .dirtied(slot: now.id, page: UInt64(page)) }
      }
      tables.withLock { $0.map(address, now, area, present) }
      return result
    }
  }

  /// Calls `body` with the leaf that maps an address now. No leaf goes meanwhile: what `body` makes
  /// of it in tables of `shadows` goes with it.
  func withLeaf(of address: UInt64, _ body: (NestedLeaf) -> Void) {
    slots.withLock { _ in
      if let leaf = tables.withLock({ $0.leaf(of: address) }) { body(leaf) }
    }
  }

  /// Whose memory a page of this process is, for tables that are made of these.
  func claim(_ root: UInt64) {
    GuestSpaces.shared.add(root) { [hostMemory] page in hostMemory.contains(UInt(page)) }
  }

  /// Runs `change`, which changes the client's mappings, and takes all entries away: they are made
  /// anew of what is there then. No vCPU is in guest code.
  func withMappingsChanging<R>(_ change: () -> R) -> R {
    slots.withLock { _ in
      let result = change()
      host?.changed()
      clearTables()
      return result
    }
  }

  // MARK: Changes; the caller holds the machine's `configuration`.

  func find(_ id: UInt32) -> MemorySlot? { slots.withLock { $0[id] } }

  /// Whether a slot other than `slot.id` overlaps it.
  func isTaken(_ slot: MemorySlot) -> Bool { slots.withLock { $0.isTaken(slot) } }

  func add(_ slot: MemorySlot) {
    hostMemory.set(slot.id, slot.hostRange)
    slots.withLock { $0.insert(slot) }
  }

  /// Removes a slot, or replaces it by `replacement`. No vCPU is in guest code.
  func remove(_ id: UInt32, replacement: MemorySlot? = nil) {
    slots.withLock { slots in
      slots.remove(id)
      if let replacement {
        slots.insert(replacement)
        hostMemory.set(id, replacement.hostRange)
      } else {
        hostMemory.remove(id)
      }
      clearTables()
    }
  }

  private func clearTables() {
    let mayBeWalked = mayBeWalked.load(ordering: .sequentiallyConsistent)
    tables.withLock { $0.clear(keepingTables: mayBeWalked) }
    shadows.clear(keepingTables: mayBeWalked)
  }

  /// Copies the dirty log of a slot to as many words.
  func copyLog(of slot: MemorySlot, to words: inout DirtyWords) {
    slots.withLock { _ in slot.log?.copy(to: &words) }
  }

  /// Marks one page of a slot clean. No vCPU is in guest code.
  func clean(_ id: UInt32, page: UInt64) {
    guard let slot = find(id), page < UInt64(slot.pageCount) else { return }
    clean(slot, first: Int(page & ~63), mask: 1 &<< (page & 63))
  }

  /// Marks the pages of a slot clean whose bits are set in `mask`, 64 from page `first` on: removes
  /// them from the log, and their next write exits. No vCPU is in guest code.
  func clean(_ slot: MemorySlot, first: Int, mask: UInt64) {
    slots.withLock { _ in
      let cleared = slot.log?.remove(word: first / 64, mask) ?? 0
      tables.withLock { tables in
        var rest = cleared
        while rest != 0 {
          let page = first + rest.trailingZeroBitCount
          tables.protect(slot.base &+ UInt64(page) << 12)
          rest &= rest &- 1
        }
      }
      if cleared != 0 {
        shadows.clear(keepingTables: mayBeWalked.load(ordering: .sequentiallyConsistent))
      }
    }
  }
}
