// SPDX-License-Identifier: Apache-2.0
//
// The client's signal actions. The kernel has one handler of ours for every signal that the client
// handles; the client's actions are stored here and returned when it asks.

import CHost
import ClientMemory
import Defence
import Glibc
import Host
import KVM
import Synchronization

/// An action that the client set. Never freed: equal ones are shared, and programs have few.
final class ClientAction: Sendable {
  let handler: UInt
  let flags: Int32
  let action: UncheckedAction

  /// Sendable: a plain value.
  struct UncheckedAction: @unchecked Sendable { var value: sigaction }

  init(_ action: sigaction) {
    self.action = UncheckedAction(value: action)
    handler = ClientSignals.handler(action)
    flags = action.sa_flags
  }
}

enum ClientSignals {
  private static let count = 65
  /// By signal number: an unretained ClientAction, or 0 if the kernel has the client's action.
  nonisolated(unsafe) private static let current: UnsafeMutablePointer<Atomic<UInt>> = {
    let table = UnsafeMutablePointer<Atomic<UInt>>.allocate(capacity: count)
    for index in 0..<count { unsafe (table + index).initialize(to: Atomic(0)) }
    return unsafe table
  }()
  private static let known = Mutex<[ClientAction]>([])

  /// sigaction(2).
  static func set(
    _ number: Int32, _ new: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
  ) -> Int32 {
    guard let real = unsafe Real.sigaction else { return fail(ENOSYS) }
    guard number > 0, number < count else { return unsafe real(number, new, old) }
    // A handler that calls sigaction must not block on a lock that it interrupted.
    var all = sigset_t()
    var mask = sigset_t()
    unsafe sigfillset(&all)
    _ = unsafe Real.sigmask?(SIG_SETMASK, &all, &mask)
    defer { _ = unsafe Real.sigmask?(SIG_SETMASK, &mask, nil) }
    return known.withLock { known in unsafe change(number, new, old, real, &known) }
  }

  private static func change(
    _ number: Int32, _ new: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?,
    _ real: Real.SigAction, _ known: inout [ClientAction]
  ) -> Int32 {
    let slot = unsafe current + Int(number)
    let previous = unsafe action(slot.pointee.load(ordering: .acquiring))
    var before = sigaction()
    var result: Int32
    if let new = unsafe new {
      let wanted = unsafe new.pointee
      // SIG_DFL and SIG_IGN go to the kernel.
      let isHandled =
        handler(wanted) > 1 || reported.contains(number)
        || handler(wanted) == 0 && isWatched(number)
      let record = isHandled ? intern(wanted, &known) : nil
      if let record { unsafe slot.pointee.store(address(record), ordering: .releasing) }
      var installed = wanted
      if isHandled {
        unsafe installed.__sigaction_handler.sa_sigaction = unsafe entry
        installed.sa_flags = (wanted.sa_flags | SA_SIGINFO) & ~resetHandler
      }
      result = unsafe real(number, &installed, &before)
      if result != 0 {
        unsafe slot.pointee.store(previous.map(address) ?? 0, ordering: .releasing)
      } else if !isHandled {
        unsafe slot.pointee.store(0, ordering: .releasing)
      }
    } else {
      result = unsafe real(number, nil, &before)
    }
    if result == 0, let old = unsafe old {
      unsafe old.pointee = isOurs(before) ? previous?.action.value ?? before : before
    }
    return result
  }

  static func handler(_ action: sigaction) -> UInt {
    unsafe withUnsafeBytes(of: action) { unsafe $0.load(as: UInt.self) }
  }

  private static let resetHandler = Int32(bitPattern: UInt32(SA_RESETHAND))

  private static func isOurs(_ action: sigaction) -> Bool {
    unsafe handler(action) == unsafeBitCast(entry, to: UInt.self)
  }

  private static func intern(_ wanted: sigaction, _ known: inout [ClientAction]) -> ClientAction {
    func isEqual(_ a: sigaction, _ b: sigaction) -> Bool {
      unsafe withUnsafeBytes(of: a) { a in
        unsafe withUnsafeBytes(of: b) { b in unsafe a.elementsEqual(b) }
      }
    }
    if let same = known.first(where: { isEqual($0.action.value, wanted) }) { return same }
    let new = ClientAction(wanted)
    known.append(new)
    return new
  }

  private static func address(_ action: ClientAction) -> UInt {
    unsafe UInt(bitPattern: Unmanaged.passUnretained(action).toOpaque())
  }

  private static func action(_ address: UInt) -> ClientAction? {
    unsafe UnsafeRawPointer(bitPattern: address).map {
      unsafe Unmanaged<ClientAction>.fromOpaque($0).takeUnretainedValue()
    }
  }

  // MARK: Faults

  /// Handles SIGSEGV and SIGBUS before the client, whatever its actions.
  static func watchFaults() {
    GuardedCopy.prepare()
    GuardedCall.prepare()
    ClientThread.prepare()
    CrashReporter.prepareForClient(program: "libmartlet-kvm.so")
    _ = reported.count
    for number in reported { _ = install(number) }
  }

  private static let faults = [SIGSEGV, SIGBUS]
  /// Those and Swift's trap: if the client leaves its default action and it is raised in KVM_RUN, a
  /// crash report comes first.
  private static let reported = [SIGSEGV, SIGBUS, SIGILL]

