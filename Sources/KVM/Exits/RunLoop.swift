// SPDX-License-Identifier: Apache-2.0
//
// KVM_RUN.
//
//     finish the exit that the client answered -> loop {
//       handle requests of other threads; sleep while halted
//       take a physical CPU; enter the guest with the pending event
//       dispatch the exit to its handler
//     }
//
// KVM_RUN returns 0 when a handler filled `kvm_run` for the client (`Disposition.userSpace`), EINTR
// when the client asked for it by `immediate_exit` or a kick, and never otherwise.

import CHost
import Host
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

extension VirtualCPU {
  /// KVM_RUN.
  func runIoctl() throws(Errno) -> Int32 {
    runState.isInRun = true
    defer {
      releaseSlot()
      runState.isInRun = false
    }
    runState.hasRun = true
    paravirtual.faults.isHalted = false
    if runState.isWaitingForStartup { try waitForStartup() }
    let slot = takeSlot()
    // The client may have seen other processes' writes.
    if hypervisor.watchesCode { slot.cpu.beginComparison() }
    try loadSynchronizedState()
    if apic == nil { unsafe cpu.s.pointee.cr8 = unsafe run.pointee.cr8 & 0xF }
    guard complete() else { return try finishRun() }
    if debug.isStepDone {
      _ = stepExit()
      return try finishRun()
    }
    if unsafe run.pointee.immediate_exit != 0 { try leaveInterrupted(nil) }
    if unsafe run.pointee.request_interrupt_window != 0 || events.queuedInterrupt != nil {
      events.mustCheck = true
    }
    if clock.steal.isEnabled { accountStealTime() }
    if taskPriority.copy != 0 { readPriorityCopy() }
    try loop()
    if taskPriority.copy != 0 { writePriorityCopy() }
    return try finishRun()
  }

  /// Fills the fields of `kvm_run` that every return sets.
  private func finishRun() throws(Errno) -> Int32 {
    if runState.takeHostFault() {
      publishState()
      throw .badAddress
    }
    statistics.userExits &+= 1
    if statisticsFile != nil { updateStatistics() }
    publishState()
    return 0
  }

  private func publishState() {
    withdrawEOI()
    guard slot != nil else { return }
    storeSynchronizedState()
    unsafe run.pointee.ready_for_interrupt_injection = isReadyForInjection ? 1 : 0
    var flags: Int32 = smm.isActive ? KVM_RUN_X86_SMM : 0
    if runState.takeBusLock() { flags |= KVM_RUN_X86_BUS_LOCK }
    unsafe run.pointee.flags = UInt16(flags)
    unsafe run.pointee.if_flag = unsafe cpu.s.pointee.rflags & RFLAGS.if.rawValue != 0 ? 1 : 0
    if let apic {
      apic.state.withLock {
        unsafe run.pointee.cr8 = UInt64($0.cr8)
        unsafe run.pointee.apic_base = $0.base
      }
    } else {
      unsafe run.pointee.cr8 = unsafe cpu.s.pointee.cr8
      unsafe run.pointee.apic_base = msrs.apicBaseWithoutChip
    }
  }

  /// EINTR. A signal sets the exit reason; `immediate_exit` keeps the last one.
  private func leaveInterrupted(_ reason: Int32? = KVM_EXIT_INTR) throws(Errno) -> Never {
    _ = mailbox.take([.kick, .signal])
    if let reason { unsafe run.pointee.exit_reason = UInt32(reason) }
    publishState()
    throw .interrupted
  }

  // MARK: The loop

  private func loop() throws(Errno) {
    while true {
      takeExpiredDeadline()
      if mailbox.mayHaveRequests { try handleRequests() }
      if let exit = exitBeforeEntry() {
        unsafe run.pointee.exit_reason = UInt32(exit)
        return
      }
      if !runState.isRunnable, !wakes() {
        statistics.halts &+= 1
        if statisticsFile != nil { updateStatistics() }
        releaseSlot()
        park()
        if clock.steal.isEnabled {
          _ = takeSlot()
          accountStealTime()
        }
        continue
      }
      if paravirtual.faults.isHalted, !wakesFromFault() {
        releaseSlot()
        park()
        continue
      }
      if let slot, slot.shouldYield.load(ordering: .relaxed) { yieldSlot() }
      let slot = takeSlot()
      if let nested, nested.isGuest { nested.beforeEntry(self) }
      guard enterGuest(slot) else { continue }
      let retired = unsafe cpu.s.pointee.retired
      backend.run()
      unsafe statistics.instructions &+= cpu.s.pointee.retired &- retired
      mailbox.leave()
      if paravirtual.eoi.isOffered { takeEOI() }
      if let event = backend.takeInterruptedEvent() { events.interrupted = event }
      if backend.takeDeliveredNMI() { mailbox.takeNMI() }
      let disposition = handleExit()
      checkCounters()
      if statisticsFile != nil { updateStatistics() }
      if disposition == .userSpace { return }
      if debug.isStepDone {
        _ = stepExit()
        return
      }
      if runState.completion == .emulation { checkReplay() }
    }
  }

