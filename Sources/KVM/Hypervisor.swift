// SPDX-License-Identifier: Apache-2.0
//
// Our KVM: what `/dev/kvm` is to a program. It owns the physical CPUs of the software processor and
// the table of handles by which clients name machines and vCPUs.
//
//     let hypervisor = try Hypervisor(physicalCPUs: 2)
//     let system = hypervisor.open()
//     let machine = try hypervisor.ioctl(system, CKVM_CREATE_VM, 0)
//     let cpu = try hypervisor.ioctl(machine, CKVM_CREATE_VCPU, 0)
//     ... _ = try hypervisor.ioctl(cpu, CKVM_RUN, 0)
//
// Locks, in the order in which they may be taken: a vCPU's `inUse`, the machine's `configuration`,
// memory slots, nested tables; the interrupt chips, the machine's CPU list, a local APIC. The
// pool's lock is taken below those two and takes none.

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

/// An object of the hypervisor without its handle: a call looks nothing up and takes no lock of the
/// table of handles. It keeps the object alive; the handle, which its owner closes, keeps it open.
package struct OpenObject: Sendable {
  fileprivate let hypervisor: Hypervisor
  fileprivate let object: Hypervisor.Object

  /// Calls an ioctl; see `KVMTransport.ioctl`.
  package func ioctl(_ request: UInt32, _ argument: UInt) throws(Errno) -> Int32 {
    try hypervisor.call(object, request, argument)
  }

  /// The vCPU, for those who call KVM_RUN in the midst of signals; nil for other objects.
  package var runner: InterruptibleCPU? {
    guard case .virtualCPU(let vcpu, let machine) = object else { return nil }
    return InterruptibleCPU(vcpu: vcpu, machine: machine)
  }
}

package final class Hypervisor: Sendable {
  /// Whose processors the physical CPUs are.
  package let silicon: SiliconVendor
  let pool: PhysicalCPUPool
  /// Goes up whenever nested mappings of any machine were taken away. A physical CPU whose slot has
  /// an older number drops what it has cached before it enters a guest.
  let mappings = Atomic<UInt64>(1)

  enum Object: Sendable {
    case system
    case machine(Machine)
    /// The machine is kept open by its vCPUs' handles.
    case virtualCPU(VirtualCPU, Machine)
  }

  private let handles = Mutex<[Object?]>([])
  let translationLog: TranslationLog?
  /// Translations of earlier runs.
  let translationStore: TranslationStore?
  /// Why there are none although there should be, or what was wrong with them; one line.
  package let storeProblem: String?
  /// The memory that slots name.
  package let client: ClientMemory
  /// The client writes to code unannounced.
  let watchesCode: Bool
  /// Where failed VM entries are told.
  let entryFailures: EntryFailureReports
  /// What the vCPUs of closed machines did.
  let finished = Mutex(RunStatistics())

  /// - Parameters:
  ///   - physicalCPUs: 1 to 64; nil: as many as the host has.
  ///   - silicon: whose processors they are: VT-x is Intel's, SVM is AMD's. nil: the
  ///     host's vendor's.
  ///   - translates: hot guest code becomes host code (X86JIT), where the host allows it.
  ///   - tuning: when the translators translate, and how much they keep.
  ///   - reports: what the translators tell.
  ///   - store: where translations are kept from run to run; nil: nowhere.
  ///   - client: the memory that the client gives to guests; see there how its writes to memory
  ///     with code are known.
  ///   - entryFailures: where failed VM entries are told.
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
          verifies: tuning.verifiesAccesses, store: kept, windows: tuning.windows)
      }, enableSpare: { (cpu) throws(Errno) in try Backends.type(for: cpu).enable(cpu) })
  }

  /// Bytes of a vCPU's shared pages: `kvm_run`, port data, coalesced ring.
  package static let sharedSize = SharedPages.size

  package var physicalCPUCount: Int { pool.slots.count }

  /// In a child of fork, before it makes a hypervisor of its own.
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

  /// What a handle names, for a client that has a table of its own and keeps this in it.
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

  /// The signals that KVM_SET_SIGNAL_MASK wants blocked during KVM_RUN, bit n - 1 for signal n; nil
  /// where the thread's own mask stays. The client's side of KVM_RUN carries it out: signals
  /// belong to its threads. It calls this on the thread that is about to call KVM_RUN.
  package func signalMask(_ handle: Int32) -> UInt64? {
    guard case .virtualCPU(let vcpu, _)? = try? object(handle) else { return nil }
    return vcpu.runState.signalMask
  }

  /// Makes a vCPU leave KVM_RUN, as a signal to its thread does. From any thread.
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
