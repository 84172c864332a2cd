// SPDX-License-Identifier: Apache-2.0
//
// sigaction(2), signal(2) and pthread_sigmask(3) for the client (`ClientSignals`).

import CHost
import Glibc

@_cdecl("sigaction") public func exportedSigAction(
  _ number: Int32, _ new: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
) -> Int32 {
  unsafe ClientSignals.set(number, new, old)
}

@_cdecl("pthread_sigmask") public func exportedThreadMask(
  _ how: Int32, _ new: UnsafePointer<sigset_t>?, _ old: UnsafeMutablePointer<sigset_t>?
) -> Int32 {
  unsafe ClientSignals.changeMask(how, new, old)
}

@_cdecl("sigprocmask") public func exportedProcessMask(
  _ how: Int32, _ new: UnsafePointer<sigset_t>?, _ old: UnsafeMutablePointer<sigset_t>?
) -> Int32 {
  let error = unsafe ClientSignals.changeMask(how, new, old)
  return error == 0 ? 0 : fail(error)
}

@_cdecl("signal") public func exportedSignal(_ number: Int32, _ handler: UInt) -> UInt {
  ClientSignals.simple(number, handler, flags: SA_RESTART)
}

@_cdecl("bsd_signal") public func exportedBSDSignal(_ number: Int32, _ handler: UInt) -> UInt {
  ClientSignals.simple(number, handler, flags: SA_RESTART)
}

@_cdecl("ssignal") public func exportedSSignal(_ number: Int32, _ handler: UInt) -> UInt {
  ClientSignals.simple(number, handler, flags: SA_RESTART)
}

@_cdecl("sysv_signal") public func exportedSysVSignal(_ number: Int32, _ handler: UInt) -> UInt {
  ClientSignals.simple(number, handler, flags: ClientSignals.systemV)
}

@_cdecl("__sysv_signal") public func exportedSysVSignal2(_ number: Int32, _ handler: UInt) -> UInt {
  ClientSignals.simple(number, handler, flags: ClientSignals.systemV)
}

/// System V's: SIG_HOLD blocks the signal, all others unblock it.
@_cdecl("sigset") public func exportedSigSet(_ number: Int32, _ handler: UInt) -> UInt {
  let hold: UInt = 2
  var set = sigset_t()
  var before = sigset_t()
  unsafe sigemptyset(&set)
  guard unsafe sigaddset(&set, number) == 0 else { return .max }
  var old: UInt
  if handler == hold {
    var action = sigaction()
    guard unsafe ClientSignals.set(number, nil, &action) == 0 else { return .max }
    old = ClientSignals.handler(action)
  } else {
    old = ClientSignals.simple(number, handler, flags: 0)
    if old == .max { return .max }
  }
  _ = unsafe ClientSignals.changeMask(handler == hold ? SIG_BLOCK : SIG_UNBLOCK, &set, &before)
  if unsafe sigismember(&before, number) == 1 { old = hold }
  return old
}

@_cdecl("sigignore") public func exportedSigIgnore(_ number: Int32) -> Int32 {
  ClientSignals.simple(number, 1, flags: 0) == .max ? -1 : 0
}
