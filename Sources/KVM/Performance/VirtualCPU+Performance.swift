// SPDX-License-Identifier: Apache-2.0
//
// A vCPU and its performance counters: the MSRs, RDPMC, and when the physical CPU counts.
//
// The physical CPU counts from `takeSlot` to `releaseSlot`. What it has counted goes into the
// counters (`syncCounters`) when a register is read or changed, when the vCPU gives it up, and when
// a counter that raises an interrupt may have overflowed: instructions and branches have limits at
// which the guest leaves, cycles a deadline at which the timer thread asks for a look.

import CHost
import Host
import InterruptChips
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  // MARK: Registers

  /// The value of a register of the counters; nil where the vCPU does not have it.
  func readPerformance(_ register: PerformanceRegister, _ number: UInt32, byHost: Bool) -> UInt64? {
    guard performance.has(register) else {
      return isHarmlessWithoutCounters(number, byHost) ? 0 : nil
    }
    syncCounters()
    return performance.read(register)
  }

  func writePerformance(
    _ register: PerformanceRegister, _ number: UInt32, _ value: UInt64, byHost: Bool
  ) -> Bool {
    guard performance.has(register) else {
      return isHarmlessWithoutCounters(number, byHost) && (!byHost || value == 0)
    }
    takeCounts()
    // Counting goes on, whether it changed or not.
    defer { planCounters() }
    return performance.write(register, value, byHost: byHost)
  }

  /// The counters that the first processors with any had: guests probe them, and KVM lets them.
  /// And a client may save and restore whatever is in the list of MSRs.
  private func isHarmlessWithoutCounters(_ number: UInt32, _ byHost: Bool) -> Bool {
    if byHost { return PerformanceRegister.saved.contains(number) }
    switch PerformanceRegister(number) {
    case .counter(let n), .eventSelect(let n): return n < 2
    case .amdCounter, .amdEventSelect: return true
    default: return false
    }
  }

  /// IA32_PERF_CAPABILITIES, which only the client writes.
  func writePerformanceCapabilities(_ value: UInt64, byHost: Bool) -> Bool {
    guard byHost, value & ~PerformanceCapabilities.fullWidthWrites == 0 else { return false }
    performance.capabilities = value
    return true
  }

  /// RDPMC; the processor has looked at CR4.PCE.
  func emulateRDPMC() -> Disposition {
    syncCounters()
    guard let value = unsafe performance.read(counter: UInt32(truncatingIfNeeded: cpu.gpr[1]))
    else {
      raise(.generalProtection)
      return .resume
    }
    unsafe cpu.gpr[0] = value & 0xFFFF_FFFF
    unsafe cpu.gpr[2] = value >> 32
    advance()
    return .resume
  }

  // MARK: Configuration

  /// KVM_SET_CPUID2.
  func configureCounters() {
    let isDisabled = unsafe machine.options.withLock { $0.hasNoCounters }
    performance.configure(isDisabled ? .none : cpuid.performance)
    planCounters()
  }

  /// After a change of registers or of the filter (`takeCounts` was called before).
  func planCounters() {
    unsafe performance.plan(machine.options.withLock { $0.eventFilter })
    // Outside KVM_RUN nothing counts.
    if let slot, runState.isInRun { armCounters(slot) }
  }

  // MARK: Counting

  /// Has the physical CPU count, from now on.
  func armCounters(_ slot: PhysicalCPUSlot) {
    guard performance.isActive else {
      if performance.isRunning { disarmCounters(slot) }
      return
    }
    slot.cpu.startCounting(
      instructions: performance.countsInstructions, performance.limits)
    performance.isRunning = true
    armOverflowDeadline()
  }

  private func armOverflowDeadline() {
    guard apic != nil, let cycles = performance.cyclesToOverflow else {
      mailbox.overflowDeadline.store(.max, ordering: .relaxed)
      return
    }
    let (sum, overflow) = HostClock.monotonic().addingReportingOverflow(
      clock.rate.nanoseconds(cycles))
    let deadline = overflow || sum == .max ? .max - 1 : sum + 1
    mailbox.overflowDeadline.store(deadline, ordering: .sequentiallyConsistent)
    unsafe machine.timers.note(deadline)
  }

  /// Takes what was counted and has the physical CPU count no more.
  func disarmCounters(_ slot: PhysicalCPUSlot) {
    takeCounts()
    slot.cpu.stopCounting()
    performance.isRunning = false
    mailbox.overflowDeadline.store(.max, ordering: .relaxed)
  }

  /// Brings the counters up to now.
  func syncCounters() {
    guard performance.isRunning, let slot else { return }
    takeCounts()
    armCounters(slot)
  }

  /// Adds what was counted; the limits and the deadline then no longer stand.
  func takeCounts() {
    guard performance.isRunning, let slot,
      performance.add(slot.cpu.takeCounts(), clock.rate), let apic
    else { return }
    note(apic.state.withLock { $0.raiseLocal(APICRegister.lvtPerformance) })
  }

  /// An instruction that was done in the guest's place has retired.
  func noteRetired(isBranch: Bool = false) {
    if performance.isRunning { slot?.cpu.noteRetired(isBranch: isBranch) }
  }

  /// After an exit.
  func checkCounters() {
    if performance.countsInstructions, let slot, slot.cpu.isAtLimit { syncCounters() }
  }
}

extension Machine {
  /// KVM_SET_PMU_EVENT_FILTER.
  func setEventFilter(_ filter: PerformanceEventFilter) {
    options.withLock { $0.eventFilter = filter }
    for vcpu in virtualCPUs { vcpu.request(.counters) }
  }
}
