// SPDX-License-Identifier: Apache-2.0
//
// The clocks of the host, in nanoseconds. All reads go through one function, which cannot fail.

#if canImport(Glibc)
  import Glibc
#endif

/// The host's clocks.
package enum HostClock {
  /// Nanoseconds on the monotonic clock.
  package static func monotonic() -> UInt64 { read(CLOCK_MONOTONIC) }

  /// Nanoseconds since 1970 UTC.
  package static func realtime() -> UInt64 { read(CLOCK_REALTIME) }

  /// Nanoseconds of processor time that the calling thread has used.
  package static func threadCPU() -> UInt64 { read(CLOCK_THREAD_CPUTIME_ID) }

  private static func read(_ clock: clockid_t) -> UInt64 {
    var time = timespec()
    unsafe clock_gettime(clock, &time)
    return UInt64(truncatingIfNeeded: time.tv_sec) &* 1_000_000_000
      &+ UInt64(truncatingIfNeeded: time.tv_nsec)
  }
}
