// SPDX-License-Identifier: Apache-2.0
//
// INVEPT and INVVPID. The TLB holds one guest's translations at a time, so every type drops either
// all of them or, if they belong to another guest, none.

import X86

extension PhysicalCPU {
  /// INVEPT.
  ///
  /// - Parameter type: 1 drops translations of `eptPointer`, 2 all.
  /// - Throws: error 28 for another type or an EPT pointer that is invalid at VM entry.
  package func invept(_ type: UInt64, eptPointer: UInt64 = 0) throws(VMXError) {
    try requireVMXOperation()
    switch type {
    case 1:
      guard VMXCapabilities.allows(eptPointer: eptPointer) else {
        throw fail(.invalidOperandToInvalidate)
      }
      if vmx.pointee.tlbEPT & Page.mask == eptPointer & Page.mask { cpu.flushTLB() }
    case 2: cpu.flushTLB()
    default: throw fail(.invalidOperandToInvalidate)
    }
  }

  /// INVVPID.
  ///
  /// - Parameter type: 0 drops one linear address of a VPID, 1 the VPID's, 2 all VPIDs', 3 the
  ///   VPID's except global pages (which are dropped, too).
  /// - Throws: error 28 for another type, VPID 0 (except type 2), or a non-canonical address.
  package func invvpid(
    _ type: UInt64, vpid: UInt16 = 0, linear: UInt64 = 0
  ) throws(VMXError) {
    try requireVMXOperation()
    if type > 3 || (type != 2 && vpid == 0) || (type == 0 && !EntryChecks.isCanonical(linear)) {
      throw fail(.invalidOperandToInvalidate)
    }
    if type == 2 || vmx.pointee.tlbVPID == vpid { cpu.flushTLB() }
  }
}
