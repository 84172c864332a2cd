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
  ///   - hole: upper limit of the memory below 4 GiB.
  package convenience init(
    size: Int, hole: UInt64 = GuestMap.memoryHole, observer: GuestMemory.WriteObserver? = nil
  ) throws(Errno) {
    unsafe try self.init(
      size: size, lowEnd: hole, highStart: GuestMap.fourGiB, observer: observer)
  }
}
