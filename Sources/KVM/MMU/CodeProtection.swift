// SPDX-License-Identifier: Apache-2.0
//
// Connects the processors, which know the pages with code, with the client's memory, which can
// write-protect them. Neither imports the other.

import ClientMemory
import SystemPackage
import X86CPU

extension ClientMemory {
  /// Has the processors' code pages protected, once for each object.
  func protectCode() throws(Errno) {
    guard let codeGuard else { return }
    let isFirst = try codeGuard.start { PhysicalCPU.othersWrite(UInt64($0)) }
    guard isFirst else { return }
    PhysicalCPU.watchCode(
      CodeWatch(
        protect: { codeGuard.protect(UInt($0)) },
        open: { page, always in codeGuard.open(UInt(page), always: always) },
        needsComparison: { codeGuard.needsComparison(UInt($0)) }))
  }
}
