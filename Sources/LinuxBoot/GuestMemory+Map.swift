// SPDX-License-Identifier: Apache-2.0
//
// The memory of a machine, laid out as `GuestMap` has it.

import GuestMemory
import SystemPackage

extension GuestMemory {
  /// Maps the memory of a machine as `GuestMap` has it.
  ///
  /// - Parameter size: bytes, a multiple of 4096, within the map's limits.
  package convenience init(
    size: Int, observer: GuestMemory.WriteObserver? = nil
  ) throws(Errno) {
    unsafe try self.init(
      size: size, lowEnd: GuestMap.memoryHole, highStart: GuestMap.fourGiB, observer: observer)
  }
}
