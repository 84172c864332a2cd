// SPDX-License-Identifier: Apache-2.0
//
// KVM_ENABLE_CAP on a machine: one table, and the options that it sets. vCPUs read the options at
// exits, under the options' own lock.

import CHost
import InterruptChips
import Synchronization
import SystemPackage

/// Options that clients enable for all vCPUs.
struct MachineOptions: Sendable {
  /// KVM_CAP_X2APIC_API.
  var messageFormat: MessageSignalledInterrupt.Format = []
  /// KVM_CAP_X86_DISABLE_EXITS: HLT waits in KVM_RUN even if the client has the interrupt chips.
  var haltsInGuest = false
  var canReadPlatformInfo = true
  /// KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT.
  var hasExceptionPayload = false
  var hasTripleFaultEvent = false
  /// KVM_CAP_EXIT_ON_EMULATION_FAILURE.
  var tellsEmulationFailures = false
  /// KVM_CAP_X86_USER_SPACE_MSR: KVM_MSR_EXIT_REASON_... bits that exit to the client.
  var userSpaceMSRs: UInt64 = 0
  var msrFilter: MSRFilter?
  /// KVM_PMU_CAP_DISABLE.
  var hasNoCounters = false
  var eventFilter: PerformanceEventFilter?
  /// KVM_CAP_EXIT_HYPERCALL: hypercalls by number.
  var userSpaceHypercalls: UInt64 = 0
  /// KVM_CAP_X86_BUS_LOCK_EXIT.
  var detectsBusLocks = false
  /// KVM_CAP_X86_NOTIFY_VMEXIT: in TSC ticks; nil: off.
  var notifyWindow: UInt32?
  var tellsNotifyExits = false
  /// KVM_CAP_DISABLE_QUIRKS2.
  var disabledQuirks: UInt64 = 0
  /// KVM_CAP_X86_APIC_BUS_CYCLES_NS: the undivided cycle of local APIC timers.
  var busCycleNanoseconds: UInt32 = 1
  /// MSR_KVM_WALL_CLOCK, which all vCPUs share.
  var wallClock: UInt64 = 0
}

extension Machine {
  typealias Switch = @Sendable (Machine, kvm_enable_cap) throws(Errno) -> Void

  static let capabilityIoctls: [(UInt32, Method)] = [
    (
      CKVM_ENABLE_CAP,
      { (machine, argument) throws(Errno) in
        let capability: kvm_enable_cap = try argument.read()
        guard let change = switches[Int32(bitPattern: capability.cap)], capability.flags == 0
        else { throw .invalidArgument }
        try change(machine, capability)
        return 0
      }
    ),
    (
      CKVM_X86_SET_MSR_FILTER,
      { (machine, argument) throws(Errno) in
        let filter = try MSRFilter(argument)
        machine.options.withLock { $0.msrFilter = filter }
        for vcpu in machine.virtualCPUs { vcpu.request(.msrFilter) }
        return 0
      }
    ),
    (
      CKVM_SET_PMU_EVENT_FILTER,
      { (machine, argument) throws(Errno) in
        machine.setEventFilter(try PerformanceEventFilter(argument))
        return 0
      }
    ),
  ]

  private static let switches = generalSwitches.merging(hoggingSwitches) { first, _ in first }

