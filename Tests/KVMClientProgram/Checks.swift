// SPDX-License-Identifier: Apache-2.0
//
// Checks that a program makes of the KVM that it finds: descriptors, pointers, fork, signals,
// halts, threads. Expected values and errnos are Linux's.

import CHost
import Glibc
import Synchronization

func deviceChecks() throws {
  var status = stat()
  try expect(stat("/dev/kvm", &status) == 0 && status.st_mode & S_IFMT == S_IFCHR, "stat")
  try expect(status.st_rdev == 10 << 8 | 232, "numbers")
  try expect(access("/dev/kvm", R_OK | W_OK) == 0, "access")
  // Who has no right to the host's device may still do what libvirt does to ours.
  let user = geteuid()
  let unprivileged = user == 0 ? seteuid(65534) : 0
  let owner = lchown("/dev/kvm", 1, 1) == 0 && chmod("/dev/kvm", 0o660) == 0
  try expect(unprivileged == 0 && seteuid(user) == 0 && owner, "owner and mode")
  try expect(chmod("/dev/kvm.none", 0o600) == -1 && errno == ENOENT, "others' mode")
  let system = open("//dev/kvm", O_RDWR)
  try expect(system >= 0, "open")
  try expect(fcntl(system, F_GETFD) & FD_CLOEXEC == 0, "no FD_CLOEXEC unless asked for")
  try expect(fstat(system, &status) == 0 && status.st_mode & S_IFMT == S_IFCHR, "fstat")
  try expect(ioctl(system, UInt(CKVM_GET_API_VERSION), CInt(0)) == 12, "version")
  let extended = UInt(bitPattern: Int(Int32(bitPattern: UInt32(CKVM_GET_SUPPORTED_CPUID))))
  var count: UInt64 = 0
  try expect(ioctl(system, extended, &count) == -1 && errno == E2BIG, "sign-extended request")
  try expect(ioctl(system, UInt(CKVM_SET_REGS), CInt(0)) == -1 && errno == EINVAL, "unknown")
  try expect(close(system) == 0)
  try expect(ioctl(system, UInt(CKVM_GET_API_VERSION), CInt(0)) == -1 && errno == EBADF, "closed")
  let file = open("/dev/null", O_RDWR | O_CLOEXEC)
  try expect(file >= 0, "other files")
  try expect(ioctl(file, UInt(CKVM_GET_API_VERSION), CInt(0)) == -1 && errno == ENOTTY)
  close(file)
}

func descriptorChecks() throws {
  let client = try Client(Code.out(1) + Code.out(2) + Code.out(3) + Code.loop)
  try expect(fcntl(client.cpu, F_GETFD) & FD_CLOEXEC != 0, "FD_CLOEXEC of a vCPU")
  try expect(fcntl(client.machine, F_GETFD) & FD_CLOEXEC != 0, "FD_CLOEXEC of a machine")
  try expect(try client.output() == 1)
  // A duplicate is the same vCPU, whoever made it.
  let duplicate = dup(client.cpu)
  try expect(ioctl(duplicate, UInt(CKVM_RUN), CInt(0)) == 0, "dup")
  let raw = Int32(chost_syscall(Int(SYS_dup), Int(client.cpu), 0, 0, 0, 0, 0))
  var registers = kvm_regs()
  try expect(ioctl(raw, UInt(CKVM_GET_REGS), &registers) == 0, "raw dup")
  try expect(registers.rax & 0xFF == 2, "state")
  // The vCPU keeps its machine.
  close(client.machine)
  close(client.cpu)
  close(duplicate)
  try expect(ioctl(raw, UInt(CKVM_RUN), CInt(0)) == 0, "after the others are closed")
  let place = dup2(raw, client.cpu)
  try expect(place == client.cpu)
  close(raw)
  try expect(client.registers.rax & 0xFF == 3)
  var poller = pollfd(fd: client.cpu, events: Int16(POLLIN), revents: 0)
  try expect(poll(&poller, 1, 0) == 1, "poll")
}

