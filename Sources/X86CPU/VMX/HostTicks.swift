// SPDX-License-Identifier: Apache-2.0

import X86

/// The host's TSC.
func chost_rdtsc() -> UInt64 { 0 }

extension CPU {
  func readMSR(_ number: UInt32) throws(GuestException) -> UInt64 { throw .generalProtection }
  func writeMSR(_ number: UInt32, _ value: UInt64) throws(GuestException) {
    throw .generalProtection
  }
}
