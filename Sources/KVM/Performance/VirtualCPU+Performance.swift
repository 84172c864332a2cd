// SPDX-License-Identifier: Apache-2.0
//
// A vCPU and its performance counters: the MSRs, RDPMC, and when the physical CPU counts.
//
// The physical CPU counts from `takeSlot` to `releaseSlot`. `syncCounters` adds its counts to the
// counters when a register is read or changed, when the vCPU gives the CPU up, and when a counter
// with an interrupt may have overflowed. Instructions and branches have limits at which the guest
// exits, cycles a deadline at which the timer thread requests a check.

import CHost
import Host
import InterruptChips
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  // MARK: Registers

  /// The value of a counters' register; nil if the vCPU does not have it.
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
    // Counting continues, whether the register changed or not.
    defer { planCounters() }
    return performance.write(register, value, byHost: byHost)
  }

  /// The first counters that processors had: guests probe them, and KVM allows it. A client may
  /// save and restore everything in the list of MSRs.
  private func isHarmlessWithoutCounters(_ number: UInt32, _ byHost: Bool) -> Bool {
    if byHost { return PerformanceRegister.saved.contains(number) }
    switch PerformanceRegister(number) {
    case .counter(let n), .eventSelect(let n): return n < 2
    case .amdCounter, .amdEventSelect: return true
    default: return false
    }
  }

  /// IA32_PERF_CAPABILITIES, which only the client may write.
  func writePerformanceCapabilities(_ value: UInt64, byHost: Bool) -> Bool {
    guard byHost, value & ~PerformanceCapabilities.fullWidthWrites == 0 else { return false }
    performance.capabilities = value
    return true
  }

  /// RDPMC; the processor has checked CR4.PCE.
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

  /// Called after a change of registers or of the filter, and after `takeCounts`.
  func planCounters() {
    unsafe performance.plan(machine.options.withLock { $0.eventFilter })
    // Outside KVM_RUN nothing counts.
    if let slot, runState.isInRun { armCounters(slot) }
  }

  // MARK: Counting

  /// Makes the physical CPU count.
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

  /// Takes the counts and stops the physical CPU's counting.
  func disarmCounters(_ slot: PhysicalCPUSlot) {
    takeCounts()
    slot.cpu.stopCounting()
    performance.isRunning = false
    mailbox.overflowDeadline.store(.max, ordering: .relaxed)
  }

  /// Brings the counters up to date.
  func syncCounters() {
    guard performance.isRunning, let slot else { return }
    takeCounts()
    armCounters(slot)
  }

  /// Adds the counts; the limits and the deadline are then invalid.
  func takeCounts() {
    guard performance.isRunning, let slot,
      performance.add(slot.cpu.takeCounts(), clock.rate), let apic
    else { return }
    note(apic.state.withLock { $0.raiseLocal(APICRegister.lvtPerformance) })
  }

  /// An instruction that the hypervisor emulated has retired.
  func noteRetired(isBranch: Bool = false) {
    if performance.isRunning { slot?.cpu.noteRetired(isBranch: isBranch) }
  }

  /// Called after an exit.
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
