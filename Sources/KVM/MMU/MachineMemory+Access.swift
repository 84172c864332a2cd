// SPDX-License-Identifier: Apache-2.0
//
// The hypervisor's own accesses to guest memory, and what of a slot's memory the client has there.

import Host
import X86
import X86CPU

extension MachineMemory {
  /// Where an access to guest memory goes.
  enum Place {
    /// No slot has it, or not all of it, or not for writing.
    case none
    /// A slot has it, but the client has nothing there: EFAULT.
    case fault
    case at(UnsafeMutableRawPointer)
  }

  /// What may be mapped around an address of a slot; nil where the client has nothing there that
  /// can be accessed so.
  func area(_ slot: MemorySlot, _ address: UInt64, writing: Bool) -> HostMemoryMap.Area? {
    guard let host else { return .everything }
    let place = address &+ slot.offset
    func suits(_ area: HostMemoryMap.Area) -> Bool { !writing || area.isWritable }
    if let area = host.area(at: place), suits(area) { return area }
    return host.area(at: place, anew: true).flatMap { suits($0) ? $0 : nil }
  }

  /// The place of `count` bytes of guest memory, all in one slot.
  func place(_ address: UInt64, count: Int, writing: Bool = false) -> Place {
    guard let slot = slot(at: address), !(writing && slot.isReadOnly),
      let pointer = Self.pointer(slot, address, count)
    else { return .none }
    if host != nil {
      let last = address &+ UInt64(max(count, 1)) &- 1
      guard area(slot, address, writing: writing) != nil,
        address & Page.mask == last & Page.mask || area(slot, last, writing: writing) != nil
      else { return .fault }
    }
    return .at(pointer)
  }

  /// The host address of `count` bytes of guest memory to read, all in one slot.
  func pointer(_ address: UInt64, count: Int) -> UnsafeMutableRawPointer? {
    guard case .at(let pointer) = place(address, count: count) else { return nil }
    return pointer
  }

  /// Reads an integer of guest memory; nil where there is none.
  func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) -> T? {
    pointer(address, count: MemoryLayout<T>.size)?.loadUnaligned(as: T.self)
  }

  static func pointer(
    _ slot: MemorySlot, _ address: UInt64, _ count: Int
  ) -> UnsafeMutableRawPointer? {
    guard count >= 0, UInt64(count) <= slot.end &- address else { return nil }
    return UnsafeMutableRawPointer(bitPattern: UInt(address &+ slot.offset))
  }

  /// Has `body` write `count` bytes of guest memory, all in one slot, as the guest would: the dirty
  /// log and the caches of decoded code know of it.
  ///
  /// - Parameter dirtied: called for each page that was clean in its slot's log.
  /// - Returns: false where there is no such memory, or it is read-only.
  func write(
    _ address: UInt64, count: Int, _ body: (UnsafeMutableRawPointer) -> Void,
    dirtied: (_ slot: UInt32, _ page: UInt64) -> Void
  ) -> Bool {
    guard case .at = place(address, count: count, writing: true) else { return false }
    return withSlots { slots in
      guard let slot = slots.slot(at: address), !slot.isReadOnly,
        let place = Self.pointer(slot, address, count)
      else { return false }
      body(place)
      if count > 0, let log = slot.log {
        let last = slot.page(of: address &+ UInt64(count) &- 1)
        for page in slot.page(of: address)...last where log.insert(page) {
          dirtied(slot.id, UInt64(page))
        }
      }
      PhysicalCPU.noteHostWrite(place, count: count)
      return true
    }
  }
}
