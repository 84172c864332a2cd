// SPDX-License-Identifier: Apache-2.0
//
// KVM_RUN on the client's thread, which may get signals at any instruction.
//
// In Linux a signal ends KVM_RUN with EINTR and its handler runs on the way out. Here the handler
// would run in the middle of guest code or of the hypervisor. So the library's own handler, which
// replaces the client's (ClientSignals), only notes a signal during KVM_RUN and asks the vCPU to
// exit; after KVM_RUN it sends the signal to the thread again, and then the client's handler runs.
// A signal that the client blocks outside KVM_RUN (KVM_SET_SIGNAL_MASK) is then pending, as in
// Linux.

import CHost
import Glibc
import KVM
import Synchronization
import SystemPackage

/// A vCPU and the state of its thread in KVM_RUN.
final class ClientRun: Sendable {
  let runner: InterruptibleCPU

  init(_ runner: InterruptibleCPU) { self.runner = runner }

  func run(_ argument: UInt) throws(Errno) -> Int32 {
    guard let thread = unsafe ClientThread.current() else { throw .noMemory }
    // A handler cannot call KVM_RUN within KVM_RUN on the same thread: handlers are postponed.
    let control = chost_fnstcw()
    let mxcsr = chost_stmxcsr()
    let mask = unsafe SignalMask(runner.signalMask, unblocks: thread.pointee.blocksFaults)
    unsafe thread.pointee.begin(runner)
    mask?.apply()
    defer {
      mask?.restore()
      unsafe thread.pointee.end()
      chost_ldmxcsr(mxcsr)
      chost_fldcw(control)
      unsafe ClientThread.sendAgain(thread)
    }
    return try runner.run(
      argument, entered: { unsafe thread.pointee.enter() }, left: { unsafe thread.pointee.leave() })
  }
}

/// The signals blocked during KVM_RUN (KVM_SET_SIGNAL_MASK), and those blocked otherwise.
struct SignalMask {
  private var during = sigset_t()
  private var outside = sigset_t()

  /// - Parameters:
  ///   - signals: bit n - 1 for signal n; nil: no mask is set.
  ///   - unblocks: the client blocks fault signals, which must be unblocked in KVM_RUN.
  init?(_ signals: UInt64?, unblocks: Bool) {
    guard signals != nil || unblocks else { return nil }
    outside = Self.current
    during = outside
    let old = Self.bits(outside)
    let wanted = (signals ?? old) & ~ClientSignals.faultSet
    unsafe withUnsafeMutableBytes(of: &during) { unsafe $0.storeBytes(of: wanted, as: UInt64.self) }
    // In Linux a signal that only KVM_RUN unblocks ends it and stays pending. Here the library
    // handles it, even if the client never set an action.
    ClientSignals.watch(old & ~wanted)
  }

  /// The calling thread's mask.
  private static var current: sigset_t {
    var set = sigset_t()
    _ = unsafe Real.sigmask?(SIG_BLOCK, nil, &set)
    return set
  }

  private static func bits(_ set: sigset_t) -> UInt64 {
    unsafe withUnsafeBytes(of: set) { unsafe $0.load(as: UInt64.self) }
  }

  /// Whether the calling thread blocks a fault signal.
  static var blocksFaults: Bool { bits(current) & ClientSignals.faultSet != 0 }

  func apply() {
    var mask = during
    _ = unsafe Real.sigmask?(SIG_SETMASK, &mask, nil)
  }

  func restore() {
    var mask = outside
    _ = unsafe Real.sigmask?(SIG_SETMASK, &mask, nil)
  }
}

/// A thread's data for its signal handlers. Its memory is valid until the thread ends.
@safe struct ClientThread: ~Copyable {
  private static let capacity = 32
  /// The vCPU of this thread's KVM_RUN; nil outside.
  private var running: Unmanaged<InterruptibleCPU>?
  /// This thread owns the vCPU. Until then another thread is in its KVM_RUN, which a signal to this
  /// one must not end.
  private let isInside = Atomic<Bool>(false)
  /// Held while another thread reads `running`, or this one changes it.
  private let isLocked = Atomic<Bool>(false)
  private var isCancelled = false
  /// Whether the thread blocks fault signals outside KVM_RUN, if that is known.
  private var isBlockingFaults = false
  var isMaskKnown = false
  private var count = 0
  private var signals = unsafe InlineArray<32, siginfo_t>(repeating: siginfo_t())

  private static let key: pthread_key_t = {
    var key = pthread_key_t()
    unsafe pthread_key_create(&key) {
      ClientThread.forget()
      unsafe free($0)
    }
    return key
  }()

  /// Initializes what signal handlers use.
  static func prepare() { _ = key }

