// SPDX-License-Identifier: Apache-2.0
//
// The hypervisor behind `/dev/kvm`. It owns the software processor's physical CPUs and the table of
// handles by which clients name machines and vCPUs.
//
//     let hypervisor = try Hypervisor(physicalCPUs: 2)
//     let system = hypervisor.open()
//     let machine = try hypervisor.ioctl(system, CKVM_CREATE_VM, 0)
//     let cpu = try hypervisor.ioctl(machine, CKVM_CREATE_VCPU, 0)
//     ... _ = try hypervisor.ioctl(cpu, CKVM_RUN, 0)
//
// Lock order: a vCPU's `inUse`, the machine's `configuration`, memory slots, nested tables; the
// interrupt chips, the machine's CPU list, a local APIC. The pool's lock comes after both
// sequences; no lock is taken under it.

import CHost
import ClientMemory
import Host
import Synchronization
import SystemPackage
import X86
import X86CPU
import X86JIT

#if canImport(Glibc)
  import Glibc
#endif

/// An object of the hypervisor without its handle: calls need no look-up and no lock of the handle
/// table. It keeps the object alive; the handle, which its owner closes, keeps it open.
package struct OpenObject: Sendable {
  fileprivate let hypervisor: Hypervisor
  fileprivate let object: Hypervisor.Object

  /// Calls an ioctl; see `KVMTransport.ioctl`.
  package func ioctl(_ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
    try hypervisor.call(object, request, argument)
  }

  /// The vCPU, for clients that call KVM_RUN amid signals; nil for other objects.
  package var runner: InterruptibleCPU? {
    guard case .virtualCPU(let vcpu, let machine) = object else { return nil }
    return InterruptibleCPU(vcpu: vcpu, machine: machine)
  }
}

