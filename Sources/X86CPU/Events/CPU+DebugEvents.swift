// SPDX-License-Identifier: Apache-2.0
//
// Debug exceptions: instruction, data and I/O breakpoints, single steps (SDM volume 3, "Debug
// Exceptions"), and other effects of an instruction's end: interrupt shadow and RF.

import X86

/// One of the four breakpoints of DR7.
private struct Breakpoint {
  var enabled: Bool
  var kind: UInt64
  var length: UInt64

  static let execute: UInt64 = 0
  static let write: UInt64 = 1
  static let port: UInt64 = 2
  static let readOrWrite: UInt64 = 3

  init(_ dr7: UInt64, _ number: Int) {
    enabled = dr7 >> UInt64(number * 2) & 3 != 0
    let field = dr7 >> UInt64(16 + number * 4) & 15
    kind = field & 3
    length = [1, 2, 8, 4][Int(field >> 2)]
  }
}

extension CPU {
  /// Checks instruction breakpoints before an instruction while `slow` has `breakpoints`.
  ///
  /// - Returns: false on a VM exit. May have changed `rip`.
  package func beforeSlowInstruction() -> Bool {
    if s.pointee.rflags & RFLAGS.rf.rawValue != 0 { return true }
    if s.pointee.interruptibility & Interruptibility.blockingByMovSS != 0,
      !follows(.breakpointsBehindStackLoads)
    {
      return true
    }
    let (matched, enabled) = matches(codeLinear, 1) { $0 == Breakpoint.execute }
    if !enabled { return true }
    return raiseException(.debug(DR6(rawValue: matched)))
  }

  /// After an instruction executed while `slow` was set: ends the interrupt shadow and RF, takes
  /// single-step and data breakpoint traps. `before` is the value of `slow` before the instruction.
  ///
  /// - Returns: false on a VM exit.
  package func afterSlowInstruction(before: UInt32) -> Bool {
    let slow = s.pointee.slow
    s.pointee.slow = slow & ~(SlowReason.marks | SlowReason.dataBreakpoint)
    // Traps come first, then other events after the instruction.
    var looks = (before & SlowReason.monitorTrap | slow & SlowReason.reloads) != 0
    if slow & SlowReason.delivered != 0 { return looks ? processEvents() : true }
    let shadowEnds = before & SlowReason.interruptShadow != 0 && slow & SlowReason.shadowArmed == 0
    if shadowEnds {
      let both = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
      s.pointee.interruptibility &= ~both
      s.pointee.slow &= ~SlowReason.interruptShadow
    }
    if before & SlowReason.resumeFlag != 0 && slow & SlowReason.resumeArmed == 0 {
      s.pointee.rflags &= ~RFLAGS.rf.rawValue
      updateSlow()
    }
    if before & SlowReason.trapFlag != 0 { s.pointee.pendingDebug |= PendingDebug.singleStep }
    if slow & SlowReason.busLock != 0 {
      noteBusLockExit()
      return false
    }
    if s.pointee.virtualAPIC.hasWritten {
      if !finishAPICWrite() { return false }
      looks = true
    }
    if before & SlowReason.monitorTrap != 0, !takeMonitorTrap() { return false }
    if !takePendingDebug() { return false }
    return shadowEnds || looks ? processEvents() : true
  }

  /// Takes the pending debug exceptions at this instruction boundary, unless MOV SS blocks them.
  ///
  /// - Returns: false on a VM exit.
  package func takePendingDebug() -> Bool {
    let pending = s.pointee.pendingDebug
    if pending == 0 { return true }
    if s.pointee.interruptibility & Interruptibility.blockingByMovSS != 0 { return true }
    s.pointee.pendingDebug = 0
    if pending & PendingDebug.causes == 0 { return true }
    s.pointee.activity = ActivityState.active
    return raiseException(.debug(DR6(rawValue: pending & PendingDebug.dr6)))
  }

  /// Checks data breakpoints for a data access; the slow path of memory accesses calls it. The trap
  /// comes after the instruction.
  package func noteDataAccess(_ linear: UInt64, size: Int, isWrite: Bool) {
    let (matched, enabled) = matches(linear, UInt64(max(size, 1))) {
      $0 == Breakpoint.readOrWrite || isWrite && $0 == Breakpoint.write
    }
    notePending(matched, enabled)
  }

  /// Checks I/O breakpoints (CR4.DE) for a port access.
  package func notePortAccess(_ port: UInt16, size: Int) {
    if s.pointee.dr7 & DR7.anyEnabled.rawValue == 0 { return }
    if s.pointee.cr4 & CR4.de.rawValue == 0 { return }
    let (matched, enabled) = matches(UInt64(port), UInt64(max(size, 1))) { $0 == Breakpoint.port }
    notePending(matched, enabled)
  }

  private func notePending(_ matched: UInt64, _ enabled: Bool) {
    if !enabled { return }
    s.pointee.pendingDebug |= matched | PendingDebug.enabledBreakpoint
    s.pointee.slow |= SlowReason.dataBreakpoint
  }

  /// The breakpoints of the wanted kinds that an access hits, as DR6 bits, and whether any of them
  /// is enabled.
  private func matches(
    _ address: UInt64, _ size: UInt64, _ wanted: (UInt64) -> Bool
  ) -> (UInt64, Bool) {
    var bits: UInt64 = 0
    var enabled = false
    for number in 0..<4 {
      let breakpoint = Breakpoint(s.pointee.dr7, number)
      if !wanted(breakpoint.kind) { continue }
      let start = s.pointee.dr[number] & ~(breakpoint.length &- 1)
      let overlaps = address &- start < breakpoint.length || start &- address < size
      if !overlaps { continue }
      bits |= 1 << UInt64(number)
      if breakpoint.enabled { enabled = true }
    }
    return (bits, enabled)
  }

  /// Takes the causes pending after MOV SS, in DR6's format, for another debug exception whose
  /// handler then gets them all.
  func takeWaitingDebugCauses() -> UInt64 {
    let pending = s.pointee.pendingDebug
    s.pointee.pendingDebug = 0
    return pending & PendingDebug.causes != 0 ? pending & PendingDebug.dr6 : 0
  }

  /// Updates the debug registers at the delivery of a debug exception.
  func enterDebugException(_ bits: UInt64) {
    let kept = s.pointee.dr6 & ~PendingDebug.breakpoints
    s.pointee.dr6 = kept | bits | DR6.initial.rawValue
    s.pointee.dr7 &= ~DR7.gd.rawValue
  }
}
