// SPDX-License-Identifier: Apache-2.0
//
// A virtual CPU. One thread at a time is in one of its ioctls (`ioctlLock`); KVM_RUN is the one
// that stays. Everything here belongs to that thread, except what is atomic or locked: `requests`
// and the local APIC, by which others reach it.
//
//     requests   what others want of the run loop, one bit each (VCPURequest)
//     runningOn  the physical CPU that is in this vCPU's guest code now
//
// A request is first set, then the vCPU is kicked out of guest code or woken; the run loop first
// says that it is in guest code, then looks at the requests. So none is missed.

import CHost
import Host
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

/// Bits of `VirtualCPU.requests`.
struct VCPURequest: OptionSet, Sendable {
  let rawValue: UInt64
  /// The client wants KVM_RUN to return.
  static let kick = Self(rawValue: 1 << 0)
  /// A local APIC or 8259 has something new.
  static let interrupt = Self(rawValue: 1 << 1)
  static let nmi = Self(rawValue: 1 << 2)
  static let smi = Self(rawValue: 1 << 10)
  static let initSignal = Self(rawValue: 1 << 3)
  static let startup = Self(rawValue: 1 << 4)
  /// The local APIC timer's deadline has come.
  static let timer = Self(rawValue: 1 << 5)
  /// Memory changes: stay out of guest code until the gate opens.
  static let gate = Self(rawValue: 1 << 6)
  /// kvmclock was set: write the time structure anew.
  static let clock = Self(rawValue: 1 << 7)
  /// End a halt (KVM_HC_KICK_CPU).
  static let wake = Self(rawValue: 1 << 8)
  /// Another MSR filter: other accesses exit.
  static let msrFilter = Self(rawValue: 1 << 9)
  /// A performance counter may have overflowed, or there is another event filter.
  static let counters = Self(rawValue: 1 << 11)
  /// A page that the guest was told to wait for may be there.
  static let pageArrival = Self(rawValue: 1 << 17)
  /// A signal came to the thread that is in KVM_RUN.
  static let signal = Self(rawValue: 1 << 16)
  /// What changes whether an interrupt can be delivered.
  static let events: Self = [.interrupt, .nmi, .smi]
}

/// A local APIC with its lock.
final class LockedAPIC: Sendable {
  let state: Mutex<LocalAPIC>
  init(_ apic: consuming LocalAPIC) { state = Mutex(apic) }
}

final class VirtualCPU: @unchecked Sendable {
  unowned(unsafe) let machine: Machine
  let hypervisor: Hypervisor
  /// KVM's vcpu_id; its APIC identifier.
  let id: UInt32
  /// Place in the machine's list.
  let index: Int
  /// What a client maps to share `pages`.
  let sharedFile: MemoryFile
  /// The file of the machine's first vCPU, which has the ring of coalesced writes that all show; -1
  /// for the first itself. It is open as long as the machine lives.
  let ringFile: Int32
  private let sharedMapping: Mapping
  var pages: UnsafeMutableRawPointer { sharedMapping.address }
  let backend: any VirtualizationBackend
  let ioctlLock = Mutex<Bool>(false)

  // MARK: Reached by others

  let requests = Atomic<UInt64>(0)
  /// Index of the slot whose CPU is in this vCPU's guest code; -1 outside.
  let runningOn = Atomic<Int>(-1)
  private let parked = Atomic<Bool>(false)
  let parker = Parker()
  let gateParker = Parker()
  /// When the local APIC timer has something to do, in monotonic nanoseconds.
  let timerDeadline = Atomic<UInt64>(.max)
  /// The same for a performance counter's overflow.
  let overflowDeadline = Atomic<UInt64>(.max)
  let startupVector = Atomic<UInt8>(0)
  let pendingNMIs = Atomic<Int>(0)
  let pendingSMI = Atomic<Bool>(false)
  let apic: LockedAPIC?
  let dirtyRing: DirtyRing?

  // MARK: The ioctl thread's

