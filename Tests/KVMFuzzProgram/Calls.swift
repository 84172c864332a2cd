// SPDX-License-Identifier: Apache-2.0
//
// The ioctls of x86 with the errors that the kernel's documentation has for them (or, where it is
// silent, Linux 6.1). Those that a KVM need not have may answer as one without.

import CHost
import Glibc

/// A structure of random content.
private func some<T>(_ type: T.Type) -> Call.Argument {
  .structure { worker, place in
    worker.fill(place, MemoryLayout<T>.size)
    return MemoryLayout<T>.size
  }
}

/// What `getter` says, with some fields changed.
private func changed<T>(_ type: T.Type, by getter: UInt32, size: Int? = nil) -> Call.Argument {
  .structure { worker, place in
    worker.fillChanged(place, size ?? MemoryLayout<T>.size, getter)
  }
}

private let any = Call.Argument.value { worker in
  worker.chance(2) ? 0 : UInt(truncatingIfNeeded: worker.word())
}

let systemCalls: [Call] = [
  Call("GET_API_VERSION", .system, CKVM_GET_API_VERSION, any, [EINVAL], results: 12...12),
  Call("CHECK_EXTENSION", .system, CKVM_CHECK_EXTENSION, any, results: 0...Int32.max),
  Call(
    "GET_VCPU_MMAP_SIZE", .system, CKVM_GET_VCPU_MMAP_SIZE, any, [EINVAL],
    results: 4096...Int32.max),
  Call(
    "CREATE_VM", .system, CKVM_CREATE_VM, any, Call.opening.union([EINVAL]), weight: 1,
    opens: true),
  Call(
    "GET_SUPPORTED_CPUID", .system, CKVM_GET_SUPPORTED_CPUID, .structure(Make.list),
    [E2BIG, ENOMEM]),
  Call(
    "GET_EMULATED_CPUID", .system, CKVM_GET_EMULATED_CPUID, .structure(Make.list),
    [E2BIG, ENOMEM]),
  Call("GET_MSR_INDEX_LIST", .system, CKVM_GET_MSR_INDEX_LIST, .structure(Make.list), [E2BIG]),
  Call(
    "GET_MSR_FEATURE_INDEX_LIST", .system, CKVM_GET_MSR_FEATURE_INDEX_LIST,
    .structure(Make.list), [E2BIG]),
  Call(
    "GET_MSRS", .system, CKVM_GET_MSRS, .structure(Make.registers), [E2BIG, ENOMEM],
    results: 0...256),
  Call("X86_GET_MCE_CAP_SUPPORTED", .system, CKVM_X86_GET_MCE_CAP_SUPPORTED, some(UInt64.self)),
  Call(
    "GET_DEVICE_ATTR", .system, CKVM_GET_DEVICE_ATTR, .structure(Make.attribute),
    [ENXIO, EFAULT]),
  Call(
    "HAS_DEVICE_ATTR", .system, CKVM_HAS_DEVICE_ATTR, .structure(Make.attribute),
    [ENXIO, EFAULT]),
  Call(
    "GET_SUPPORTED_HV_CPUID", .system, CKVM_GET_SUPPORTED_HV_CPUID, .structure(Make.list),
    [E2BIG, EINVAL, ENOMEM]),
]

