// SPDX-License-Identifier: Apache-2.0
//
// sigaction(2) and signal(2).

import Glibc

@_cdecl("sigaction") public func exportedSigAction(
  _ number: Int32, _ new: UnsafePointer<sigaction>?, _ old: UnsafeMutablePointer<sigaction>?
) -> Int32 {
  ClientSignals.set(number, new, old)
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
