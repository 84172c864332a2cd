// SPDX-License-Identifier: Apache-2.0
//
// Guest writes that need no exit to the client, one table for ports and memory: ioeventfds, which
// are signalled, and coalesced zones, whose writes wait in a ring until the client's next exit
// (Linux, "KVM_IOEVENTFD" and "KVM_(UN)REGISTER_COALESCED_MMIO").

import CHost
import Host
import Synchronization
import SystemPackage

final class WriteSinks: Sendable {
  struct Place: Hashable, Sendable {
    var isPort: Bool
    var address: UInt64
  }

  struct Doorbell: Sendable {
    /// 1, 2, 4 or 8; 0: any length.
    var length: UInt32
    /// The value to match; nil: any.
    var match: UInt64?
    var event: ClientEvent

    func answers(_ size: Int, _ value: UInt64) -> Bool {
      if length == 0 { return true }
      guard Int(length) == size else { return false }
      guard let match else { return true }
      let mask: UInt64 = size >= 8 ? .max : 1 &<< UInt64(size * 8) &- 1
      return value & mask == match
    }

    /// Whether a write could match both (Linux: EEXIST).
    func collides(with other: Doorbell) -> Bool {
      length == 0 || other.length == 0
        || length == other.length
          && (match == nil || other.match == nil || match == other.match)
    }
  }

  struct Zone: Equatable, Sendable {
    var isPort: Bool
    var address: UInt64
    var size: UInt64

    func contains(_ start: UInt64, _ count: UInt64) -> Bool {
      start >= address && count <= size && start &- address <= size &- count
    }
  }

  private struct State: Sendable {
    var doorbells: [Place: [Doorbell]] = [:]
    var doorbellCount = 0
    var zones: [Zone] = []
  }

  private let state = Mutex(State())
  /// Whether anything is registered: checked at every exit.
  private let isUsed = Atomic<Bool>(false)
  /// As NR_IOBUS_DEVS.
  private static let limit = 1000

  /// Offers a write.
  ///
  /// - Returns: whether a sink took it.
  func write(
    _ place: Place, size: Int, value: UInt64, ring: () -> CoalescedRing?
  ) -> Bool {
    guard isUsed.load(ordering: .relaxed) else { return false }
    return state.withLock { state in
      if let bell = state.doorbells[place]?.first(where: { $0.answers(size, value) }) {
        bell.event.signal()
        return true
      }
      let isCoalesced = state.zones.contains {
        $0.isPort == place.isPort && $0.contains(place.address, UInt64(size))
      }
      return isCoalesced && ring()?.append(place, size: size, value: value) == true
    }
  }

  func add(_ bell: Doorbell, at place: Place) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      let old = state.doorbells[place] ?? []
      if old.contains(where: { $0.collides(with: bell) }) { throw .fileExists }
      guard state.doorbellCount < Self.limit else { throw .noSpace }
      state.doorbells[place, default: []].append(bell)
      state.doorbellCount += 1
    }
    isUsed.store(true, ordering: .sequentiallyConsistent)
  }

  /// - Throws: ENOENT if there is no such ioeventfd.
  func remove(_ bell: Doorbell, at place: Place) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      let index = state.doorbells[place]?.firstIndex {
        $0.length == bell.length && $0.match == bell.match && $0.event.isSame(as: bell.event)
      }
      guard let index else { throw .noSuchFileOrDirectory }
      state.doorbells[place]?.remove(at: index)
      if state.doorbells[place]?.isEmpty == true { state.doorbells[place] = nil }
      state.doorbellCount -= 1
    }
  }

  func add(_ zone: Zone) throws(Errno) {
    try state.withLock { (state) throws(Errno) in
      guard state.zones.count < Self.limit else { throw .noSpace }
      state.zones.append(zone)
    }
    isUsed.store(true, ordering: .sequentiallyConsistent)
  }

  /// Removes the zones that contain all of `zone`.
  func remove(_ zone: Zone) {
    state.withLock { state in
      state.zones.removeAll {
        $0.isPort == zone.isPort && $0.contains(zone.address, zone.size)
      }
    }
  }
}

/// The page of writes that wait for the client: `kvm_coalesced_mmio_ring`, then its entries. The
/// client advances `first`, we advance `last`.
@safe struct CoalescedRing {
  /// Its page in a vCPU's shared pages: KVM_COALESCED_MMIO_PAGE_OFFSET.
  static let page = 2
  /// Its range in a vCPU's shared pages and in the file of the machine's first vCPU.
  static let fileRange = page * 4096..<(page + 1) * 4096
  private static let entries = 8
  private static let stride = MemoryLayout<kvm_coalesced_mmio>.stride
  static let capacity = UInt32((4096 - entries) / stride)

  let base: UnsafeMutableRawPointer

  /// - Returns: false if the ring is full.
  func append(_ place: WriteSinks.Place, size: Int, value: UInt64) -> Bool {
    let first = unsafe index(at: 0).pointee.load(ordering: .acquiring)
    // The client may have written any value, and may do so again.
    let last = unsafe index(at: 4).pointee.load(ordering: .relaxed)
    guard last < Self.capacity else { return false }
    let next = (last + 1) % Self.capacity
    if next == first { return false }
    var entry = kvm_coalesced_mmio()
    entry.phys_addr = place.address
    entry.len = UInt32(truncatingIfNeeded: size)
    entry.pio = place.isPort ? 1 : 0
    unsafe withUnsafeMutableBytes(of: &entry.data) {
      unsafe $0.storeBytes(of: value, as: UInt64.self)
    }
    unsafe base.storeBytes(
      of: entry, toByteOffset: Self.entries + Int(last) * Self.stride,
      as: kvm_coalesced_mmio.self)
    unsafe index(at: 4).pointee.store(next, ordering: .releasing)
    return true
  }

  private func index(at offset: Int) -> UnsafeMutablePointer<Atomic<UInt32>> {
    unsafe (base + offset).assumingMemoryBound(to: Atomic<UInt32>.self)
  }
}
