// SPDX-License-Identifier: Apache-2.0
//
// The CPUID instruction, and the fields of CPUID leaves that depend on a CPU's number and state.

import X86
import X86Decoder

enum CPUIDInstruction {
  static func register(_ t: inout LoweringTable) {
    t[.cpuid] = .single({ system($0, $1, CPUIDInstruction.cpuid) })
  }

  /// CPUID: with VT-x always an exit.
  static func cpuid(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.intercepts(.cpuid) { throw c.exit(.cpuid, i) }
    let leaf = c.cpuid(
      UInt32(truncatingIfNeeded: c.gpr[0]), UInt32(truncatingIfNeeded: c.gpr[1]))
    c.gpr[0] = UInt64(leaf.eax)
    c.gpr[1] = UInt64(leaf.ecx)
    c.gpr[2] = UInt64(leaf.edx)
    c.gpr[3] = UInt64(leaf.ebx)
    return Step.next
  }
}

extension CPU {
  /// A leaf with the fields that depend on this CPU's number and running state. A leaf above the
  /// maximum is the last basic leaf, or 0 on an AMD processor.
  package func cpuid(_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDLeaf {
    let vendor = owner.silicon
    let isExtended = leaf & 0x8000_0000 != 0
    let lastBasic = CPUIDModel.lastBasicLeaf(vendor)
    let last = isExtended ? CPUIDModel.lastExtendedLeaf(vendor) : lastBasic
    if leaf > last, vendor == .amd { return CPUIDLeaf() }
    let leaf = leaf <= last ? leaf : lastBasic
    var result = CPUIDModel.leaf(leaf, subleaf, vendor)
    let number = UInt32(owner.number)
    switch leaf {
    case 1:
      result.ebx |= number << 24
      if s.pointee.cr4 & CR4.osxsave.rawValue != 0 { result.ecx |= 1 << 27 }
    case 7 where subleaf == 0:
      if s.pointee.cr4 & CR4.pke.rawValue != 0 { result.ecx |= 1 << 4 }
    case 0xB, 0x1F: result.edx = number
    case 0xD where subleaf < 2:
      result = ExtendedStateLayout.leaf(subleaf, xcr0: s.pointee.xcr0 | s.pointee.xss)
    default: break
    }
    return result
  }
}
