// SPDX-License-Identifier: Apache-2.0
//
// The system calls that a thread of a running machine may make, by the thread's role. Any other
// ends the process with a report that names the call (`SystemCallFilter`).
//
// A new system call somewhere in the program needs a line here, with the narrowest possible check.
// Calls that a C library may make instead of others (futex_wait, TCGETS2) are here under both
// names; names that the host's libseccomp does not know are skipped.

import CHost
import Glibc

/// A thread's role.
package enum ThreadRole: Int, Sendable, CaseIterable {
  /// The event loop: terminal, signals, timers, the end of the run.
  case main
  /// Runs guest code and the devices that it accesses.
  case processor
  /// Reads and writes disk images.
  case disk
  /// Timers and similar threads: waits and wakes.
  case device

  /// By the thread's name.
  package init(threadName: String) {
    self =
      threadName.hasPrefix("vcpu") ? .processor : threadName.hasPrefix("disk") ? .disk : .device
  }
}

/// A condition on one argument: `argument & mask` equals `value`, or differs.
struct ArgumentCheck: Sendable {
  var argument: UInt32
  var mask: UInt64 = .max
  var value: UInt64
  var differs = false

  /// As libseccomp's SCMP_CMP_NE, SCMP_CMP_EQ, SCMP_CMP_MASKED_EQ.
  var compiled: chost_seccomp_check {
    if mask == .max {
      return chost_seccomp_check(argument: argument, comparison: differs ? 1 : 4, a: value, b: 0)
    }
    return chost_seccomp_check(argument: argument, comparison: 7, a: mask, b: value)
  }
}

/// Calls that are allowed, or fail with an error, if any of some conditions holds.
struct SystemCallRule: Sendable {
  var roles: [ThreadRole]
  var calls: String
  /// Lists of checks, of which one must hold completely; an empty list always holds.
  var alternatives: [[ArgumentCheck]] = [[]]
  /// The error instead of the call; nil: the call is allowed.
  var refusal: Int32?
}

/// The table's parameters for this process and run.
package struct SandboxSettings: Sendable {
  /// The kernel's KVM runs the guest, so the process makes no code and needs KVM's ioctls.
  package var usesDevice: Bool
  /// The folder of crash reports; nil: none may be written (see `CrashReporter`).
  package var reportDirectory: Int32?
  package var process = getpid()
  /// Address space that may be needed in addition to what is mapped when the guest starts.
  package var addressReserve: UInt64

  package init(usesDevice: Bool, reportDirectory: Int32?, addressReserve: UInt64) {
    self.usesDevice = usesDevice
    self.reportDirectory = reportDirectory
    self.addressReserve = addressReserve
  }
}

enum SystemCallTable {
  private static let all = ThreadRole.allCases
  private static let executable: UInt64 = UInt64(PROT_EXEC)
  private static let writableAndExecutable = UInt64(PROT_WRITE | PROT_EXEC)

  private static func equal(_ argument: UInt32, _ values: [UInt64]) -> [[ArgumentCheck]] {
    values.map { [ArgumentCheck(argument: argument, value: $0)] }
  }

  static func rules(_ settings: SandboxSettings) -> [SystemCallRule] {
    general + arguments(settings) + memory(settings) + devices(settings) + files(settings)
  }

  /// Rules without conditions.
  private static let general = [
    // Memory, locks, time and thread management: allocator, threads, Swift's runtime.
    SystemCallRule(
      roles: all,
      calls: """
        read write futex futex_wait futex_wake futex_requeue futex_waitv munmap mremap brk \
        madvise rt_sigprocmask rt_sigreturn sigaltstack clock_gettime clock_nanosleep nanosleep \
        gettimeofday time clock_getres getpid gettid sched_yield sched_getaffinity getcpu \
        set_robust_list rseq membarrier restart_syscall getrandom exit exit_group close \
        rt_sigaction seccomp landlock_restrict_self
        """),
    // A translator's reports; /proc/thread-self/schedstat.
    SystemCallRule(
      roles: [.main, .processor], calls: "writev pread64 pwrite64 mincore lseek fstat"),
    SystemCallRule(roles: [.device, .disk], calls: "mincore"),
    // Disks, whose files are already open. At the end the main thread writes an image's cached
    // tables to its file.
    SystemCallRule(
      roles: [.disk, .main], calls: "preadv pwritev pwrite64 fdatasync fallocate"),
    // The file of UEFI's variables: a CPU's write to the flash chip changes it.
    SystemCallRule(roles: [.processor], calls: "pwritev"),
    // Clients of a console's ports and of sockets; sockets that the helper has connected.
    SystemCallRule(roles: [.main], calls: "accept4 recvmsg shutdown"),
    SystemCallRule(
      roles: [.main],
      calls: """
        epoll_create1 epoll_ctl epoll_wait epoll_pwait poll ppoll signalfd4 timerfd_create \
        timerfd_settime eventfd2 getrusage readv sysinfo prlimit64 setrlimit getrlimit uname
        """),
    // Libraries then fall back. clone3 has its flags in memory, which a filter cannot check.
    SystemCallRule(roles: all, calls: "clone3", refusal: ENOSYS),
    // Files are already open. A library that looks for one gets an error.
    SystemCallRule(
      roles: all,
      calls: "open openat2 access faccessat faccessat2 readlink readlinkat stat lstat statx",
      refusal: EPERM),
  ]

