// SPDX-License-Identifier: Apache-2.0
//
// A place to sleep for one thread. Wake-ups are never lost, in whatever order they come.

import CHost
import Synchronization

#if canImport(Glibc)
  import Glibc
#endif

/// One thread sleeps here until another wakes it or its deadline passes. A wake-up before the sleep
/// is remembered; several before one sleep count as one.
///
/// The state is one futex word, so a signal handler may wake the very thread that it interrupted.
/// Sendable: the word is atomic.
@safe final class Parker: @unchecked Sendable {
  private static let wait = 0 | 128  // FUTEX_WAIT, FUTEX_WAKE, FUTEX_WAIT_BITSET: private to
  private static let wake = 1 | 128  // this process
  private static let waitUntil = 9 | 128
  private static let anyBit = 0xFFFF_FFFF

  /// 1 after a wake-up that is not consumed yet.
  private let word = UnsafeMutablePointer<Atomic<UInt32>>.allocate(capacity: 1)

  init() { unsafe word.initialize(to: Atomic(0)) }

  deinit { unsafe word.deallocate() }

  /// Wakes the sleeper, or makes its next sleep return at once. From any thread and any signal
  /// handler.
  func unpark() {
    if unsafe word.pointee.exchange(1, ordering: .sequentiallyConsistent) == 0 {
      _ = unsafe Self.call(word, Self.wake, 1, nil)
    }
  }

  /// Sleeps until `unpark` or until the monotonic clock reads `deadline` nanoseconds (`.max`: no
  /// deadline).
  ///
  /// - Returns: false when the deadline passed first.
  @discardableResult
  func park(until deadline: UInt64 = .max) -> Bool {
    var time = timespec(
      tv_sec: Int(clamping: deadline / 1_000_000_000), tv_nsec: Int(deadline % 1_000_000_000))
    if deadline != .max { Self.sleepExactly() }
    while unsafe word.pointee.exchange(0, ordering: .sequentiallyConsistent) == 0 {
      if deadline == .max {
        _ = unsafe Self.call(word, Self.wait, 0, nil)
      } else if unsafe Self.call(word, Self.waitUntil, 0, &time) == -1, errno == ETIMEDOUT {
        return unsafe word.pointee.exchange(0, ordering: .sequentiallyConsistent) != 0
      }
    }
    return true
  }

  /// Makes guests' deadlines exact: by default the kernel may delay a wake-up by 50 microseconds
  /// (prctl(2), "PR_SET_TIMERSLACK").
  private static func sleepExactly() {
    if prctl(PR_GET_TIMERSLACK) > 1 { _ = prctl(PR_SET_TIMERSLACK, 1) }
  }

  private static func prctl(_ operation: Int32, _ value: Int = 0) -> Int {
    chost_syscall(Int(SYS_prctl), Int(operation), value, 0, 0, 0, 0)
  }

  private static func call(
    _ word: UnsafeMutablePointer<Atomic<UInt32>>, _ operation: Int, _ value: Int,
    _ time: UnsafePointer<timespec>?
  ) -> Int {
    chost_syscall(
      Int(SYS_futex), Int(bitPattern: word), operation, value, Int(bitPattern: time), 0, anyBit)
  }
}
