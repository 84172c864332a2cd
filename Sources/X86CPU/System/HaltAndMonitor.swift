// SPDX-License-Identifier: Apache-2.0
//
// HLT, MONITOR, MWAIT, PAUSE; RDTSC, RDTSCP, RDPID, RDPMC; RDRAND and RDSEED; RSM, which is #UD
// without system-management mode. UD0, UD1 and UD2 have no rule: #UD.

import X86
import X86Decoder

enum HaltAndMonitor {
  static func register(_ t: inout LoweringTable) {
    t[.hlt] = .single({ system($0, $1, HaltAndMonitor.hlt) })
    t[.monitor] = .single({ system($0, $1, HaltAndMonitor.monitor) })
    t[.mwait] = .single({ system($0, $1, HaltAndMonitor.mwait) })
    t[.pause] = .single({ system($0, $1, HaltAndMonitor.pause) })
    t[.rdtsc] = .single({ system($0, $1, HaltAndMonitor.rdtsc) })
    t[.rdtscp] = .single({ system($0, $1, HaltAndMonitor.rdtscp) })
    t[.rdpid] = .single({ system($0, $1, HaltAndMonitor.rdpid) })
    t[.rdpmc] = .single({ system($0, $1, HaltAndMonitor.rdpmc) })
    t[.rsm] = .single({ system($0, $1, HaltAndMonitor.rsm) })
    t[.rdrand] = randomRule(
      { HaltAndMonitor.random(UInt16.self, isSeed: false, $0, $1) },
      { HaltAndMonitor.random(UInt32.self, isSeed: false, $0, $1) },
      { HaltAndMonitor.random(UInt64.self, isSeed: false, $0, $1) })
    t[.rdseed] = randomRule(
      { HaltAndMonitor.random(UInt16.self, isSeed: true, $0, $1) },
      { HaltAndMonitor.random(UInt32.self, isSeed: true, $0, $1) },
      { HaltAndMonitor.random(UInt64.self, isSeed: true, $0, $1) })
  }

  // MARK: Waiting

  static func hlt(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    if c.intercepts(.hlt) { throw c.exit(.hlt, i) }
    c.s.pointee.activity = ActivityState.hlt
    return c.reload(i)
  }

  static func monitor(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.cpl != 0 { throw .invalidOpcode }
    // On SVM all exceptions come first, even those of the access.
    try c.exitOrCheck(c.intercepts(.monitor), c.exit(.monitor, i)) { () throws(GuestException) in
      // ECX selects extensions; there are none.
      if UInt32(truncatingIfNeeded: c.gpr[1]) != 0 { throw .generalProtection }
      try touchMonitored(c, i)
    }
    c.s.pointee.system.monitorArmed = true
    return Step.next
  }

  /// MONITOR reads a byte of the range that it watches.
  private static func touchMonitored(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) {
    let mask: UInt64 =
      i.pointee.addressSize == 8 ? .max : i.pointee.addressSize == 4 ? 0xFFFF_FFFF : 0xFFFF
    let register = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    let address = try c.linear(register, c.gpr[0] & mask, size: 1, .read)
    _ = try c.load(address, as: UInt8.self)
  }

  /// MWAIT may end for implementation-specific reasons; this one ends at once.
  static func mwait(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.cpl != 0 { throw .invalidOpcode }
    let armed = c.s.pointee.system.monitorArmed
    let exits = c.intercepts(armed ? [.mwait, .armedMWAIT] : .mwait)
    try c.exitOrCheck(exits, mwaitExit(c, i, armed)) { () throws(GuestException) in
      // Bit 0: masked interrupts end the wait.
      if UInt32(truncatingIfNeeded: c.gpr[1]) & ~1 != 0 { throw .generalProtection }
    }
    c.s.pointee.system.monitorArmed = false
    return c.reload(i)
  }

  private static func mwaitExit(
    _ c: CPU, _ i: MicroOpPointer, _ isArmed: Bool
  ) -> GuestException {
    let exit = c.exit(.mwait, i)
    if isArmed { c.s.pointee.exit.details = .isArmed }
    return exit
  }

  /// RSM outside of system-management mode.
  static func rsm(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.intercepts(.rsm) { throw c.exit(.rsm, i) }
    throw .invalidOpcode
  }

