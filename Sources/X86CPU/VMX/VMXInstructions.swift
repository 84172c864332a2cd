// SPDX-License-Identifier: Apache-2.0
//
// VMX instructions executed by a guest: VM exits, after the checks that precede them (SDM volume 3,
// "Instructions That Cause VM Exits Unconditionally", and each instruction's operation section).
// The program itself uses VMX operation through PhysicalCPU's methods.
//
// Instructions that are not offered have no rule and raise #UD: GETSEC (no SMX: CR4.SMXE cannot be
// 1), and SVM's VMRUN, VMLOAD, VMSAVE, VMMCALL, STGI, CLGI, SKINIT, INVLPGA.

import X86
import X86Decoder

enum VMXInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.vmcall] = .single({ system($0, $1, VMXInstructions.vmcall) })
    t[.vmlaunch] = .single({ system($0, $1, VMXInstructions.vmlaunch) })
    t[.vmresume] = .single({ system($0, $1, VMXInstructions.vmresume) })
    t[.vmxoff] = .single({ system($0, $1, VMXInstructions.vmxoff) })
    t[.vmfunc] = .single({ system($0, $1, VMXInstructions.vmfunc) })
    t[.vmxon] = OperandSummary.rule({ system($0, $1, VMXInstructions.vmxon) })
    t[.vmclear] = OperandSummary.rule({ system($0, $1, VMXInstructions.vmclear) })
    t[.vmptrld] = OperandSummary.rule({ system($0, $1, VMXInstructions.vmptrld) })
    t[.vmptrst] = OperandSummary.rule({ system($0, $1, VMXInstructions.vmptrst) })
    t[.vmread] = OperandSummary.rule({ system($0, $1, VMXInstructions.vmread) })
    t[.vmwrite] = OperandSummary.rule({ system($0, $1, VMXInstructions.vmwrite) })
    t[.invept] = OperandSummary.rule({ system($0, $1, VMXInstructions.invept) })
    t[.invvpid] = OperandSummary.rule({ system($0, $1, VMXInstructions.invvpid) })
  }

  /// #UD outside VMX operation, in real and virtual-8086 mode, and in compatibility mode. CPL is
  /// not checked: the exit comes first.
  private static func requireVMXMode(_ c: CPU) throws(GuestException) {
    let isCompatibility = c.isLongMode && !c.is64Bit
    let isVMX = c.s.pointee.intercepts.mode == .vmx
    if !isVMX || !c.isProtected || c.isVirtual8086 || isCompatibility {
      throw .invalidOpcode
    }
  }

  private static func plain(
    _ cause: ExitCause, _ c: CPU, _ i: MicroOpPointer
  ) throws(GuestException) -> Int32 {
    try requireVMXMode(c)
    throw c.exit(cause, i)
  }

  private static func informed(
    _ cause: ExitCause, _ c: CPU, _ i: MicroOpPointer
  ) throws(GuestException) -> Int32 {
    try requireVMXMode(c)
    throw c.exitWithOperands(cause, i)
  }

  static func vmcall(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.s.pointee.intercepts.mode != .vmx { throw .invalidOpcode }
    throw c.exit(.hypercall, i)
  }

  static func vmlaunch(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try plain(.vmlaunch, c, i)
  }

  static func vmresume(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try plain(.vmresume, c, i)
  }

  static func vmxoff(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try plain(.vmxoff, c, i)
  }

  static func vmxon(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try informed(.vmxon, c, i)
  }

  static func vmclear(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try informed(.vmclear, c, i)
  }

  static func vmptrld(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try informed(.vmptrld, c, i)
  }

  static func vmptrst(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try informed(.vmptrst, c, i)
  }

  static func vmread(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireVMXMode(c)
    if let step = try readShadow(c, i) { return step }
    throw c.exitWithOperands(.vmread, i)
  }

  static func vmwrite(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireVMXMode(c)
    if let step = try writeShadow(c, i) { return step }
    throw c.exitWithOperands(.vmwrite, i)
  }

  static func invept(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try informed(.invept, c, i)
  }

  static func invvpid(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try informed(.invvpid, c, i)
  }
}
