// SPDX-License-Identifier: Apache-2.0
//
// Raw terminal mode that is always undone: when its owner ends, when the process calls exit, and
// when an unhandled signal kills it. The saved mode is in static storage because a signal handler
// can reach nothing else; so a process has at most one raw terminal at a time.
//
//     let terminal = try RawTerminal(descriptor: STDIN_FILENO)
//     defer { terminal.restore() }

import CHost
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// A terminal in raw mode: no echo, no line editing, no signals from keys, unprocessed bytes.
package struct RawTerminal: ~Copyable, Sendable {
  /// The terminal whose mode is to be restored; -1 when none.
  private static let active = Atomic<Int32>(-1)
  /// Written before `active` is set, read after `active` was found set.
  nonisolated(unsafe) private static let saved = UnsafeMutablePointer<termios>.allocate(
    capacity: 1)
  /// Signals that end the process by default and leave no time for a `deinit`.
  private static let fatalSignals = [
    SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGHUP, SIGQUIT, SIGINT, SIGTERM, SIGALRM,
    SIGXCPU, SIGSYS,
  ]

  /// Receives a fatal signal after the terminal is restored, in the signal's handler.
  package typealias FatalSignalReporter =
    @convention(c) (Int32, UnsafeMutablePointer<siginfo_t>?, UnsafeMutableRawPointer?) -> Void
  /// Set before there are threads.
  nonisolated(unsafe) package static var reporter: FatalSignalReporter?

  /// Puts a terminal into raw mode.
  ///
  /// - Throws: ENOTTY if it is not a terminal; EBUSY if another is raw.
  package init(descriptor: Int32) throws(Errno) {
    var mode = termios()
    _ = try systemCall { () -> Int32 in unsafe tcgetattr(descriptor, &mode) }
    guard Self.active.load(ordering: .acquiring) == -1 else { throw .resourceBusy }
    unsafe Self.saved.initialize(to: mode)
    Self.active.store(descriptor, ordering: .releasing)
    Self.prepare()
    unsafe cfmakeraw(&mode)
    do throws(Errno) {
      _ = try systemCall { () -> Int32 in unsafe tcsetattr(descriptor, TCSADRAIN, &mode) }
    } catch {
      Self.active.store(-1, ordering: .releasing)
      throw error
    }
  }

  deinit { Self.restoreActive() }

  /// Whether a terminal is raw: then lines end with "\r\n".
  package static var isActive: Bool { active.load(ordering: .acquiring) >= 0 }

  /// Whether a descriptor is a terminal.
  package static func isTerminal(_ descriptor: Int32) -> Bool { isatty(descriptor) == 1 }

  /// Restores the old mode of the terminal, once. Safe in signal handlers.
  package static func restoreActive() {
    let descriptor = active.exchange(-1, ordering: .acquiringAndReleasing)
    if descriptor >= 0 { unsafe tcsetattr(descriptor, TCSANOW, saved) }
  }

  /// Makes the process restore the terminal before it dies of a signal or calls exit. Call it
  /// before anything else handles signals; handlers installed later must pass on signals that they
  /// do not handle.
  package static func prepare() { handlers }

  private static let handlers: Void = {
    _ = atexit { RawTerminal.restoreActive() }
    // Swift's own handlers would start an interactive backtrace. They stay only on request.
    let keepsOld = unsafe getenv("SWIFT_BACKTRACE") != nil
    for signal in fatalSignals {
      var action = sigaction()
      unsafe action.__sigaction_handler.sa_sigaction = { number, information, context in
        RawTerminal.restoreActive()
        unsafe RawTerminal.reporter?(number, information, context)
        var old = sigaction()
        if let saved = unsafe RawTerminal.oldActions { old = unsafe saved[Int(number)] }
        unsafe sigaction(number, &old, nil)
        // A fault recurs when its instruction is executed again; other signals are sent again. A
        // call that a filter stopped does not recur.
        let isOver = number == SIGTRAP || number == SIGSYS
        let isFault = unsafe !isOver && (information?.pointee.si_code ?? 0) > 0
        if !isFault { raise(number) }
      }
      unsafe sigemptyset(&action.sa_mask)
      action.sa_flags = Int32(SA_SIGINFO) | Int32(SA_ONSTACK) | Int32(SA_NODEFER)
      var old = sigaction()
      unsafe sigaction(signal, nil, &old)
      let ignored = unsafe unsafeBitCast(SIG_IGN, to: Int.self)
      if unsafe unsafeBitCast(old.__sigaction_handler, to: Int.self) == ignored { continue }
      unsafe sigaction(signal, &action, nil)
      unsafe oldActions?[Int(signal)] = keepsOld ? old : sigaction()
    }
  }()

  /// What to do after the terminal is restored, by signal number.
  nonisolated(unsafe) private static let oldActions: UnsafeMutablePointer<sigaction>? = {
    let actions = UnsafeMutablePointer<sigaction>.allocate(capacity: 65)
    unsafe actions.initialize(repeating: sigaction(), count: 65)
    return unsafe actions
  }()
}