  private static func arguments(_ settings: SandboxSettings) -> [SystemCallRule] {
    let thread = UInt64(0x0001_0000 | 0x0000_0100)  // CLONE_THREAD, CLONE_VM
    return [
      // Threads, never processes.
      SystemCallRule(
        roles: all, calls: "clone",
        alternatives: [[ArgumentCheck(argument: 0, mask: thread, value: thread)]]),
      // Signals to threads of this process.
      SystemCallRule(
        roles: all, calls: "tgkill",
        alternatives: equal(0, [UInt64(UInt32(bitPattern: settings.process))])),
      // Memory of this process that may be unmapped: PagePresence, crash reports.
      SystemCallRule(
        roles: all, calls: "process_vm_readv",
        alternatives: equal(0, [UInt64(UInt32(bitPattern: settings.process))])),
      // PR_SET_NAME, PR_GET_NAME, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, PR_SET_VMA (names of
      // mappings).
      SystemCallRule(
        roles: all, calls: "prctl", alternatives: equal(0, [15, 16, 29, 30, 0x5356_4D41])),
      SystemCallRule(
        roles: [.main, .processor], calls: "fcntl",
        alternatives: equal(1, [F_GETFD, F_SETFD, F_GETFL, F_SETFL].map { UInt64($0) })),
    ]
  }

  /// No memory is ever writable and executable. Only vCPU threads generate code, with the software
  /// engine.
  private static func memory(_ settings: SandboxSettings) -> [SystemCallRule] {
    let none = [[ArgumentCheck(argument: 2, mask: executable, value: 0)]]
    let either = [0, UInt64(PROT_WRITE), executable].map {
      [ArgumentCheck(argument: 2, mask: writableAndExecutable, value: $0)]
    }
    return [
      SystemCallRule(roles: [.main, .device, .disk], calls: "mmap mprotect", alternatives: none),
      SystemCallRule(
        roles: [.processor], calls: "mmap mprotect",
        alternatives: settings.usesDevice ? none : either),
    ]
  }

  private static func devices(_ settings: SandboxSettings) -> [SystemCallRule] {
    // TCGETS to TCSETSF, TIOCGWINSZ, TCGETS2 to TCSETSF2: the thread that ends the process, which
    // may be any, restores the terminal. Not TIOCSTI, which simulates typed input.
    let terminal: [UInt64] = [
      0x5401, 0x5402, 0x5403, 0x5404, 0x5413, 0x802C_542A, 0x402C_542B, 0x402C_542C, 0x402C_542D,
    ]
    var rules = [SystemCallRule(roles: all, calls: "ioctl", alternatives: equal(1, terminal))]
    if settings.usesDevice {
      rules.append(
        SystemCallRule(
          roles: [.main, .processor], calls: "ioctl",
          alternatives: [[ArgumentCheck(argument: 1, mask: 0xFF00, value: UInt64(KVMIO) << 8)]]))
      // Interrupts of disks.
      rules.append(
        SystemCallRule(
          roles: [.disk], calls: "ioctl",
          alternatives: equal(1, [CKVM_SIGNAL_MSI, CKVM_IRQ_LINE].map { UInt64($0) })))
    }
    rules.append(
      SystemCallRule(
        roles: [.disk], calls: "ioctl",
        alternatives: equal(1, [chost_blkdiscard, chost_blkzeroout].map { UInt64($0) })))
    return rules
  }

  /// A crash report may be created in its folder. All else is an error.
  private static func files(_ settings: SandboxSettings) -> [SystemCallRule] {
    let emptyPath = ArgumentCheck(argument: 3, value: 0x1000)  // AT_EMPTY_PATH: fstat
    var notEmpty = emptyPath
    notEmpty.differs = true
    var rules = [
      SystemCallRule(roles: all, calls: "newfstatat", alternatives: [[emptyPath]]),
      SystemCallRule(
        roles: all, calls: "newfstatat", alternatives: [[notEmpty]], refusal: EPERM),
    ]
    guard let directory = settings.reportDirectory else {
      return rules + [SystemCallRule(roles: all, calls: "openat", refusal: EPERM)]
    }
    let flags = UInt64(CrashReporter.reportFlags)
    let inFolder = ArgumentCheck(argument: 0, value: UInt64(directory))
    let isNew = ArgumentCheck(argument: 2, value: flags)
    var elsewhere = inFolder
    var otherwise = isNew
    elsewhere.differs = true
    otherwise.differs = true
    rules += [
      SystemCallRule(roles: all, calls: "openat", alternatives: [[inFolder, isNew]]),
      SystemCallRule(
        roles: all, calls: "openat", alternatives: [[elsewhere], [inFolder, otherwise]],
        refusal: EPERM),
    ]
    return rules
  }
}
