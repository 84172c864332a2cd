// SPDX-License-Identifier: Apache-2.0
//
// The benchmark suite: small kernels of code, the same binary natively and in a guest.
//
//     suite [SCALE] [NAME...]     one line for each kernel: name, class, seconds, checksum
//
// SCALE multiplies the work (default 1: some 0.05 to 0.1 s each on a fast processor). The checksum
// depends on the scale alone: it must be the same natively and in any guest. Static, so that it runs in
// an initramfs that holds little else. The kernels of class "real" run the static busybox that lies
// beside this program over busybox's own file, and their checksum depends on that file, too.

#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double scale = 1;
static struct timespec start;
// The time counts from here: what came before was preparation.
static void begin(void) { clock_gettime(CLOCK_MONOTONIC, &start); }
static uint64_t times(double n) { return (uint64_t)(n * scale) + 1; }

static uint64_t seed = 88172645463325252ull;
static uint64_t next_random(void) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return seed;
}

// Integer

static uint64_t sieve(void) {
  enum { N = 200000 };
  static uint8_t composite[N];
  uint64_t primes = 0;
  for (uint64_t round = times(60); round--;) {
    memset(composite, 0, N);
    for (int i = 2; i < N; i++) {
      if (composite[i]) continue;
      primes++;
      for (int j = 2 * i; j < N; j += i) composite[j] = 1;
    }
  }
  return primes;
}

static void quicksort(uint32_t *a, int low, int high) {
  while (low < high) {
    uint32_t pivot = a[(low + high) / 2];
    int i = low, j = high;
    while (i <= j) {
      while (a[i] < pivot) i++;
      while (a[j] > pivot) j--;
      if (i <= j) {
        uint32_t t = a[i];
        a[i++] = a[j];
        a[j--] = t;
      }
    }
    quicksort(a, low, j);
    low = i;
  }
}

static uint64_t sort(void) {
  enum { N = 100000 };
  static uint32_t a[N];
  uint64_t sum = 0;
  for (uint64_t round = times(7); round--;) {
    for (int i = 0; i < N; i++) a[i] = (uint32_t)next_random();
    quicksort(a, 0, N - 1);
    sum += a[N / 2];
  }
  return sum;
}

struct node {
  struct node *next;
  uint64_t key, value;
};

static uint64_t hash(void) {
  enum { BUCKETS = 4096, NODES = 20000 };
  static struct node *table[BUCKETS];
  static struct node nodes[NODES];
  memset(table, 0, sizeof table);
  for (int i = 0; i < NODES; i++) {
    uint64_t key = (uint64_t)i * 0x9E3779B97F4A7C15ull;
    nodes[i] = (struct node){table[key >> 52], key, (uint64_t)i};
    table[key >> 52] = &nodes[i];
  }
  uint64_t sum = 0;
  for (uint64_t i = 0, n = times(2500000); i < n; i++) {
    uint64_t key = (next_random() % NODES) * 0x9E3779B97F4A7C15ull;
    for (struct node *p = table[key >> 52]; p; p = p->next)
      if (p->key == key) {
        sum += p->value;
        break;
      }
  }
  return sum;
}

static uint64_t crc(void) {
  static uint32_t table[256];
  static uint8_t data[65536];
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320 ^ c >> 1 : c >> 1;
    table[i] = c;
  }
  for (int i = 0; i < 65536; i++) data[i] = (uint8_t)(i * 7);
  uint32_t c = ~0u;
  for (uint64_t round = times(400); round--;)
    for (int i = 0; i < 65536; i++) c = table[(c ^ data[i]) & 255] ^ c >> 8;
  return c;
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static uint64_t sha256(void) {
  static const uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  for (uint64_t block = 0, n = times(180000); block < n; block++) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++) w[i] = (uint32_t)(block * 16 + (uint64_t)i);
    for (int i = 16; i < 64; i++) {
      uint32_t a = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t b = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i++) {
      uint32_t e = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
      uint32_t t1 = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
      uint32_t a = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
      uint32_t t2 = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      memmove(s + 1, s, 7 * sizeof *s);
      s[4] += t1;
      s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) h[i] += s[i];
  }
  return h[0];
}

