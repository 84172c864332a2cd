// SPDX-License-Identifier: Apache-2.0
//
// Wakes physical CPUs whose guests are left at a deadline (`CPUState.deadline`): one thread for the
// process, which starts with the first such deadline. Without it, a guest that makes no exits would
// be left only where the run loop looks at the clock for another reason.
//
// A CPU's deadline is noted when its guest is entered and taken back when it exits. The thread
// sleeps until the first of them and raises `CPURequest.timer`, under the lock, so that a CPU that
// has taken its deadline back can go.

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
  /// When the thread wakes; .max while it has nothing to wait for, 0 while it is awake.
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

  /// A guest is entered that is to be left at a time.
  func note(_ deadline: UInt64, _ line: RequestLine) {
    pthread_mutex_lock(lock)
    defer { pthread_mutex_unlock(lock) }
    entries.removeAll { $0.line.bits == line.bits }
    entries.append(Entry(line: line, deadline: deadline))
    if !hasThread { start() }
    if deadline < target { pthread_cond_signal(changed) }
  }

  /// The guest has left.
  func forget(_ line: RequestLine) {
    pthread_mutex_lock(lock)
    entries.removeAll { $0.line.bits == line.bits }
    pthread_mutex_unlock(lock)
  }

  /// Where no thread can be had, deadlines are found by the run loop alone.
  private func start() {
    do {
      _ = try HostThread(name: "cpu-deadlines", stackSize: 256 << 10) { [self] in run() }
      hasThread = true
    } catch {
      hasThread = false
    }
  }

  private func run() {
    // Of 50 microseconds by default.
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

  /// Returns the first deadline that has not come.
  private func raiseDue() -> UInt64 {
    let now = HostTSC.read()
    for entry in entries where entry.deadline <= now { entry.line.raise(CPURequest.timer) }
    entries.removeAll { $0.deadline <= now }
    return entries.reduce(.max) { min($0, $1.deadline) }
  }

  /// A TSC value on the monotonic clock: at most a day from now.
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
