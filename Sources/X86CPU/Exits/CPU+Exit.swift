// SPDX-License-Identifier: Apache-2.0
//
// How an instruction or event exits the guest: it records the exit and throws `.vmExit`; the run
// loop returns to the VM-entry instruction's caller.
//
//     try c.requirePrivilege()
//     if c.intercepts(.hlt) { throw c.exit(.hlt, i) }
//
// If the vendors differ in the order of the exit and of operand checks, `exitOrCheck` decides.

import X86

extension CPU {
  /// Whether any of these is intercepted (or set, for bits that are not exits).
  @inline(__always) package func intercepts(_ any: InterceptSet) -> Bool {
    s.pointee.intercepts.set.rawValue & any.rawValue != 0
  }

  /// Raises #UD unless the hypervisor enables an instruction.
  @inline(__always) func requireEnabled(
    _ instruction: EnabledInstructions
  ) throws(GuestException) {
    if s.pointee.intercepts.enabled.rawValue & instruction.rawValue == 0 { throw .invalidOpcode }
  }

  // MARK: Recording

  /// Records an exit caused by the running instruction, and returns what to throw. RIP stays at the
  /// instruction.
  package func exit(
    _ cause: ExitCause, _ i: MicroOpPointer, value: UInt64 = 0
  ) -> GuestException {
    s.pointee.exit = ExitRecord(cause, length: i.pointee.length, value: value)
    return .vmExit
  }

  /// Records an exit that no instruction caused.
  package func exit(_ cause: ExitCause, value: UInt64 = 0) -> GuestException {
    s.pointee.exit = ExitRecord(cause, value: value)
    return .vmExit
  }

  /// Records an exit with the operands that lowering stored in the micro-op (`OperandSummary`), and
  /// the displacement of the memory operand.
  package func exitWithOperands(_ cause: ExitCause, _ i: MicroOpPointer) -> GuestException {
    let operands = OperandSummary(of: i)
    var displacement: UInt64 = 0
    if !operands.isRegister {
      let relative =
        i.pointee.base == (raw + CPU.blockRIPOffset).assumingMemoryBound(to: UInt64.self)
      displacement = UInt64(bitPattern: Int64(i.pointee.displacement))
      if relative { displacement &+= s.pointee.blockRIP }
    }
    let exception = exit(cause, i, value: displacement)
    s.pointee.exit.operands = operands
    return exception
  }

  /// RIP after the instruction that exited; RIP itself if none did.
  package var exitNextRIP: UInt64 {
    let next = s.pointee.rip &+ UInt64(s.pointee.exit.instructionLength)
    return is64Bit ? next : next & 0xFFFF_FFFF
  }

  // MARK: Order

  /// An instruction's operand checks and its exit, in the vendor's order. Checks of privilege and
  /// of the instruction's existence precede both.
  ///
  /// VT-x exits first: faults from operand values are not among those with priority (SDM volume 3,
  /// "Relative Priority of Faults and VM Exits"). SVM checks everything but memory first (APM
  /// volume 2, "Instruction Intercepts"; XSETBV is the exception, and MONITOR checks memory).
  @inline(__always) func exitOrCheck(
    _ exits: Bool, _ exit: @autoclosure () -> GuestException,
    _ check: () throws(GuestException) -> Void
  ) throws(GuestException) {
    if checksComeFirst { try check() }
    if exits { throw exit() }
    if !checksComeFirst { try check() }
  }

  @inline(__always) private var checksComeFirst: Bool { s.pointee.intercepts.mode == .svm }
}
