// SPDX-License-Identifier: Apache-2.0
//
// The answers of KVM_CHECK_EXTENSION, as one table. Capabilities without a row are 0.

import CHost
import X86
import X86CPU

/// KVM_CHECK_EXTENSION: exactly what this KVM supports.
enum Capabilities {
  /// Capability numbers with their answers; others are 0.
  static func value(_ number: UInt, physicalCPUs: Int, silicon: SiliconVendor) -> Int32 {
    switch Int32(truncatingIfNeeded: number) {
    case let number where silicon == .amd && ofIntel.contains(number): 0
    case KVM_CAP_NESTED_STATE: Int32(Backends.type(for: silicon).nestedStateSize)
    case KVM_CAP_NR_VCPUS: Int32(physicalCPUs)
    case KVM_CAP_XSAVE2: Int32(ExtendedState.areaSize)
    case let number: table[number] ?? 0
    }
  }

  /// Capabilities that need VM-execution controls of VT-x that this processor's SVM lacks.
  private static let ofIntel: Set<Int32> = [KVM_CAP_X86_BUS_LOCK_EXIT, KVM_CAP_X86_NOTIFY_VMEXIT]

  private static let table: [Int32: Int32] = [
    KVM_CAP_IRQCHIP: 1,
    KVM_CAP_HLT: 1,
    KVM_CAP_USER_MEMORY: 1,
    // Without the flags of KVM_CAP_GUEST_MEMFD and KVM_CAP_MEMORY_ATTRIBUTES.
    KVM_CAP_USER_MEMORY2: 1,
    // A bit for each type of machine: only the default one.
    KVM_CAP_VM_TYPES: 1,
    KVM_CAP_X86_APIC_BUS_CYCLES_NS: 1,
    KVM_CAP_SET_TSS_ADDR: 1,
    KVM_CAP_EXT_CPUID: 1,
    KVM_CAP_MAX_VCPUS: Int32(Machine.maxVirtualCPUs),
    KVM_CAP_MAX_VCPU_ID: Int32(Machine.maxCPUIDs),
    KVM_CAP_NR_MEMSLOTS: Int32(Machine.maxMemorySlots),
    KVM_CAP_MP_STATE: 1,
    KVM_CAP_NOP_IO_DELAY: 1,
    KVM_CAP_CLOCKSOURCE: 1,
    KVM_CAP_SYNC_MMU: 1,
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS: 1,
    KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: 1,
    KVM_CAP_USER_NMI: 1,
    KVM_CAP_MCE: 32,
    KVM_CAP_IRQ_ROUTING: 4096,
    KVM_CAP_IRQ_INJECT_STATUS: 1,
    KVM_CAP_PIT2: 1,
    KVM_CAP_PIT_STATE2: 1,
    KVM_CAP_SET_BOOT_CPU_ID: 1,
    KVM_CAP_ADJUST_CLOCK: KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC,
    KVM_CAP_INTERNAL_ERROR_DATA: 1,
    KVM_CAP_VCPU_EVENTS: 1,
    KVM_CAP_SET_IDENTITY_MAP_ADDR: 1,
    KVM_CAP_DEBUGREGS: 1,
    KVM_CAP_XSAVE: 1,
    KVM_CAP_XCRS: 1,
    KVM_CAP_GET_TSC_KHZ: 1,
    KVM_CAP_TSC_DEADLINE_TIMER: 1,
    KVM_CAP_KVMCLOCK_CTRL: 1,
    KVM_CAP_SIGNAL_MSI: 1,
    KVM_CAP_READONLY_MEM: 1,
    KVM_CAP_CHECK_EXTENSION_VM: 1,
    KVM_CAP_ENABLE_CAP_VM: 1,
    KVM_CAP_ENABLE_CAP: 1,
    KVM_CAP_IMMEDIATE_EXIT: 1,
    KVM_CAP_GET_MSR_FEATURES: 1,
    KVM_CAP_SREGS2: 1,
    KVM_CAP_SYS_ATTRIBUTES: 1,
    KVM_CAP_BINARY_STATS_FD: 1,
    KVM_CAP_VCPU_ATTRIBUTES: 1,
    KVM_CAP_IRQFD: 1,
    KVM_CAP_IRQFD_RESAMPLE: 1,
    KVM_CAP_IOEVENTFD: 1,
    KVM_CAP_IOEVENTFD_NO_LENGTH: 1,
    KVM_CAP_IOEVENTFD_ANY_LENGTH: 1,
    KVM_CAP_COALESCED_MMIO: Int32(CoalescedRing.page),
    KVM_CAP_COALESCED_PIO: 1,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_CAP_DIRTY_LOG_RING: Int32(DirtyRing.maxEntries) * Int32(DirtyRing.entrySize),
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL: Int32(DirtyRing.maxEntries) * Int32(DirtyRing.entrySize),
    KVM_CAP_SPLIT_IRQCHIP: 1,
    KVM_CAP_X2APIC_API: Int32(
      KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK),
    KVM_CAP_X86_DISABLE_EXITS: KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE,
    KVM_CAP_MSR_PLATFORM_INFO: 1,
    KVM_CAP_EXCEPTION_PAYLOAD: 1,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT: 1,
    KVM_CAP_X86_USER_SPACE_MSR: 1,
    KVM_CAP_X86_MSR_FILTER: 1,
    KVM_CAP_PMU_EVENT_FILTER: 1,
    KVM_CAP_PMU_CAPABILITY: KVM_PMU_CAP_DISABLE,
    KVM_CAP_EXIT_HYPERCALL: Int32(Hypercall.exitable),
    KVM_CAP_EXIT_ON_EMULATION_FAILURE: 1,
    KVM_CAP_SMALLER_MAXPHYADDR: 1,
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID: 1,
    KVM_CAP_HALT_POLL: 1,
    KVM_CAP_STEAL_TIME: 1,
    KVM_CAP_ASYNC_PF: 1,
    KVM_CAP_ASYNC_PF_INT: 1,
    KVM_CAP_SET_GUEST_DEBUG: 1,
    KVM_CAP_SET_GUEST_DEBUG2: Int32(GuestDebug.valid),
    KVM_CAP_X86_ROBUST_SINGLESTEP: 1,
    KVM_CAP_SYNC_REGS: Int32(VirtualCPU.synchronizable),
    KVM_CAP_VAPIC: 1,
    KVM_CAP_EXT_EMUL_CPUID: 1,
    KVM_CAP_PIT: 1,
    KVM_CAP_REINJECT_CONTROL: 1,
    KVM_CAP_IOAPIC_POLARITY_IGNORED: 1,
    KVM_CAP_TSC_CONTROL: 1,
    KVM_CAP_VM_TSC_CONTROL: 1,
    KVM_CAP_X86_SMM: 1,
    KVM_CAP_MULTI_ADDRESS_SPACE: Int32(Machine.addressSpaces),
    KVM_CAP_X86_BUS_LOCK_EXIT: KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT,
    KVM_CAP_X86_NOTIFY_VMEXIT: 1,
    // Neither applies here: system events, and splitting of huge pages.
    KVM_CAP_SYSTEM_EVENT_DATA: 1,
    KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: 1,
    KVM_CAP_DISABLE_QUIRKS: 1,
    KVM_CAP_DISABLE_QUIRKS2: Int32(Quirks.all),
  ]
}