  /// PAUSE, with PAUSE-loop exiting at CPL 0: two PAUSEs within the gap belong to one loop, and a
  /// loop longer than the window exits (both in TSC ticks).
  static func pause(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.intercepts(.pause) { throw c.exit(.pause, i) }
    guard c.intercepts(.pauseLoop) else { return Step.next }
    if c.s.pointee.intercepts.mode == .svm { return try filteredPause(c, i) }
    guard c.cpl == 0 else { return Step.next }
    let now = HostTSC.read()
    let state = c.s
    if now &- state.pointee.system.pauseLast > UInt64(state.pointee.intercepts.pauseGap) {
      state.pointee.system.pauseFirst = now
    } else if now &- state.pointee.system.pauseFirst
      > UInt64(state.pointee.intercepts.pauseWindow)
    {
      state.pointee.system.pauseLast = 0
      throw c.exit(.pause, i)
    }
    state.pointee.system.pauseLast = now
    return Step.next
  }

  /// SVM's PAUSE filter (APM volume 2, "Pause Intercept Filtering"): a number of PAUSEs pass, and
  /// the count restarts when two are further apart than the threshold, if any.
  private static func filteredPause(
    _ c: CPU, _ i: MicroOpPointer
  ) throws(GuestException) -> Int32 {
    let state = c.s
    let threshold = UInt64(state.pointee.intercepts.pauseGap)
    if threshold != 0 {
      let now = HostTSC.read()
      if now &- state.pointee.system.pauseLast > threshold {
        state.pointee.system.pauseFirst = UInt64(state.pointee.intercepts.pauseWindow)
      }
      state.pointee.system.pauseLast = now
    }
    if state.pointee.system.pauseFirst == 0 { throw c.exit(.pause, i) }
    state.pointee.system.pauseFirst &-= 1
    return Step.next
  }

  // MARK: Counters

  /// #GP(0) if CR4.TSD denies the counter to user code.
  private static func requireTSC(_ c: CPU) throws(GuestException) {
    if c.cpl != 0 && c.s.pointee.cr4 & CR4.tsd.rawValue != 0 { throw .generalProtection }
  }

  static func rdtsc(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireTSC(c)
    if c.intercepts(.rdtsc) { throw c.exit(.rdtsc, i) }
    let value = c.guestTSC
    c.gpr[0] = value & 0xFFFF_FFFF
    c.gpr[2] = value >> 32
    return Step.next
  }

  static func rdtscp(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requireEnabled(.rdtscp)
    try requireTSC(c)
    if c.intercepts(.rdtscp) { throw c.exit(.rdtscp, i) }
    let value = c.guestTSC
    c.gpr[0] = value & 0xFFFF_FFFF
    c.gpr[2] = value >> 32
    c.gpr[1] = c.s.pointee.tscAux & 0xFFFF_FFFF
    return Step.next
  }

  static func rdpid(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requireEnabled(.rdtscp)
    c.write(c.s.pointee.tscAux & 0xFFFF_FFFF, to: i.pointee.dst)
    return Step.next
  }

  /// RDPMC: there are no performance counters, so #GP.
  static func rdpmc(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.cpl != 0 && c.s.pointee.cr4 & CR4.pce.rawValue == 0 { throw .generalProtection }
    if c.intercepts(.rdpmc) { throw c.exit(.rdpmc, i) }
    throw .generalProtection
  }

  // MARK: Random numbers

  private static func randomRule(
    _ word: @escaping Handler, _ dword: @escaping Handler, _ qword: @escaping Handler
  ) -> LoweringRule {
    .custom { instruction, op, _ in
      op.pointee.immediate = UInt64(OperandSummary(instruction).rawValue)
      switch instruction.operandSize {
      case 2: return word
      case 4: return dword
      default: return qword
      }
    }
  }

  /// The kernel's generator is seeded before any guest runs: CF is always 1.
  @inline(__always) private static func random<T: OperandInteger>(
    _: T.Type, isSeed: Bool, _ c: RawPointer, _ i: RawPointer
  ) -> Int32 {
    system(c, i) { (c, i) throws(GuestException) in
      if c.intercepts(isSeed ? .rdseed : .rdrand) {
        throw c.exitWithOperands(isSeed ? .rdseed : .rdrand, i)
      }
      var generator = SystemRandomNumberGenerator()
      c.write(T(truncatingIfNeeded: generator.next()), to: i.pointee.dst)
      c.arithmeticFlags = RFLAGS.cf.rawValue
      return Step.next
    }
  }
}