func pointerChecks() throws {
  let client = try Client(Code.loop)
  let hole = mmap(nil, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
  mprotect(hole, 4096, PROT_NONE)
  let readOnly = mmap(nil, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
  let bad = [nil, UnsafeMutableRawPointer(bitPattern: 8), hole, hole + 4000]
  for pointer in bad {
    try expect(ioctl(client.cpu, UInt(CKVM_GET_REGS), pointer ?? hole) == -1 && errno == EFAULT)
    try expect(ioctl(client.cpu, UInt(CKVM_SET_REGS), pointer ?? hole) == -1 && errno == EFAULT)
    try expect(
      ioctl(client.machine, UInt(CKVM_SET_USER_MEMORY_REGION), pointer ?? hole) == -1
        && errno == EFAULT)
  }
  try expect(ioctl(client.cpu, UInt(CKVM_GET_REGS), readOnly) == -1 && errno == EFAULT)
  try expect(ioctl(client.cpu, UInt(CKVM_GET_XSAVE), hole) == -1 && errno == EFAULT)
  try expect(ioctl(client.cpu, UInt(CKVM_GET_REGS), hole + 4096) == 0)
  try bitmapChecks(client, hole + 4096)
  munmap(hole, 8192)
  munmap(readOnly, 4096)
}

/// Bitmaps that structures point to: before an unmapped page (the last one), and nowhere.
private func bitmapChecks(_ client: Client, _ page: UnsafeMutableRawPointer) throws {
  let log = mmap(nil, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)!
  try Client.setMemory(
    client.machine, slot: 1, at: 1 << 20, log, 1 << 20, flags: UInt32(KVM_MEM_LOG_DIRTY_PAGES))
  mprotect(page, 4096, PROT_NONE)
  for bitmap in [nil, page] {
    var get = kvm_dirty_log()
    get.slot = 1
    get.dirty_bitmap = bitmap
    let got = ioctl(client.machine, UInt(CKVM_GET_DIRTY_LOG), &get)
    try expect(got == -1 && errno == EFAULT, "KVM_GET_DIRTY_LOG")
    var clear = kvm_clear_dirty_log()
    clear.slot = 1
    clear.num_pages = 256
    clear.dirty_bitmap = bitmap
    let cleared = ioctl(client.machine, UInt(CKVM_CLEAR_DIRTY_LOG), &clear)
    try expect(cleared == -1 && errno == EFAULT, "KVM_CLEAR_DIRTY_LOG")
    var filter = kvm_msr_filter()
    filter.ranges.0.flags = UInt32(KVM_MSR_FILTER_READ)
    filter.ranges.0.nmsrs = 8
    filter.ranges.0.bitmap = bitmap?.assumingMemoryBound(to: UInt8.self)
    let filtered = ioctl(client.machine, UInt(CKVM_X86_SET_MSR_FILTER), &filter)
    try expect(filtered == -1 && errno == EFAULT, "KVM_X86_SET_MSR_FILTER")
  }
  mprotect(page, 4096, PROT_READ | PROT_WRITE)
  munmap(log, 1 << 20)
  try largeBitmapCheck(client)
}

/// The log of a slot with almost 2^31 pages, where there is no memory for it.
private func largeBitmapCheck(_ client: Client) throws {
  var numbers = [UInt8](repeating: 0, count: 256)
  let file = open("/proc/self/statm", O_RDONLY)
  try expect(file >= 0 && read(file, &numbers, numbers.count) > 0, "/proc/self/statm")
  close(file)
  let pages = numbers.prefix { $0 != UInt8(ascii: " ") }.reduce(0) { $0 * 10 + UInt($1) - 48 }
  var old = rlimit()
  let kind = __rlimit_resource_t(RLIMIT_AS.rawValue)
  getrlimit(kind, &old)
  var tight = old
  tight.rlim_cur = (pages << 12) + 64 << 20
  try expect(setrlimit(kind, &tight) == 0, "setrlimit")
  defer { setrlimit(kind, &old) }
  var region = kvm_userspace_memory_region(
    slot: 2, flags: UInt32(KVM_MEM_LOG_DIRTY_PAGES), guest_phys_addr: 1 << 40,
    memory_size: (1 << 43) - (1 << 30), userspace_addr: 1 << 30)
  let result = ioctl(client.machine, UInt(CKVM_SET_USER_MEMORY_REGION), &region)
  try expect(result == -1 && errno == ENOMEM, "a log without memory")
}

func forkChecks() throws {
  let client = try Client(Code.out(7) + Code.loop)
  let child = chost_fork()
  if child == 0 {
    // The parent's machine is not this process's; a new one is.
    var registers = kvm_regs()
    let foreign = ioctl(client.cpu, UInt(CKVM_GET_REGS), &registers) == -1 && errno == EIO
    let fresh = try? Client(Code.out(9) + Code.loop).output()
    _exit(foreign && fresh == 9 ? 0 : foreign ? 3 : 4)
  }
  var status: Int32 = 0
  try expect(waitpid(child, &status, 0) == child && status == 0, "child: \(status)")
  try expect(try client.output() == 7, "the parent goes on")
}

let delivered = Atomic<Int>(0)

func onSignal(_ number: Int32) { delivered.add(1, ordering: .relaxed) }

/// Sends SIGALRM after so long, and again every 200 ms: the first may come before KVM_RUN on a busy
/// machine. 0 ends it.
func alarm(after microseconds: Int) {
  var timer = itimerval()
  timer.it_value = timeval(tv_sec: 0, tv_usec: microseconds)
  if microseconds != 0 { timer.it_interval = timeval(tv_sec: 0, tv_usec: 200_000) }
  setitimer(__itimer_which_t(ITIMER_REAL.rawValue), &timer, nil)
}

func signalChecks() throws {
  let client = try Client(Code.loop)
  var action = sigaction()
  action.__sigaction_handler.sa_handler = onSignal
  action.sa_flags = SA_RESTART
  var old = sigaction()
  try expect(sigaction(SIGALRM, &action, nil) == 0 && sigaction(SIGALRM, nil, &old) == 0)
  let kept = withUnsafeBytes(of: old) { $0.load(as: UInt.self) }
  try expect(
    kept == withUnsafeBytes(of: action) { $0.load(as: UInt.self) }
      && old.sa_flags & SA_SIGINFO == 0,
    "sigaction tells what was set")
  for _ in 1...20 {
    let before = delivered.load(ordering: .relaxed)
    let start = time(nil)
    alarm(after: 2000)
    try expect(client.enter() == -EINTR, "EINTR")
    alarm(after: 0)
    let count = delivered.load(ordering: .relaxed) - before
    try expect(count == 1 || count > 0 && time(nil) > start, "the handler ran, \(count) times")
    try expect(client.run.pointee.exit_reason == UInt32(KVM_EXIT_INTR), "KVM_EXIT_INTR")
  }
  // Outside KVM_RUN it is an ordinary signal, and leaves no mark.
  let before = delivered.load(ordering: .relaxed)
  raise(SIGALRM)
  try expect(delivered.load(ordering: .relaxed) == before + 1)
  let other = try Client(Code.out(5) + Code.loop)
  try expect(try other.output() == 5, "a past signal does not interrupt")
  client.run.pointee.immediate_exit = 1
  try expect(client.enter() == -EINTR, "immediate_exit")
}

func haltChecks() throws {
  let client = try Client([0xFB] + Code.halt + Code.out(1), chips: true)
  signal(SIGALRM, onSignal)
  for _ in 1...5 {
    let before = delivered.load(ordering: .relaxed)
    alarm(after: 5000)
    try expect(client.enter() == -EINTR && delivered.load(ordering: .relaxed) > before, "halted")
    alarm(after: 0)
  }
}

func threadChecks() throws {
  // Several machines run at once, each on its own thread.
  var threads: [pthread_t] = []
  for _ in 0..<4 {
    var thread = pthread_t()
    pthread_create(
      &thread, nil,
      { _ in
        for round in 0..<20 {
          let value = UInt8(round + 1)
          let code = Code.out(value) + Code.out(value &+ 1) + Code.loop
          guard let client = try? Client(code), (try? client.output()) == value,
            (try? client.output()) == value &+ 1
          else { return UnsafeMutableRawPointer(bitPattern: 1) }
        }
        return nil
      }, nil)
    threads.append(thread)
  }
  for thread in threads {
    var result: UnsafeMutableRawPointer?
    pthread_join(thread, &result)
    try expect(result == nil, "a thread failed")
  }
}
