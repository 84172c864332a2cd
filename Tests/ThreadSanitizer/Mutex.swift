// SPDX-License-Identifier: Apache-2.0
//
// ThreadSanitizer sees what is built with it. The standard library's Mutex takes a lock that is
// free in the caller's code, but one that is held inside of the library, which is not built so: all
// that the lock orders would be reported. This takes that function's place in the test program, and
// waits by itself.

import Glibc
import Synchronization

/// The layout of the library's `_MutexHandle`.
struct MutexHandle: ~Copyable {
  /// 0, or the thread that holds the lock. Nobody waits inside of the kernel, so it is never more.
  let storage: Atomic<UInt32>

  @_silgen_name("$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF")
  borrowing func lockSlow(_ thread: UInt32) {
    while !storage.compareExchange(expected: 0, desired: thread, ordering: .acquiring).exchanged {
      sched_yield()
    }
  }
}