  private static let generalSwitches: [Int32: Switch] = [
    KVM_CAP_MAX_VCPU_ID: { (machine, capability) throws(Errno) in
      let limit = capability.args.0
      guard limit <= UInt64(maxCPUIDs) else { throw .invalidArgument }
      try machine.configure { (configuration) throws(Errno) in
        guard UInt64(configuration.bootCPU) <= limit,
          configuration.maxCPUID == nil || configuration.maxCPUID == UInt32(limit)
        else { throw .invalidArgument }
        // 0 is no limit.
        configuration.maxCPUID = limit == 0 ? nil : UInt32(limit)
      }
    },
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: { (machine, capability) throws(Errno) in
      let options = capability.args.0
      let manual = UInt64(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)
      let known = options & manual != 0 ? manual | UInt64(KVM_DIRTY_LOG_INITIALLY_SET) : 0
      guard options & ~known == 0 else { throw .invalidArgument }
      machine.configure { $0.dirtyLogOptions = options }
    },
    KVM_CAP_DIRTY_LOG_RING: { (machine, capability) throws(Errno) in
      try machine.enableDirtyRing(bytes: capability.args.0)
    },
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL: { (machine, capability) throws(Errno) in
      try machine.enableDirtyRing(bytes: capability.args.0)
    },
    KVM_CAP_SPLIT_IRQCHIP: { (machine, capability) throws(Errno) in
      try machine.splitChips(routes: capability.args.0)
    },
    KVM_CAP_X2APIC_API: { (machine, capability) throws(Errno) in
      let wide = UInt64(KVM_X2APIC_API_USE_32BIT_IDS)
      let noBroadcast = UInt64(KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)
      let flags = capability.args.0
      guard flags & ~(wide | noBroadcast) == 0 else { throw .invalidArgument }
      machine.options.withLock {
        if flags & wide != 0 { $0.messageFormat.insert(.extendedDestination) }
        if flags & noBroadcast != 0 { $0.messageFormat.insert(.noNarrowBroadcast) }
      }
      machine.updateMessageFormat()
    },
    KVM_CAP_X86_DISABLE_EXITS: { (machine, capability) throws(Errno) in
      let known = UInt64(
        KVM_X86_DISABLE_EXITS_MWAIT | KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE
          | KVM_X86_DISABLE_EXITS_CSTATE)
      guard capability.args.0 & ~known == 0 else { throw .invalidArgument }
      try machine.configure { (_) throws(Errno) in
        guard machine.virtualCPUs.isEmpty else { throw .invalidArgument }
        if capability.args.0 & UInt64(KVM_X86_DISABLE_EXITS_HLT) != 0 {
          machine.options.withLock { $0.haltsInGuest = true }
        }
      }
    },
    KVM_CAP_X86_APIC_BUS_CYCLES_NS: { (machine, capability) throws(Errno) in
      let cycle = capability.args.0
      // The longest time (highest count and divider) must fit into 64 bits.
      guard cycle != 0, cycle <= UInt64.max / (UInt64(UInt32.max) * 128) else {
        throw .invalidArgument
      }
      try machine.configure { (_) throws(Errno) in
        guard machine.interrupts != nil else { throw .noSuchAddressOrDevice }
        guard machine.virtualCPUs.isEmpty else { throw .invalidArgument }
        machine.options.withLock { $0.busCycleNanoseconds = UInt32(cycle) }
      }
    },
    KVM_CAP_MSR_PLATFORM_INFO: { (machine, capability) throws(Errno) in
      machine.options.withLock { $0.canReadPlatformInfo = capability.args.0 != 0 }
    },
    KVM_CAP_EXCEPTION_PAYLOAD: { (machine, capability) throws(Errno) in
      machine.options.withLock { $0.hasExceptionPayload = capability.args.0 != 0 }
    },
    KVM_CAP_X86_TRIPLE_FAULT_EVENT: { (machine, capability) throws(Errno) in
      machine.options.withLock { $0.hasTripleFaultEvent = capability.args.0 != 0 }
    },
    KVM_CAP_X86_USER_SPACE_MSR: { (machine, capability) throws(Errno) in
      guard capability.args.0 & ~MSRFilter.allReasons == 0 else { throw .invalidArgument }
      machine.options.withLock { $0.userSpaceMSRs = capability.args.0 }
    },
    KVM_CAP_PMU_CAPABILITY: { (machine, capability) throws(Errno) in
      let wanted = capability.args.0
      guard wanted & ~UInt64(KVM_PMU_CAP_DISABLE) == 0 else { throw .invalidArgument }
      try machine.configure { (_) throws(Errno) in
        guard machine.virtualCPUs.isEmpty else { throw .invalidArgument }
        machine.options.withLock { $0.hasNoCounters = wanted != 0 }
      }
    },
    KVM_CAP_EXIT_HYPERCALL: { (machine, capability) throws(Errno) in
      guard capability.args.0 & ~Hypercall.exitable == 0 else { throw .invalidArgument }
      machine.options.withLock { $0.userSpaceHypercalls = capability.args.0 }
    },
    // A limit for polling; we never poll.
    KVM_CAP_HALT_POLL: { (_, capability) throws(Errno) in
      guard capability.args.0 >> 32 == 0 else { throw .invalidArgument }
    },
    // Instructions that cannot be emulated always exit to the client; see also
    // `VirtualCPU.accessBeyondWidth`.
    KVM_CAP_EXIT_ON_EMULATION_FAILURE: { (machine, capability) throws(Errno) in
      guard capability.args.0 <= 1 else { throw .invalidArgument }
      machine.options.withLock { $0.tellsEmulationFailures = capability.args.0 != 0 }
    },
    // No erratum here requires splitting of huge pages, so there is nothing to disable.
    KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: { (_, capability) throws(Errno) in
      guard capability.args.0 == 0 else { throw .invalidArgument }
    },
    KVM_CAP_DISABLE_QUIRKS: { (machine, capability) throws(Errno) in
      machine.options.withLock { $0.disabledQuirks = capability.args.0 }
    },
    KVM_CAP_DISABLE_QUIRKS2: { (machine, capability) throws(Errno) in
      guard capability.args.0 & ~Quirks.all == 0 else { throw .invalidArgument }
      machine.options.withLock { $0.disabledQuirks = capability.args.0 }
    },
  ]