  private static func install(_ number: Int32) -> Int32 {
    var current = sigaction()
    guard unsafe set(number, nil, &current) == 0 else { return -1 }
    return unsafe set(number, &current, nil)
  }

  // MARK: Masks

  /// SIGSEGV and SIGBUS.
  static let faultSet: UInt64 = faults.reduce(0) { $0 | 1 &<< UInt64($1 - 1) }

  /// pthread_sigmask(3). A thread that blocks fault signals may have them blocked in KVM_RUN, where
  /// the library needs them.
  static func changeMask(
    _ how: Int32, _ new: UnsafePointer<sigset_t>?, _ old: UnsafeMutablePointer<sigset_t>?
  ) -> Int32 {
    guard let real = unsafe Real.sigmask else { return ENOSYS }
    let result = unsafe real(how, new, old)
    if unsafe new != nil, let thread = unsafe ClientThread.existing {
      unsafe thread.pointee.isMaskKnown = false
    }
    return result
  }

  // MARK: Signals that only end KVM_RUN

  /// Bit n - 1 for signal n.
  private static let watched = Atomic<UInt64>(0)

  private static func isWatched(_ number: Int32) -> Bool {
    watched.load(ordering: .relaxed) & 1 &<< UInt64(number - 1) != 0
  }

  /// By default they do nothing, or stop and continue the process, which the kernel does.
  private static let unwatched: UInt64 = [
    SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH, SIGKILL,
  ].reduce(0b11 << 31) { $0 | 1 << UInt64($1 - 1) }

  /// Handles these signals before the client, even those with default actions.
  static func watch(_ signals: UInt64) {
    let wanted = signals & ~unwatched
    let new = wanted & ~watched.load(ordering: .relaxed)
    if new == 0 { return }
    watched.bitwiseOr(new, ordering: .relaxed)
    for number in 1...Int32(64) where new & 1 &<< UInt64(number - 1) != 0 { _ = install(number) }
  }

  // MARK: Delivery

  typealias Handler =
    @convention(c) (Int32, UnsafeMutablePointer<siginfo_t>?, UnsafeMutableRawPointer?) -> Void

  /// The kernel's handler.
  private static let entry: Handler = { number, info, context in
    let saved = errno
    unsafe ClientSignals.deliver(number, info, context)
    errno = saved
  }

  private static func deliver(
    _ number: Int32, _ info: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer?
  ) {
    if faults.contains(number), unsafe recover(info, context) { return }
    if let thread = unsafe ClientThread.existing, let info = unsafe info,
      unsafe thread.pointee.isRunning,
      unsafe !isFault(number, info.pointee), unsafe thread.pointee.postpone(info.pointee)
    {
      return
    }
    unsafe callClient(number, info, context)
  }

  /// Whether a fault was our access to the client's memory: to an ioctl's argument, or a guest's to
  /// that of a slot.
  private static func recover(
    _ info: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer?
  ) -> Bool {
    guard let info = unsafe info, unsafe info.pointee.si_code > 0 else { return false }
    if unsafe GuardedCopy.recover(context) { return true }
    let address = unsafe UInt(bitPattern: info.pointee._sifields._sigfault.si_addr)
    return unsafe Client.memory?.recover(address, context) == true
  }

  /// Raised by the thread's own instruction, so it cannot be postponed.
  private static func isFault(_ number: Int32, _ info: siginfo_t) -> Bool {
    unsafe [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS].contains(number) && info.si_code > 0
  }

  static func callClient(
    _ number: Int32, _ info: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer?
  ) {
    guard let action = unsafe action(current[Int(number)].load(ordering: .acquiring)) else {
      return
    }
    if action.handler <= 1 {
      if let info = unsafe info, unsafe isFault(number, info.pointee),
        let thread = unsafe ClientThread.existing,
        unsafe thread.pointee.isRunning
      {
        unsafe CrashReporter.report(number, info, context)
      }
      return unsafe endByDefault(number, info, ignored: action.handler == 1)
    }
    if action.flags & resetHandler != 0 {
      var initial = sigaction()
      unsafe initial.__sigaction_handler.sa_handler = nil
      _ = unsafe set(number, &initial, nil)
    }
    // Handlers of both kinds may be called with all three arguments.
    unsafe unsafeBitCast(action.handler, to: Handler.self)(number, info, context)
  }

  /// A fault that the client does not handle: it recurs, and then the kernel acts.
  private static func endByDefault(
    _ number: Int32, _ info: UnsafeMutablePointer<siginfo_t>?, ignored: Bool
  ) {
    let isSent = unsafe info.map { unsafe $0.pointee.si_code <= 0 } ?? true
    if isSent, ignored { return }
    var initial = sigaction()
    _ = unsafe Real.sigaction?(number, &initial, nil)
    if isSent { raise(number) }
  }

  /// signal(2), with BSD's or System V's semantics.
  static func simple(_ number: Int32, _ handler: UInt, flags: Int32) -> UInt {
    var new = sigaction()
    unsafe withUnsafeMutableBytes(of: &new) { unsafe $0.storeBytes(of: handler, as: UInt.self) }
    unsafe sigemptyset(&new.sa_mask)
    if flags & SA_RESTART != 0 { unsafe sigaddset(&new.sa_mask, number) }
    new.sa_flags = flags
    var old = sigaction()
    if unsafe set(number, &new, &old) != 0 { return .max }
    return Self.handler(old)
  }

  static let systemV = resetHandler | Int32(bitPattern: UInt32(SA_NODEFER))
}
