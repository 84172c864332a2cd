// SPDX-License-Identifier: Apache-2.0

import X86

extension CPU {
  /// A data access that may match a breakpoint in DR0 to DR3.
  func noteDataAccess(_ linear: UInt64, size: Int, isWrite: Bool) {}
}
