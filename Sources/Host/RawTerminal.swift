// SPDX-License-Identifier: Apache-2.0
//
// Raw terminal mode that is always undone: when its owner goes away, when the process calls exit,
// and when a signal that nobody handles kills it. The saved mode lies in static storage because a
// signal handler can reach nothing else; so there is one raw terminal in a process at a time.
//
//     let terminal = try RawTerminal(descriptor: STDIN_FILENO)
//     defer { terminal.restore() }

import CHost
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// A terminal in raw mode: no echo, no line editing, no signals from keys, bytes as they come.
package struct RawTerminal: ~Copyable, Sendable {
  /// The terminal whose mode is to be restored; -1 when none.
  private static let active = Atomic<Int32>(-1)
  /// Written before `active` is set, read after `active` was found set.
  nonisolated(unsafe) private static let saved = UnsafeMutablePointer<termios>.allocate(
    capacity: 1)
  /// Signals that end the process by default and leave no time for a `deinit`.
  private static let fatalSignals = [
    SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGHUP, SIGQUIT, SIGINT, SIGTERM, SIGALRM,
    SIGXCPU,
  ]

  /// Puts a terminal into raw mode.
  ///
  /// - Throws: `Errno.notTTY` for what is no terminal; `Errno.resourceBusy` when another is raw.
  package init(descriptor: Int32) throws(Errno) {
    var mode = termios()
    _ = try systemCall { () -> Int32 in tcgetattr(descriptor, &mode) }
    guard Self.active.load(ordering: .acquiring) == -1 else { throw .resourceBusy }
    Self.saved.initialize(to: mode)
    Self.active.store(descriptor, ordering: .releasing)
    Self.installHandlers()
    cfmakeraw(&mode)
    do throws(Errno) {
      _ = try systemCall { () -> Int32 in tcsetattr(descriptor, TCSADRAIN, &mode) }
    } catch {
      Self.active.store(-1, ordering: .releasing)
      throw error
    }
  }

  deinit { Self.restoreActive() }

  /// Whether a descriptor is a terminal.
  package static func isTerminal(_ descriptor: Int32) -> Bool { isatty(descriptor) == 1 }

  /// Restores the mode that the terminal had, once. Safe in a signal handler.
  package static func restoreActive() {
    let descriptor = active.exchange(-1, ordering: .acquiringAndReleasing)
    if descriptor >= 0 { tcsetattr(descriptor, TCSANOW, saved) }
  }

  private static let exitHook: Void = { _ = atexit { RawTerminal.restoreActive() } }()

  /// A handler that restores the terminal and then lets the signal do what it would have done. A
  /// signal that has a handler already is left to that handler.
  private static func installHandlers() {
    exitHook
    for signal in fatalSignals {
      var old = sigaction()
      sigaction(signal, nil, &old)
      guard unsafeBitCast(old.__sigaction_handler, to: Int.self) == 0 else { continue }
      var action = sigaction()
      action.__sigaction_handler.sa_handler = { number in
        RawTerminal.restoreActive()
        Glibc.signal(number, SIG_DFL)
        raise(number)
      }
      sigemptyset(&action.sa_mask)
      action.sa_flags = Int32(bitPattern: UInt32(SA_NODEFER))
      sigaction(signal, &action, nil)
    }
  }
}
