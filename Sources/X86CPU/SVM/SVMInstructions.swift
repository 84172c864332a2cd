// SPDX-License-Identifier: Apache-2.0
//
// SVM's instructions executed by a guest (APM volume 3, "System Instruction Reference"): #UD
// without EFER.SVME and outside protected mode, #GP above privilege 0, then the intercept. A
// hypervisor without nesting intercepts them all. Without an intercept they act on the physical
// CPU: addresses are host-physical.
//
// SKINIT has no row, as CPUID does not offer it: #UD.

import X86
import X86Decoder

enum SVMInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.vmrun] = .single({ system($0, $1, SVMInstructions.vmrun) })
    t[.vmload] = .single({ system($0, $1, SVMInstructions.vmload) })
    t[.vmsave] = .single({ system($0, $1, SVMInstructions.vmsave) })
    t[.stgi] = .single({ system($0, $1, SVMInstructions.stgi) })
    t[.clgi] = .single({ system($0, $1, SVMInstructions.clgi) })
    t[.invlpga] = .single({ system($0, $1, SVMInstructions.invlpga) })
    t[.vmmcall] = .single({ system($0, $1, SVMInstructions.vmmcall) })
  }

  private static func requireSVM(_ c: CPU) throws(GuestException) {
    if c.s.pointee.efer & EFER.svme.rawValue == 0 || !c.isProtected || c.isVirtual8086 {
      throw .invalidOpcode
    }
    try c.requirePrivilege()
  }

  /// rAX at the address size.
  private static func address(_ c: CPU, _ i: MicroOpPointer) -> UInt64 {
    switch i.pointee.addressSize {
    case 8: c.gpr[0]
    case 4: c.gpr[0] & 0xFFFF_FFFF
    default: c.gpr[0] & 0xFFFF
    }
  }

  /// #GP if rAX is not a page of physical memory. It precedes the intercept (APM volume 2,
  /// "Instruction Intercepts").
  private static func requireVMCB(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) {
    let address = address(c, i)
    if address & Page.offsetMask != 0 || address >> CPU.physicalAddressBits != 0 {
      throw .generalProtection
    }
  }

  /// A VMRUN in a guest always exits: VMRUN fails for a VMCB that does not intercept it.
  static func vmrun(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSVM(c)
    try requireVMCB(c, i)
    throw c.exit(.vmrun, i)
  }

  static func vmload(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSVM(c)
    try requireVMCB(c, i)
    if c.intercepts(.vmload) { throw c.exit(.vmload, i) }
    do throws(SVMError) { try c.owner.vmload(address(c, i)) } catch { throw .generalProtection }
    return c.reload(i)
  }

  static func vmsave(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSVM(c)
    try requireVMCB(c, i)
    if c.intercepts(.vmsave) { throw c.exit(.vmsave, i) }
    do throws(SVMError) { try c.owner.vmsave(address(c, i)) } catch { throw .generalProtection }
    return Step.next
  }

  static func stgi(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSVM(c)
    if c.intercepts(.stgi) { throw c.exit(.stgi, i) }
    return setGIF(true, c, i)
  }

  static func clgi(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSVM(c)
    if c.intercepts(.clgi) { throw c.exit(.clgi, i) }
    return setGIF(false, c, i)
  }

  /// Sets the guest's virtual GIF if it has one, else the processor's.
  private static func setGIF(_ isOpen: Bool, _ c: CPU, _ i: MicroOpPointer) -> Int32 {
    let bit = VirtualInterrupt.gifBit
    if c.s.pointee.virtualInterrupt.rawValue & VirtualInterrupt.gifEnabledBit == 0 {
      c.owner.svm.pointee.gif = isOpen
    } else if isOpen {
      c.s.pointee.virtualInterrupt.rawValue |= bit
    } else {
      c.s.pointee.virtualInterrupt.rawValue &= ~bit
    }
    c.updateVirtualEvents()
    return c.reload(i)
  }

  static func invlpga(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSVM(c)
    if c.intercepts(.invlpga) { throw c.exit(.invlpga, i) }
    let asid = UInt32(truncatingIfNeeded: c.gpr[1])
    c.owner.flushPage(address(c, i), ofGuest: asid)
    return c.reload(i)
  }

  /// #UD unless it is intercepted.
  static func vmmcall(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if !c.intercepts(.hypercall) { throw .invalidOpcode }
    throw c.exit(.hypercall, i)
  }
}
