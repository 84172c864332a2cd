// SPDX-License-Identifier: Apache-2.0
//
// The hypervisor's own accesses to guest memory, and what the client has mapped of a slot.

import ClientMemory
import Host
import X86
import X86CPU

extension MachineMemory {
  /// The target of an access to guest memory.
  @safe enum Place {
    /// No slot contains all of it, or the slot is read-only.
    case none
    /// A slot contains it, but the client has no memory mapped: EFAULT.
    case fault
    case at(UnsafeMutableRawPointer)
  }

  /// The area that may be mapped around an address of a slot; nil if the client has not mapped it
  /// for such accesses.
  func area(_ slot: MemorySlot, _ address: UInt64, writing: Bool) -> HostMemoryMap.Area? {
    guard let host else { return .everything }
    let place = address &+ slot.offset
    func suits(_ area: HostMemoryMap.Area) -> Bool { !writing || area.isWritable }
    if let area = host.area(at: place), suits(area) { return area }
    return host.area(at: place, anew: true).flatMap { suits($0) ? $0 : nil }
  }

  /// The host location of `count` bytes of guest memory in one slot.
  func place(_ address: UInt64, count: Int, writing: Bool = false) -> Place {
    guard let slot = slot(at: address), !(writing && slot.isReadOnly),
      let pointer = unsafe Self.pointer(slot, address, count)
    else { return .none }
    if host != nil {
      let last = address &+ UInt64(max(count, 1)) &- 1
      guard area(slot, address, writing: writing) != nil,
        address & Page.mask == last & Page.mask || area(slot, last, writing: writing) != nil
      else { return .fault }
    }
    return unsafe .at(pointer)
  }

  /// Whether `count` bytes of guest memory in one slot are readable.
  func isReadable(_ address: UInt64, count: Int) -> Bool {
    guard case .at = place(address, count: count) else { return false }
    return true
  }

  /// Copies guest memory of one slot. False if it is not readable.
  func read(_ address: UInt64, to buffer: UnsafeMutableRawPointer, count: Int) -> Bool {
    guard case .at(let pointer) = place(address, count: count) else { return false }
    if unsafe GuardedCopy.copy(from: pointer, to: buffer, count: count) { return true }
    hostMemoryVanished()
    return false
  }

  /// Reads an integer from guest memory; nil if there is none.
  func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) -> T? {
    var value: T = 0
    return unsafe read(address, to: &value, count: MemoryLayout<T>.size) ? value : nil
  }

  static func pointer(
    _ slot: MemorySlot, _ address: UInt64, _ count: Int
  ) -> UnsafeMutableRawPointer? {
    guard count >= 0, UInt64(count) <= slot.end &- address else { return nil }
    return unsafe UnsafeMutableRawPointer(bitPattern: UInt(address &+ slot.offset))
  }

  /// Has `body` write `count` bytes of guest memory in one slot like a guest write: updates the
  /// dirty log and the caches of decoded code.
  ///
  /// - Parameter dirtied: called for each page that was clean in its slot's log.
  /// - Returns: false if there is no such memory, or it is read-only.
  func write(
    _ address: UInt64, count: Int, _ body: (inout GuestBytes) -> Void,
    dirtied: (_ slot: UInt32, _ page: UInt64) -> Void
  ) -> Bool {
    guard case .at = place(address, count: count, writing: true) else { return false }
    return withSlots { slots in
      guard let slot = slots.slot(at: address), !slot.isReadOnly,
        let place = unsafe Self.pointer(slot, address, count)
      else { return false }
      var bytes = unsafe GuestBytes(place)
      body(&bytes)
      if !bytes.isThere { hostMemoryVanished() }
      if count > 0, let log = slot.log {
        let last = slot.page(of: address &+ UInt64(count) &- 1)
        for page in slot.page(of: address)...last where log.insert(page) {
          dirtied(slot.id, UInt64(page))
        }
      }
      unsafe PhysicalCPU.noteHostWrite(place, count: count)
      return bytes.isThere
    }
  }
}

/// Guest memory during a write. If it has vanished, stores do nothing and loads return 0.
@safe struct GuestBytes {
  private let start: UnsafeMutableRawPointer
  /// Whether all accesses so far succeeded.
  private(set) var isThere = true

  init(_ start: UnsafeMutableRawPointer) { unsafe self.start = unsafe start }

  mutating func load<T: FixedWidthInteger>(fromByteOffset offset: Int = 0, as: T.Type) -> T {
    var value: T = 0
    if unsafe !GuardedCopy.copy(from: start + offset, to: &value, count: MemoryLayout<T>.size) {
      isThere = false
    }
    return value
  }

  /// A single host store for 4 and 8 bytes.
  mutating func storeBytes<T: FixedWidthInteger>(
    of value: T, toByteOffset offset: Int = 0, as: T.Type
  ) {
    isThere = unsafe GuardedCopy.store(value, to: start + offset) && isThere
  }

  /// Atomic.
  mutating func exchange(_ value: UInt8, atByteOffset offset: Int) -> UInt8 {
    guard let old = unsafe GuardedCopy.exchange(value, at: start + offset) else {
      isThere = false
      return 0
    }
    return old
  }

  /// Atomic, of 8 bytes. False where the old value was another.
  mutating func compareExchange(_ value: UInt64, expected: UInt64) -> Bool {
    guard let isDone = unsafe GuardedCopy.compareExchange(value, expected: expected, at: start)
    else {
      isThere = false
      return false
    }
    return isDone
  }

  mutating func copyMemory(at offset: Int = 0, from source: UnsafeRawPointer, byteCount: Int) {
    isThere = unsafe GuardedCopy.copy(from: source, to: start + offset, count: byteCount) && isThere
  }
}
