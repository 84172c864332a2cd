// SPDX-License-Identifier: Apache-2.0
//
// How an instruction or event leaves VMX non-root operation: it records the exit information and
// throws `.vmExit`; the run loop sees it and returns to the verb that entered.

import X86

extension CPU {
  /// Records a VM exit caused by the running instruction, and returns what to throw. RIP will be
  /// the instruction's own.
  ///
  ///     if c.s.pointee.vmx.primary & PrimaryControls.hltExiting != 0 { throw c.exit(.hlt, i) }
  package func exit(
    _ reason: ExitReason, _ i: MicroOpPointer, qualification: UInt64 = 0
  ) -> GuestException {
    s.pointee.exit = ExitInformation()
    s.pointee.exit.reason = UInt32(reason.rawValue)
    s.pointee.exit.qualification = qualification
    s.pointee.exit.instructionLength = UInt32(i.pointee.length)
    return .vmExit
  }

  /// Records a VM exit that no instruction caused.
  package func exit(_ reason: ExitReason, qualification: UInt64 = 0) -> GuestException {
    s.pointee.exit = ExitInformation()
    s.pointee.exit.reason = UInt32(reason.rawValue)
    s.pointee.exit.qualification = qualification
    return .vmExit
  }
}
