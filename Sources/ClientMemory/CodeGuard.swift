// SPDX-License-Identifier: Apache-2.0
//
// Write protection of pages with code against everything in this process: a client's devices store
// into guest memory, and pass it to system calls that write there. A separate thread learns of each
// such write before it happens, has all CPUs drop the page's code, and lets the write continue.
//
//     let codeGuard = CodeGuard(protects: true, map: map)
//     try codeGuard.start { page in ... }     // drop the page's code, then `open` it
//     codeGuard.add(memory)                   // when a slot uses it; the processors do the rest:
//     codeGuard.protect(page)                 // before code of it is decoded
//     codeGuard.open(page)                    // after its code is dropped
//     codeGuard.remove(memory)
//
// If pages cannot be protected, for lack of rights or because of the kind of memory, or if others
// may write by mappings that the protection does not cover (shared memory), CPUs keep a copy of the
// page, and compare it at the first execution after contents may have changed (`needsComparison`).
//
// Invariants. The thread waits only for a page's lock, whose holders never wait; it does not
// allocate, because a thread that waits for it may hold the allocator's locks. The guest's own
// writes do not come here: their slow path clears the page's mark, which opens it.

import Host
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

package final class CodeGuard: Sendable {
  private struct Memory: Sendable {
    var range: Range<UInt>
    /// The kernel tracks protected pages; if false, another userfaultfd has the memory, or its kind
    /// cannot be protected.
    var isRegistered: Bool
  }

  private struct Memories: Sendable {
    /// Memory of all slots, with the number of slots for each.
    var slots: [Range<UInt>: Int] = [:]
    /// Memory with code pages, past or present.
    var withCode: [Memory] = []

    func index(of page: UInt) -> Int? { withCode.firstIndex { $0.range.contains(page) } }
  }

  /// nil if the kernel refuses.
  private let faults: UserFaultDescriptor?
  /// Why it refuses.
  private let refusal: Errno?
  private let memory = Mutex(Memories())
  private let map: HostMemoryMap
  private let isStarted = Mutex(false)
  private let protectionCount = Atomic<UInt64>(0)
  private let unprotectedCount = Atomic<UInt64>(0)
  private let writeCount = Atomic<UInt64>(0)

  private static let pageSize: UInt = 4096

  /// - Parameter protects: false: pages are only compared.
  init(protects: Bool, map: HostMemoryMap) {
    self.map = map
    var refusal: Errno?
    var faults: UserFaultDescriptor?
    do throws(Errno) {
      if !protects { throw .notPermitted }
      faults = try UserFaultDescriptor()
    } catch {
      refusal = error
    }
    self.faults = faults
    self.refusal = refusal
  }

  /// Calls `onWrite` before each write to a protected page; it opens the page. It must not wait or
  /// allocate.
  ///
  /// - Returns: false if already started.
  package func start(_ onWrite: @escaping @Sendable (_ page: UInt) -> Void) throws(Errno) -> Bool {
    try isStarted.withLock { (isStarted) throws(Errno) in
      if isStarted { return false }
      if isProtecting {
        _ = try HostThread(name: "martlet-writes", stackSize: 256 << 10) { self.serve(onWrite) }
      }
      isStarted = true
      return true
    }
  }

  private var isProtecting: Bool { refusal == nil }

  // MARK: Memory

  /// Guest memory, in whole pages.
  func add(_ range: Range<UInt>) {
    memory.withLock { $0.slots[range, default: 0] += 1 }
  }

  /// Undoes one `add` of the same range. Its code has been dropped.
  func remove(_ range: Range<UInt>) {
    memory.withLock { memory in
      guard let count = memory.slots[range] else { return }
      memory.slots[range] = count > 1 ? count - 1 : nil
      guard count == 1, let index = memory.withCode.firstIndex(where: { $0.range == range })
      else { return }
      let isRegistered = memory.withCode.remove(at: index).isRegistered
      if isRegistered, !memory.slots.keys.contains(where: { $0.overlaps(range) }) {
        faults?.unregister(range)
      }
    }
  }

  /// Releases a part of memory for another userfaultfd.
  ///
  /// - Returns: the unprotected ranges; the caller drops their code.
  package func yield(_ range: Range<UInt>) -> [Range<UInt>] {
    memory.withLock { memory in
      for known in memory.withCode where known.isRegistered && known.range.overlaps(range) {
        faults?.unregister(known.range)
      }
      let affected = memory.slots.keys.filter { $0.overlaps(range) }
      memory.withCode.removeAll { affected.contains($0.range) }
      memory.withCode += affected.map { Memory(range: $0, isRegistered: false) }
      return affected
    }
  }

  /// Registers the memory of a page with the kernel (again, if `anew`); false if it is no guest
  /// memory or cannot be protected.
  private func register(_ page: UInt, anew: Bool) -> Bool {
    memory.withLock { memory in
      if let index = memory.index(of: page) {
        if !memory.withCode[index].isRegistered { return false }
        if anew { memory.withCode[index].isRegistered = tryRegister(memory.withCode[index].range) }
        return memory.withCode[index].isRegistered
      }
      guard let range = memory.slots.keys.first(where: { $0.contains(page) }) else { return false }
      let isRegistered = tryRegister(range)
      memory.withCode.append(Memory(range: range, isRegistered: isRegistered))
      return isRegistered
    }
  }

  private func tryRegister(_ range: Range<UInt>) -> Bool {
    do throws(Errno) { try faults?.register(range) } catch { return false }
    return true
  }

  // MARK: Pages; under the page's lock

  /// Makes others' writes to a page wait.
  package func protect(_ page: UInt) {
    guard isProtecting else { return }
    let range = page..<(page + Self.pageSize)
    for attempt in 0..<2 {
      guard register(page, anew: attempt > 0) else { break }
      // Read an absent page first: kernels before 6.4 protect only present ones.
      var byte: UInt8 = 0
      _ = unsafe GuardedCopy.copy(from: UnsafeRawPointer(bitPattern: page), to: &byte, count: 1)
      do throws(Errno) {
        try faults?.protect(range)
        protectionCount.add(1, ordering: .relaxed)
        return
      } catch {
        // If the client mapped over registered memory, register it again.
        if error == .noSuchFileOrDirectory { continue }
        memory.withLock { memory in
          if let index = memory.index(of: page) { memory.withCode[index].isRegistered = false }
        }
        break
      }
    }
    unprotectedCount.add(1, ordering: .relaxed)
  }

  /// Lets writes to a page continue.
  ///
  /// - Parameter always: a writer may be waiting, whatever the page's known state.
  package func open(_ page: UInt, always: Bool) {
    guard isProtecting else { return }
    if always
      || memory.withLock({ $0.withCode.contains { $0.range.contains(page) && $0.isRegistered } })
    {
      faults?.open(page..<(page + Self.pageSize))
    }
  }

  // MARK: Comparison

  /// Whether a page with code can be written without a protection fault.
  package func needsComparison(_ page: UInt) -> Bool {
    let isOurs = memory.withLock { memory in
      memory.withCode.contains { $0.range.contains(page) && $0.isRegistered }
    }
    return !isOurs || map.isShared(at: UInt64(page))
  }

  // MARK: Writes

  private func serve(_ onWrite: (UInt) -> Void) {
    var all = sigset_t()
    unsafe sigfillset(&all)
    unsafe pthread_sigmask(SIG_SETMASK, &all, nil)
    faults?.wait { address in
      writeCount.add(1, ordering: .relaxed)
      onWrite(address & ~(Self.pageSize &- 1))
    }
  }

  /// A line of statistics for the user.
  ///
  /// - Parameter kept: the number of CPUs' page copies.
  package func report(copies kept: Int) -> String {
    let (protected, writes, unprotected) = (
      protectionCount.load(ordering: .relaxed), writeCount.load(ordering: .relaxed),
      unprotectedCount.load(ordering: .relaxed)
    )
    if let refusal { return "pages with code: \(kept) compared, as userfaultfd: \(refusal)" }
    return "pages with code: \(protected) protected, \(writes) writes by others"
      + (unprotected == 0 ? "" : ", \(unprotected) not protected")
      + (kept == 0 ? "" : ", \(kept) compared")
  }
}
