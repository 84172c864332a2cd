// SPDX-License-Identifier: Apache-2.0
//
// KVM_RUN.
//
//     finish what the client answered -> loop {
//       do what others requested; sleep while halted
//       take a physical CPU; enter the guest with the event that is due
//       dispatch the exit to its handler
//     }
//
// The rule for staying or returning: KVM_RUN returns 0 when a handler filled `kvm_run` with
// something that the client has to do (`Disposition.userSpace`), EINTR when the client asked for it
// by `immediate_exit` or a kick, and never otherwise.

import CHost
import Host
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

/// What KVM_RUN does first with the client's answer to the last exit.
enum Completion: Equatable {
  case none
  /// OUT: nothing but RIP.
  case portOut
  /// IN of so many bytes: into RAX.
  case portIn(UInt8)
  /// MMIO or string I/O: execute the instruction again with one more access answered.
  case emulation
  /// RDMSR, WRMSR that the client answered.
  case readMSR
  case writeMSR
  /// A hypercall whose result the client gave.
  case hypercall
}

extension VirtualCPU {
  /// KVM_RUN.
  func runIoctl() throws(Errno) -> Int32 {
    isInRun = true
    defer {
      releaseSlot()
      isInRun = false
    }
    hasRun = true
    asyncFaults.isHalted = false
    if isWaitingForStartup { try waitForStartup() }
    let slot = takeSlot()
    // The client may know of what others have written.
    if hypervisor.codeGuard != nil { slot.cpu.beginComparison() }
    try loadSynchronizedState()
    if apic == nil { cpu.s.pointee.cr8 = run.pointee.cr8 & 0xF }
    guard complete() else { return try finishRun() }
    if isStepDone {
      _ = stepExit()
      return try finishRun()
    }
    if run.pointee.immediate_exit != 0 { try leaveInterrupted(nil) }
    if run.pointee.request_interrupt_window != 0 || queuedInterrupt != nil {
      mustCheckEvents = true
    }
    if steal.isEnabled { accountStealTime() }
    if priorityCopy != 0 { readPriorityCopy() }
    try loop()
    if priorityCopy != 0 { writePriorityCopy() }
    return try finishRun()
  }