  /// The physical CPU that this vCPU has now.
  var slot: PhysicalCPUSlot?
  /// State of the CPU in `slot`.
  var cpu: CPU
  private var context = GuestContext()
  /// `loadCount` when the client was asked for the pending access.
  var emulationLoadCount: UInt64 = 0
  /// Entries made to replay the instruction that is being emulated.
  var replayEntries = 0
  var mpState: UInt32
  /// KVM_RUN was called: the CPUID stays as it is.
  var hasRun = false
  /// In KVM_RUN.
  var isInRun = false
  /// KVM_HC_KICK_CPU came: the next halt, or the one that lasts, ends.
  var wakePending = false
  /// What the next KVM_RUN has to finish.
  var completion: Completion = .none
  /// Of the IN or OUT that the client was asked for.
  var completionRIP: UInt64 = 0
  let emulation = InstructionEmulation()
  /// An exception that an exit handler raised.
  var pendingException: GuestException?
  /// What its delivery does to DR6 or CR2, until then.
  var pendingPayload: UInt64?
  var isTripleFaultPending = false
  /// KVM_RUN_X86_BUS_LOCK at the next return.
  var hasLockedBus = false
  /// KVM_RUN ends with EFAULT.
  var isHostFault = false
  /// Of the instruction whose #BP or #OF was intercepted.
  var eventInstructionLength: UInt32 = 1
  /// KVM_INTERRUPT's vector, without an 8259 of ours.
  var queuedInterrupt: UInt8?
  /// An event that an exit interrupted on its way into the guest.
  var interruptedEvent: GuestEvent?
  /// Whether interrupts have to be looked at before the next entry.
  var mustCheckEvents = true
  /// Goes up when the state in the physical CPU may no longer be what the last exit left.
  var loadCount: UInt64 = 0
  var cpuid = GuestCPUID([])
  var msrs = MSRStore()
  /// How fast the guest's counter runs, and what it is more than the host's at that rate.
  var tscRate: TSCRate
  var tscOffset: UInt64
  /// The local APIC timer's TSC deadline; .max: none.
  var deadlineTSC: UInt64 = .max
  var performance = PerformanceMonitor()
  var smm = SystemManagement()
  var clockFlags: UInt8 = ParavirtualClock.tscStable
  var statistics = RunStatistics()
  /// Made with the first KVM_GET_STATS_FD.
  var statisticsFile: StatisticsFile?
  var machineCheck = MachineCheckBanks()
  var steal = StealTime()
  var eoi = ParavirtualEOI()
  var asyncFaults = AsyncPageFaults()
  /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
  var enforcesParavirtualCPUID = false
  var debug = GuestDebug()
  /// The guest's own debug registers, while the client has the processor's.
  var hiddenDebug: DebugAddresses?
  /// An instruction that was stepped over here is over.
  var isStepDone = false
  /// KVM_SET_SIGNAL_MASK: the signals that are blocked during KVM_RUN; nil: the thread's own.
  var signalMask: UInt64?
  /// KVM_TPR_ACCESS_REPORTING, and the access to report.
  var reportsTPR = false
  var tprAccess: (rip: UInt64, isWrite: Bool)?
  /// KVM_SET_VAPIC_ADDR; 0: none.
  var priorityCopy: UInt64 = 0
  /// A vector whose end the client's I/O APIC has to know.
  var endedVector: UInt8?

  static let sharedSize = 3 * 4096

  var run: UnsafeMutablePointer<kvm_run> { pages.assumingMemoryBound(to: kvm_run.self) }

