// SPDX-License-Identifier: Apache-2.0
//
// Events at instruction boundaries of a guest, in the order of their priority (SDM volume 3,
// "Priority Among Simultaneous Exceptions and Interrupts" and "Other Causes of VM Exits"):
//
//     INIT, start-up IPI -> monitor trap flag -> pending debug exceptions -> deadline -> NMI -> NMI
//     window -> interrupt window, virtual interrupt -> external interrupt -> kick
//
// Each function returns false if the guest has exited.

import CHost
import X86

extension CPU {
  /// Whether `processEvents` has anything to do.
  @inline(__always) var mayHaveEvents: Bool {
    let state = s
    let watched = InterceptSet([.windows, .deadline])
    return state.requests | state.pointee.pendingDebug != 0
      || state.pointee.slow | state.pointee.activity != 0
      || state.pointee.intercepts.set.rawValue & watched.rawValue != 0
  }

  /// Handles everything that can happen between two instructions: kicks (external-interrupt exits),
  /// NMI and interrupt windows, the deadline, pending debug exceptions, the monitor trap flag.
  /// Called when `request` is nonzero and after `Step.reload`.
  ///
  /// - Returns: false on a VM exit.
  package func processEvents() -> Bool {
    let requests = s.requests
    if requests & CPURequest.shootdown != 0 { owner.processShootdowns() }
    if requests & CPURequest.events != 0 { _ = owner.takeRequest(CPURequest.events) }
    let hasSignals = requests & CPURequest.signal != 0
    if hasSignals, !takeStartSignals() { return false }
    if s.pointee.slow & SlowReason.monitorTrap != 0, !takeMonitorTrap() { return false }
    if s.pointee.pendingDebug & PendingDebug.causes != 0, !takePendingDebug() { return false }
    if !takeTimer() { return false }
    if hasSignals, !takeNMI() { return false }
    if !takeWindows() { return false }
    // Posted interrupts open the window.
    if hasSignals, !takeInterrupt() || !takeWindows() { return false }
    if s.requests & CPURequest.kick != 0 { return takeKick() }
    if s.pointee.activity != ActivityState.active { return waitWhileInactive() }
    return true
  }

  /// The monitor trap flag exits after one instruction; `openEvents` handles it at VM entry.
  func takeMonitorTrap() -> Bool {
    if s.pointee.retired == s.pointee.retiredAtEntry { return true }
    _ = exit(.monitorTrap)
    return false
  }

  /// The deadline has passed: VT-x's preemption timer. (Checked only here; `CPURequest.timer`
  /// brings the guest here.)
  private func takeTimer() -> Bool {
    if s.requests & CPURequest.timer != 0 { _ = owner.takeRequest(CPURequest.timer) }
    if !intercepts(.deadline) || HostTSC.read() < s.pointee.deadline { return true }
    _ = exit(.preemptionTimer)
    return false
  }

  private func takeWindows() -> Bool {
    let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
    if intercepts(.nmiWindow),
      s.pointee.interruptibility & (Interruptibility.blockingByNMI | shadows) == 0,
      s.pointee.activity != ActivityState.waitForSIPI
    {
      if s.pointee.intercepts.mode == .svm { return takeVirtualNMI() }
      _ = exit(.nmiWindow)
      return false
    }
    if intercepts(.interruptWindow),
      s.pointee.rflags & RFLAGS.if.rawValue != 0, s.pointee.interruptibility & shadows == 0,
      s.pointee.activity <= ActivityState.hlt
    {
      if s.pointee.intercepts.mode == .svm { return takeVirtualInterrupt() }
      if deliversVirtualInterrupts { return deliverVirtualInterrupt() }
      _ = exit(.interruptWindow)
      return false
    }
    return true
  }

  func takeKick() -> Bool {
    _ = owner.takeRequest(CPURequest.kick)
    _ = exit(.externalInterrupt)
    if s.pointee.virtualAPIC.features.contains(.acknowledges) {
      s.pointee.exit.event = GuestEvent(.externalInterrupt, vector: PhysicalCPU.kickVector)
    }
    return false
  }

  /// HLT, shutdown and wait-for-SIPI: the guest executes nothing until an event ends the state.
  private func waitWhileInactive() -> Bool {
    while s.requests & CPURequest.kick == 0 {
      guard let wait = owner.waitForRequest else { break }
      wait(s.pointee.deadline)
      if s.requests & CPURequest.shootdown != 0 { owner.processShootdowns() }
      if !takeTimer() { return false }
      if s.requests & CPURequest.signal != 0 {
        if !takeStartSignals() || !takeNMI() || !takeInterrupt() || !takeWindows() {
          return false
        }
        if s.pointee.activity == ActivityState.active { return true }
      }
    }
    return takeKick()
  }
}

/// Bits of the pending-debug-exceptions field (SDM volume 3, "Guest Non-Register State").
package enum PendingDebug {
  /// B0 to B3.
  package static let breakpoints: UInt64 = 0xF
  /// At least one data or I/O breakpoint was hit and enabled in DR7.
  package static let enabledBreakpoint: UInt64 = 1 << 12
  package static let singleStep: UInt64 = 1 << 14
  package static let rtm: UInt64 = 1 << 16
  /// Bits that make an exception pending.
  package static let causes = enabledBreakpoint | singleStep | rtm
  /// Bits for DR6 and the exit qualification.
  package static let dr6 = breakpoints | singleStep
  package static let all = breakpoints | causes
}
