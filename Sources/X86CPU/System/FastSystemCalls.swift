// SPDX-License-Identifier: Apache-2.0
//
// SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the RDFSBASE family, on the path of every system
// call of a guest.

import X86
import X86Decoder

/// Access rights of the flat segments that these instructions load (VMCS format): present, S, G.
package enum FlatRights {
  package static let code64: UInt32 = 0xA09B
  package static let code32: UInt32 = 0xC09B
  package static let data: UInt32 = 0xC093
  package static let user: UInt32 = 3 << 5
}

enum FastSystemCalls {
  static func register(_ t: inout LoweringTable) {
    t[.syscall] = .single({ system($0, $1, FastSystemCalls.syscall) })
    t[.sysret] = .single({ system($0, $1, FastSystemCalls.sysret) })
    t[.sysenter] = .single({ system($0, $1, FastSystemCalls.sysenter) })
    t[.sysexit] = .single({ system($0, $1, FastSystemCalls.sysexit) })
    t[.swapgs] = .single({ system($0, $1, FastSystemCalls.swapgs) })
    t[.rdfsbase] = baseRule(
      { FastSystemCalls.readBase(.fs, UInt32.self, $0, $1) },
      { FastSystemCalls.readBase(.fs, UInt64.self, $0, $1) })
    t[.rdgsbase] = baseRule(
      { FastSystemCalls.readBase(.gs, UInt32.self, $0, $1) },
      { FastSystemCalls.readBase(.gs, UInt64.self, $0, $1) })
    t[.wrfsbase] = baseRule(
      { FastSystemCalls.writeBase(.fs, UInt32.self, $0, $1) },
      { FastSystemCalls.writeBase(.fs, UInt64.self, $0, $1) })
    t[.wrgsbase] = baseRule(
      { FastSystemCalls.writeBase(.gs, UInt32.self, $0, $1) },
      { FastSystemCalls.writeBase(.gs, UInt64.self, $0, $1) })
  }

  private static func baseRule(
    _ dword: @escaping Handler, _ qword: @escaping Handler
  ) -> LoweringRule {
    .widths(WidthHandlers(nil, nil, dword, qword))
  }

  /// Loads CS and SS with flat segments.
  @inline(__always) private static func loadFlat(
    _ c: CPU, code: UInt64, _ codeRights: UInt32, stack: UInt64, _ stackRights: UInt32
  ) {
    c.segment(.cs).pointee = SegmentState(
      base: 0, limit: 0xFFFF_FFFF, accessRights: codeRights,
      selector: UInt16(truncatingIfNeeded: code))
    c.segment(.ss).pointee = SegmentState(
      base: 0, limit: 0xFFFF_FFFF, accessRights: stackRights,
      selector: UInt16(truncatingIfNeeded: stack))
  }

  // MARK: SYSCALL, SYSRET

  static func syscall(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSystemCalls(c)
    if !c.isLongMode { return legacySyscall(c, i) }
    let isCompatible = !c.is64Bit
    let flags = c.flags & ~RFLAGS.rf.rawValue
    c.gpr[1] = c.nextRIP(i)
    c.gpr[11] = flags
    c.flags = flags & ~c.s.pointee.fmask
    c.s.pointee.rip = isCompatible ? c.s.pointee.cstar : c.s.pointee.lstar
    let selector = (c.s.pointee.star >> 32) & 0xFFFC
    loadFlat(c, code: selector, FlatRights.code64, stack: selector &+ 8, FlatRights.data)
    if isCompatible { c.updateMode() } else { c.updatePrivilege() }
    return Step.reload
  }

  /// #UD if SYSCALL and SYSRET are not enabled, or do not exist in this mode.
  private static func requireSystemCalls(_ c: CPU) throws(GuestException) {
    guard c.s.pointee.efer & EFER.sce.rawValue != 0,
      c.is64Bit || c.follows(.systemCallsOutside64Bit) && !c.hasRealModeSegments
    else { throw .invalidOpcode }
  }

  /// On AMD, outside long mode: the target is in STAR, and the flags are not saved.
  private static func legacySyscall(_ c: CPU, _ i: MicroOpPointer) -> Int32 {
    let star = c.s.pointee.star
    c.gpr[1] = c.nextRIP(i) & 0xFFFF_FFFF
    c.s.pointee.rflags &= ~(RFLAGS.vm.rawValue | RFLAGS.if.rawValue | RFLAGS.rf.rawValue)
    c.s.pointee.rip = star & 0xFFFF_FFFF
    let selector = (star >> 32) & 0xFFFC
    loadFlat(c, code: selector, FlatRights.code32, stack: selector &+ 8, FlatRights.data)
    c.updateMode()
    return Step.reload
  }

