// SPDX-License-Identifier: Apache-2.0
//
// pthread_cancel(3), and checks of a vCPU's mappings.

import CHost
import Glibc
import Host
import KVM

@_cdecl("pthread_cancel") public func exportedCancel(_ thread: pthread_t) -> Int32 {
  let result = Real.cancel?(thread) ?? ENOSYS
  if result == 0 { ClientThread.cancelled(UInt(thread)) }
  return result
}

/// The calling thread's cancellation type. The library's code, with its locks and memory, must not
/// be abandoned halfway: cancellation is deferred until it is done.
enum Cancellation {
  private static let deferred = Int32(0)
  private static let asynchronous = Int32(1)

  /// Returns whether `restore` must be called.
  static func postpone() -> Bool {
    var old = deferred
    unsafe pthread_setcanceltype(deferred, &old)
    return old == asynchronous
  }

  /// Restores the type, which ends a cancelled thread.
  static func restore() { pthread_setcanceltype(asynchronous, nil) }
}

/// A vCPU's dirty ring is in its file, so the kernel maps it; these checks are the ones that
/// Linux's KVM makes.
enum DirtyRingMapping {
  /// A ring must be mapped shared and not executable.
  static func isRefused(
    _ descriptor: Int32, _ length: UInt, _ protection: Int32, _ flags: Int32, _ offset: Int
  ) -> Bool {
    let isPlain = flags & MAP_TYPE == MAP_SHARED && protection & PROT_EXEC == 0
    guard !isPlain, descriptor >= 0, DescriptorTable.shared.mayHold(descriptor),
      case .virtualCPU(let state)? = DescriptorTable.shared.known(descriptor)?.kind,
      let ring = state.runner.dirtyRingRange
    else { return false }
    let last = offset &+ Int(bitPattern: length) &- 1
    return ring.contains(offset) || ring.contains(last)
  }
}
