// SPDX-License-Identifier: Apache-2.0
//
// The ioctl that recycles the dirty rings of a machine. The client can write to the entries: each
// is checked before its page is looked up.

import CHost
import Synchronization
import SystemPackage

/// KVM_RESET_DIRTY_RINGS.
extension Machine {
  static let dirtyRingIoctls: [(UInt32, Method)] = [
    (CKVM_RESET_DIRTY_RINGS, { (machine, _) throws(Errno) in try machine.resetDirtyRings() })
  ]

  /// Marks the pages of entries that the client has harvested clean.
  ///
  /// - Returns: the number of entries.
  private func resetDirtyRings() throws(Errno) -> Int32 {
    try configuration.withLock { (configuration) throws(Errno) -> Int32 in
      guard configuration.dirtyRingEntries != 0 else { throw .invalidArgument }
      return try withGuestsStopped { () throws(Errno) -> Int32 in
        var taken: Int32 = 0
        for vcpu in virtualCPUs {
          taken += vcpu.dirtyRing?.takeMarked { memory(of: $0)?.clean($0, page: $1) } ?? 0
        }
        return taken
      }
    }
  }
}