  private func enableDirtyRing(bytes: UInt64) throws(Errno) {
    let entry = UInt64(DirtyRing.entrySize)
    guard bytes >= 4096, bytes.nonzeroBitCount == 1,
      bytes >= UInt64(DirtyRing.reservedEntries) * entry
    else { throw .invalidArgument }
    guard bytes <= UInt64(DirtyRing.maxEntries) * entry else { throw .argListTooLong }
    try configure { (configuration) throws(Errno) in
      guard configuration.dirtyRingEntries == 0, virtualCPUs.isEmpty else {
        throw .invalidArgument
      }
      configuration.dirtyRingEntries = UInt32(bytes / entry)
    }
  }

  private func splitChips(routes: UInt64) throws(Errno) {
    guard routes <= UInt64(GSIRoutingTable.limit) else { throw .invalidArgument }
    try configure { (_) throws(Errno) in
      guard interrupts == nil, virtualCPUs.isEmpty else { throw .fileExists }
      try installInterruptController(splitRoutes: UInt32(routes))
    }
    updateMessageFormat()
  }

  private func updateMessageFormat() {
    let format = options.withLock { $0.messageFormat }
    interrupts?.chips.withLock { $0.messageFormat = format }
  }
}

/// Deviations from hardware for old guests or clients, which clients can disable
/// (KVM_X86_QUIRK_...).
enum Quirks {
  /// LINT0 of the boot CPU is in virtual-wire mode from reset.
  static let lint0Reenabled = UInt64(KVM_X86_QUIRK_LINT0_REENABLED)
  /// CR0.CD and CR0.NW do not make guest memory uncached. They never do: caches are coherent.
  static let cacheDisableCleared = UInt64(KVM_X86_QUIRK_CD_NW_CLEARED)
  /// The local APIC's page reads as ones and takes writes while it is in x2APIC mode or off.
  static let lapicHole = UInt64(KVM_X86_QUIRK_LAPIC_MMIO_HOLE)
  /// RIP is already past an OUT to port 0x7E at the client's exit.
  static let out7E = UInt64(KVM_X86_QUIRK_OUT_7E_INC_RIP)
  /// The hypervisor executes and patches the wrong vendor's hypercall instruction.
  static let fixHypercall = UInt64(KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
  /// MONITOR and MWAIT are no-ops, whatever CPUID says.
  static let mwaitNeverUndefined: UInt64 = 1 << 6
  /// The MWAIT bit of IA32_MISC_ENABLE does not change CPUID.
  static let miscEnableNoMwait = UInt64(KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT)
  static let all =
    lint0Reenabled | cacheDisableCleared | lapicHole | out7E | fixHypercall | mwaitNeverUndefined
    | miscEnableNoMwait
}
