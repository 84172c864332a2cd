// SPDX-License-Identifier: Apache-2.0
//
// RDMSR and WRMSR, with the MSR bitmaps of VMX non-root operation and the virtualized x2APIC (SDM
// volume 3, "MSR-Bitmap Address" and "Virtualizing MSR-Based APIC Accesses").
//
//     MSR bitmap page:  0 reads of 0-1FFF   1024 reads of C0000000-C0001FFF   2048, 3072 writes

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
    if intercepts(c, number, write: false) { throw c.exit(.rdmsr, i) }
    let value = try c.readMSR(number)
    c.gpr[0] = value & 0xFFFF_FFFF
    c.gpr[2] = value >> 32
    return Step.next
  }

  static func wrmsr(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    let number = UInt32(truncatingIfNeeded: c.gpr[1])
    if intercepts(c, number, write: true) { throw c.exit(.wrmsr, i) }
    let value = c.gpr[2] << 32 | c.gpr[0] & 0xFFFF_FFFF
    try c.writeMSR(number, value)
    return number == MSR.efer.rawValue ? c.reload(i) : Step.next
  }

  /// Whether the access exits.
  private static func intercepts(_ c: CPU, _ number: UInt32, write: Bool) -> Bool {
    if !c.isNonRoot { return false }
    if !c.primary(PrimaryControls.useMSRBitmaps) { return true }
    let isHigh = number >= 0xC000_0000
    let index = isHigh ? number &- 0xC000_0000 : number
    if index > 0x1FFF { return true }
    let offset = (write ? 2048 : 0) + (isHigh ? 1024 : 0) + Int(index >> 3)
    guard let bitmap = UnsafePointer<UInt8>(bitPattern: UInt(c.s.pointee.vmx.msrBitmap)) else {
      return true
    }
    return bitmap[offset] & (1 << UInt8(index & 7)) != 0
  }
}