package final class Hypervisor: Sendable {
  /// The vendor of the physical CPUs.
  package let silicon: SiliconVendor
  let pool: PhysicalCPUPool
  /// Incremented whenever nested mappings of any machine were removed. A physical CPU whose slot
  /// has an older value flushes its TLB before it enters a guest.
  let mappings = Atomic<UInt64>(1)

  enum Object: Sendable {
    case system
    case machine(Machine)
    /// Handles of its vCPUs keep a machine open.
    case virtualCPU(VirtualCPU, Machine)
  }

  private let handles = Mutex<[Object?]>([])
  let translationLog: TranslationLog?
  /// Translations of earlier runs.
  let translationStore: TranslationStore?
  /// Why there is no store although one was requested, or what was wrong with it; one line.
  package let storeProblem: String?
  /// The memory that slots use.
  package let client: ClientMemory
  /// The client writes to code without notice.
  let watchesCode: Bool
  /// Reports failed VM entries.
  let entryFailures: EntryFailureReports
  /// Statistics of closed machines' vCPUs.
  let finished = Mutex(RunStatistics())

  /// - Parameters:
  ///   - physicalCPUs: 1 to 64; nil: as many as the host has.
  ///   - silicon: their vendor, Intel with VT-x or AMD with SVM. nil: the host's
  ///     vendor.
  ///   - translates: compile hot guest code to host code (X86JIT), if the host allows it.
  ///   - tuning: when the translators translate, and how much they keep.
  ///   - reports: the translators' output.
  ///   - store: the file that keeps translations between runs; nil: none.
  ///   - client: the client's memory for guests, which also tracks its writes to
  ///     memory with code.
  ///   - entryFailures: reports failed VM entries.
  package init(
    physicalCPUs: Int? = nil, silicon: SiliconVendor? = nil, translates: Bool = false,
    tuning: TranslatorTuning = .standard, reports: TranslatorReports = .none,
    store: TranslationStoreSettings? = nil, client: ClientMemory = ClientMemory(),
    entryFailures: EntryFailureReports = .silent
  ) throws(Errno) {
    self.entryFailures = entryFailures
    let count = physicalCPUs ?? Self.hostCPUs
    guard (1...64).contains(count) else { throw .invalidArgument }
    let silicon = silicon ?? .host
    self.silicon = silicon
    let log = reports.makeLog()
    translationLog = log
    self.client = client
    watchesCode = client.codeGuard != nil
    try client.protectCode()
    let options = TranslationOptions(
      guardsSpeculation: tuning.guardsSpeculation, countsInstructions: reports.measures,
      measures: reports.measures, guardsAccesses: GuardedCall.isPrepared,
      silicon: silicon)
    let opened = Self.open(translates && log == nil ? store : nil, options)
    let kept = opened.store
    (translationStore, storeProblem) = opened
    pool = try PhysicalCPUPool(
      count: count, silicon: silicon,
      enable: { (cpu) throws(Errno) in
        try Backends.type(for: cpu).enable(cpu)
        if !translates { return }
        try Translator.install(
          on: cpu, threshold: tuning.threshold, hotEntries: tuning.hotEntries,
          codeBytes: tuning.codeBytes, guardsSpeculation: tuning.guardsSpeculation,
          countsInstructions: reports.measures, log: log, measures: reports.measures,
          verifies: tuning.verifiesAccesses, store: kept)
      }, enableSpare: { (cpu) throws(Errno) in try Backends.type(for: cpu).enable(cpu) })
  }

  /// Size of a vCPU's shared pages: `kvm_run`, port data, coalesced ring.
  package static let sharedSize = SharedPages.size

  package var physicalCPUCount: Int { pool.slots.count }

  /// Called in a child of fork, before it creates its own hypervisor.
  package static func forgetParent() { PhysicalCPU.forgetParent() }

  /// Opens the system, as `open("/dev/kvm")` does.
  package func open() -> Int32 { add(.system) }

  /// Calls an ioctl; see `KVMTransport.ioctl`.
  package func ioctl(
    _ handle: Int32, _ request: UInt32, _ argument: UInt
  ) throws(Errno) -> Int32 {
    try call(try object(handle), request, argument)
  }

  fileprivate func call(
    _ object: Object, _ request: UInt32, _ argument: UInt
  ) throws(Errno) -> Int32 {
    switch object {
    case .system: return try Self.ioctls.call(self, request, argument)
    case .machine(let machine): return try Machine.ioctls.call(machine, request, argument)
    case .virtualCPU(let vcpu, _): return try vcpu.ioctl(request, argument)
    }
  }

  /// The object of a handle, for clients that keep it in a table of their own.
  package func opened(_ handle: Int32) throws(Errno) -> OpenObject {
    OpenObject(hypervisor: self, object: try object(handle))
  }

  /// The pages that a vCPU shares with its client: `SharedPages.size` bytes, valid until the
  /// last handle of its machine is closed.
  package func sharedPages(_ handle: Int32) throws(Errno) -> UnsafeMutableRawPointer {
    guard case .virtualCPU(let vcpu, _) = try object(handle) else { throw .invalidArgument }
    return unsafe vcpu.pages
  }

  /// A vCPU's dirty ring, which a client maps at page 64 (KVM_DIRTY_LOG_PAGE_OFFSET) of the vCPU;
  /// nil without one. Valid as long as `sharedPages`.
  package func dirtyRing(_ handle: Int32) throws(Errno) -> UnsafeMutableRawBufferPointer? {
    guard case .virtualCPU(let vcpu, _) = try object(handle) else { throw .invalidArgument }
    return unsafe vcpu.dirtyRing.map {
      unsafe UnsafeMutableRawBufferPointer(
        start: $0.pages, count: Int($0.count) * DirtyRing.entrySize)
    }
  }

  /// The signals that KVM_SET_SIGNAL_MASK blocks during KVM_RUN, bit n - 1 for signal n; nil keeps
  /// the thread's mask. The client's side of KVM_RUN applies it, because signal masks belong to its
  /// threads. It calls this on the thread that is about to call KVM_RUN.
  package func signalMask(_ handle: Int32) -> UInt64? {
    guard case .virtualCPU(let vcpu, _)? = try? object(handle) else { return nil }
    return vcpu.runState.signalMask
  }

  /// Makes a vCPU return from KVM_RUN, like a signal to its thread. From any thread.
  package func kick(_ handle: Int32) {
    guard case .virtualCPU(let vcpu, _)? = try? object(handle) else { return }
    vcpu.request(.kick)
  }

  package func close(_ handle: Int32) {
    let closed = handles.withLock { handles -> Object? in
      let index = Int(handle) - 1
      guard handles.indices.contains(index) else { return nil }
      let object = handles[index]
      handles[index] = nil
      return object
    }
    _ = closed  // Freed outside the lock: closing a machine ends its threads.
  }

  func add(_ object: Object) -> Int32 {
    handles.withLock { handles in
      let index = handles.firstIndex { $0 == nil } ?? handles.count
      if index == handles.count { handles.append(object) } else { handles[index] = object }
      return Int32(truncatingIfNeeded: index + 1)
    }
  }

  func object(_ handle: Int32) throws(Errno) -> Object {
    let object = handles.withLock { handles -> Object? in
      let index = Int(handle) - 1
      return handles.indices.contains(index) ? handles[index] : nil
    }
    guard let object else { throw .badFileDescriptor }
    return object
  }

  var openObjects: [Object] { handles.withLock { $0.compactMap { $0 } } }

  /// The machines that have a handle.
  var machines: [Machine] {
    handles.withLock { handles in
      handles.compactMap {
        if case .machine(let machine)? = $0 { return machine }
        return nil
      }
    }
  }

  private static let hostCPUs = max(1, min(64, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))))
}