static uint64_t bignum(void) {
  enum { N = 64 };
  uint64_t a[N], b[N], r[2 * N];
  for (int i = 0; i < N; i++) a[i] = next_random(), b[i] = next_random();
  uint64_t sum = 0;
  for (uint64_t round = times(9000); round--;) {
    memset(r, 0, sizeof r);
    for (int i = 0; i < N; i++) {
      uint64_t carry = 0;
      for (int j = 0; j < N; j++) {
        unsigned __int128 t = (unsigned __int128)a[i] * b[j] + r[i + j] + carry;
        r[i + j] = (uint64_t)t;
        carry = (uint64_t)(t >> 64);
      }
      r[i + N] = carry;
    }
    sum ^= r[N];
    a[0]++;
  }
  return sum;
}

static uint64_t bytecode(void) {
  // A counting loop for a machine with an accumulator: add, xor, rotate, decrement, jump.
  static const uint8_t program[] = {0, 1, 2, 3, 1, 0, 2, 4};
  static const void *const labels[] = {&&add, &&xor, &&rot, &&inc, &&jump};
  uint64_t acc = 1, count = times(2500000), pc = 0;
#define NEXT goto *labels[program[pc++]]
  NEXT;
add: acc += count; NEXT;
xor: acc ^= 0x9E3779B9; NEXT;
rot: acc = acc << 5 | acc >> 59; NEXT;
inc: acc++; NEXT;
jump:
  if (--count) {
    pc = 0;
    NEXT;
  }
  return acc;
}

struct shape {
  uint64_t (*area)(const struct shape *);
  uint64_t a, b;
};
static uint64_t area_square(const struct shape *s) { return s->a * s->a; }
static uint64_t area_rectangle(const struct shape *s) { return s->a * s->b; }
static uint64_t area_triangle(const struct shape *s) { return s->a * s->b / 2; }

static uint64_t virtual_calls(void) {
  enum { N = 1000 };
  static struct shape shapes[N];
  static uint64_t (*const kinds[])(const struct shape *) = {area_square, area_rectangle,
                                                            area_triangle};
  for (int i = 0; i < N; i++)
    shapes[i] = (struct shape){kinds[next_random() % 3], (uint64_t)i, (uint64_t)i + 3};
  uint64_t sum = 0;
  for (uint64_t round = times(8000); round--;)
    for (int i = 0; i < N; i++) sum += shapes[i].area(&shapes[i]);
  return sum;
}

static __attribute__((noinline)) uint64_t fibonacci(uint64_t n) {
  return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
static uint64_t recursion(void) {
  uint64_t sum = 0;
  for (uint64_t round = times(6); round--;) sum += fibonacci(30);
  return sum;
}

static uint64_t strings(void) {
  static char text[8192], copy[8192];
  for (int i = 0; i < 8191; i++) text[i] = (char)('a' + i % 23);
  uint64_t sum = 0;
  for (uint64_t round = times(40000); round--;) {
    text[round % 8000] ^= 1;
    strcpy(copy, text);
    sum += strlen(copy) + (uint64_t)(strchr(copy, 'z') != NULL) + (uint64_t)(strcmp(copy, text) == 0);
    sum += (uint64_t)((char *)memchr(copy + 100, 0, 8092) - copy);
    text[round % 8000] ^= 1;
  }
  return sum;
}

// Floating point

static uint64_t bits(double x) {
  uint64_t u;
  memcpy(&u, &x, 8);
  return u;
}

static uint64_t nbody(void) {
  double x[5], y[5], z[5], vx[5] = {0}, vy[5] = {0}, vz[5] = {0};
  const double m[5] = {39.47, 0.037, 0.011, 0.0017, 0.002};
  for (int i = 0; i < 5; i++) x[i] = i * 3.1, y[i] = i * 1.7 - 2, z[i] = i * 0.3;
  for (uint64_t step = times(400000); step--;) {
    for (int i = 0; i < 5; i++)
      for (int j = i + 1; j < 5; j++) {
        double dx = x[i] - x[j], dy = y[i] - y[j], dz = z[i] - z[j];
        double d2 = dx * dx + dy * dy + dz * dz, f = 0.0001 / (d2 * sqrt(d2));
        vx[i] -= dx * m[j] * f, vy[i] -= dy * m[j] * f, vz[i] -= dz * m[j] * f;
        vx[j] += dx * m[i] * f, vy[j] += dy * m[i] * f, vz[j] += dz * m[i] * f;
      }
    for (int i = 0; i < 5; i++) x[i] += vx[i] * 0.0001, y[i] += vy[i] * 0.0001, z[i] += vz[i] * 0.0001;
  }
  return bits(x[0] + y[1] + z[2]);
}

static uint64_t matrix(void) {
  enum { N = 128 };
  static float a[N][N], b[N][N], c[N][N];
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) a[i][j] = (float)(i + j), b[i][j] = (float)(i - j), c[i][j] = 0;
  for (uint64_t round = times(90); round--;)
    for (int i = 0; i < N; i++)
      for (int k = 0; k < N; k++) {
        float s = a[i][k];
        for (int j = 0; j < N; j++) c[i][j] += s * b[k][j];
      }
  return (uint64_t)(int64_t)c[5][7];
}