  static func sysret(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSystemCalls(c)
    try c.requirePrivilege()
    let isLong = c.is64Bit
    let to64 = isLong && i.pointee.operandSize == 8
    let target = to64 ? c.gpr[1] : c.gpr[1] & 0xFFFF_FFFF
    if to64 && !c.follows(.sysretGoesAnywhere) { try c.requireCanonical(target) }
    if isLong {
      c.flags = c.gpr[11] & 0x3C_7FD7
    } else {
      c.s.pointee.rflags |= RFLAGS.if.rawValue
    }
    c.s.pointee.rip = target
    let selector = c.s.pointee.star >> 48
    let rights = (to64 ? FlatRights.code64 : FlatRights.code32) | FlatRights.user
    var stack = c.segment(.ss).pointee
    loadFlat(
      c, code: (to64 ? selector &+ 16 : selector) | 3, rights, stack: (selector &+ 8) | 3,
      FlatRights.data | FlatRights.user)
    if c.follows(.sysretKeepsStackSegment) {
      // The old segment stays, usable or not; its DPL becomes the CPL.
      stack.selector = c.segment(.ss).pointee.selector
      stack.accessRights |= FlatRights.user
      c.segment(.ss).pointee = stack
    }
    if to64 { c.updatePrivilege() } else { c.updateMode() }
    return Step.reload
  }

  // MARK: SYSENTER, SYSEXIT

  /// #UD if SYSENTER and SYSEXIT do not exist in this mode.
  private static func requireSysenter(_ c: CPU) throws(GuestException) {
    if c.isLongMode && c.follows(.noSysenterInLongMode) { throw .invalidOpcode }
  }

  static func sysenter(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSysenter(c)
    let selector = c.s.pointee.sysenterCS & 0xFFFC
    guard c.isProtected, selector != 0 else { throw .generalProtection }
    let wide = c.isLongMode
    c.s.pointee.rflags &= ~(RFLAGS.vm.rawValue | RFLAGS.if.rawValue | RFLAGS.rf.rawValue)
    c.gpr[4] = wide ? c.s.pointee.sysenterESP : c.s.pointee.sysenterESP & 0xFFFF_FFFF
    c.s.pointee.rip = wide ? c.s.pointee.sysenterEIP : c.s.pointee.sysenterEIP & 0xFFFF_FFFF
    loadFlat(
      c, code: selector, wide ? FlatRights.code64 : FlatRights.code32, stack: selector &+ 8,
      FlatRights.data)
    c.updateMode()
    return Step.reload
  }

  static func sysexit(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireSysenter(c)
    let selector = c.s.pointee.sysenterCS & 0xFFFC
    guard c.isProtected, selector != 0 else { throw .generalProtection }
    try c.requirePrivilege()
    let wide = i.pointee.operandSize == 8
    let (rip, rsp) = (c.gpr[2], c.gpr[1])
    if wide {
      try c.requireCanonical(rip)
      try c.requireCanonical(rsp)
    }
    c.gpr[4] = wide ? rsp : rsp & 0xFFFF_FFFF
    c.s.pointee.rip = wide ? rip : rip & 0xFFFF_FFFF
    let code = (wide ? selector &+ 32 : selector &+ 16) | 3
    loadFlat(
      c, code: code, (wide ? FlatRights.code64 : FlatRights.code32) | FlatRights.user,
      stack: (code &+ 8) | 3, FlatRights.data | FlatRights.user)
    c.updateMode()
    return Step.reload
  }

  // MARK: Bases

  static func swapgs(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    guard c.is64Bit else { throw .invalidOpcode }
    try c.requirePrivilege()
    let gs = c.segment(.gs)
    let base = gs.pointee.base
    gs.pointee.base = c.s.pointee.kernelGSBase
    c.s.pointee.kernelGSBase = base
    return Step.next
  }

  private static func requireFSGSBASE(_ c: CPU) throws(GuestException) {
    guard c.is64Bit, c.s.pointee.cr4 & CR4.fsgsbase.rawValue != 0 else { throw .invalidOpcode }
  }

  @inline(__always) fileprivate static func readBase<T: OperandInteger>(
    _ register: SegmentRegister, _: T.Type, _ c: RawPointer, _ i: RawPointer
  ) -> Int32 {
    system(c, i) { (c, i) throws(GuestException) in
      try requireFSGSBASE(c)
      c.write(T(truncatingIfNeeded: c.segment(register).pointee.base), to: i.pointee.dst)
      return Step.next
    }
  }

  @inline(__always) fileprivate static func writeBase<T: OperandInteger>(
    _ register: SegmentRegister, _: T.Type, _ c: RawPointer, _ i: RawPointer
  ) -> Int32 {
    system(c, i) { (c, i) throws(GuestException) in
      try requireFSGSBASE(c)
      let base = UInt64(c.read(i.pointee.dst, as: T.self))
      if !c.isCanonicalBase(base) { throw .generalProtection }
      c.segment(register).pointee.base = base
      return Step.next
    }
  }
}

extension CPU {
  /// The part of `updateMode` for a change of CPL and RFLAGS between two 64-bit code segments.
  @inline(__always) func updatePrivilege() {
    s.pointee.cpl = segment(.ss).pointee.rights.dpl
    updateSlow()
    selectTLBBank()
  }
}