  /// All threads that were ever in KVM_RUN: their data by pthread_t. And some that were cancelled
  /// before.
  private struct All: Sendable {
    var known: [UInt: UInt] = [:]
    var cancelled: [UInt] = []
  }
  private static let all = Mutex(All())

  private static func forget() {
    let own = UInt(pthread_self())
    all.withLock { _ = $0.known.removeValue(forKey: own) }
  }

  /// pthread_cancel was called for a thread: it must return from KVM_RUN.
  static func cancelled(_ thread: UInt) {
    all.withLock { all in
      guard let address = all.known[thread],
        let pointer = unsafe UnsafeMutablePointer<ClientThread>(bitPattern: address)
      else {
        all.cancelled.append(thread)
        if all.cancelled.count > 64 { all.cancelled.removeFirst() }
        return
      }
      unsafe pointer.pointee.cancel()
    }
  }

  /// The calling thread's data; created at its first KVM_RUN.
  static func current() -> UnsafeMutablePointer<ClientThread>? {
    if let existing = unsafe existing { return unsafe existing }
    guard let memory = unsafe malloc(MemoryLayout<ClientThread>.size) else { return nil }
    let thread = unsafe memory.bindMemory(to: ClientThread.self, capacity: 1)
    unsafe thread.initialize(to: ClientThread())
    let own = UInt(pthread_self())
    all.withLock { all in
      all.known[own] = UInt(bitPattern: memory)
      if let place = all.cancelled.firstIndex(of: own) {
        all.cancelled.remove(at: place)
        unsafe thread.pointee.isCancelled = true
      }
    }
    unsafe pthread_setspecific(key, memory)
    return unsafe thread
  }

  /// The calling thread's data, if it was ever in KVM_RUN. Safe in signal handlers.
  static var existing: UnsafeMutablePointer<ClientThread>? {
    unsafe pthread_getspecific(key)?.assumingMemoryBound(to: ClientThread.self)
  }

  var blocksFaults: Bool {
    mutating get {
      if !isMaskKnown {
        isMaskKnown = true
        isBlockingFaults = SignalMask.blocksFaults
      }
      return isBlockingFaults
    }
  }

  mutating func begin(_ runner: InterruptibleCPU) {
    count = 0
    lock()
    unsafe running = unsafe Unmanaged.passUnretained(runner)
    unlock()
  }

  /// This thread owns the vCPU now. A signal that came while it waited ends KVM_RUN at once.
  mutating func enter() {
    lock()
    unsafe running?._withUnsafeGuaranteedRef { runner in
      runner.rearm()
      isInside.store(true, ordering: .sequentiallyConsistent)
      if count > 0 || isCancelled { runner.interrupt() }
    }
    unlock()
  }

  mutating func leave() {
    lock()
    isInside.store(false, ordering: .sequentiallyConsistent)
    unlock()
  }

  mutating func end() {
    lock()
    unsafe running = nil
    unlock()
  }

  private mutating func cancel() {
    lock()
    isCancelled = true
    interrupt()
    unlock()
  }

  private func interrupt() {
    guard isInside.load(ordering: .sequentiallyConsistent) else { return }
    unsafe running?._withUnsafeGuaranteedRef { $0.interrupt() }
  }

  /// Held for a few instructions, never by a signal handler.
  private func lock() {
    while isLocked.exchange(true, ordering: .acquiring) { sched_yield() }
  }

  private func unlock() { isLocked.store(false, ordering: .releasing) }

  var isRunning: Bool { unsafe running != nil }

  /// Postpones a signal until KVM_RUN ends. False if it cannot be.
  mutating func postpone(_ signal: siginfo_t) -> Bool {
    guard isRunning else { return false }
    // Stored first: a thread that is entering checks the count.
    defer { interrupt() }
    if unsafe signal.si_signo < 32 {
      // As in the kernel, at most one of them is pending.
      for index in 0..<count where unsafe signals[index].si_signo == signal.si_signo { return true }
    }
    guard count < Self.capacity else { return false }
    unsafe signals[count] = unsafe signal
    count += 1
    return true
  }

  /// After KVM_RUN: sends postponed signals again.
  static func sendAgain(_ thread: UnsafeMutablePointer<ClientThread>) {
    let count = unsafe thread.pointee.count
    if count == 0 { return }
    // A handler may call KVM_RUN, which reuses the list: copy it first.
    let signals = unsafe thread.pointee.signals
    unsafe thread.pointee.count = 0
    let process = Int(getpid())
    let own = chost_syscall(Int(SYS_gettid), 0, 0, 0, 0, 0, 0)
    for index in 0..<count {
      var signal = unsafe signals[index]
      _ = unsafe chost_syscall(
        Int(SYS_rt_tgsigqueueinfo), process, own, Int(signal.si_signo),
        withUnsafeMutablePointer(to: &signal) { Int(bitPattern: $0) }, 0, 0)
    }
  }
}
