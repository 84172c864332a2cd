// SPDX-License-Identifier: Apache-2.0
//
// Exceptions that exit (SDM volume 3, "Exception Bitmap" and "Information for VM Exits Due to
// Vectored Events"; APM volume 2, "Exception Intercepts").

import X86

extension CPU {
  /// Whether the hypervisor intercepts an exception; the exit is then recorded. Debug and control
  /// registers are unchanged: their bits are in the record.
  ///
  /// - Parameter value: the address of #PF, the causes of #DB.
  package func intercepts(_ event: GuestEvent, value: UInt64) -> Bool {
    guard event.vector < 32 else { return false }
    var taken = s.pointee.intercepts.exceptions >> UInt32(event.vector) & 1 != 0
    if event.vector == ExceptionVector.pageFault.rawValue {
      let masked = (event.errorCode ?? 0) & s.pointee.intercepts.pageFaultMask
      if masked != s.pointee.intercepts.pageFaultMatch { taken.toggle() }
    }
    if !taken { return false }
    _ = exit(.exception, value: value)
    if s.pointee.unblockedNMI {
      s.pointee.exit.details = .unblockedNMI
      s.pointee.unblockedNMI = false
    }
    s.pointee.exit.event = reportable(event)
    if event.isOfInstruction {
      s.pointee.exit.instructionLength = UInt8(truncatingIfNeeded: event.instructionLength)
    }
    if event.vector == ExceptionVector.debug.rawValue { s.pointee.pendingDebug = 0 }
    if event.isFault {
      s.pointee.rflags |= RFLAGS.rf.rawValue
      updateSlow()
    }
    return true
  }

  /// An event as exits report it: real mode has no error codes.
  func reportable(_ event: GuestEvent) -> GuestEvent {
    if isProtected { return event }
    var event = event
    event.errorCode = nil
    return event
  }
}

extension GuestEvent {
  /// A fault: its instruction is executed again, so the pushed flags have RF set. Excludes debug
  /// exceptions, whose handlers set RF, and aborts.
  var isFault: Bool {
    guard kind == .hardwareException else { return false }
    switch ExceptionVector(rawValue: vector) {
    case .debug, .doubleFault, .machineCheck, .breakpoint, .overflow: return false
    default: return true
    }
  }
}
