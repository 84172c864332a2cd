// SPDX-License-Identifier: Apache-2.0
//
// Single values that guest and device access concurrently: rings' indexes and flags. Each is one
// access of the processor, so values are never torn.

import Synchronization

extension GuestMemory {
  /// Load-acquires a little-endian value; nil if it is not in memory or not aligned.
  package func load16(_ address: UInt64) -> UInt16? {
    guard let place = unsafe aligned(address, 2) else { return nil }
    return unsafe place.assumingMemoryBound(to: Atomic<UInt16>.self).pointee.load(
      ordering: .acquiring)
  }

  /// Store-releases a little-endian value.
  ///
  /// - Returns: false if it is not in memory or not aligned.
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
