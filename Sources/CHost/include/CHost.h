// SPDX-License-Identifier: Apache-2.0
//
// The Linux KVM user API for Swift. Swift imports the structs and the simple constants of
// <linux/kvm.h> by itself; the ioctl numbers are built by function-like macros that it cannot
// import, so each is named again here as a constant: KVM_RUN is `CKVM_RUN` in Swift.
// Macros and single instructions only, no logic.

#ifndef MARTLET_CHOST_H
#define MARTLET_CHOST_H

#include <stdint.h>
#include <linux/kvm.h>
#include <linux/prctl.h>
#include <sys/eventfd.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <sys/signalfd.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <linux/userfaultfd.h>
#include <linux/memfd.h>
#include <termios.h>
#include <signal.h>
#include <ucontext.h>
#include <pthread.h>
#include <cpuid.h>

// Swift's own C library module is built without _GNU_SOURCE, and a module that defined it would
// see other structs than that one. So the few GNU functions in use are declared here.
int memfd_create(const char *name, unsigned int flags);
void *mremap(void *old, size_t old_size, size_t size, int flags, ...);
#ifndef MREMAP_MAYMOVE
#define MREMAP_MAYMOVE 1
#define MREMAP_FIXED 2
#endif
int pthread_setname_np(pthread_t thread, const char *name);
// syscall(2) is variadic, which Swift cannot call; the same function with all its arguments.
long chost_syscall(long number, long a, long b, long c, long d, long e, long f) __asm__("syscall");
// The folder that posix_spawn(3)'s program starts in, a GNU function.
#include <spawn.h>
int chost_spawn_in(posix_spawn_file_actions_t *actions, const char *folder)
    __asm__("posix_spawn_file_actions_addchdir_np");

// fork(2), which Swift hides because few programs may use it; tests of inherited descriptors do.
pid_t chost_fork(void) __asm__("fork");

