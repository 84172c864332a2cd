// SPDX-License-Identifier: Apache-2.0
//
// Reads and writes a disk past the page cache, and prints what it reached:
//
//   disk DEVICE SECONDS
//
// Lines "disk NAME VALUE": random reads and writes of 4 KiB a second by 1 and by 16 processes, and
// MiB a second of sequential ones of 1 MiB. The disk's contents are lost.

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static long work(const char *device, double seconds, size_t block, int writes, int random, unsigned seed) {
  int file = open(device, O_RDWR | O_DIRECT);
  if (file < 0) return 0;
  off_t blocks = lseek(file, 0, SEEK_END) / (off_t)block;
  void *memory;
  if (posix_memalign(&memory, 4096, block)) return 0;
  memset(memory, (int)seed, block);
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  long count = 0;
  for (double end = now() + seconds; now() < end; count++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    off_t place = (random ? (off_t)((state >> 33) % (uint64_t)blocks) : count % blocks) * (off_t)block;
    ssize_t done = writes ? pwrite(file, memory, block, place) : pread(file, memory, block, place);
    if (done != (ssize_t)block) {
      perror("disk");
      break;
    }
  }
  close(file);
  return count;
}

static void measure(const char *name, const char *device, double seconds, size_t block, int writes,
                    int random, int processes) {
  long *counts = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  double begin = now();
  for (int n = 0; n < processes; n++) {
    if (fork() == 0) {
      counts[n] = work(device, seconds, block, writes, random, n + 1);
      _exit(0);
    }
  }
  while (wait(0) > 0) {
  }
  double taken = now() - begin;
  long count = 0;
  for (int n = 0; n < processes; n++) count += counts[n];
  printf("disk %s %.1f\n", name, random ? count / taken : count / taken * block / (1 << 20));
  fflush(stdout);
}

int main(int argc, char **argv) {
  if (argc != 3) return 64;
  double seconds = atof(argv[2]);
  measure("write", argv[1], seconds, 1 << 20, 1, 0, 1);
  measure("read", argv[1], seconds, 1 << 20, 0, 0, 1);
  measure("random-read-1", argv[1], seconds, 4096, 0, 1, 1);
  measure("random-write-1", argv[1], seconds, 4096, 1, 1, 1);
  measure("random-read-16", argv[1], seconds, 4096, 0, 1, 16);
  measure("random-write-16", argv[1], seconds, 4096, 1, 1, 16);
  return 0;
}
