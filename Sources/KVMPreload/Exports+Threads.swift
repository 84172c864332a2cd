// SPDX-License-Identifier: Apache-2.0
//
// mmap(2) and pthread_cancel(3). A vCPU's pages and its dirty ring are its file's, at the places that
// Linux documents, so that the kernel does the mapping; here is only what it would not refuse.

import CHost
import Glibc
import KVM

@_cdecl("mmap") public func exportedMmap(
  _ address: UInt, _ length: UInt, _ protection: Int32, _ flags: Int32, _ descriptor: Int32,
  _ offset: Int
) -> UInt {
  if descriptor >= 0, DescriptorTable.shared.mayHold(descriptor),
    refusesMapping(descriptor, length, protection, flags, offset)
  {
    errno = EINVAL
    return .max
  }
  // The system call, not the C library's function: this is called before anything is set up.
  return UInt(
    bitPattern: chost_syscall(
      Int(SYS_mmap), Int(bitPattern: address), Int(bitPattern: length), Int(protection), Int(flags),
      Int(descriptor), offset))
}

@_cdecl("mmap64") public func exportedMmap64(
  _ address: UInt, _ length: UInt, _ protection: Int32, _ flags: Int32, _ descriptor: Int32,
  _ offset: Int
) -> UInt {
  exportedMmap(address, length, protection, flags, descriptor, offset)
}

/// A dirty ring is mapped shared and is no code.
private func refusesMapping(
  _ descriptor: Int32, _ length: UInt, _ protection: Int32, _ flags: Int32, _ offset: Int
) -> Bool {
  let isPlain = flags & MAP_TYPE == MAP_SHARED && protection & PROT_EXEC == 0
  guard !isPlain, case .virtualCPU(let state)? = DescriptorTable.shared.known(descriptor)?.kind,
    let ring = state.runner.dirtyRingRange
  else { return false }
  let last = offset &+ Int(bitPattern: length) &- 1
  return ring.contains(offset) || ring.contains(last)
}

@_cdecl("pthread_cancel") public func exportedCancel(_ thread: pthread_t) -> Int32 {
  let result = Real.cancel?(thread) ?? ENOSYS
  if result == 0 { RunThread.cancelled(UInt(thread)) }
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
    pthread_setcanceltype(deferred, &old)
    return old == asynchronous
  }

  /// Ends the thread if it was cancelled.
  static func restore() { pthread_setcanceltype(asynchronous, nil) }
}
