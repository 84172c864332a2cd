// SPDX-License-Identifier: Apache-2.0
//
// Limits of the process while a guest runs (setrlimit(2)).

import CHost
import Glibc
import Host
import SystemPackage

enum ResourceLimits {
  /// RLIMIT_NPROC, which Swift's module of the C library lacks.
  private static let processes = __rlimit_resource(rawValue: 6)

  /// Call it after all threads have started.
  ///
  /// - Parameter reserve: address space that may be mapped in addition.
  static func apply(mapped: UInt64, reserve: UInt64) {
    lower(RLIMIT_CORE, to: 0)
    let (sum, overflow) = mapped.addingReportingOverflow(reserve)
    if mapped > 0, !overflow { lower(RLIMIT_AS, to: sum) }
    // Counts all of the user's processes and threads, so only 0 (no more) is useful. The kernel
    // exempts root, for whom only the system call filter applies.
    if geteuid() != 0 { lower(Self.processes, to: 0) }
  }

  /// Bytes of address space in use; 0 if the kernel does not tell.
  static func mappedBytes() -> UInt64 {
    guard let bytes = try? contentsOfFile("/proc/self/statm"),
      let first = bytes.split(separator: UInt8(ascii: " ")).first
    else { return 0 }
    return (UInt64(String(decoding: first, as: UTF8.self)) ?? 0) &* 4096
  }

  private static func lower(_ resource: __rlimit_resource, to value: UInt64) {
    let number = __rlimit_resource_t(resource.rawValue)
    var limits = rlimit()
    guard unsafe getrlimit(number, &limits) == 0 else { return }
    limits.rlim_max = min(limits.rlim_max, rlim_t(value))
    limits.rlim_cur = min(limits.rlim_cur, limits.rlim_max)
    unsafe setrlimit(number, &limits)
  }
}
