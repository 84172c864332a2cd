// SPDX-License-Identifier: Apache-2.0
//
// The guest state that no control block holds. While a vCPU is loaded it is in the physical CPU;
// this is where it waits otherwise.

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
  /// What the vendor that the guest's CPUID names does in its own way.
  var rules = VendorRules.intel

  init() {}

  /// From the physical CPU.
  mutating func save(from cpu: CPU) {
    let s = cpu.s
    gpr = s.pointee.gpr
    cr2 = s.pointee.cr2
    cr8 = s.pointee.cr8
    dr = s.pointee.dr
    dr6 = s.pointee.dr6
    xcr0 = s.pointee.xcr0
    xss = s.pointee.xss
    pkru = s.pointee.pkru
    star = s.pointee.star
    lstar = s.pointee.lstar
    cstar = s.pointee.cstar
    fmask = s.pointee.fmask
    kernelGSBase = s.pointee.kernelGSBase
    tscAux = s.pointee.tscAux
    vector = cpu.vector.pointee
  }

  /// Into the physical CPU. RSP is the control block's.
  func restore(to cpu: CPU) {
    let s = cpu.s
    let rsp = s.pointee.gpr[Int(GeneralRegister.rsp.rawValue)]
    s.pointee.gpr = gpr
    s.pointee.gpr[Int(GeneralRegister.rsp.rawValue)] = rsp
    s.pointee.cr2 = cr2
    s.pointee.cr8 = cr8
    s.pointee.dr = dr
    s.pointee.dr6 = dr6
    s.pointee.xcr0 = xcr0
    s.pointee.xss = xss
    s.pointee.pkru = pkru
    s.pointee.star = star
    s.pointee.lstar = lstar
    s.pointee.cstar = cstar
    s.pointee.fmask = fmask
    s.pointee.kernelGSBase = kernelGSBase
    s.pointee.tscAux = tscAux
    cpu.vector.pointee = vector
    s.pointee.rules = rules
  }
}