static uint64_t x87(void) {
  long double s = 0, t = 1;
  for (uint64_t i = 1, n = times(5000000); i < n; i++) {
    s += t / (long double)(2 * i - 1);
    t = -t;
  }
  return bits((double)s);
}

// Memory

static uint64_t copy(void) {
  enum { SIZE = 16 << 20 };
  char *a = malloc(SIZE), *b = malloc(SIZE);
  memset(a, 1, SIZE);
  memset(b, 2, SIZE);
  for (int i = 0; i < SIZE; i += 4093) a[i] = (char)i;
  begin();
  for (uint64_t round = times(10); round--;) {
    memcpy(b, a, SIZE);
    a[round] ^= b[round + 1];
  }
  uint64_t sum = 0;
  for (int i = 0; i < SIZE; i += 4093) sum = sum * 31 + (uint8_t)b[i];
  free(a);
  free(b);
  return sum;
}

static uint64_t chase(void) {
  enum { N = (64 << 20) / 64 };
  uint64_t(*lines)[8] = malloc((size_t)N * 64);
  uint32_t *order = malloc(N * 4);
  for (uint32_t i = 0; i < N; i++) order[i] = i;
  for (uint32_t i = N - 1; i > 0; i--) {
    uint32_t j = (uint32_t)(next_random() % (i + 1)), t = order[i];
    order[i] = order[j];
    order[j] = t;
  }
  for (uint32_t i = 0; i < N; i++) lines[order[i]][0] = order[(i + 1) % N];
  free(order);
  begin();
  uint64_t at = 0;
  for (uint64_t n = times(600000); n--;) at = lines[at][0];
  free(lines);
  return at;
}

// System

static uint64_t system_calls(void) {
  uint64_t sum = 0;
  for (uint64_t n = times(300000); n--;) sum += syscall(SYS_getppid) > 0 || 1;
  return sum;
}

static uint64_t pipes(void) {
  int to[2], from[2];
  if (pipe(to) || pipe(from)) return 0;
  uint64_t n = times(8000);
  pid_t child = fork();
  char c = 0;
  if (child == 0) {
    while (n-- && read(to[0], &c, 1) == 1) c++, (void)!write(from[1], &c, 1);
    _exit(0);
  }
  for (uint64_t i = 0; i < n; i++) {
    if (write(to[1], &c, 1) != 1 || read(from[0], &c, 1) != 1) break;
  }
  waitpid(child, NULL, 0);
  close(to[0]), close(to[1]), close(from[0]), close(from[1]);
  return (uint64_t)c;
}

static uint64_t forks(void) {
  uint64_t sum = 0;
  for (uint64_t n = times(300); n--;) {
    pid_t child = fork();
    if (child == 0) _exit(7);
    int status = 0;
    waitpid(child, &status, 0);
    sum += (uint64_t)WEXITSTATUS(status);
  }
  return sum;
}

static uint64_t page_faults(void) {
  enum { PAGES = 512 };
  uint64_t sum = 0;
  for (uint64_t n = times(60); n--;) {
    char *p = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return 0;
    for (int i = 0; i < PAGES; i++) p[i * 4096] = 1, sum++;
    munmap(p, PAGES * 4096);
  }
  return sum;
}

