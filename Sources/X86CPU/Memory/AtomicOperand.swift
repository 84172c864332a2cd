// SPDX-License-Identifier: Apache-2.0
//
// Atomic operations on guest memory in host memory. The host's memory model is the guest's, so a
// LOCKed guest operation is one LOCKed host operation, even misaligned within a page.

import Glibc
import Synchronization
import X86

/// Integers that the host can exchange atomically.
protocol AtomicOperand: FixedWidthInteger & UnsignedInteger {
  static func atomicLoad(_ p: UnsafeMutableRawPointer) -> Self
  static func atomicExchange(_ p: UnsafeMutableRawPointer, _ value: Self) -> Self
  static func atomicCompareExchange(
    _ p: UnsafeMutableRawPointer, expected: Self, desired: Self
  ) -> (exchanged: Bool, original: Self)
}

/// A LOCKed access that crosses a page has no single host address: it only excludes other such
/// accesses. (A split lock is not atomic against other CPUs' plain locked accesses.)
func splitLock(_ body: () throws(GuestException) -> Void) throws(GuestException) {
  splitLockMutex.pointer.pointee.lock()
  defer { splitLockMutex.pointer.pointee.unlock() }
  try body()
}

/// Called after the calling thread was aborted in a locked access.
func releaseSplitLock() { splitLockMutex.pointer.pointee.unlockIfOwn() }

private struct SpinLock: ~Copyable {
  /// The holder's pthread_self, or 0.
  private let holder = Atomic<UInt>(0)
  private var own: UInt { UInt(pthread_self()) }

  borrowing func lock() {
    let own = own
    while !holder.weakCompareExchange(expected: 0, desired: own, ordering: .acquiring).exchanged {}
  }
  borrowing func unlock() { holder.store(0, ordering: .releasing) }
  borrowing func unlockIfOwn() { if holder.load(ordering: .relaxed) == own { unlock() } }
}

/// Sendable: the pointer is never changed, and the lock behind it is atomic.
private final class SplitLockMutex: @unchecked Sendable {
  let pointer: UnsafeMutablePointer<SpinLock>
  init() {
    pointer = .allocate(capacity: 1)
    pointer.initialize(to: SpinLock())
  }
}

private let splitLockMutex = SplitLockMutex()

extension UInt8: AtomicOperand {
  @inline(__always) private static func atomic(
    _ p: UnsafeMutableRawPointer
  ) -> UnsafeMutablePointer<Atomic<UInt8>> {
    p.assumingMemoryBound(to: Atomic<UInt8>.self)
  }
  @inline(__always) static func atomicLoad(_ p: UnsafeMutableRawPointer) -> UInt8 {
    atomic(p).pointee.load(ordering: .sequentiallyConsistent)
  }
  @inline(__always) static func atomicExchange(
    _ p: UnsafeMutableRawPointer, _ value: UInt8
  ) -> UInt8 {
    atomic(p).pointee.exchange(value, ordering: .sequentiallyConsistent)
  }
  @inline(__always) static func atomicCompareExchange(
    _ p: UnsafeMutableRawPointer, expected: UInt8, desired: UInt8
  ) -> (exchanged: Bool, original: UInt8) {
    atomic(p).pointee.compareExchange(
      expected: expected, desired: desired, ordering: .sequentiallyConsistent)
  }
}

extension UInt16: AtomicOperand {
  @inline(__always) private static func atomic(
    _ p: UnsafeMutableRawPointer
  ) -> UnsafeMutablePointer<Atomic<UInt16>> {
    p.assumingMemoryBound(to: Atomic<UInt16>.self)
  }
  @inline(__always) static func atomicLoad(_ p: UnsafeMutableRawPointer) -> UInt16 {
    atomic(p).pointee.load(ordering: .sequentiallyConsistent)
  }
  @inline(__always) static func atomicExchange(
    _ p: UnsafeMutableRawPointer, _ value: UInt16
  ) -> UInt16 {
    atomic(p).pointee.exchange(value, ordering: .sequentiallyConsistent)
  }
  @inline(__always) static func atomicCompareExchange(
    _ p: UnsafeMutableRawPointer, expected: UInt16, desired: UInt16
  ) -> (exchanged: Bool, original: UInt16) {
    atomic(p).pointee.compareExchange(
      expected: expected, desired: desired, ordering: .sequentiallyConsistent)
  }
}

extension UInt32: AtomicOperand {
  @inline(__always) private static func atomic(
    _ p: UnsafeMutableRawPointer
  ) -> UnsafeMutablePointer<Atomic<UInt32>> {
    p.assumingMemoryBound(to: Atomic<UInt32>.self)
  }
  @inline(__always) static func atomicLoad(_ p: UnsafeMutableRawPointer) -> UInt32 {
    atomic(p).pointee.load(ordering: .sequentiallyConsistent)
  }
  @inline(__always) static func atomicExchange(
    _ p: UnsafeMutableRawPointer, _ value: UInt32
  ) -> UInt32 {
    atomic(p).pointee.exchange(value, ordering: .sequentiallyConsistent)
  }
  @inline(__always) static func atomicCompareExchange(
    _ p: UnsafeMutableRawPointer, expected: UInt32, desired: UInt32
  ) -> (exchanged: Bool, original: UInt32) {
    atomic(p).pointee.compareExchange(
      expected: expected, desired: desired, ordering: .sequentiallyConsistent)
  }
}

extension UInt64: AtomicOperand {
  @inline(__always) private static func atomic(
    _ p: UnsafeMutableRawPointer
  ) -> UnsafeMutablePointer<Atomic<UInt64>> {
    p.assumingMemoryBound(to: Atomic<UInt64>.self)
  }
  @inline(__always) static func atomicLoad(_ p: UnsafeMutableRawPointer) -> UInt64 {
    atomic(p).pointee.load(ordering: .sequentiallyConsistent)
  }
  @inline(__always) static func atomicExchange(
    _ p: UnsafeMutableRawPointer, _ value: UInt64
  ) -> UInt64 {
    atomic(p).pointee.exchange(value, ordering: .sequentiallyConsistent)
  }
  @inline(__always) static func atomicCompareExchange(
    _ p: UnsafeMutableRawPointer, expected: UInt64, desired: UInt64
  ) -> (exchanged: Bool, original: UInt64) {
    atomic(p).pointee.compareExchange(
      expected: expected, desired: desired, ordering: .sequentiallyConsistent)
  }
}
