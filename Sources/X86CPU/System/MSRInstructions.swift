// SPDX-License-Identifier: Apache-2.0
//
// RDMSR and WRMSR, with their exits.

import X86
import X86Decoder

enum MSRInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.rdmsr] = .single({ system($0, $1, MSRInstructions.rdmsr) })
    t[.wrmsr] = .single({ system($0, $1, MSRInstructions.wrmsr) })
  }

  static func rdmsr(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    let number = UInt32(truncatingIfNeeded: c.gpr[1])
    if c.msrExits(number, isWrite: false) { throw c.exit(.rdmsr, i) }
    let value: UInt64
    if let virtual = c.readVirtualMSR(number) {
      value = virtual
    } else {
      value = try c.readMSR(number)
    }
    c.gpr[0] = value & 0xFFFF_FFFF
    c.gpr[2] = value >> 32
    return Step.next
  }

  static func wrmsr(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    let number = UInt32(truncatingIfNeeded: c.gpr[1])
    if c.msrExits(number, isWrite: true) { throw c.exit(.wrmsr, i) }
    let value = c.gpr[2] << 32 | c.gpr[0] & 0xFFFF_FFFF
    if let step = try c.writeVirtualMSR(number, value, i) { return step }
    try c.writeMSR(number, value)
    return number == MSR.efer.rawValue ? c.reload(i) : Step.next
  }
}
