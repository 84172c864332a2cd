// SPDX-License-Identifier: Apache-2.0
//
// Threads with names. Swift's concurrency pool is for short work; a vCPU occupies its thread for
// as long as the machine runs, so it gets one of its own.
//
//     let thread = try HostThread(name: "vcpu0") { runGuest() }
//     thread.join()

import CHost
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// Identifies a running thread so that another can send it a signal.
package struct ThreadIdentifier: Sendable, Hashable {
  package let rawValue: UInt

  package init(rawValue: UInt) { self.rawValue = rawValue }

  /// The calling thread.
  package static var current: Self { Self(rawValue: UInt(pthread_self())) }

  /// Sends the thread a signal. The thread must not have been joined yet.
  package func signal(_ number: Int32) { _ = pthread_kill(pthread_t(rawValue), number) }
}

/// A started thread, open to `KickSignal`; `join` waits for its end. It is detached if not joined.
package struct HostThread: ~Copyable, Sendable {
  package let identifier: ThreadIdentifier

  private final class Start {
    let name: String
    let body: @Sendable () -> Void
    init(name: String, body: @escaping @Sendable () -> Void) {
      self.name = name
      self.body = body
    }
  }

  /// Starts a thread.
  ///
  /// - Parameters:
  ///   - name: shown by ps and debuggers; cut to 15 bytes.
  ///   - stackSize: bytes.
  package init(
    name: String, stackSize: Int = 4 << 20, _ body: @escaping @Sendable () -> Void
  ) throws(Errno) {
    let start = unsafe Unmanaged.passRetained(Start(name: name, body: body))
    var attributes = pthread_attr_t()
    unsafe pthread_attr_init(&attributes)
    defer { unsafe pthread_attr_destroy(&attributes) }
    unsafe pthread_attr_setstacksize(&attributes, max(stackSize, 64 << 10))
    var thread = pthread_t()
    do throws(Errno) {
      try threadCall {
        unsafe pthread_create(
          &thread, &attributes,
          { argument in
            guard let argument = unsafe argument else { return nil }
            let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
            unsafe pthread_setname_np(pthread_self(), String(start.name.prefix(15)))
            KickSignal.unblock()
            HostThread.began(start.name)
            start.body()
            return nil
          }, unsafe start.toOpaque())
      }
    } catch {
      unsafe start.release()
      throw error
    }
    identifier = ThreadIdentifier(rawValue: UInt(thread))
  }

  deinit { pthread_detach(pthread_t(identifier.rawValue)) }

  private static let beginning = Mutex<(@Sendable (String) -> Void)?>(nil)

  /// Makes every thread that starts from now on call a function first, with its name.
  package static func atStart(_ function: @escaping @Sendable (String) -> Void) {
    beginning.withLock { $0 = function }
  }

  private static func began(_ name: String) { beginning.withLock { $0 }?(name) }

  /// Waits until the thread has ended.
  package consuming func join() {
    let thread = pthread_t(identifier.rawValue)
    discard self
    pthread_join(thread, nil)
  }
}

/// The signal that makes a thread return from a system call: its handler does nothing, and because
/// it is installed without SA_RESTART the call returns EINTR.
package enum KickSignal {
  /// SIGUSR1.
  package static let number = SIGUSR1

  /// Installs the empty handler.
  package static func install() {
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = { _ in }
    unsafe sigemptyset(&action.sa_mask)
    action.sa_flags = 0
    unsafe sigaction(number, &action, nil)
  }

  /// Lets the calling thread receive the signal. Threads of a dispatch pool block all signals, and
  /// new threads inherit that.
  package static func unblock() {
    var mask = sigset_t()
    unsafe sigemptyset(&mask)
    unsafe sigaddset(&mask, number)
    unsafe pthread_sigmask(SIG_UNBLOCK, &mask, nil)
  }
}