// seccomp(2): a program, as the kernel takes it and as libseccomp's rules are written. libseccomp's
// own header need not be there: the library is loaded at run time.
#include <linux/filter.h>
#include <linux/seccomp.h>
struct chost_seccomp_check {
  unsigned int argument;
  int comparison;
  uint64_t a;
  uint64_t b;
};
// landlock(7): the newest layouts, whatever the build machine's headers know. The kernel reads as
// much of the first as it is told, and twelve bytes of the second.
struct chost_landlock_ruleset {
  uint64_t handled_access_fs;
  uint64_t handled_access_net;
  uint64_t scoped;
};
struct chost_landlock_path {
  uint64_t allowed_access;
  int32_t parent_fd;
};
// dladdr(3), a GNU function.
struct chost_dl_info {
  const char *file;
  void *base;
  const char *symbol;
  void *address;
};
int chost_dladdr(const void *address, struct chost_dl_info *info) __asm__("dladdr");
/* What kernels since 6.1 have added, where the header is older. */
#ifndef KVM_SET_USER_MEMORY_REGION2
#define KVM_CAP_USER_MEMORY2 231
struct kvm_userspace_memory_region2 {
  __u32 slot;
  __u32 flags;
  __u64 guest_phys_addr;
  __u64 memory_size;
  __u64 userspace_addr;
  __u64 guest_memfd_offset;
  __u32 guest_memfd;
  __u32 pad1;
  __u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif
#ifndef KVM_CAP_VM_TYPES
#define KVM_CAP_VM_TYPES 235
#endif
#ifndef KVM_CAP_X86_APIC_BUS_CYCLES_NS
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#endif

static const unsigned int CKVM_ASSIGN_DEV_IRQ = (unsigned int)KVM_ASSIGN_DEV_IRQ;
static const unsigned int CKVM_ASSIGN_PCI_DEVICE = (unsigned int)KVM_ASSIGN_PCI_DEVICE;
static const unsigned int CKVM_ASSIGN_SET_INTX_MASK = (unsigned int)KVM_ASSIGN_SET_INTX_MASK;
static const unsigned int CKVM_ASSIGN_SET_MSIX_ENTRY = (unsigned int)KVM_ASSIGN_SET_MSIX_ENTRY;
static const unsigned int CKVM_ASSIGN_SET_MSIX_NR = (unsigned int)KVM_ASSIGN_SET_MSIX_NR;
static const unsigned int CKVM_CHECK_EXTENSION = (unsigned int)KVM_CHECK_EXTENSION;
static const unsigned int CKVM_CLEAR_DIRTY_LOG = (unsigned int)KVM_CLEAR_DIRTY_LOG;
static const unsigned int CKVM_CREATE_DEVICE = (unsigned int)KVM_CREATE_DEVICE;
static const unsigned int CKVM_CREATE_IRQCHIP = (unsigned int)KVM_CREATE_IRQCHIP;
static const unsigned int CKVM_CREATE_PIT = (unsigned int)KVM_CREATE_PIT;
static const unsigned int CKVM_CREATE_PIT2 = (unsigned int)KVM_CREATE_PIT2;
static const unsigned int CKVM_CREATE_VCPU = (unsigned int)KVM_CREATE_VCPU;
static const unsigned int CKVM_CREATE_VM = (unsigned int)KVM_CREATE_VM;
static const unsigned int CKVM_DEASSIGN_DEV_IRQ = (unsigned int)KVM_DEASSIGN_DEV_IRQ;
static const unsigned int CKVM_DEASSIGN_PCI_DEVICE = (unsigned int)KVM_DEASSIGN_PCI_DEVICE;
static const unsigned int CKVM_DIRTY_TLB = (unsigned int)KVM_DIRTY_TLB;
static const unsigned int CKVM_ENABLE_CAP = (unsigned int)KVM_ENABLE_CAP;
static const unsigned int CKVM_GET_API_VERSION = (unsigned int)KVM_GET_API_VERSION;
static const unsigned int CKVM_GET_CLOCK = (unsigned int)KVM_GET_CLOCK;
static const unsigned int CKVM_GET_CPUID2 = (unsigned int)KVM_GET_CPUID2;
static const unsigned int CKVM_GET_DEBUGREGS = (unsigned int)KVM_GET_DEBUGREGS;
static const unsigned int CKVM_GET_DEVICE_ATTR = (unsigned int)KVM_GET_DEVICE_ATTR;
static const unsigned int CKVM_GET_DIRTY_LOG = (unsigned int)KVM_GET_DIRTY_LOG;
static const unsigned int CKVM_GET_EMULATED_CPUID = (unsigned int)KVM_GET_EMULATED_CPUID;
static const unsigned int CKVM_GET_FPU = (unsigned int)KVM_GET_FPU;
static const unsigned int CKVM_GET_IRQCHIP = (unsigned int)KVM_GET_IRQCHIP;
static const unsigned int CKVM_GET_LAPIC = (unsigned int)KVM_GET_LAPIC;
static const unsigned int CKVM_GET_MP_STATE = (unsigned int)KVM_GET_MP_STATE;
static const unsigned int CKVM_GET_MSRS = (unsigned int)KVM_GET_MSRS;
static const unsigned int CKVM_GET_MSR_FEATURE_INDEX_LIST = (unsigned int)KVM_GET_MSR_FEATURE_INDEX_LIST;
static const unsigned int CKVM_GET_MSR_INDEX_LIST = (unsigned int)KVM_GET_MSR_INDEX_LIST;
static const unsigned int CKVM_GET_NESTED_STATE = (unsigned int)KVM_GET_NESTED_STATE;
static const unsigned int CKVM_GET_NR_MMU_PAGES = (unsigned int)KVM_GET_NR_MMU_PAGES;
static const unsigned int CKVM_GET_ONE_REG = (unsigned int)KVM_GET_ONE_REG;
static const unsigned int CKVM_GET_PIT = (unsigned int)KVM_GET_PIT;
static const unsigned int CKVM_GET_PIT2 = (unsigned int)KVM_GET_PIT2;
static const unsigned int CKVM_GET_REGS = (unsigned int)KVM_GET_REGS;
static const unsigned int CKVM_GET_REG_LIST = (unsigned int)KVM_GET_REG_LIST;
static const unsigned int CKVM_GET_SREGS = (unsigned int)KVM_GET_SREGS;
static const unsigned int CKVM_GET_SREGS2 = (unsigned int)KVM_GET_SREGS2;
static const unsigned int CKVM_GET_STATS_FD = (unsigned int)KVM_GET_STATS_FD;
static const unsigned int CKVM_GET_SUPPORTED_CPUID = (unsigned int)KVM_GET_SUPPORTED_CPUID;
static const unsigned int CKVM_GET_SUPPORTED_HV_CPUID = (unsigned int)KVM_GET_SUPPORTED_HV_CPUID;
static const unsigned int CKVM_GET_TSC_KHZ = (unsigned int)KVM_GET_TSC_KHZ;
static const unsigned int CKVM_GET_VCPU_EVENTS = (unsigned int)KVM_GET_VCPU_EVENTS;
static const unsigned int CKVM_GET_VCPU_MMAP_SIZE = (unsigned int)KVM_GET_VCPU_MMAP_SIZE;
static const unsigned int CKVM_GET_XCRS = (unsigned int)KVM_GET_XCRS;
static const unsigned int CKVM_GET_XSAVE = (unsigned int)KVM_GET_XSAVE;
static const unsigned int CKVM_GET_XSAVE2 = (unsigned int)KVM_GET_XSAVE2;
static const unsigned int CKVM_HAS_DEVICE_ATTR = (unsigned int)KVM_HAS_DEVICE_ATTR;
static const unsigned int CKVM_HYPERV_EVENTFD = (unsigned int)KVM_HYPERV_EVENTFD;
static const unsigned int CKVM_INTERRUPT = (unsigned int)KVM_INTERRUPT;
static const unsigned int CKVM_IOEVENTFD = (unsigned int)KVM_IOEVENTFD;
static const unsigned int CKVM_IRQFD = (unsigned int)KVM_IRQFD;
static const unsigned int CKVM_IRQ_LINE = (unsigned int)KVM_IRQ_LINE;
static const unsigned int CKVM_IRQ_LINE_STATUS = (unsigned int)KVM_IRQ_LINE_STATUS;
static const unsigned int CKVM_KVMCLOCK_CTRL = (unsigned int)KVM_KVMCLOCK_CTRL;
static const unsigned int CKVM_MEMORY_ENCRYPT_OP = (unsigned int)KVM_MEMORY_ENCRYPT_OP;
static const unsigned int CKVM_MEMORY_ENCRYPT_REG_REGION = (unsigned int)KVM_MEMORY_ENCRYPT_REG_REGION;
static const unsigned int CKVM_MEMORY_ENCRYPT_UNREG_REGION = (unsigned int)KVM_MEMORY_ENCRYPT_UNREG_REGION;
static const unsigned int CKVM_NMI = (unsigned int)KVM_NMI;
static const unsigned int CKVM_REGISTER_COALESCED_MMIO = (unsigned int)KVM_REGISTER_COALESCED_MMIO;
static const unsigned int CKVM_UNREGISTER_COALESCED_MMIO = (unsigned int)KVM_UNREGISTER_COALESCED_MMIO;
static const unsigned int CKVM_DIRTY_GFN_F_DIRTY = (unsigned int)KVM_DIRTY_GFN_F_DIRTY;
static const unsigned int CKVM_DIRTY_GFN_F_RESET = (unsigned int)KVM_DIRTY_GFN_F_RESET;
static const unsigned int CKVM_REINJECT_CONTROL = (unsigned int)KVM_REINJECT_CONTROL;
static const unsigned int CKVM_RESET_DIRTY_RINGS = (unsigned int)KVM_RESET_DIRTY_RINGS;
static const unsigned int CKVM_RUN = (unsigned int)KVM_RUN;
static const unsigned int CKVM_SET_BOOT_CPU_ID = (unsigned int)KVM_SET_BOOT_CPU_ID;
static const unsigned int CKVM_SET_CLOCK = (unsigned int)KVM_SET_CLOCK;
static const unsigned int CKVM_SET_CPUID = (unsigned int)KVM_SET_CPUID;
static const unsigned int CKVM_SET_CPUID2 = (unsigned int)KVM_SET_CPUID2;
static const unsigned int CKVM_SET_DEBUGREGS = (unsigned int)KVM_SET_DEBUGREGS;
static const unsigned int CKVM_SET_DEVICE_ATTR = (unsigned int)KVM_SET_DEVICE_ATTR;
static const unsigned int CKVM_SET_FPU = (unsigned int)KVM_SET_FPU;
static const unsigned int CKVM_SET_GSI_ROUTING = (unsigned int)KVM_SET_GSI_ROUTING;
static const unsigned int CKVM_SET_GUEST_DEBUG = (unsigned int)KVM_SET_GUEST_DEBUG;
static const unsigned int CKVM_SET_IDENTITY_MAP_ADDR = (unsigned int)KVM_SET_IDENTITY_MAP_ADDR;
static const unsigned int CKVM_SET_IRQCHIP = (unsigned int)KVM_SET_IRQCHIP;
static const unsigned int CKVM_SET_LAPIC = (unsigned int)KVM_SET_LAPIC;
static const unsigned int CKVM_SET_MEMORY_ALIAS = (unsigned int)KVM_SET_MEMORY_ALIAS;
static const unsigned int CKVM_SET_MEMORY_REGION = (unsigned int)KVM_SET_MEMORY_REGION;
static const unsigned int CKVM_SET_MP_STATE = (unsigned int)KVM_SET_MP_STATE;
static const unsigned int CKVM_SET_MSRS = (unsigned int)KVM_SET_MSRS;
static const unsigned int CKVM_SET_NESTED_STATE = (unsigned int)KVM_SET_NESTED_STATE;
static const unsigned int CKVM_SET_NR_MMU_PAGES = (unsigned int)KVM_SET_NR_MMU_PAGES;
static const unsigned int CKVM_SET_ONE_REG = (unsigned int)KVM_SET_ONE_REG;
static const unsigned int CKVM_SET_PIT = (unsigned int)KVM_SET_PIT;
static const unsigned int CKVM_SET_PIT2 = (unsigned int)KVM_SET_PIT2;
static const unsigned int CKVM_SET_PMU_EVENT_FILTER = (unsigned int)KVM_SET_PMU_EVENT_FILTER;
static const unsigned int CKVM_SET_REGS = (unsigned int)KVM_SET_REGS;
static const unsigned int CKVM_SET_SIGNAL_MASK = (unsigned int)KVM_SET_SIGNAL_MASK;
static const unsigned int CKVM_SET_SREGS = (unsigned int)KVM_SET_SREGS;
static const unsigned int CKVM_SET_SREGS2 = (unsigned int)KVM_SET_SREGS2;
static const unsigned int CKVM_SET_TSC_KHZ = (unsigned int)KVM_SET_TSC_KHZ;
static const unsigned int CKVM_SET_TSS_ADDR = (unsigned int)KVM_SET_TSS_ADDR;
static const unsigned int CKVM_SET_USER_MEMORY_REGION = (unsigned int)KVM_SET_USER_MEMORY_REGION;
static const unsigned int CKVM_SET_USER_MEMORY_REGION2 = (unsigned int)KVM_SET_USER_MEMORY_REGION2;
static const unsigned int CKVM_SET_VAPIC_ADDR = (unsigned int)KVM_SET_VAPIC_ADDR;
static const unsigned int CKVM_SET_VCPU_EVENTS = (unsigned int)KVM_SET_VCPU_EVENTS;
static const unsigned int CKVM_SET_XCRS = (unsigned int)KVM_SET_XCRS;
static const unsigned int CKVM_SET_XSAVE = (unsigned int)KVM_SET_XSAVE;
static const unsigned int CKVM_SIGNAL_MSI = (unsigned int)KVM_SIGNAL_MSI;
static const unsigned int CKVM_SMI = (unsigned int)KVM_SMI;
static const unsigned int CKVM_TPR_ACCESS_REPORTING = (unsigned int)KVM_TPR_ACCESS_REPORTING;
static const unsigned int CKVM_TRANSLATE = (unsigned int)KVM_TRANSLATE;
static const unsigned int CKVM_X86_GET_MCE_CAP_SUPPORTED = (unsigned int)KVM_X86_GET_MCE_CAP_SUPPORTED;
static const unsigned int CKVM_X86_SETUP_MCE = (unsigned int)KVM_X86_SETUP_MCE;
static const unsigned int CKVM_X86_SET_MCE = (unsigned int)KVM_X86_SET_MCE;
static const unsigned int CKVM_X86_SET_MSR_FILTER = (unsigned int)KVM_X86_SET_MSR_FILTER;
static const unsigned int CKVM_XEN_HVM_CONFIG = (unsigned int)KVM_XEN_HVM_CONFIG;
static const unsigned int CKVM_XEN_HVM_EVTCHN_SEND = (unsigned int)KVM_XEN_HVM_EVTCHN_SEND;
static const unsigned int CKVM_XEN_HVM_GET_ATTR = (unsigned int)KVM_XEN_HVM_GET_ATTR;
static const unsigned int CKVM_XEN_HVM_SET_ATTR = (unsigned int)KVM_XEN_HVM_SET_ATTR;
static const unsigned int CKVM_XEN_VCPU_GET_ATTR = (unsigned int)KVM_XEN_VCPU_GET_ATTR;
static const unsigned int CKVM_XEN_VCPU_SET_ATTR = (unsigned int)KVM_XEN_VCPU_SET_ATTR;

static const unsigned long CUFFDIO_API = UFFDIO_API;
static const unsigned long CUFFDIO_REGISTER = UFFDIO_REGISTER;
static const unsigned long CUFFDIO_UNREGISTER = UFFDIO_UNREGISTER;
static const unsigned long CUFFDIO_COPY = UFFDIO_COPY;
static const unsigned long CUFFDIO_WAKE = UFFDIO_WAKE;
static const unsigned long CUFFDIO_WRITEPROTECT = UFFDIO_WRITEPROTECT;
static const unsigned long CUSERFAULTFD_IOC_NEW = USERFAULTFD_IOC_NEW;

// Disks: requests of block devices, and locks that belong to an open file, a GNU name of fcntl(2).
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/uio.h>
static const unsigned int chost_blkgetsize64 = (unsigned int)BLKGETSIZE64;
static const unsigned int chost_blkdiscard = (unsigned int)BLKDISCARD;
static const unsigned int chost_blkzeroout = (unsigned int)BLKZEROOUT;
static const int chost_ofd_setlk = 37;

/* Instructions that Swift has no builtin for: one each. */

/// CPUID: EAX, EBX, ECX, EDX of a leaf, in that order.
static inline void chost_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *result) {
  __cpuid_count(leaf, subleaf, result[0], result[1], result[2], result[3]);
}

