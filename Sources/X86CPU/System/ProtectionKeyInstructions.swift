// SPDX-License-Identifier: Apache-2.0
//
// RDPKRU and WRPKRU (SDM volume 3, "Protection Keys").

import X86
import X86Decoder

enum ProtectionKeyInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.rdpkru] = .single({ system($0, $1, ProtectionKeyInstructions.read) })
    t[.wrpkru] = .single({ system($0, $1, ProtectionKeyInstructions.write) })
  }

  static func read(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.s.pointee.cr4 & CR4.pke.rawValue == 0 { throw .invalidOpcode }
    if c.gpr[1] & 0xFFFF_FFFF != 0 { throw .generalProtection }
    c.gpr[0] = c.s.pointee.pkru & 0xFFFF_FFFF
    c.gpr[2] = 0
    return Step.next
  }

  /// WRPKRU: the TLB's rights include those of the keys.
  static func write(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.s.pointee.cr4 & CR4.pke.rawValue == 0 { throw .invalidOpcode }
    if (c.gpr[1] | c.gpr[2]) & 0xFFFF_FFFF != 0 { throw .generalProtection }
    let keys = c.gpr[0] & 0xFFFF_FFFF
    if keys == c.s.pointee.pkru { return Step.next }
    c.s.pointee.pkru = keys
    c.switchAddressSpace()
    return c.reload(i)
  }
}