  /// A reason to exit before the guest is entered.
  private func exitBeforeEntry() -> Int32? {
    if taskPriority.access != nil, takeTPRReport() { return KVM_EXIT_TPR_ACCESS }
    if let vector = runState.takeEndedVector() {
      unsafe run.pointee.eoi.vector = vector
      return KVM_EXIT_IOAPIC_EOI
    }
    if events.takeTripleFault() {
      _ = takeSlot()
      if nested?.takeTripleFault(self) != true { return KVM_EXIT_SHUTDOWN }
    }
    if let dirtyRing, dirtyRing.isFull { return KVM_EXIT_DIRTY_RING_FULL }
    if unsafe run.pointee.request_interrupt_window != 0, hasClientPIC {
      _ = takeSlot()
      if isReadyForInjection { return KVM_EXIT_IRQ_WINDOW_OPEN }
    }
    return nil
  }

  /// Marks guest code (or its emulation) as running. Returns false, and undoes it, if a request or
  /// the memory gate forbids it.
  func enterGuest(_ slot: PhysicalCPUSlot) -> Bool {
    mailbox.enter(slot.index)
    if unsafe machine.memory.gate.load(ordering: .sequentiallyConsistent) != 0 {
      mailbox.leave()
      mailbox.parkAtGate(until: HostClock.monotonic() &+ 1_000_000)
      return false
    }
    let generation = hypervisor.mappings.load(ordering: .acquiring)
    if slot.mappingGeneration != generation {
      slot.mappingGeneration = generation
      registers.changed()
      backend.invalidateNestedMappings()
    }
    if mailbox.preventsEntry {
      mailbox.leave()
      return false
    }
    injectEvents()
    return true
  }

  func leaveGuest() { mailbox.leave() }

  private func handleRequests() throws(Errno) {
    let all = mailbox.take(VCPURequest(rawValue: .max))
    if !all.isDisjoint(with: .events) { events.mustCheck = true }
    if all.contains(.timer) { expireTimer() }
    if all.contains(.counters) {
      takeCounts()
      planCounters()
    }
    if !all.isDisjoint(with: [.initSignal, .startup, .clock, .msrFilter]) {
      _ = takeSlot()
      if all.contains(.initSignal) { handleINIT() }
      if all.contains(.startup) { handleStartup() }
      if all.contains(.clock) { writeClock() }
      if all.contains(.msrFilter) { updateMSRInterception() }
    }
    if all.contains(.pageArrival) {
      _ = takeSlot()
      takeArrivals()
    }
    if all.contains(.wake) { runState.wakePending = true }
    if !all.isDisjoint(with: [.kick, .signal]) { try leaveInterrupted() }
  }

  // MARK: Not running

  /// KVM_RUN on a CPU that was never started: waits for the start-up message, then returns EAGAIN
  /// as Linux does, so that the client calls again.
  private func waitForStartup() throws(Errno) {
    while runState.isWaitingForStartup {
      if unsafe run.pointee.immediate_exit != 0 { try leaveInterrupted(nil) }
      if mailbox.mayHaveRequests { try handleRequests() }
      releaseSlot()
      if runState.isWaitingForStartup { park() }
    }
    throw .resourceTemporarilyUnavailable
  }

  /// A halted CPU wakes for an NMI, for a deliverable interrupt, or by a hypercall. A hypercall
  /// before the HLT counts too: a guest checks a lock, then halts, and the thread that frees the
  /// lock in between wakes it only once.
  private func wakes() -> Bool {
    guard runState.isHalted else { return false }
    if !runState.wakePending, !isSMIDeliverable, !mailbox.hasNMI {
      guard hasPendingInterrupt else { return false }
      _ = takeSlot()
      guard isInterruptAllowed else { return false }
    }
    runState.wakePending = false
    runState.become(KVM_MP_STATE_RUNNABLE)
    events.mustCheck = true
    return true
  }
}