/// A second mapping of `size` bytes of shared memory; MAP_FAILED where there is none.
static inline void *chost_map_again(void *memory, size_t size) {
  return mremap(memory, 0, size, MREMAP_MAYMOVE);
}

/// The same at a given place, over what is there.
static inline void *chost_map_again_at(void *memory, size_t size, void *place) {
  return mremap(memory, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, place);
}

/// MADV_COLLAPSE, which older headers do not have.
static const int chost_madv_collapse = 25;

/// Moves pages to a given place, over what is there; MAP_FAILED where that fails.
static inline void *chost_mremap_to(void *memory, size_t size, void *place) {
  return mremap(memory, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place);
}

/// RDTSC.
static inline uint64_t chost_rdtsc(void) { return __builtin_ia32_rdtsc(); }

/// LFENCE, then RDTSC.
static inline uint64_t chost_ordered_rdtsc(void) {
  __builtin_ia32_lfence();
  return __builtin_ia32_rdtsc();
}

/// STMXCSR and LDMXCSR.
static inline uint32_t chost_stmxcsr(void) { return __builtin_ia32_stmxcsr(); }
static inline void chost_ldmxcsr(uint32_t value) { __builtin_ia32_ldmxcsr(value); }

/// FNSTCW and FLDCW.
static inline uint16_t chost_fnstcw(void) {
  uint16_t value;
  __asm__ volatile("fnstcw %0" : "=m"(value));
  return value;
}
static inline void chost_fldcw(uint16_t value) { __asm__ volatile("fldcw %0" : : "m"(value)); }

#endif
