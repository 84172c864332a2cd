// SPDX-License-Identifier: Apache-2.0
//
// A client of /dev/kvm in C with the kernel's header alone, as independent of this package as can
// be: tests compile it with the host's compiler and compare what it prints, on the kernel's KVM and
// under "martlet kvm".
//
// usage: client PART...      ports mmio long interrupts doorbells state dirty threads

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY (512 << 10)

struct guest {
  int system, vm, cpu;
  struct kvm_run *run;
  uint8_t *memory;
};

static void fail(const char *what) {
  printf("failed: %s: %s\n", what, strerror(errno));
  exit(1);
}

#define CALL(fd, request, argument)                       \
  ({                                                      \
    int result_ = ioctl(fd, request, argument);           \
    if (result_ < 0) fail(#request);                      \
    result_;                                              \
  })

static void set_segment(struct kvm_segment *segment, int type, int is_long, int selector) {
  memset(segment, 0, sizeof *segment);
  segment->limit = 0xffffffff;
  segment->selector = selector;
  segment->type = type;
  segment->present = segment->s = segment->g = 1;
  segment->l = is_long;
  segment->db = !is_long;
}

static void set_registers(struct guest *guest, uint64_t rip, uint64_t flags) {
  struct kvm_regs regs = {.rip = rip, .rsp = 0x8000, .rflags = 2 | flags};
  CALL(guest->cpu, KVM_SET_REGS, &regs);
}

static struct guest make(int chips, const void *code, size_t size) {
  struct guest guest;
  guest.system = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (guest.system < 0) fail("/dev/kvm");
  if (CALL(guest.system, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) fail("version");
  guest.vm = CALL(guest.system, KVM_CREATE_VM, 0);
  CALL(guest.vm, KVM_SET_TSS_ADDR, 0xfffbd000ul);
  if (chips) CALL(guest.vm, KVM_CREATE_IRQCHIP, 0);
  guest.memory = mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region region = {
      .memory_size = MEMORY, .userspace_addr = (uintptr_t)guest.memory};
  CALL(guest.vm, KVM_SET_USER_MEMORY_REGION, &region);
  guest.cpu = CALL(guest.vm, KVM_CREATE_VCPU, 0);
  int pages = CALL(guest.system, KVM_GET_VCPU_MMAP_SIZE, 0);
  guest.run = mmap(0, pages, PROT_READ | PROT_WRITE, MAP_SHARED, guest.cpu, 0);
  if (guest.run == MAP_FAILED) fail("mmap");
  struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
  } cpuid = {.head.nent = 256};
  CALL(guest.system, KVM_GET_SUPPORTED_CPUID, &cpuid);
  CALL(guest.cpu, KVM_SET_CPUID2, &cpuid);
  struct kvm_sregs sregs;
  CALL(guest.cpu, KVM_GET_SREGS, &sregs);
  sregs.cs.base = sregs.cs.selector = 0;
  CALL(guest.cpu, KVM_SET_SREGS, &sregs);
  memcpy(guest.memory + 0x1000, code, size);
  set_registers(&guest, 0x1000, 0);
  return guest;
}

static void end(struct guest *guest) {
  munmap(guest->run, CALL(guest->system, KVM_GET_VCPU_MMAP_SIZE, 0));
  close(guest->cpu);
  close(guest->vm);
  close(guest->system);
  munmap(guest->memory, MEMORY);
}

/// Runs to the next exit that is not an interruption.
static int enter(struct guest *guest) {
  while (ioctl(guest->cpu, KVM_RUN, 0) < 0)
    if (errno != EINTR && errno != EAGAIN) fail("KVM_RUN");
  return guest->run->exit_reason;
}

static uint8_t *port_data(struct guest *guest) {
  return (uint8_t *)guest->run + guest->run->io.data_offset;
}

// Ports: bytes, words, a string, an input, HLT.
static void ports(void) {
  static const uint8_t code[] = {
      0xb0, 'K', 0xe6, 0x10,                          // mov al, 'K'; out 0x10, al
      0xb8, 0x34, 0x12, 0xba, 0x00, 0x20, 0xef,       // mov ax, 0x1234; mov dx, 0x2000; out dx, ax
      0xec, 0xe6, 0x11,                               // in al, dx; out 0x11, al
      0xbe, 0x00, 0x30, 0xb9, 0x05, 0x00, 0xf3, 0x6e, // mov si, 0x3000; mov cx, 5; rep outsb
      0xf4};
  struct guest guest = make(0, code, sizeof code);
  memcpy(guest.memory + 0x3000, "hello", 5);
  int reason;
  while ((reason = enter(&guest)) == KVM_EXIT_IO) {
    int size = guest.run->io.size, count = guest.run->io.count;
    if (guest.run->io.direction == KVM_EXIT_IO_IN) {
      memset(port_data(&guest), 0x5a, size);
      printf("in %x\n", guest.run->io.port);
      continue;
    }
    for (int item = 0; item < count; item++) {
      uint32_t value = 0;
      memcpy(&value, port_data(&guest) + item * size, size);
      printf("out %x %x\n", guest.run->io.port, value);
    }
  }
  struct kvm_regs regs;
  CALL(guest.cpu, KVM_GET_REGS, &regs);
  printf("exit %d rip %llx rcx %llx\n", reason, regs.rip, regs.rcx & 0xffff);
  end(&guest);
}

// MMIO: reads and writes of all sizes outside of memory.
static void mmio(void) {
  static const uint8_t code[] = {
      0xb8, 0x00, 0xf0, 0x8e, 0xd8,             // mov ax, 0xf000; mov ds, ax
      0xa0, 0x10, 0x00, 0xa2, 0x20, 0x00,       // mov al, [0x10]; mov [0x20], al
      0xa1, 0x12, 0x00, 0xa3, 0x22, 0x00,       // mov ax, [0x12]; mov [0x22], ax
      0x66, 0xa1, 0x14, 0x00, 0x66, 0xa3, 0x24, // mov eax, [0x14]; mov [0x24], eax
      0x00, 0xff, 0x06, 0x18, 0x00, 0xf4};      // inc word [0x18]; hlt
  struct guest guest = make(0, code, sizeof code);
  int reason;
  while ((reason = enter(&guest)) == KVM_EXIT_MMIO) {
    uint32_t value = 0;
    if (guest.run->mmio.is_write) {
      memcpy(&value, guest.run->mmio.data, guest.run->mmio.len);
      printf("write %llx %u %x\n", guest.run->mmio.phys_addr, guest.run->mmio.len, value);
    } else {
      value = 0x11223344;
      memcpy(guest.run->mmio.data, &value, guest.run->mmio.len);
      printf("read %llx %u\n", guest.run->mmio.phys_addr, guest.run->mmio.len);
    }
  }
  printf("exit %d\n", reason);
  end(&guest);
}

static void set_long_mode(struct guest *guest) {
  uint64_t *tables = (uint64_t *)(guest->memory + 0x10000);
  tables[0] = 0x11003;
  tables[512] = 0x12003;
  for (uint64_t page = 0; page < 512; page++) tables[1024 + page] = page << 21 | 0x83;
  struct kvm_sregs sregs;
  CALL(guest->cpu, KVM_GET_SREGS, &sregs);
  sregs.cr0 = 0x80000031;
  sregs.cr3 = 0x10000;
  sregs.cr4 = 0x620;
  sregs.efer = 0x500;
  set_segment(&sregs.cs, 11, 1, 8);
  set_segment(&sregs.ss, 3, 0, 16);
  sregs.ds = sregs.es = sregs.ss;
  CALL(guest->cpu, KVM_SET_SREGS, &sregs);
}

// 64-bit mode: a sum that a loop makes, SSE, and a triple fault at the end.
static void long_mode(void) {
  static const uint8_t code[] = {
      0x31, 0xc0, 0xb9, 0x40, 0x42, 0x0f, 0x00,       // xor eax, eax; mov ecx, 1000000
      0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9,       // add rax, rcx; dec ecx; jnz
      0x48, 0x89, 0xc3, 0xe7, 0x10,                   // mov rbx, rax; out 0x10, eax
      0xf3, 0x48, 0x0f, 0x2a, 0xc3,                   // cvtsi2ss xmm0, rbx
      0xf3, 0x0f, 0x51, 0xc0,                         // sqrtss xmm0, xmm0
      0xf3, 0x0f, 0x2c, 0xc0, 0xe7, 0x11,             // cvttss2si eax, xmm0; out 0x11, eax
      0x0f, 0x0b};                                    // ud2
  struct guest guest = make(0, code, sizeof code);
  set_long_mode(&guest);
  int reason;
  while ((reason = enter(&guest)) == KVM_EXIT_IO)
    printf("out %x %u\n", guest.run->io.port, *(uint32_t *)port_data(&guest));
  struct kvm_regs regs;
  CALL(guest.cpu, KVM_GET_REGS, &regs);
  printf("exit %d rbx %llu rip %llx\n", reason, regs.rbx, regs.rip);
  struct kvm_translation translation = {.linear_address = 0x123456};
  CALL(guest.cpu, KVM_TRANSLATE, &translation);
  printf("translation %llx %d\n", translation.physical_address, translation.valid);
  end(&guest);
}

// Interrupts: a line of the I/O APIC's, an irqfd, a message; the handler counts by ports.
static void interrupts(void) {
  static const uint8_t code[] = {0xfb, 0xf4, 0xeb, 0xfd};          // sti; hlt; jmp to hlt
  static const uint8_t handler[] = {
      0xe6, 0x10,                                                   // out 0x10, al
      0x1e, 0x50, 0x31, 0xc0, 0x8e, 0xd8,                           // push ds, ax; ds = 0
      0x58, 0x1f,                                                   // pop ax, ds
      0x66, 0x67, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0, 0, 0, 0,   // mov [0xfee000b0], 0 (EOI)
      0xcf};
  struct guest guest = make(1, code, sizeof code);
  struct kvm_sregs sregs;
  CALL(guest.cpu, KVM_GET_SREGS, &sregs);
  // 32-bit addresses from real mode: the limits that big real mode has.
  sregs.ds.limit = sregs.es.limit = 0xffffffff;
  sregs.ds.g = sregs.es.g = 1;
  CALL(guest.cpu, KVM_SET_SREGS, &sregs);
  memcpy(guest.memory + 0x2000, handler, sizeof handler);
  for (int vector = 0x30; vector < 0x38; vector++)
    *(uint32_t *)(guest.memory + vector * 4) = 0x2000;
  struct kvm_lapic_state lapic;
  CALL(guest.cpu, KVM_GET_LAPIC, &lapic);
  *(uint32_t *)(lapic.regs + 0xf0) = 0x1ff;
  CALL(guest.cpu, KVM_SET_LAPIC, &lapic);
  struct {
    struct kvm_irq_routing head;
    struct kvm_irq_routing_entry entries[2];
  } routing = {.head.nr = 2};
  for (int index = 0; index < 2; index++) {
    routing.entries[index].gsi = index + 5;
    routing.entries[index].type = KVM_IRQ_ROUTING_MSI;
    routing.entries[index].u.msi.address_lo = 0xfee00000;
    routing.entries[index].u.msi.data = 0x30 + index;
  }
  CALL(guest.vm, KVM_SET_GSI_ROUTING, &routing);
  struct kvm_irqfd irqfd = {.fd = eventfd(0, EFD_CLOEXEC), .gsi = 5};
  CALL(guest.vm, KVM_IRQFD, &irqfd);
  for (int round = 0; round < 3; round++) {
    uint64_t one = 1;
    struct kvm_irq_level line = {.irq = 6, .level = 1};
    struct kvm_msi message = {.address_lo = 0xfee00000, .data = 0x32};
    if (round == 0 && write(irqfd.fd, &one, 8) != 8) fail("eventfd");
    if (round == 1) CALL(guest.vm, KVM_IRQ_LINE, &line);
    if (round == 2) printf("delivered to %d\n", CALL(guest.vm, KVM_SIGNAL_MSI, &message));
    int reason = enter(&guest);
    CALL(guest.cpu, KVM_GET_LAPIC, &lapic);
    uint32_t service = *(uint32_t *)(lapic.regs + 0x110);
    printf("exit %d port %x in service %x\n", reason, guest.run->io.port, service);
  }
  irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
  CALL(guest.vm, KVM_IRQFD, &irqfd);
  close(irqfd.fd);
  end(&guest);
}

// ioeventfd at a port and in memory, one with a value to match.
static void doorbells(void) {
  static const uint8_t code[] = {
      0xb0, 1, 0xe6, 0x50, 0xb0, 2, 0xe6, 0x50,       // out 0x50 of 1 and of 2
      0xb8, 0x00, 0xf0, 0x8e, 0xd8, 0xa3, 0x00, 0x01, // mov ax, 0xf000; mov ds, ax; mov [0x100], ax
      0xf4};
  struct guest guest = make(0, code, sizeof code);
  int port = eventfd(0, EFD_NONBLOCK), memory = eventfd(0, EFD_NONBLOCK);
  struct kvm_ioeventfd bell = {.addr = 0x50, .len = 1, .fd = port, .datamatch = 2,
      .flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH};
  CALL(guest.vm, KVM_IOEVENTFD, &bell);
  struct kvm_ioeventfd other = {.addr = 0xf0100, .len = 2, .fd = memory};
  CALL(guest.vm, KVM_IOEVENTFD, &other);
  int reason;
  while ((reason = enter(&guest)) == KVM_EXIT_IO)
    printf("out %x %x\n", guest.run->io.port, *port_data(&guest));
  uint64_t rung = 0;
  printf("exit %d port %d", reason, (int)read(port, &rung, 8));
  printf(" %d", (int)rung);
  printf(" memory %d", (int)read(memory, &rung, 8));
  printf(" %d\n", (int)rung);
  end(&guest);
}

#define BACK(type, get, set)                                         \
  do {                                                               \
    static type one, two;                                            \
    CALL(guest.cpu, get, &one);                                      \
    CALL(guest.cpu, set, &one);                                      \
    CALL(guest.cpu, get, &two);                                      \
    printf(#set " %s\n", memcmp(&one, &two, sizeof one) ? "differs" : "same"); \
  } while (0)

// State that comes back as it was set.
static void state(void) {
  static const uint8_t code[] = {0xf4};
  struct guest guest = make(1, code, sizeof code);
  set_long_mode(&guest);
  BACK(struct kvm_regs, KVM_GET_REGS, KVM_SET_REGS);
  BACK(struct kvm_sregs, KVM_GET_SREGS, KVM_SET_SREGS);
  BACK(struct kvm_fpu, KVM_GET_FPU, KVM_SET_FPU);
  BACK(struct kvm_xsave, KVM_GET_XSAVE, KVM_SET_XSAVE);
  BACK(struct kvm_xcrs, KVM_GET_XCRS, KVM_SET_XCRS);
  BACK(struct kvm_debugregs, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS);
  BACK(struct kvm_vcpu_events, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS);
  BACK(struct kvm_mp_state, KVM_GET_MP_STATE, KVM_SET_MP_STATE);
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[3];
  } msrs = {.head.nmsrs = 3};
  msrs.entries[0] = (struct kvm_msr_entry){.index = 0xc0000082, .data = 0xffff800000001234};
  msrs.entries[1] = (struct kvm_msr_entry){.index = 0x174, .data = 0x10};
  msrs.entries[2] = (struct kvm_msr_entry){.index = 0xc0000102, .data = 0x7fff00000000};
  printf("msrs set %d", CALL(guest.cpu, KVM_SET_MSRS, &msrs));
  for (int index = 0; index < 3; index++) msrs.entries[index].data = 0;
  printf(" got %d", CALL(guest.cpu, KVM_GET_MSRS, &msrs));
  for (int index = 0; index < 3; index++) printf(" %llx", msrs.entries[index].data);
  // A value that is no canonical address.
  msrs.entries[1] = (struct kvm_msr_entry){.index = 0xc0000100, .data = 1ull << 62};
  printf(" refused at %d\n", CALL(guest.cpu, KVM_SET_MSRS, &msrs));
  struct kvm_sregs sregs;
  CALL(guest.cpu, KVM_GET_SREGS, &sregs);
  sregs.cr0 &= ~1ull;
  int result = ioctl(guest.cpu, KVM_SET_SREGS, &sregs);
  printf("paging without protection %d %s\n", result, strerror(errno));
  end(&guest);
}

// The dirty log of a slot.
static void dirty(void) {
  static const uint8_t code[] = {
      0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa2, 0x00, 0x00, // ds = 0x2000; mov [0], al
      0xa2, 0x00, 0x30, 0xf4, 0xa2, 0x00, 0x50, 0xf4}; // mov [0x3000], al; hlt; mov [0x5000], al; hlt
  struct guest guest = make(0, code, sizeof code);
  struct kvm_userspace_memory_region region = {.flags = KVM_MEM_LOG_DIRTY_PAGES,
      .memory_size = MEMORY, .userspace_addr = (uintptr_t)guest.memory};
  CALL(guest.vm, KVM_SET_USER_MEMORY_REGION, &region);
  for (int round = 0; round < 3; round++) {
    if (round < 2) enter(&guest);
    uint64_t bitmap[MEMORY / 4096 / 64] = {0};
    struct kvm_dirty_log log = {.dirty_bitmap = bitmap};
    CALL(guest.vm, KVM_GET_DIRTY_LOG, &log);
    for (int page = 0; page < MEMORY / 4096; page++)
      if (bitmap[page / 64] >> page % 64 & 1) printf("%x ", page);
    printf("dirty\n");
  }
  end(&guest);
}

static void *thread(void *argument) {
  static const uint8_t code[] = {0xb8, 0, 0, 0xe7, 0x10, 0x40, 0xeb, 0xfb}; // out of 0, 1, 2...
  struct guest guest = make(0, code, sizeof code);
  long sum = 0;
  for (int round = 0; round < 1000; round++) {
    if (enter(&guest) != KVM_EXIT_IO) return (void *)-1;
    sum += *(uint16_t *)port_data(&guest);
  }
  end(&guest);
  return (void *)(sum + (long)argument);
}

static void threads(void) {
  pthread_t all[4];
  for (long index = 0; index < 4; index++) pthread_create(&all[index], 0, thread, (void *)index);
  for (int index = 0; index < 4; index++) {
    void *sum;
    pthread_join(all[index], &sum);
    printf("thread %ld\n", (long)sum);
  }
}

int main(int count, char **names) {
  setlinebuf(stdout);
  static const struct {
    const char *name;
    void (*run)(void);
  } parts[] = {{"ports", ports}, {"mmio", mmio}, {"long", long_mode}, {"interrupts", interrupts},
      {"doorbells", doorbells}, {"state", state}, {"dirty", dirty}, {"threads", threads}};
  for (int index = 1; index < count; index++) {
    int found = 0;
    for (size_t part = 0; part < sizeof parts / sizeof *parts; part++)
      if (!strcmp(parts[part].name, names[index])) {
        parts[part].run();
        found = 1;
      }
    if (!found) return 2;
  }
  return 0;
}
