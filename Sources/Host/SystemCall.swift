// SPDX-License-Identifier: Apache-2.0
//
// The one place where a failed system call becomes a Swift error. Every libc call that reports
// failure by -1 and errno goes through `systemCall`, which reads errno before anything else can
// overwrite it and has the policy for EINTR: repeat the call, unless the caller handles it.
//
//     let count = try systemCall { read(descriptor, buffer, size) }

import CHost
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// What to do when a signal interrupts a system call.
package enum InterruptionPolicy: Sendable {
  /// Call again.
  case repeatCall
  /// Throw `Errno.interrupted`: the caller also waits for signals.
  case report
}

/// Runs a system call that returns -1 on failure and throws its errno.
package func systemCall(
  interruption: InterruptionPolicy = .repeatCall, _ call: () -> Int32
) throws(Errno) -> Int32 {
  try checkedCall(interruption, call)
}

/// Runs a system call that returns -1 on failure and throws its errno.
package func systemCall(
  interruption: InterruptionPolicy = .repeatCall, _ call: () -> Int
) throws(Errno) -> Int {
  try checkedCall(interruption, call)
}

@inline(never)
private func checkedCall<Result: SignedInteger>(
  _ interruption: InterruptionPolicy, _ call: () -> Result
) throws(Errno) -> Result {
  while true {
    let result = call()
    if result != -1 { return result }
    let code = errno
    if code == EINTR && interruption == .repeatCall { continue }
    throw Errno(rawValue: code)
  }
}

/// Runs an `mmap`-like call that returns MAP_FAILED (-1 as an address) on failure.
@inline(never)
package func mappingCall(
  _ call: () -> UnsafeMutableRawPointer?
) throws(Errno) -> UnsafeMutableRawPointer {
  let result = unsafe call()
  let code = errno
  guard let result = unsafe result, Int(bitPattern: result) != -1 else {
    throw Errno(rawValue: code)
  }
  return unsafe result
}

/// Runs a pthread call, which returns its error number instead of setting errno.
package func threadCall(_ call: () -> Int32) throws(Errno) {
  let code = call()
  if code != 0 { throw Errno(rawValue: code) }
}
