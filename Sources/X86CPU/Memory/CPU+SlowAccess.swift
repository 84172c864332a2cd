// SPDX-License-Identifier: Apache-2.0
//
// What a load or store does when the TLB has no answer.

import X86

extension CPU {
  @inline(never) func loadSlow(_ linear: UInt64, _ size: Int) throws(GuestException) -> UInt64 {
    throw .generalProtection
  }

  @inline(never) func storeSlow(
    _ linear: UInt64, _ value: UInt64, _ size: Int
  ) throws(GuestException) {
    throw .generalProtection
  }

  @inline(never) func pointerForModifySlow(
    _ linear: UInt64, size: Int
  ) throws(GuestException) -> UnsafeMutableRawPointer? {
    throw .generalProtection
  }

  @inline(never) func pointerForReadSlow(
    _ linear: UInt64, size: Int
  ) throws(GuestException) -> UnsafeRawPointer {
    throw .generalProtection
  }
}
