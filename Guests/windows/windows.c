// SPDX-License-Identifier: Apache-2.0
//
// Changes of an address space while a program reads and writes it in hot loops: whatever a processor
// keeps of translations has to go in time (docs/windows.md). Every step compares what memory holds
// with what it must hold, and every access that must fault has to fault.
//
//     windows [rounds]      prints WINDOWS-RIGHT, or what was wrong, and its exit status says so

#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { page = 4096, pages = 64, words = page / 8 };

static sigjmp_buf out;
static volatile sig_atomic_t expected;
static unsigned long checks;

static void fail(const char *what, unsigned long at) {
  printf("WINDOWS-WRONG %s at %lx\n", what, at);
  fflush(stdout);
  _exit(1);
}

static void handler(int number, siginfo_t *information, void *context) {
  (void)context;
  if (!expected) {
    printf("WINDOWS-WRONG signal %d at %p\n", number, information->si_addr);
    fflush(stdout);
    _exit(1);
  }
  siglongjmp(out, 1);
}

// Hot enough to be translated as a whole.
__attribute__((noinline)) static uint64_t sum(const volatile uint64_t *memory, long count) {
  uint64_t total = 0;
  for (long n = 0; n < count; n++) total = total * 31 + memory[(n * 97) % count];
  return total;
}

__attribute__((noinline)) static void fill(volatile uint64_t *memory, long count, uint64_t seed) {
  for (long n = 0; n < count; n++) memory[(n * 97) % count] = seed + (uint64_t)((n * 97) % count);
}

static uint64_t wanted(long count, uint64_t seed) {
  uint64_t total = 0;
  for (long n = 0; n < count; n++) total = total * 31 + seed + (uint64_t)((n * 97) % count);
  return total;
}

static void check(const char *what, const uint64_t *memory, long count, uint64_t seed) {
  checks++;
  if (sum(memory, count) != wanted(count, seed)) fail(what, (unsigned long)memory);
}

// Whether an access faults: the same loops, from the page's first word on.
static int faults(uint64_t *memory, int write) {
  expected = 1;
  int result = 1;
  if (sigsetjmp(out, 1) == 0) {
    if (write) fill(memory, words - 1, 1);
    else (void)sum(memory, words - 1);
    result = 0;
  }
  expected = 0;
  return result;
}

static void must_fault(const char *what, uint64_t *memory, int write) {
  checks++;
  if (!faults(memory, write)) fail(what, (unsigned long)memory);
}

static uint64_t *map(void *at, long count, int extra) {
  uint64_t *memory =
      mmap(at, count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | extra, -1, 0);
  if (memory == MAP_FAILED) fail("mmap", (unsigned long)count);
  return memory;
}

enum { count = pages * words - 5 };  // Odd and without a factor 97, so that all words are visited.

static void protections(uint64_t *memory, uint64_t seed) {
  fill(memory, count, seed);
  mprotect(memory, pages * page, PROT_READ);
  check("read-only", memory, count, seed);
  must_fault("write to read-only memory", memory + 3 * words, 1);
  check("read-only after a fault", memory, count, seed);
  mprotect(memory, pages * page, PROT_NONE);
  must_fault("read of inaccessible memory", memory + 5 * words, 0);
  mprotect(memory, pages * page, PROT_READ | PROT_WRITE);
  check("accessible again", memory, count, seed);
  fill(memory, count, seed + 1);
  check("written again", memory, count, seed + 1);
  // A single page, which one INVLPG does.
  mprotect(memory + 7 * words, page, PROT_READ);
  must_fault("write to a read-only page", memory + 7 * words, 1);
  mprotect(memory + 7 * words, page, PROT_READ | PROT_WRITE);
  fill(memory, count, seed + 2);
  check("one page", memory, count, seed + 2);
}

static void unmapping(uint64_t *memory, uint64_t seed) {
  fill(memory, count, seed);
  munmap(memory + 9 * words, page);
  must_fault("read of an unmapped page", memory + 9 * words, 0);
  must_fault("write to an unmapped page", memory + 9 * words, 1);
  map(memory + 9 * words, 1, MAP_FIXED);
  checks++;
  for (int n = 0; n < words; n++)
    if (memory[9 * words + n] != 0) fail("new page is not zero", (unsigned long)n);
  madvise(memory, pages * page, MADV_DONTNEED);
  checks++;
  for (int n = 0; n < pages * words; n += 61)
    if (memory[n] != 0) fail("dropped page is not zero", (unsigned long)n);
  fill(memory, count, seed);
  check("filled anew", memory, count, seed);
}

