// SPDX-License-Identifier: Apache-2.0
//
// The guest state that is not in the control block. It is in the physical CPU while a vCPU is
// loaded, and here otherwise.

import X86
import X86CPU

struct GuestContext {
  private var gpr = InlineArray<16, UInt64>(repeating: 0)
  private var cr2: UInt64 = 0
  private var cr8: UInt64 = 0
  private var dr = InlineArray<4, UInt64>(repeating: 0)
  private var dr6: UInt64 = DR6.initial.rawValue
  private var xcr0: UInt64 = XCR0.x87.rawValue
  private var xss: UInt64 = 0
  private var pkru: UInt64 = 0
  private var star: UInt64 = 0
  private var lstar: UInt64 = 0
  private var cstar: UInt64 = 0
  private var fmask: UInt64 = 0
  private var kernelGSBase: UInt64 = 0
  private var tscAux: UInt64 = 0
  private var vector = VectorState()
  /// Behaviour that depends on the vendor in the guest's CPUID.
  var rules = VendorRules.intel

  init() {}

  /// Saves the state from the physical CPU.
  mutating func save(from cpu: CPU) {
    let s = unsafe cpu.s
    gpr = unsafe s.pointee.gpr
    cr2 = unsafe s.pointee.cr2
    cr8 = unsafe s.pointee.cr8
    dr = unsafe s.pointee.dr
    dr6 = unsafe s.pointee.dr6
    xcr0 = unsafe s.pointee.xcr0
    xss = unsafe s.pointee.xss
    pkru = unsafe s.pointee.pkru
    star = unsafe s.pointee.star
    lstar = unsafe s.pointee.lstar
    cstar = unsafe s.pointee.cstar
    fmask = unsafe s.pointee.fmask
    kernelGSBase = unsafe s.pointee.kernelGSBase
    tscAux = unsafe s.pointee.tscAux
    vector = unsafe cpu.vector.pointee
  }

  /// Restores the state to the physical CPU. RSP is in the control block.
  func restore(to cpu: CPU) {
    let s = unsafe cpu.s
    let rsp = unsafe s.pointee.gpr[Int(GeneralRegister.rsp.rawValue)]
    unsafe s.pointee.gpr = gpr
    unsafe s.pointee.gpr[Int(GeneralRegister.rsp.rawValue)] = rsp
    unsafe s.pointee.cr2 = cr2
    unsafe s.pointee.cr8 = cr8
    unsafe s.pointee.dr = dr
    unsafe s.pointee.dr6 = dr6
    unsafe s.pointee.xcr0 = xcr0
    unsafe s.pointee.xss = xss
    unsafe s.pointee.pkru = pkru
    unsafe s.pointee.star = star
    unsafe s.pointee.lstar = lstar
    unsafe s.pointee.cstar = cstar
    unsafe s.pointee.fmask = fmask
    unsafe s.pointee.kernelGSBase = kernelGSBase
    unsafe s.pointee.tscAux = tscAux
    unsafe cpu.vector.pointee = vector
    unsafe s.pointee.rules = rules
  }
}
