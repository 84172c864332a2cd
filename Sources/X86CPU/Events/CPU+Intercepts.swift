// SPDX-License-Identifier: Apache-2.0
//
// Exceptions that leave VMX non-root operation (SDM volume 3, "Exception Bitmap" and "Information
// for VM Exits Due to Vectored Events").

import X86

extension CPU {
  /// Whether the exception bitmap takes an event; the exit is then recorded. Debug and control
  /// registers are untouched: their bits are in the qualification.
  package func intercepts(
    _ event: InterruptionInfo, errorCode: UInt32, qualification: UInt64,
    instructionLength: UInt32 = 0
  ) -> Bool {
    guard event.vector < 32 else { return false }
    var taken = s.pointee.vmx.exceptionBitmap >> UInt32(event.vector) & 1 != 0
    if event.vector == ExceptionVector.pageFault.rawValue {
      let match = errorCode & s.pointee.vmx.pageFaultMask == s.pointee.vmx.pageFaultMatch
      if !match { taken.toggle() }
    }
    if !taken { return false }
    _ = exit(.exceptionOrNMI, qualification: qualification)
    var reported = reportable(event)
    if s.pointee.unblockedNMI {
      reported.rawValue |= InterruptionInfo.nmiUnblockingBit
      s.pointee.unblockedNMI = false
    }
    s.pointee.exit.interruptionInfo = reported.rawValue
    s.pointee.exit.interruptionErrorCode = reported.hasErrorCode ? errorCode : 0
    s.pointee.exit.instructionLength = instructionLength
    if event.vector == ExceptionVector.debug.rawValue { s.pointee.pendingDebug = 0 }
    if event.isFault {
      s.pointee.rflags |= RFLAGS.rf.rawValue
      updateSlow()
    }
    return true
  }

  /// An event as exits report it: real mode has no error codes.
  func reportable(_ event: InterruptionInfo) -> InterruptionInfo {
    if isProtected { return event }
    return InterruptionInfo(rawValue: event.rawValue & ~(1 << 11))
  }
}

extension InterruptionInfo {
  /// A fault: its instruction is executed again, so that the pushed flags have RF set. Debug
  /// exceptions are left out, whose handlers set it, and so are the aborts.
  var isFault: Bool {
    guard type == .hardwareException else { return false }
    switch ExceptionVector(rawValue: vector) {
    case .debug, .doubleFault, .machineCheck, .breakpoint, .overflow: return false
    default: return true
    }
  }
}
