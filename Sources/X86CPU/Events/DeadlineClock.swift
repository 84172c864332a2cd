// SPDX-License-Identifier: Apache-2.0
//
// Wakes physical CPUs whose guests have a deadline (`CPUState.deadline`): one thread for the
// process, started with the first such deadline. Without it, a guest without exits would exit only
// when the run loop checks the clock for another reason.
//
// A CPU notes its guest's deadline at entry and removes it at exit. The thread sleeps until the
// first deadline and raises `CPURequest.timer` under the lock, so a CPU can end after it has
// removed its deadline.

import CHost
import Glibc
import Host

/// Sendable: all that changes does so under `lock`.
final class DeadlineClock: @unchecked Sendable {
  static let shared = DeadlineClock()

  private struct Entry {
    let line: RequestLine
    /// Host TSC.
    var deadline: UInt64
  }

  private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let changed = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var entries: [Entry] = []
  /// When the thread wakes; .max while it has no deadline, 0 while it is awake.
  private var target: UInt64 = .max
  private var hasThread = false

  private init() {
    pthread_mutex_init(lock, nil)
    var attributes = pthread_condattr_t()
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(changed, &attributes)
    pthread_condattr_destroy(&attributes)
  }

  /// A guest with a deadline is entered.
  func note(_ deadline: UInt64, _ line: RequestLine) {
    pthread_mutex_lock(lock)
    defer { pthread_mutex_unlock(lock) }
    entries.removeAll { $0.line.bits == line.bits }
    entries.append(Entry(line: line, deadline: deadline))
    if !hasThread { start() }
    if deadline < target { pthread_cond_signal(changed) }
  }

  /// The guest has exited.
  func forget(_ line: RequestLine) {
    pthread_mutex_lock(lock)
    entries.removeAll { $0.line.bits == line.bits }
    pthread_mutex_unlock(lock)
  }

  /// If no thread can be created, only the run loop checks deadlines.
  private func start() {
    do {
      _ = try HostThread(name: "cpu-deadlines", stackSize: 256 << 10) { [self] in run() }
      hasThread = true
    } catch {
      hasThread = false
    }
  }

  private func run() {
    // The default slack is 50 microseconds.
    _ = chost_syscall(Int(SYS_prctl), Int(PR_SET_TIMERSLACK), 1, 0, 0, 0, 0)
    pthread_mutex_lock(lock)
    while true {
      target = 0
      let next = raiseDue()
      target = next
      if next == .max {
        pthread_cond_wait(changed, lock)
      } else {
        var time = Self.time(of: next)
        pthread_cond_timedwait(changed, lock, &time)
      }
    }
  }

  /// Raises requests for passed deadlines and returns the next one.
  private func raiseDue() -> UInt64 {
    let now = HostTSC.read()
    for entry in entries where entry.deadline <= now { entry.line.raise(CPURequest.timer) }
    entries.removeAll { $0.deadline <= now }
    return entries.reduce(.max) { min($0, $1.deadline) }
  }

  /// A TSC value as a monotonic time: at most a day from now.
  private static func time(of deadline: UInt64) -> timespec {
    let now = HostTSC.read()
    let ticks = deadline > now ? min(deadline &- now, 1 << 48) : 0
    let product = ticks.multipliedFullWidth(by: 1_000_000)
    let kilohertz = max(HostTSC.kilohertz, 1)
    let most: UInt64 = 86_400_000_000_000
    let nanoseconds =
      product.high < kilohertz ? min(kilohertz.dividingFullWidth(product).quotient, most) : most
    let end = HostClock.monotonic() &+ nanoseconds &+ 100
    return timespec(
      tv_sec: Int(truncatingIfNeeded: end / 1_000_000_000),
      tv_nsec: Int(truncatingIfNeeded: end % 1_000_000_000))
  }
}
