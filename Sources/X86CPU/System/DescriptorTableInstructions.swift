// SPDX-License-Identifier: Apache-2.0
//
// LGDT, LIDT, SGDT, SIDT, with their exits.

import X86
import X86Decoder

enum DescriptorTableInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.sgdt] = rule({ system($0, $1, DescriptorTableInstructions.sgdt) })
    t[.sidt] = rule({ system($0, $1, DescriptorTableInstructions.sidt) })
    t[.lgdt] = rule({ system($0, $1, DescriptorTableInstructions.lgdt) })
    t[.lidt] = rule({ system($0, $1, DescriptorTableInstructions.lidt) })
  }

  /// Stores the operand's summary; `register0` is 1 for a 16-bit operand size, that is a 24-bit
  /// base.
  private static func rule(_ handler: @escaping Handler) -> LoweringRule {
    .custom { instruction, op, _ in
      op.pointee.immediate = UInt64(OperandSummary(instruction).rawValue)
      op.pointee.register0 = instruction.hasWordOperandSize ? 1 : 0
      return handler
    }
  }

  static func lgdt(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    c.s.pointee.gdtr = try loadTable(c, i, .lgdt, .lgdt)
    return Step.next
  }

  static func lidt(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    c.s.pointee.idtr = try loadTable(c, i, .lidt, .lidt)
    return Step.next
  }

  static func sgdt(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try storeTable(c, i, c.s.pointee.gdtr, .sgdt, .sgdt)
  }

  static func sidt(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try storeTable(c, i, c.s.pointee.idtr, .sidt, .sidt)
  }

  private static func loadTable(
    _ c: CPU, _ i: MicroOpPointer, _ intercept: InterceptSet, _ cause: ExitCause
  ) throws(GuestException) -> DescriptorTableState {
    try c.requirePrivilege()
    if c.intercepts(intercept) { throw c.exitWithOperands(cause, i) }
    let wide = c.is64Bit
    let address = try c.linearAddress(i, size: wide ? 10 : 6)
    let limit = UInt32(try c.load(address, as: UInt16.self))
    var base: UInt64
    if wide {
      base = try c.load(address &+ 2)
      if !c.isCanonicalBase(base) { throw .generalProtection }
    } else {
      base = UInt64(try c.load(address &+ 2, as: UInt32.self))
      if i.pointee.register0 != 0 { base &= 0xFF_FFFF }
    }
    return DescriptorTableState(base: base, limit: limit)
  }

  private static func storeTable(
    _ c: CPU, _ i: MicroOpPointer, _ table: DescriptorTableState, _ intercept: InterceptSet,
    _ cause: ExitCause
  ) throws(GuestException) -> Int32 {
    if c.cpl != 0 && c.s.pointee.cr4 & CR4.umip.rawValue != 0 { throw .generalProtection }
    if c.intercepts(intercept) { throw c.exitWithOperands(cause, i) }
    let size: UInt64 = c.is64Bit ? 10 : 6
    let address = try c.linearAddress(i, size: Int(size), .write)
    // The last byte's page must be writable before the first byte is written.
    _ = try c.pointerForModify(address &+ size &- 1, size: 1)
    try c.store(UInt16(truncatingIfNeeded: table.limit), at: address)
    if c.is64Bit {
      // It must be aligned to 32 bits (SDM volume 3, "Alignment Requirements by Data Type").
      try c.checkAlignment(address &+ 2, to: 4)
      try c.withoutAlignmentChecks { () throws(GuestException) in
        try c.store(table.base, at: address &+ 2)
      }
    } else {
      try c.store(UInt32(truncatingIfNeeded: table.base), at: address &+ 2)
    }
    return Step.next
  }
}
