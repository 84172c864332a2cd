// SPDX-License-Identifier: Apache-2.0
//
// Client mappings of the ring of coalesced writes: one ring for each machine, shown in the pages of
// every vCPU.

import CHost
import Glibc
import Host
import KVM

/// A machine has one ring of coalesced writes, a page in its first vCPU's file. If a client maps
/// another vCPU's pages, that page replaces the vCPU's own.
enum CoalescedRingMapping {
  private static let fixedNoReplace: Int32 = 0x10_0000  // MAP_FIXED_NOREPLACE

  /// After a new mapping: replaces the ring's page in it.
  static func show(
    in place: Int, _ length: UInt, file: Int32, offset: Int, protection: Int32, flags: Int32
  ) {
    guard flags & MAP_ANONYMOUS == 0, DescriptorTable.shared.mayHold(file),
      case .virtualCPU(let state)? = DescriptorTable.shared.known(file)?.kind,
      let ring = state.runner.ringFile, offset >= 0, offset <= InterruptibleCPU.ringRange.lowerBound
    else { return }
    let inside = InterruptibleCPU.ringRange.lowerBound - offset
    guard UInt(inside) < length else { return }
    _ = chost_syscall(
      Int(SYS_mmap), place + inside, InterruptibleCPU.ringRange.count, Int(protection),
      Int(flags & ~fixedNoReplace | MAP_FIXED), Int(ring), InterruptibleCPU.ringRange.lowerBound)
  }
}