let machineCalls: [Call] = [
  Call(
    "CREATE_VCPU", .machine, CKVM_CREATE_VCPU,
    .value { worker in
      worker.chance(8) ? UInt(truncatingIfNeeded: worker.word()) : UInt(worker.below(8))
    }, Call.opening.union([EINVAL, EEXIST]), weight: 1, opens: true),
  Call("CHECK_EXTENSION", .machine, CKVM_CHECK_EXTENSION, any, results: 0...Int32.max),
  Call(
    "SET_USER_MEMORY_REGION", .machine, CKVM_SET_USER_MEMORY_REGION,
    .structure(Make.memoryRegion), [EINVAL, EEXIST, ENOMEM], weight: 12),
  Call(
    "SET_USER_MEMORY_REGION2", .machine, CKVM_SET_USER_MEMORY_REGION2,
    .structure(Make.memoryRegion2), [EINVAL, EEXIST, ENOMEM, EBADF, ENOTTY]),
  Call(
    "GET_DIRTY_LOG", .machine, CKVM_GET_DIRTY_LOG, .structure(Make.dirtyLog),
    [EINVAL, ENOENT, ENXIO, EFAULT, ENOMEM], weight: 8),
  Call(
    "CLEAR_DIRTY_LOG", .machine, CKVM_CLEAR_DIRTY_LOG, .structure(Make.clearDirtyLog),
    [EINVAL, ENOENT, ENXIO, EFAULT, ENOMEM], weight: 8),
  Call(
    "RESET_DIRTY_RINGS", .machine, CKVM_RESET_DIRTY_RINGS, .ignored, [EINVAL],
    results: 0...Int32.max),
  Call("CREATE_IRQCHIP", .machine, CKVM_CREATE_IRQCHIP, .ignored, [EEXIST, EINVAL, ENOMEM]),
  Call("IRQ_LINE", .machine, CKVM_IRQ_LINE, .structure(Make.line), [ENXIO, EINVAL], weight: 8),
  Call(
    "IRQ_LINE_STATUS", .machine, CKVM_IRQ_LINE_STATUS, .structure(Make.line), [ENXIO, EINVAL],
    weight: 8),
  Call(
    "SET_GSI_ROUTING", .machine, CKVM_SET_GSI_ROUTING, .structure(Make.routing),
    [EINVAL, ENOMEM]),
  Call(
    "SIGNAL_MSI", .machine, CKVM_SIGNAL_MSI, .structure(Make.message), [EINVAL],
    results: 0...255, weight: 8),
  Call("GET_IRQCHIP", .machine, CKVM_GET_IRQCHIP, .structure(Make.chip), [EINVAL, ENXIO]),
  Call("SET_IRQCHIP", .machine, CKVM_SET_IRQCHIP, .structure(Make.chip), [EINVAL, ENXIO]),
  Call("CREATE_PIT", .machine, CKVM_CREATE_PIT, .ignored, [ENOENT, EEXIST, ENOMEM], weight: 1),
  Call(
    "CREATE_PIT2", .machine, CKVM_CREATE_PIT2, some(kvm_pit_config.self),
    [ENOENT, EEXIST, ENOMEM, EINVAL]),
  Call("GET_PIT", .machine, CKVM_GET_PIT, some(kvm_pit_state.self), [ENXIO]),
  Call("SET_PIT", .machine, CKVM_SET_PIT, some(kvm_pit_state.self), [ENXIO, EINVAL]),
  Call("GET_PIT2", .machine, CKVM_GET_PIT2, some(kvm_pit_state2.self), [ENXIO]),
  Call(
    "SET_PIT2", .machine, CKVM_SET_PIT2, changed(kvm_pit_state2.self, by: CKVM_GET_PIT2),
    [ENXIO, EINVAL]),
  Call(
    "REINJECT_CONTROL", .machine, CKVM_REINJECT_CONTROL, some(kvm_reinject_control.self),
    [ENXIO, EINVAL]),
  Call("GET_CLOCK", .machine, CKVM_GET_CLOCK, some(kvm_clock_data.self)),
  Call(
    "SET_CLOCK", .machine, CKVM_SET_CLOCK, changed(kvm_clock_data.self, by: CKVM_GET_CLOCK),
    [EINVAL]),
  Call("SET_TSS_ADDR", .machine, CKVM_SET_TSS_ADDR, any, [EINVAL, EEXIST]),
  Call(
    "SET_IDENTITY_MAP_ADDR", .machine, CKVM_SET_IDENTITY_MAP_ADDR, some(UInt64.self),
    [EINVAL, EEXIST]),
  Call("SET_BOOT_CPU_ID", .machine, CKVM_SET_BOOT_CPU_ID, any, [EBUSY, EINVAL]),
  Call("GET_NR_MMU_PAGES", .machine, CKVM_GET_NR_MMU_PAGES, .ignored, results: 0...Int32.max),
  Call("SET_NR_MMU_PAGES", .machine, CKVM_SET_NR_MMU_PAGES, any, [EINVAL]),
  Call(
    "ENABLE_CAP", .machine, CKVM_ENABLE_CAP, .structure(Make.capability),
    [EINVAL, EEXIST, E2BIG, ENOMEM, EFAULT, ENOTTY, EPERM, ENXIO], weight: 8),
  Call(
    "X86_SET_MSR_FILTER", .machine, CKVM_X86_SET_MSR_FILTER, .structure(Make.filter),
    [EINVAL, EFAULT, ENOMEM]),
  Call(
    "IRQFD", .machine, CKVM_IRQFD, .structure(Make.interruptEvent),
    Call.opening.union([EINVAL, EBADF, EBUSY]), weight: 8),
  Call(
    "IOEVENTFD", .machine, CKVM_IOEVENTFD, .structure(Make.doorbell),
    Call.opening.union([EINVAL, EBADF, EEXIST, ENOENT, ENOSPC]), weight: 8),
  Call(
    "REGISTER_COALESCED_MMIO", .machine, CKVM_REGISTER_COALESCED_MMIO, .structure(Make.zone),
    [EINVAL, ENOSPC, EEXIST, ENOMEM]),
  Call(
    "UNREGISTER_COALESCED_MMIO", .machine, CKVM_UNREGISTER_COALESCED_MMIO,
    .structure(Make.zone), [EINVAL, ENXIO]),
  Call(
    "CREATE_DEVICE", .machine, CKVM_CREATE_DEVICE, some(kvm_create_device.self),
    [ENODEV, EEXIST, ENOMEM]),
  Call(
    "GET_STATS_FD", .machine, CKVM_GET_STATS_FD, .ignored, Call.opening, weight: 1,
    opens: true),
  Call("SET_TSC_KHZ", .machine, CKVM_SET_TSC_KHZ, any, [EINVAL, ENOTTY]),
  Call(
    "GET_TSC_KHZ", .machine, CKVM_GET_TSC_KHZ, .ignored, [EIO, ENOTTY],
    results: 0...Int32.max),
  Call(
    "SET_PMU_EVENT_FILTER", .machine, CKVM_SET_PMU_EVENT_FILTER, .structure(Make.eventFilter),
    [EINVAL, E2BIG, EFAULT, ENOMEM, ENOTTY]),
  Call(
    "XEN_HVM_CONFIG", .machine, CKVM_XEN_HVM_CONFIG, some(kvm_clock_data.self),
    [EINVAL, ENOTTY]),
  Call("HYPERV_EVENTFD", .machine, CKVM_HYPERV_EVENTFD, some(UInt64.self), [EINVAL, ENOTTY]),
  Call("MEMORY_ENCRYPT_OP", .machine, CKVM_MEMORY_ENCRYPT_OP, .ignored, [ENOTTY, EINVAL]),
]

