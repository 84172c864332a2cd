// SPDX-License-Identifier: Apache-2.0
//
// pthread_cancel(3), and what is asked of mappings of a vCPU.

import CHost
import Glibc
import Host
import KVM

@_cdecl("pthread_cancel") public func exportedCancel(_ thread: pthread_t) -> Int32 {
  let result = Real.cancel?(thread) ?? ENOSYS
  if result == 0 { ClientThread.cancelled(UInt(thread)) }
  return result
}

/// The calling thread's cancellation type. Code of the library, which has locks and memory of its
/// own, is not left in its midst: cancellation waits until it is done.
enum Cancellation {
  private static let deferred = Int32(0)
  private static let asynchronous = Int32(1)

  /// Whether `restore` has to be called.
  static func postpone() -> Bool {
    var old = deferred
    unsafe pthread_setcanceltype(deferred, &old)
    return old == asynchronous
  }

  /// Ends the thread if it was cancelled.
  static func restore() { pthread_setcanceltype(asynchronous, nil) }
}

/// A vCPU's dirty ring lies in its file, so that the kernel maps it; but it would not refuse what
/// Linux's KVM refuses.
enum DirtyRingMapping {
  /// A ring is mapped shared, and is no code.
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