  /// What `kvm_run` says after every return.
  private func finishRun() throws(Errno) -> Int32 {
    if isHostFault {
      isHostFault = false
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
    run.pointee.ready_for_interrupt_injection = isReadyForInjection ? 1 : 0
    var flags: Int32 = smm.isActive ? KVM_RUN_X86_SMM : 0
    if hasLockedBus { flags |= KVM_RUN_X86_BUS_LOCK }
    hasLockedBus = false
    run.pointee.flags = UInt16(flags)
    run.pointee.if_flag = cpu.s.pointee.rflags & RFLAGS.if.rawValue != 0 ? 1 : 0
    if let apic {
      apic.state.withLock {
        run.pointee.cr8 = UInt64($0.cr8)
        run.pointee.apic_base = $0.base
      }
    } else {
      run.pointee.cr8 = cpu.s.pointee.cr8
      run.pointee.apic_base = msrs.apicBaseWithoutChip
    }
  }

  /// EINTR. The exit reason says so where a signal came; `immediate_exit` leaves the last one.
  private func leaveInterrupted(_ reason: Int32? = KVM_EXIT_INTR) throws(Errno) -> Never {
    _ = takeRequests([.kick, .signal])
    if let reason { run.pointee.exit_reason = UInt32(reason) }
    publishState()
    throw .interrupted
  }

  // MARK: The loop

  private func loop() throws(Errno) {
    while true {
      takeExpiredDeadline()
      if requests.load(ordering: .relaxed) != 0 { try handleRequests() }
      if let exit = exitBeforeEntry() {
        run.pointee.exit_reason = UInt32(exit)
        return
      }
      if mpState != UInt32(KVM_MP_STATE_RUNNABLE), !wakes() {
        statistics.halts &+= 1
        if statisticsFile != nil { updateStatistics() }
        releaseSlot()
        park()
        if steal.isEnabled {
          _ = takeSlot()
          accountStealTime()
        }
        continue
      }
      if asyncFaults.isHalted, !wakesFromFault() {
        releaseSlot()
        park()
        continue
      }
      if let slot, slot.shouldYield.load(ordering: .relaxed) { yieldSlot() }
      let slot = takeSlot()
      guard enterGuest(slot) else { continue }
      let retired = cpu.s.pointee.retired
      backend.run()
      statistics.instructions &+= cpu.s.pointee.retired &- retired
      runningOn.store(-1, ordering: .sequentiallyConsistent)
      if eoi.isOffered { takeEOI() }
      if let event = backend.takeInterruptedEvent() { interruptedEvent = event }
      if backend.takeDeliveredNMI() { pendingNMIs.subtract(1, ordering: .sequentiallyConsistent) }
      let disposition = handle(backend.takeExit())
      checkCounters()
      if statisticsFile != nil { updateStatistics() }
      if disposition == .userSpace { return }
      if isStepDone {
        _ = stepExit()
        return
      }
      if completion == .emulation { checkReplay() }
    }
  }

  /// A reason to leave that is not of an instruction.
  private func exitBeforeEntry() -> Int32? {
    if tprAccess != nil, takeTPRReport() { return KVM_EXIT_TPR_ACCESS }
    if let vector = endedVector {
      endedVector = nil
      run.pointee.eoi.vector = vector
      return KVM_EXIT_IOAPIC_EOI
    }
    if isTripleFaultPending {
      isTripleFaultPending = false
      return KVM_EXIT_SHUTDOWN
    }
    if let dirtyRing, dirtyRing.isFull { return KVM_EXIT_DIRTY_RING_FULL }
    if run.pointee.request_interrupt_window != 0, hasClientPIC {
      _ = takeSlot()
      if isReadyForInjection { return KVM_EXIT_IRQ_WINDOW_OPEN }
    }
    return nil
  }

  /// Says that guest code (or its emulation) runs now. False, having taken it back, when a request
  /// or the memory gate is in the way.
  func enterGuest(_ slot: PhysicalCPUSlot) -> Bool {
    runningOn.store(slot.index, ordering: .sequentiallyConsistent)
    if machine.memory.gate.load(ordering: .sequentiallyConsistent) != 0 {
      runningOn.store(-1, ordering: .sequentiallyConsistent)
      gateParker.park(until: HostClock.monotonic() &+ 1_000_000)
      return false
    }
    let generation = hypervisor.mappings.load(ordering: .acquiring)
    if slot.mappingGeneration != generation {
      slot.mappingGeneration = generation
      loadCount &+= 1
      backend.invalidateNestedMappings()
    }
    let unwanted = requests.load(ordering: .sequentiallyConsistent) & ~VCPURequest.gate.rawValue
    if unwanted != 0 {
      runningOn.store(-1, ordering: .sequentiallyConsistent)
      return false
    }
    injectEvents()
    return true
  }

  func leaveGuest() { runningOn.store(-1, ordering: .sequentiallyConsistent) }

  private func handleRequests() throws(Errno) {
    let all = takeRequests(VCPURequest(rawValue: .max))
    if !all.isDisjoint(with: .events) { mustCheckEvents = true }
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
    if all.contains(.wake) { wakePending = true }
    if !all.isDisjoint(with: [.kick, .signal]) { try leaveInterrupted() }
  }

  // MARK: Not running

  private var isWaitingForStartup: Bool {
    mpState == UInt32(KVM_MP_STATE_UNINITIALIZED) || mpState == UInt32(KVM_MP_STATE_INIT_RECEIVED)
  }

  /// KVM_RUN on a CPU that was never started: waits for the start-up message, then has the client
  /// call again (EAGAIN), as Linux does.
  private func waitForStartup() throws(Errno) {
    while isWaitingForStartup {
      if run.pointee.immediate_exit != 0 { try leaveInterrupted(nil) }
      if requests.load(ordering: .relaxed) != 0 { try handleRequests() }
      releaseSlot()
      if isWaitingForStartup { park() }
    }
    throw .resourceTemporarilyUnavailable
  }

  /// A halted CPU goes on when it has an NMI or an interrupt that it would take, or was woken by a
  /// hypercall. One that came before the HLT counts: a guest that waits for a lock looks at it,
  /// then halts, and whoever frees the lock in between wakes it once.
  private func wakes() -> Bool {
    guard mpState == UInt32(KVM_MP_STATE_HALTED) else { return false }
    if !wakePending, !isSMIDeliverable, pendingNMIs.load(ordering: .sequentiallyConsistent) == 0 {
      guard hasPendingInterrupt else { return false }
      _ = takeSlot()
      guard isInterruptAllowed else { return false }
    }
    wakePending = false
    mpState = UInt32(KVM_MP_STATE_RUNNABLE)
    mustCheckEvents = true
    return true
  }
}