let cpuCalls: [Call] = [
  Call("RUN", .cpu, CKVM_RUN, .ignored, [EINTR, EAGAIN, EFAULT, EINVAL], weight: 0),
  Call("GET_REGS", .cpu, CKVM_GET_REGS, some(kvm_regs.self)),
  Call("SET_REGS", .cpu, CKVM_SET_REGS, changed(kvm_regs.self, by: CKVM_GET_REGS), weight: 8),
  Call("GET_SREGS", .cpu, CKVM_GET_SREGS, some(kvm_sregs.self)),
  Call(
    "SET_SREGS", .cpu, CKVM_SET_SREGS, changed(kvm_sregs.self, by: CKVM_GET_SREGS), [EINVAL],
    weight: 12),
  Call("GET_SREGS2", .cpu, CKVM_GET_SREGS2, some(kvm_sregs2.self)),
  Call(
    "SET_SREGS2", .cpu, CKVM_SET_SREGS2, changed(kvm_sregs2.self, by: CKVM_GET_SREGS2),
    [EINVAL]),
  Call("GET_DEBUGREGS", .cpu, CKVM_GET_DEBUGREGS, some(kvm_debugregs.self)),
  Call(
    "SET_DEBUGREGS", .cpu, CKVM_SET_DEBUGREGS,
    changed(kvm_debugregs.self, by: CKVM_GET_DEBUGREGS), [EINVAL]),
  Call("TRANSLATE", .cpu, CKVM_TRANSLATE, some(kvm_translation.self), [EINVAL]),
  Call("GET_FPU", .cpu, CKVM_GET_FPU, some(kvm_fpu.self)),
  Call("SET_FPU", .cpu, CKVM_SET_FPU, changed(kvm_fpu.self, by: CKVM_GET_FPU)),
  Call("GET_XSAVE", .cpu, CKVM_GET_XSAVE, some(kvm_xsave.self)),
  Call("GET_XSAVE2", .cpu, CKVM_GET_XSAVE2, some(kvm_xsave.self)),
  Call("SET_XSAVE", .cpu, CKVM_SET_XSAVE, changed(kvm_xsave.self, by: CKVM_GET_XSAVE), [EINVAL]),
  Call("GET_XCRS", .cpu, CKVM_GET_XCRS, some(kvm_xcrs.self)),
  Call("SET_XCRS", .cpu, CKVM_SET_XCRS, changed(kvm_xcrs.self, by: CKVM_GET_XCRS), [EINVAL]),
  Call("GET_LAPIC", .cpu, CKVM_GET_LAPIC, some(kvm_lapic_state.self), [EINVAL]),
  Call(
    "SET_LAPIC", .cpu, CKVM_SET_LAPIC, changed(kvm_lapic_state.self, by: CKVM_GET_LAPIC),
    [EINVAL]),
  Call("INTERRUPT", .cpu, CKVM_INTERRUPT, .structure(Make.interrupt), [EINVAL, ENXIO, EEXIST]),
  Call("NMI", .cpu, CKVM_NMI, .ignored),
  Call("SMI", .cpu, CKVM_SMI, .ignored, [EINVAL, ENOTTY]),
  Call("GET_VCPU_EVENTS", .cpu, CKVM_GET_VCPU_EVENTS, some(kvm_vcpu_events.self)),
  Call(
    "SET_VCPU_EVENTS", .cpu, CKVM_SET_VCPU_EVENTS,
    changed(kvm_vcpu_events.self, by: CKVM_GET_VCPU_EVENTS), [EINVAL]),
  Call("GET_MP_STATE", .cpu, CKVM_GET_MP_STATE, some(kvm_mp_state.self), [EINVAL]),
  Call("SET_MP_STATE", .cpu, CKVM_SET_MP_STATE, .structure(Make.runState), [EINVAL]),
  Call("SET_CPUID", .cpu, CKVM_SET_CPUID, .structure(Make.oldCPUID), [E2BIG, EINVAL, ENOMEM]),
  Call("SET_CPUID2", .cpu, CKVM_SET_CPUID2, .structure(Make.cpuid), [E2BIG, EINVAL, ENOMEM]),
  Call("GET_CPUID2", .cpu, CKVM_GET_CPUID2, .structure(Make.list), [E2BIG]),
  Call(
    "GET_MSRS", .cpu, CKVM_GET_MSRS, .structure(Make.registers), [E2BIG, ENOMEM],
    results: 0...256),
  Call(
    "SET_MSRS", .cpu, CKVM_SET_MSRS, .structure(Make.registers), [E2BIG, ENOMEM],
    results: 0...256, weight: 8),
  Call(
    "TPR_ACCESS_REPORTING", .cpu, CKVM_TPR_ACCESS_REPORTING, some(kvm_tpr_access_ctl.self),
    [EINVAL]),
  Call("SET_VAPIC_ADDR", .cpu, CKVM_SET_VAPIC_ADDR, .structure(Make.guestAddress), [EINVAL]),
  Call("SET_SIGNAL_MASK", .cpu, CKVM_SET_SIGNAL_MASK, .structure(Make.signalMask), [EINVAL]),
  Call("KVMCLOCK_CTRL", .cpu, CKVM_KVMCLOCK_CTRL, .ignored, [EINVAL]),
  Call("GET_TSC_KHZ", .cpu, CKVM_GET_TSC_KHZ, .ignored, [EIO], results: 1...Int32.max),
  Call("SET_TSC_KHZ", .cpu, CKVM_SET_TSC_KHZ, any, [EINVAL]),
  Call("X86_SETUP_MCE", .cpu, CKVM_X86_SETUP_MCE, .structure(Make.machineCheckSetup), [EINVAL]),
  Call("X86_SET_MCE", .cpu, CKVM_X86_SET_MCE, .structure(Make.machineCheck), [EINVAL]),
  Call(
    "ENABLE_CAP", .cpu, CKVM_ENABLE_CAP, .structure(Make.capability),
    [EINVAL, EFAULT, ENOTTY]),
  Call("SET_GUEST_DEBUG", .cpu, CKVM_SET_GUEST_DEBUG, .structure(Make.debug), [EINVAL, EBUSY]),
  Call("GET_STATS_FD", .cpu, CKVM_GET_STATS_FD, .ignored, Call.opening, weight: 1, opens: true),
  Call(
    "GET_DEVICE_ATTR", .cpu, CKVM_GET_DEVICE_ATTR, .structure(Make.attribute),
    [ENXIO, EFAULT]),
  Call(
    "SET_DEVICE_ATTR", .cpu, CKVM_SET_DEVICE_ATTR, .structure(Make.attribute),
    [ENXIO, EFAULT]),
  Call(
    "HAS_DEVICE_ATTR", .cpu, CKVM_HAS_DEVICE_ATTR, .structure(Make.attribute),
    [ENXIO, EFAULT]),
  Call("GET_NESTED_STATE", .cpu, CKVM_GET_NESTED_STATE, .structure(Make.list), [EINVAL, E2BIG]),
  Call("SET_NESTED_STATE", .cpu, CKVM_SET_NESTED_STATE, .structure(Make.list), [EINVAL]),
]
