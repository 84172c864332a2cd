// SPDX-License-Identifier: Apache-2.0
//
// MOV to and from debug registers (SDM volume 3, "Debug Registers").

import X86
import X86Decoder

extension DR6 {
  /// Writable bits; BLD and RTM belong to features that are not offered.
  static let writable: DR6 = [.b0, .b1, .b2, .b3, .bd, .bs, .bt]
}

extension DR7 {
  /// Bit 10 reads as 1; bits 11 (RTM), 12, 14 and 15 read as 0.
  static let writable = DR7(rawValue: 0xFFFF_23FF)
}

extension GuestException {
  /// #DB with the bits that its delivery sets in DR6, in bits 63:32 (it has no error code).
  package static func debug(_ cause: DR6) -> GuestException {
    GuestException(
      rawValue: UInt64(ExceptionVector.debug.rawValue) | (cause.rawValue & 0xFFFF) << 32)
  }
}

enum DebugRegisterInstructions {
  /// Exits and faults. VT-x exits before #UD for DR4 and DR5 and before #GP for the privilege
  /// level; #DB for general detect is the last fault.
  private static func check(
    _ c: CPU, _ i: MicroOpPointer, number: UInt8, general: UInt8, isRead: Bool
  ) throws(GuestException) -> UInt8 {
    if number > 7 { throw .invalidOpcode }
    let intercepted =
      isRead ? c.s.pointee.intercepts.drReads : c.s.pointee.intercepts.drWrites
    let exits = intercepted >> UInt16(number & 7) & 1 != 0
    let isAlias = number == 4 || number == 5
    try c.exitOrCheck(exits, exit(c, i, number, general, isRead)) { () throws(GuestException) in
      if isAlias && c.s.pointee.cr4 & CR4.de.rawValue != 0 { throw .invalidOpcode }
      try c.requirePrivilege()
      if c.s.pointee.dr7 & DR7.gd.rawValue != 0 { throw .debug(.bd) }
    }
    return isAlias ? number &+ 2 : number
  }

  private static func exit(
    _ c: CPU, _ i: MicroOpPointer, _ number: UInt8, _ general: UInt8, _ isRead: Bool
  ) -> GuestException {
    let exception = c.exit(.debugRegisterAccess, i)
    c.s.pointee.exit.register = number
    c.s.pointee.exit.general = general
    c.s.pointee.exit.access = isRead ? .read : .write
    return exception
  }

  static func movFrom(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let number = try check(
      c, i, number: i.pointee.register1, general: i.pointee.register0, isRead: true)
    let value: UInt64
    switch number {
    case 6: value = c.s.pointee.dr6
    case 7: value = c.s.pointee.dr7
    default: value = c.s.pointee.dr[Int(number & 3)]
    }
    if c.is64Bit {
      c.write(value, to: i.pointee.dst)
    } else {
      c.write(UInt32(truncatingIfNeeded: value), to: i.pointee.dst)
    }
    return Step.next
  }

  static func movTo(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let number = try check(
      c, i, number: i.pointee.register0, general: i.pointee.register1, isRead: false)
    let source = c.read(i.pointee.src, as: UInt64.self)
    let value = c.is64Bit ? source : source & 0xFFFF_FFFF
    if number >= 6 && value >> 32 != 0 { throw .generalProtection }
    switch number {
    case 6:
      c.s.pointee.dr6 = value & DR6.writable.rawValue | DR6.initial.rawValue
      return Step.next
    case 7: c.s.pointee.dr7 = value & DR7.writable.rawValue | DR7.initial.rawValue
    default: c.s.pointee.dr[Int(number & 3)] = value
    }
    // Pages with data breakpoints have no TLB entries.
    if c.s.pointee.dr7 & DR7.anyEnabled.rawValue != 0 || number == 7 { c.flushTLB() }
    c.updateSlow()
    return c.reload(i)
  }
}
