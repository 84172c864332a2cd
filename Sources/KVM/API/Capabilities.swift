// SPDX-License-Identifier: Apache-2.0

import CHost
import X86CPU

/// KVM_CHECK_EXTENSION: what this KVM can do, and nothing that it cannot.
enum Capabilities {
  /// Capability numbers with their answers; others are 0.
  static func value(_ number: UInt, physicalCPUs: Int) -> Int32 {
    switch Int32(truncatingIfNeeded: number) {
    case KVM_CAP_NR_VCPUS: Int32(physicalCPUs)
    case KVM_CAP_XSAVE2: Int32(ExtendedState.areaSize)
    case let number: table[number] ?? 0
    }
  }

  private static let table: [Int32: Int32] = [
    KVM_CAP_IRQCHIP: 1,
    KVM_CAP_HLT: 1,
    KVM_CAP_USER_MEMORY: 1,
    KVM_CAP_SET_TSS_ADDR: 1,
    KVM_CAP_EXT_CPUID: 1,
    KVM_CAP_MAX_VCPUS: Int32(Machine.maxVirtualCPUs),
    KVM_CAP_MAX_VCPU_ID: Int32(Machine.maxVirtualCPUs),
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
    KVM_CAP_VCPU_ATTRIBUTES: 0,
  ]
}
