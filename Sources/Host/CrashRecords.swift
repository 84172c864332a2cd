// SPDX-License-Identifier: Apache-2.0
//
// Guest information for crash reports: a row for each physical CPU of the software processor, which
// the CPU updates as it enters and exits guest code. Signal handlers read it, so it is plain memory
// that is never freed, and nothing here takes a lock.
//
//     record.pointee.enter()                            // this thread is in guest code
//     record.pointee.leave(reason: 12, rip: 0x1000)     // an exit, by its ExitCause

import Synchronization

#if canImport(Glibc)
  import Glibc
#endif

/// A physical CPU's row, written by the thread that has the CPU.
package struct CrashRecord {
  package static let exitCount = 8

  /// The CPU's state; 0 if there is no CPU of this number.
  package var state: UInt = 0
  /// The thread that was last in guest code, and whether it still is.
  package var thread: UInt = 0
  package var isInGuest = false
  /// The last exits in a ring; `exits` is their total.
  package var exits: UInt64 = 0
  package var reasons = InlineArray<8, UInt32>(repeating: 0)
  package var addresses = InlineArray<8, UInt64>(repeating: 0)

  package init() {}

  @inline(__always) package mutating func enter() {
    thread = UInt(pthread_self())
    isInGuest = true
  }

  @inline(__always) package mutating func leave(reason: UInt32, rip: UInt64) {
    let place = Int(truncatingIfNeeded: exits & UInt64(Self.exitCount - 1))
    reasons[place] = reason
    addresses[place] = rip
    exits &+= 1
    isInGuest = false
  }
}

/// A guest's position, as the processor derives it from a `CrashRecord.state`.
package struct GuestPlace {
  package var rip: UInt64 = 0
  /// RIP of the block's first instruction, the block's length, and its bytes in this process; 0:
  /// unknown.
  package var blockRIP: UInt64 = 0
  package var bytes: UInt = 0
  package var cs: UInt16 = 0
  package var csBase: UInt64 = 0
  package var cpl: UInt8 = 0
  package var cr0: UInt64 = 0
  package var cr3: UInt64 = 0
  package var cr4: UInt64 = 0
  package var efer: UInt64 = 0
  /// The program counter is in this CPU's translated code: the translation of the block at these
  /// guest bytes in this process, in this linear page.
  package var isTranslated = false
  package var translation: UInt = 0
  package var translatedBytes: UInt = 0
  package var translatedLinear: UInt64 = 0

  package init() {}
}

package enum CrashRecords {
  package static let capacity = 64
  /// Fills a `GuestPlace` from a state and the host's program counter, in a signal handler.
  package typealias Describer = @convention(c) (UInt, UInt, UnsafeMutableRawPointer) -> Void

  nonisolated(unsafe) package static let table: UnsafeMutablePointer<CrashRecord> = {
    let table = UnsafeMutablePointer<CrashRecord>.allocate(capacity: capacity)
    unsafe table.initialize(repeating: CrashRecord(), count: capacity)
    return unsafe table
  }()

  /// The processor's function; set before the first state is.
  nonisolated(unsafe) package static var describer: Describer?
}
