// SPDX-License-Identifier: Apache-2.0
//
// A virtual CPU, made of parts. Each part has a file in `Parts/` or near its topic, which says who
// may use it and what it may touch:
//
//     mailbox        requests of other threads; where the vCPU is           any thread
//     apic           the local APIC                                        any thread, by its lock
//     backend        the control block                                     the vCPU's thread
//     registers      what no control block holds                           the pool, or the thread
//     runState       started, halted, in KVM_RUN; what is to be finished   the vCPU's thread
//     events         what the next entry delivers                          ... and so the others
//     clock, paravirtual, debug, taskPriority, smm, performance, cpuid, msrs, machineCheck, nested
//
// The vCPU's thread is the one in an ioctl of it, one at a time (`inUse`); KVM_RUN is the ioctl
// that stays. Parts do not know each other. Code that needs several of them, or the machine, is in
// extensions of `VirtualCPU`, in the folders of their topics.

import CHost
import Host
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

/// A local APIC with its lock.
final class LockedAPIC: Sendable {
  let state: Mutex<LocalAPIC>
  init(_ apic: consuming LocalAPIC) { state = Mutex(apic) }
}

/// Sendable: the holder of the lock of ioctls owns it, in KVM_RUN as elsewhere; what other threads
/// reach is atomic or in mutexes.
final class VirtualCPU: @unchecked Sendable {
  unowned(unsafe) let machine: Machine
  let hypervisor: Hypervisor
  /// KVM's vcpu_id; its APIC identifier.
  let id: UInt32
  /// Index in the machine's list.
  let index: Int
  let shared: SharedPages
  let backend: any VirtualizationBackend
  /// Held by the thread that is in an ioctl of this vCPU.
  let inUse = Mutex(())

  // MARK: Used by other threads

  let mailbox = VCPUMailbox()
  let apic: LockedAPIC?
  let dirtyRing: DirtyRing?

  // MARK: Used by the vCPU's thread

  /// The physical CPU that this vCPU owns now.
  var slot: PhysicalCPUSlot?
  var registers: VCPURegisters
  var runState: RunState
  var events = PendingEvents()
  var clock: VCPUClock
  var paravirtual = ParavirtualState()
  var debug = GuestDebug()
  var smm = SystemManagement()
  /// What the guest is a hypervisor with; nil where the processor's vendor has no such part here.
  let nested: (any NestedVirtualization)?
  var taskPriority = TaskPrioritySharing()
  var emulation = InstructionEmulation()
  var cpuid = GuestCPUID([])
  var msrs = MSRStore()
  var machineCheck = MachineCheckBanks()
  var performance = PerformanceMonitor()
  var statistics = RunStatistics()
  /// Created by the first KVM_GET_STATS_FD.
  var statisticsFile: StatisticsFile?

  /// State of the physical CPU in `slot`.
  var cpu: CPU { registers.cpu }
  var pages: UnsafeMutableRawPointer { unsafe shared.address }
  var run: UnsafeMutablePointer<kvm_run> { unsafe pages.assumingMemoryBound(to: kvm_run.self) }

  init(
    machine: Machine, id: UInt32, index: Int, isBootCPU: Bool, dirtyRingEntries: UInt32 = 0
  ) throws(Errno) {
    unsafe self.machine = machine
    hypervisor = machine.hypervisor
    self.id = id
    self.index = index
    shared = try SharedPages(
      first: machine.cpus.all.first?.shared.file.descriptor.rawValue,
      dirtyRingEntries: dirtyRingEntries)
    dirtyRing =
      dirtyRingEntries == 0
      ? nil : try DirtyRing(count: dirtyRingEntries, file: shared.file.descriptor.rawValue)
    let physical = hypervisor.pool.slots[0].cpu
    backend = try Backends.type(for: physical).init(physical)
    nested = backend.makeNested()
    registers = VCPURegisters(physical.cpu)
    let reference = machine.clock.reference
    clock = VCPUClock(rate: reference.rate, offset: reference.tscOffset)
    if machine.interrupts != nil {
      var local = LocalAPIC(id: id, isBootstrapProcessor: isBootCPU)
      // Until the client enables the local APIC's LINT0, the 8259 reaches the boot CPU directly.
      let options = machine.options.withLock { $0 }
      let quirks = Quirks.all & ~options.disabledQuirks
      local.busCycleNanoseconds = options.busCycleNanoseconds
      if isBootCPU, quirks & Quirks.lint0Reenabled != 0 { local.acceptExternalAtReset() }
      apic = LockedAPIC(local)
      runState = RunState(
        mpState: isBootCPU ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED)
    } else {
      apic = nil
      runState = RunState(mpState: KVM_MP_STATE_RUNNABLE)
    }
    msrs.isBootCPU = isBootCPU
    if hypervisor.silicon == .amd {
      msrs.hardwareConfiguration = VendorMSR.resetHardwareConfiguration
      msrs.microcodeRevision = MSRModel.amdPatchLevel
    }
    if machine.options.withLock({ $0.msrFilter != nil }) { mailbox.post(.msrFilter) }
    withLoaded { reset() }
  }

  // MARK: Requests

  /// Posts a request to the run loop, from any thread.
  func request(_ request: VCPURequest) {
    mailbox.post(request)
    let running = mailbox.runningOn
    if running >= 0 {
      hypervisor.pool.slots[running].cpu.kick()
    } else {
      mailbox.wakeIfParked()
    }
  }

  /// The client has the 8259 pair: it injects by KVM_INTERRUPT.
  var hasClientPIC: Bool { unsafe machine.interrupts?.isSplit ?? true }

  /// Sleeps until a request arrives or the timer expires.
  func park() {
    let deadline = mailbox.park()
    if deadline != .max { unsafe machine.timers.note(deadline) }
  }

  // MARK: On a physical CPU

  /// Called by the pool, under its lock.
  func load(on physical: PhysicalCPU) {
    registers.load(on: physical)
    backend.load(on: physical)
    registers.restoreContext()
  }

  /// Called by the pool, under its lock.
  func unload(from physical: PhysicalCPU) {
    registers.saveContext(from: physical)
    backend.unload(from: physical)
  }

  /// Takes a physical CPU, if this vCPU has none.
  ///
  /// - Parameter runs: a CPU that may run guest code.
  @discardableResult
  func takeSlot(runs: Bool = true) -> PhysicalCPUSlot {
    if let slot { return slot }
    let slot = hypervisor.pool.acquire(self, runs: runs)
    self.slot = slot
    if runs, performance.isActive { armCounters(slot) }
    return slot
  }

  func releaseSlot() {
    guard let slot else { return }
    if performance.isRunning { disarmCounters(slot) }
    self.slot = nil
    hypervisor.pool.release(slot)
  }

  /// Runs `body` with the vCPU's state loaded in a physical CPU.
  func withLoaded<R, E: Error>(_ body: () throws(E) -> R) throws(E) -> R {
    if slot != nil { return try body() }
    takeSlot(runs: false)
    defer { releaseSlot() }
    return try body()
  }
}
