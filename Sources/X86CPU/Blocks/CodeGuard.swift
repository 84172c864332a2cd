// SPDX-License-Identifier: Apache-2.0
//
// Write protection of pages with code against everybody in this process: a client's devices store
// into guest memory, and pass it to system calls that write there. A thread of its own is told of each
// such write before it happens, has all CPUs drop the page's code, and lets the write go on.
//
//     let codeGuard = try CodeGuard.install()
//     codeGuard.add(memory)                  // when a slot names it; CodePages does the rest
//     codeGuard.remove(memory)
//
// Where that cannot be had, for lack of rights or for the kind of memory, and where others may write by
// mappings that it does not see (shared memory), CPUs keep a copy of the page, and compare at the first
// execution after `contentsMayHaveChanged` (PhysicalCPU+Comparison).
//
// Invariants. That thread waits for nobody but for a page's lock, whose holders wait for nobody; it
// takes no memory from the allocator, as a thread that waits for it may hold the allocator's locks.
// Writes of the guest's own do not come here: their way clears the page's mark, which opens it.

import Host
import Synchronization
import SystemPackage
import X86

#if canImport(Glibc)
  import Glibc
#endif

package final class CodeGuard: Sendable {
  private struct Memory: Sendable {
    var range: Range<UInt>
    var isRegistered = false
    /// Somebody else watches it, or it is of a kind that cannot be protected.
    var isForeign = false
  }

  /// nil where the kernel does not let us.
  private let faults: UserFaultDescriptor?
  /// Why it does not.
  private let refusal: Errno?
  /// The memory of all slots; the same may be in several.
  private let memory = Mutex<[Memory]>([])
  private let process = getpid()
  private let protectionCount = Atomic<UInt64>(0)
  private let unprotectedCount = Atomic<UInt64>(0)
  private let writeCount = Atomic<UInt64>(0)

  /// Copies of pages that all CPUs have.
  let copies = Atomic<Int>(0)

  private init(protects: Bool) {
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

  private static let installed = Mutex<CodeGuard?>(nil)

  /// The guard of this process, made by the first call.
  ///
  /// - Parameter protects: false: pages are compared only.
  package static func install(protects: Bool = true) throws(Errno) -> CodeGuard {
    try installed.withLock { (installed) throws(Errno) in
      if let installed, installed.process == getpid() { return installed }
      let new = CodeGuard(protects: protects)
      if new.isProtecting {
        _ = try HostThread(name: "martlet-writes", stackSize: 256 << 10) { new.serve() }
      }
      CodePages.shared.install(new)
      installed = new
      return new
    }
  }

  private var isProtecting: Bool { refusal == nil }

  /// In a child of fork, before it makes CPUs: the parent's code, CPUs and guard are not the child's.
  package static func forgetParent() {
    CPURegistry.shared.forget()
    CodePages.shared.forget()
  }

  // MARK: Memory

  /// Guest memory, in whole pages.
  package func add(_ range: Range<UInt>) { memory.withLock { $0.append(Memory(range: range)) } }

  /// Undoes one `add` of the same range. Its code has been dropped (`PhysicalCPU.noteHostWrite`).
  package func remove(_ range: Range<UInt>) {
    memory.withLock { memory in
      guard let index = memory.firstIndex(where: { $0.range == range }) else { return }
      let old = memory.remove(at: index)
      if old.isRegistered, !memory.contains(where: { $0.range.overlaps(range) }) {
        faults?.unregister(range)
      }
    }
  }

  /// Leaves a part of memory to another userfaultfd: its pages are protected no longer. Its code has
  /// been dropped.
  package func yield(_ range: Range<UInt>) {
    memory.withLock { memory in
      for index in memory.indices where memory[index].range.overlaps(range) {
        if memory[index].isRegistered { faults?.unregister(memory[index].range) }
        memory[index].isRegistered = false
        memory[index].isForeign = true
      }
    }
  }

  /// Whether the memory that a page lies in is known to the kernel (again, if `anew`); false where it
  /// is no guest's or cannot be protected.
  private func register(_ page: UInt, anew: Bool) -> Bool {
    memory.withLock { memory in
      guard let index = memory.firstIndex(where: { $0.range.contains(page) }) else { return false }
      if memory[index].isForeign { return false }
      if memory[index].isRegistered, !anew { return true }
      do throws(Errno) {
        try faults?.register(memory[index].range)
      } catch {
        memory[index].isForeign = true
        return false
      }
      memory[index].isRegistered = true
      return true
    }
  }

  // MARK: Pages; under the page's lock

  func protect(_ page: UInt64) {
    guard isProtecting else { return }
    let address = UInt(page)
    let range = address..<(address + UInt(Page.size))
    // A page that is not there is read first: kernels before 6.4 protect what is there.
    let bytes = UnsafePointer<Atomic<UInt8>>(bitPattern: address)
    _ = bytes?.pointee.load(ordering: .acquiring)
    for attempt in 0..<2 {
      guard register(address, anew: attempt > 0) else { break }
      do throws(Errno) {
        try faults?.protect(range)
        protectionCount.add(1, ordering: .relaxed)
        return
      } catch {
        // What the client mapped over registered memory has to be registered again.
        if error == .noSuchFileOrDirectory { continue }
        memory.withLock { memory in
          for index in memory.indices where memory[index].range.contains(address) {
            memory[index].isForeign = true
          }
        }
        break
      }
    }
    unprotectedCount.add(1, ordering: .relaxed)
  }

  /// - Parameter always: somebody may wait, whatever is known of the page.
  func open(_ page: UInt64, always: Bool) {
    let address = UInt(page)
    guard isProtecting else { return }
    if always
      || memory.withLock({ $0.contains { $0.isRegistered && $0.range.contains(address) } })
    {
      faults?.open(address..<(address + UInt(Page.size)))
    }
  }

  // MARK: Comparison

  /// Whether somebody may write to a page, which is marked, without its protection telling.
  func needsComparison(_ page: UInt64) -> Bool {
    let address = UInt(page)
    let isOurs = memory.withLock { memory in
      memory.contains { $0.range.contains(address) && $0.isRegistered && !$0.isForeign }
    }
    return !isOurs || HostMemoryMap.shared.isShared(at: page)
  }

  /// Somebody may have written to memory that is not protected against him: code is compared before it
  /// is executed again. From any thread.
  package func contentsMayHaveChanged() {
    if copies.load(ordering: .relaxed) == 0 { return }
    CPURegistry.shared.post(.compare, except: nil)
  }

  // MARK: Writes

  private func serve() {
    var all = sigset_t()
    sigfillset(&all)
    pthread_sigmask(SIG_SETMASK, &all, nil)
    faults?.wait { address in
      writeCount.add(1, ordering: .relaxed)
      let page = UInt64(address) & Page.mask
      _ = CodePages.shared.unmark(page, except: nil, opensAlways: true)
    }
  }

  /// A line for the user.
  package var report: String {
    let (protected, writes, unprotected) = (
      protectionCount.load(ordering: .relaxed), writeCount.load(ordering: .relaxed),
      unprotectedCount.load(ordering: .relaxed)
    )
    let kept = copies.load(ordering: .relaxed)
    if let refusal { return "pages with code: \(kept) compared, as userfaultfd: \(refusal)" }
    return "pages with code: \(protected) protected, \(writes) writes by others"
      + (unprotected == 0 ? "" : ", \(unprotected) not protected")
      + (kept == 0 ? "" : ", \(kept) compared")
  }
}