// Real programs

// No checksum without the work: a failure ends the suite, natively as in a guest.
static void require(int holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "suite: %s\n", what);
  exit(1);
}

// A file in memory with `scale` times the contents of the program at `path`. A file in memory alone
// has no name and nothing of a disk's speed.
static int scaled_input(const char *path) {
  FILE *file = fopen(path, "rb");
  int input = memfd_create("input", MFD_CLOEXEC);
  require(file != NULL && input >= 0, "no busybox beside this program");
  static char data[65536];
  struct stat status;
  require(fstat(fileno(file), &status) == 0 && status.st_size > 0, "busybox's size is unknown");
  for (uint64_t left = times((double)status.st_size), n; left > 0; left -= n) {
    n = fread(data, 1, left < sizeof data ? left : sizeof data, file);
    if (n == 0) rewind(file);
    require(!ferror(file) && write(input, data, n) == (ssize_t)n, "the input cannot be copied");
  }
  fclose(file);
  require(lseek(input, 0, SEEK_SET) == 0, "the input cannot be rewound");
  return input;
}

// Compresses busybox's own file by an applet of busybox, from standard input, where the output has
// neither a name nor a time in it. The sum is FNV-1a over the output.
static uint64_t compress(const char *applet) {
  // Beside this program: .guest/busybox natively, /bin/busybox in a guest.
  char path[4096];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof "busybox");
  require(length > 0, "/proc/self/exe cannot be read");
  path[length] = 0;
  strcpy(strrchr(path, '/') + 1, "busybox");
  int input = scaled_input(path), ends[2];
  require(pipe(ends) == 0, "no pipe");
  begin();
  pid_t child = fork();
  require(child >= 0, "fork failed");
  if (child == 0) {
    if (dup2(input, 0) == 0 && dup2(ends[1], 1) == 1 && close(ends[0]) == 0 && close(ends[1]) == 0)
      execl(path, "busybox", applet, "-c", (char *)NULL);
    _exit(127);
  }
  close(ends[1]);
  static uint8_t output[65536];
  uint64_t sum = 0xCBF29CE484222325;
  ssize_t n;
  while ((n = read(ends[0], output, sizeof output)) > 0)
    for (ssize_t i = 0; i < n; i++) sum = (sum ^ output[i]) * 0x100000001B3;
  int status = -1;
  require(n == 0 && waitpid(child, &status, 0) == child && status == 0, "busybox failed");
  close(ends[0]);
  close(input);
  return sum;
}

static uint64_t gzip(void) { return compress("gzip"); }
static uint64_t bzip2(void) { return compress("bzip2"); }

static const struct {
  const char *name, *class;
  uint64_t (*run)(void);
} kernels[] = {
    {"sieve", "integer", sieve},         {"sort", "integer", sort},
    {"hash", "integer", hash},           {"crc", "integer", crc},
    {"sha256", "integer", sha256},       {"bignum", "integer", bignum},
    {"bytecode", "integer", bytecode},   {"virtual", "integer", virtual_calls},
    {"recursion", "integer", recursion}, {"strings", "integer", strings},
    {"nbody", "float", nbody},           {"matrix", "float", matrix},
    {"x87", "float", x87},               {"copy", "memory", copy},
    {"chase", "memory", chase},          {"syscall", "system", system_calls},
    {"pipe", "system", pipes},           {"fork", "system", forks},
    {"fault", "system", page_faults},    {"gzip", "real", gzip},
    {"bzip2", "real", bzip2},
};

int main(int argc, char **argv) {
  if (argc > 1) scale = atof(argv[1]);
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
    int wanted = argc < 3;
    for (int a = 2; a < argc; a++) wanted |= !strcmp(argv[a], kernels[i].name);
    if (!wanted) continue;
    seed = 88172645463325252ull;
    begin();
    uint64_t sum = kernels[i].run();
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds =
        (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    printf("suite %s %s %.6f %016llx\n", kernels[i].name, kernels[i].class, seconds,
           (unsigned long long)sum);
  }
  return 0;
}
