// SPDX-License-Identifier: Apache-2.0
//
// Single values that guest and device change while the other looks: rings' indexes and flags. Each
// is one access of the processor, so nobody sees half of one.

import Synchronization

extension GuestMemory {
  /// A little-endian value; nil where it does not lie in memory or is not aligned. What the guest
  /// wrote before it is seen after it.
  package func load16(_ address: UInt64) -> UInt16? {
    guard let place = unsafe aligned(address, 2) else { return nil }
    return unsafe place.assumingMemoryBound(to: Atomic<UInt16>.self).pointee.load(
      ordering: .acquiring)
  }

  /// Stores a little-endian value after everything that was written before.
  ///
  /// - Returns: false where it does not lie in memory or is not aligned.
  package func store16(_ value: UInt16, at address: UInt64) -> Bool {
    guard let place = unsafe aligned(address, 2) else { return false }
    unsafe place.assumingMemoryBound(to: Atomic<UInt16>.self).pointee.store(
      value, ordering: .releasing)
    unsafe noteWrite(place, count: 2)
    return true
  }

  /// A copy of a little-endian value; nil where it does not lie in memory. Nobody changes it before
  /// an index says so.
  package func load64(_ address: UInt64) -> UInt64? {
    guard let place = unsafe host(address, count: 8) else { return nil }
    return unsafe place.loadUnaligned(as: UInt64.self)
  }

  /// Stores a little-endian value; nobody looks at it before an index that follows.
  package func store64(_ value: UInt64, at address: UInt64) -> Bool {
    guard let place = unsafe host(address, count: 8) else { return false }
    unsafe place.storeBytes(of: value, as: UInt64.self)
    unsafe noteWrite(place, count: 8)
    return true
  }

  private func aligned(_ address: UInt64, _ size: UInt64) -> UnsafeMutableRawPointer? {
    unsafe address & (size - 1) == 0 ? host(address, count: Int(size)) : nil
  }
}
