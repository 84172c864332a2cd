// SPDX-License-Identifier: Apache-2.0
//
// The memory of a machine, laid out by `GuestMap`.

import GuestMemory
import SystemPackage

extension GuestMemory {
  /// Maps the memory of a machine in the layout of `GuestMap`.
  ///
  /// - Parameters:
  ///   - size: bytes, a multiple of 4096, within the map's limits.
  ///   - hole: where the memory below 4 GiB ends at the latest.
  ///   - isShared: parts of it can be mapped a second time.
  ///   - observer: told of all writes.
  package convenience init(
    size: Int, hole: UInt64 = GuestMap.memoryHole, isShared: Bool = false,
    observer: GuestMemory.WriteObserver? = nil
  ) throws(Errno) {
    unsafe try self.init(
      size: size, lowEnd: hole, highStart: GuestMap.fourGiB, isShared: isShared, observer: observer)
  }
}