  init(
    machine: Machine, id: UInt32, index: Int, isBootCPU: Bool, dirtyRingEntries: UInt32 = 0
  ) throws(Errno) {
    self.machine = machine
    hypervisor = machine.hypervisor
    self.id = id
    self.index = index
    let file = try MemoryFile(
      name: "kvm-vcpu",
      size: dirtyRingEntries == 0
        ? Self.sharedSize : DirtyRing.fileSize(count: dirtyRingEntries))
    sharedMapping = try Mapping(sharing: file.descriptor.rawValue, size: Self.sharedSize)
    ringFile = machine.bus.all.first?.sharedFile.descriptor.rawValue ?? -1
    if ringFile >= 0 {
      try sharedMapping.replace(
        CoalescedRing.fileRange, sharing: ringFile, offset: CoalescedRing.fileRange.lowerBound)
    }
    dirtyRing =
      dirtyRingEntries == 0
      ? nil : try DirtyRing(count: dirtyRingEntries, file: file.descriptor.rawValue)
    sharedFile = file
    let physical = hypervisor.pool.slots[0].cpu
    backend = try Backends.type(for: physical).init(physical)
    cpu = physical.cpu
    let clock = machine.clock.reference
    (tscRate, tscOffset) = (clock.rate, clock.tscOffset)
    if machine.interrupts != nil {
      var local = LocalAPIC(id: id, isBootstrapProcessor: isBootCPU)
      // Until the client enables the local APIC's LINT0, the 8259 reaches the boot CPU directly.
      let options = machine.options.withLock { $0 }
      let quirks = Quirks.all & ~options.disabledQuirks
      local.busCycleNanoseconds = options.busCycleNanoseconds
      if isBootCPU, quirks & Quirks.lint0Reenabled != 0 { local.acceptExternalAtReset() }
      apic = LockedAPIC(local)
      mpState = UInt32(isBootCPU ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED)
    } else {
      apic = nil
      mpState = UInt32(KVM_MP_STATE_RUNNABLE)
    }
    msrs.isBootCPU = isBootCPU
    if hypervisor.silicon == .amd {
      msrs.hardwareConfiguration = VendorMSR.resetHardwareConfiguration
      msrs.microcodeRevision = MSRModel.amdPatchLevel
    }
    emulation.vcpu = self
    if machine.options.withLock({ $0.msrFilter != nil }) {
      requests.store(VCPURequest.msrFilter.rawValue, ordering: .sequentiallyConsistent)
    }
    withLoaded { reset() }
  }

  // MARK: Requests

  /// Asks the run loop for something, from any thread.
  func request(_ request: VCPURequest) {
    requests.bitwiseOr(request.rawValue, ordering: .sequentiallyConsistent)
    let running = runningOn.load(ordering: .sequentiallyConsistent)
    if running >= 0 {
      hypervisor.pool.slots[running].cpu.kick()
    } else if parked.load(ordering: .sequentiallyConsistent) {
      parker.unpark()
    }
  }

  /// The 8259 pair is the client's: it injects by KVM_INTERRUPT.
  var hasClientPIC: Bool { machine.interrupts?.isSplit ?? true }

  var isInGuest: Bool { runningOn.load(ordering: .sequentiallyConsistent) >= 0 }
  var isParked: Bool { parked.load(ordering: .sequentiallyConsistent) }

  /// Sleeps until a request comes or the timer's deadline.
  func park() {
    parked.store(true, ordering: .sequentiallyConsistent)
    let deadline = timerDeadline.load(ordering: .sequentiallyConsistent)
    if requests.load(ordering: .sequentiallyConsistent) == 0, !parker.park(until: deadline) {
      requests.bitwiseOr(VCPURequest.timer.rawValue, ordering: .sequentiallyConsistent)
    }
    parked.store(false, ordering: .sequentiallyConsistent)
    if deadline != .max { machine.timers.note(deadline) }
  }

  /// Takes the requests in `mask`; returns those that were set.
  func takeRequests(_ mask: VCPURequest) -> VCPURequest {
    let old = requests.bitwiseAnd(~mask.rawValue, ordering: .sequentiallyConsistent).oldValue
    return VCPURequest(rawValue: old).intersection(mask)
  }

  // MARK: On a physical CPU

  /// Called by the pool, under its lock.
  func load(on physical: PhysicalCPU) {
    cpu = physical.cpu
    loadCount &+= 1
    backend.load(on: physical)
    context.restore(to: cpu)
  }

  /// What the vendor that the guest's CPUID names does in its own way.
  func setVendorRules(_ rules: VendorRules) {
    context.rules = rules
    cpu.s.pointee.rules = rules
  }

  /// Called by the pool, under its lock.
  func unload(from physical: PhysicalCPU) {
    context.save(from: physical.cpu)
    backend.unload(from: physical)
  }

  /// Makes sure that this vCPU has a physical CPU.
  ///
  /// - Parameter runs: one that runs guest code.
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

  /// Runs `body` with the vCPU's state in a physical CPU.
  func withLoaded<R, E: Error>(_ body: () throws(E) -> R) throws(E) -> R {
    if slot != nil { return try body() }
    takeSlot(runs: false)
    defer { releaseSlot() }
    return try body()
  }
}
