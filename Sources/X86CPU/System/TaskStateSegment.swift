// SPDX-License-Identifier: Apache-2.0
//
// Reads of the current TSS without a task switch: stacks of inner privilege levels and the
// interrupt stack table (SDM volume 3, "Task Management").

import X86

extension CPU {
  var hasLargeTSS: Bool { segment(.tr).pointee.rights.type & 8 != 0 }

  private func readTSS<T: FixedWidthInteger & UnsignedInteger>(
    _ offset: UInt32, as type: T.Type, external: Bool
  ) throws(GuestException) -> T {
    let tr = segment(.tr)
    let last = offset &+ UInt32(MemoryLayout<T>.size - 1)
    if tr.pointee.rights.isUnusable || last > tr.pointee.limit {
      throw .selector(.invalidTSS, tr.pointee.selector, external: external)
    }
    return try loadSystem(systemAddress(tr.pointee.base &+ UInt64(offset)), as: T.self)
  }

  /// RSP of privilege level `cpl`, or of the interrupt stack table (`ist` 1 to 7), in a 64-bit TSS.
  func longStackPointer(
    cpl: UInt8, ist: UInt8 = 0, external: Bool
  ) throws(GuestException) -> UInt64 {
    let offset = ist != 0 ? 0x24 + 8 * UInt32(ist - 1) : 4 + 8 * UInt32(cpl)
    return try readTSS(offset, as: UInt64.self, external: external)
  }

  /// The stack of privilege level `cpl` in a 16- or 32-bit TSS, with SS checked.
  func innerStack(cpl: UInt8, external: Bool) throws(GuestException) -> StackFrame {
    let pointer: UInt64
    let selector: UInt16
    if hasLargeTSS {
      let offset = 4 + 8 * UInt32(cpl)
      pointer = UInt64(try readTSS(offset, as: UInt32.self, external: external))
      selector = try readTSS(offset + 4, as: UInt16.self, external: external)
    } else {
      let offset = 2 + 4 * UInt32(cpl)
      pointer = UInt64(try readTSS(offset, as: UInt16.self, external: external))
      selector = try readTSS(offset + 2, as: UInt16.self, external: external)
    }
    let segment = try stackSegment(
      selector, cpl: cpl, .invalidTSS, external: external, long: false)
    return StackFrame(
      self, segment: segment, pointer: pointer, width: segment.rights.isBig ? 1 : 0,
      privilege: cpl, fault: .selector(.stackFault, selector, external: external))
  }

  /// The stack of privilege level `cpl` for 64-bit code: a null SS and RSP from the TSS.
  func longInnerStack(
    cpl: UInt8, pointer: UInt64, external: Bool
  ) -> StackFrame {
    StackFrame(
      self, segment: nullStack(cpl: cpl), pointer: pointer, width: 2, privilege: cpl,
      fault: GuestException(.stackFault, code: external ? 1 : 0))
  }
}