static void moving(uint64_t seed) {
  uint64_t *from = map(NULL, pages, 0), *to = map(NULL, pages, 0);
  fill(from, count, seed);
  fill(to, count, seed + 9);
  if (mremap(from, pages * page, pages * page, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
    fail("mremap", 0);
  check("moved", to, count, seed);
  must_fault("read where it was", from + words, 0);
  uint64_t *other = map(from, pages, MAP_FIXED);
  fill(other, count, seed + 3);
  check("beside the moved", to, count, seed);
  check("in its old place", other, count, seed + 3);
  munmap(to, pages * page);
  munmap(other, pages * page);
}

static void forking(uint64_t *memory, uint64_t seed) {
  fill(memory, count, seed);
  pid_t child = fork();
  if (child == 0) {
    check("child's copy", memory, count, seed);
    fill(memory, count, seed + 100);
    check("child's own", memory, count, seed + 100);
    _exit(0);
  }
  for (int n = 0; n < 3; n++) {
    check("parent's", memory, count, seed + (uint64_t)n);
    fill(memory, count, seed + (uint64_t)n + 1);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) fail("child's status", (unsigned)status);
  check("parent's after the child", memory, count, seed + 3);
}

static void sharing(uint64_t seed) {
  // The same pages at two addresses, and a child that writes to them.
  int file = memfd_create("windows", 0);
  if (file < 0 || ftruncate(file, pages * page) != 0) fail("memfd", 0);
  uint64_t *one = mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  uint64_t *two = mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  fill(one, count, seed);
  check("alias", two, count, seed);
  fill(two, count, seed + 1);
  check("alias back", one, count, seed + 1);
  pid_t child = fork();
  if (child == 0) {
    fill(one, count, seed + 2);
    _exit(0);
  }
  waitpid(child, NULL, 0);
  check("written by the child", two, count, seed + 2);
  munmap(one, pages * page);
  munmap(two, pages * page);
  close(file);
}

// Code in memory that is written through another mapping and executed.
static void code(uint64_t seed) {
  int file = memfd_create("code", 0);
  if (file < 0 || ftruncate(file, page) != 0) fail("memfd", 1);
  uint8_t *data = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  uint8_t *text = mmap(NULL, page, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
  for (int n = 0; n < 40; n++) {
    // mov eax, imm32; ret; behind them data that the loop writes.
    uint32_t value = (uint32_t)seed + (uint32_t)n;
    data[0] = 0xB8;
    memcpy(data + 1, &value, 4);
    data[5] = 0xC3;
    fill((uint64_t *)(data + 64), words - 13, value);
    uint32_t got = 0;
    for (int r = 0; r < 30; r++) got = ((uint32_t(*)(void))text)();
    checks++;
    if (got != value) fail("stale code", (unsigned long)n);
    check("data beside code", (uint64_t *)(data + 64), words - 13, value);
  }
  munmap(data, page);
  munmap(text, page);
  close(file);
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? atol(argv[1]) : 20;
  struct sigaction action = {0};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, NULL);
  sigaction(SIGBUS, &action, NULL);
  uint64_t *low = map((void *)0x10000000, pages, MAP_FIXED), *high = map(NULL, pages, 0);
  // Its pages have the same lower halves as those above.
  uint64_t *far = map((void *)0x310000000, pages, MAP_FIXED);
  uint64_t *edge = map((void *)(0x500000000 - pages / 2 * page), pages, MAP_FIXED);
  for (long round = 0; round < rounds; round++) {
    uint64_t seed = (uint64_t)round * 1000;
    uint64_t *areas[] = {low, high, far, edge};
    for (int n = 0; n < 4; n++) {
      fill(areas[n], count, seed + (uint64_t)n * 7);
    }
    for (int n = 0; n < 4; n++) check("area", areas[n], count, seed + (uint64_t)n * 7);
    for (int n = 0; n < 4; n++) {
      protections(areas[n], seed);
      unmapping(areas[n], seed);
      forking(areas[n], seed);
    }
    moving(seed);
    sharing(seed);
    code(seed);
  }
  if (getenv("WINDOWS_CHILD") == NULL && argc > 0) {
    // The same in a process that exec made: its addresses mean other memory.
    setenv("WINDOWS_CHILD", "1", 1);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
      execl(argv[0], argv[0], "3", NULL);
      _exit(99);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0) fail("program that exec started", (unsigned)status);
    printf("WINDOWS-RIGHT %lu checks\n", checks);
  }
  return 0;
}
