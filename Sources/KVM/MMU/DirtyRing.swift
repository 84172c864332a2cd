// SPDX-License-Identifier: Apache-2.0
//
// A vCPU's dirty ring (Linux, "KVM_CAP_DIRTY_LOG_RING"): an array of `kvm_dirty_gfn` that the
// client maps. We append written pages; the client reads them and marks them for reset; a reset
// makes them clean again.
//
//     kvm_dirty_gfn:  u32 flags (1 dirty, 2 reset)   u32 slot   u64 page in the slot

import CHost
import Host
import Synchronization
import SystemPackage

/// Sendable: the vCPU's thread appends, resets run under the machine's lock of ioctls, and both
/// counts are atomic. The client may write to the entries at any time.
final class DirtyRing: @unchecked Sendable {
  /// As KVM_DIRTY_RING_MAX_ENTRIES and KVM_DIRTY_RING_RSVD_ENTRIES.
  static let maxEntries: UInt32 = 65536
  static let reservedEntries: UInt32 = 64
  static let entrySize = MemoryLayout<kvm_dirty_gfn>.stride

  /// The client maps the ring at this page of the vCPU (KVM_DIRTY_LOG_PAGE_OFFSET).
  static let pageOffset = 64

  private let mapping: Mapping
  var pages: UnsafeMutableRawPointer { unsafe mapping.address }
  var byteCount: Int { Int(count) * Self.entrySize }
  let count: UInt32
  /// Total entries appended and reset.
  private let appended = Atomic<UInt32>(0)
  private let reset = Atomic<UInt32>(0)

  /// Size of a vCPU's file with a ring of `count` entries.
  static func fileSize(count: UInt32) -> Int { pageOffset * 4096 + Int(count) * entrySize }

  /// - Parameters:
  ///   - count: a power of two, whose entries fill pages.
  ///   - file: of `fileSize` bytes, zeroed.
  init(count: UInt32, file: Int32) throws(Errno) {
    self.count = count
    mapping = try Mapping(
      sharing: file, offset: Self.pageOffset * 4096, size: Int(count) * Self.entrySize)
  }

  /// Whether the client must empty it before the guest continues.
  var isFull: Bool {
    appended.load(ordering: .relaxed) &- reset.load(ordering: .relaxed)
      >= count - Self.reservedEntries
  }

  private func entry(_ number: UInt32) -> UnsafeMutableRawPointer {
    unsafe pages + Int(number & (count - 1)) * Self.entrySize
  }

  func append(slot: UInt32, page: UInt64) {
    let number = appended.load(ordering: .relaxed)
    // The reserved entries are for the hypervisor's own writes; never overwrite entries.
    guard number &- reset.load(ordering: .relaxed) < count else { return }
    let place = unsafe entry(number)
    unsafe place.storeBytes(of: slot, toByteOffset: 4, as: UInt32.self)
    unsafe place.storeBytes(of: page, toByteOffset: 8, as: UInt64.self)
    atomicMemoryFence(ordering: .releasing)
    unsafe place.storeBytes(of: CKVM_DIRTY_GFN_F_DIRTY, as: UInt32.self)
    appended.store(number &+ 1, ordering: .relaxed)
  }

  /// Removes entries that the client has marked, in order, and calls `body` for each.
  ///
  /// - Returns: their number.
  func takeMarked(_ body: (_ slot: UInt32, _ page: UInt64) -> Void) -> Int32 {
    var taken: Int32 = 0
    while taken < Int32(count) {
      let number = reset.load(ordering: .relaxed)
      let place = unsafe entry(number)
      guard unsafe place.load(as: UInt32.self) & CKVM_DIRTY_GFN_F_RESET != 0 else { break }
      atomicMemoryFence(ordering: .acquiring)
      unsafe body(
        place.load(fromByteOffset: 4, as: UInt32.self),
        place.load(fromByteOffset: 8, as: UInt64.self))
      unsafe place.storeBytes(of: 0, as: UInt32.self)
      reset.store(number &+ 1, ordering: .relaxed)
      taken += 1
    }
    return taken
  }
}

extension VirtualCPU {
  /// Records the first write to a clean page.
  func noteDirty(slot: UInt32, page: UInt64) -> Disposition {
    dirtyRing?.append(slot: slot, page: page)
    return .resume
  }

  /// Writes guest memory on the guest's behalf; see `MachineMemory.write`.
  ///
  /// - Parameter space: nil: the address space that the guest is in.
  func writeMemory(
    _ address: UInt64, count: Int, in space: MachineMemory? = nil,
    _ body: (inout GuestBytes) -> Void
  ) -> Bool {
    (space ?? memory).write(address, count: count, body) { slot, page in
      dirtyRing?.append(slot: slot, page: page)
    }
  }
}
