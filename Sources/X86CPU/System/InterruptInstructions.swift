// SPDX-License-Identifier: Apache-2.0
//
// INT n, INT3, INTO, INT1 and IRET. The first four deliver their event themselves, because it
// pushes the address of the next instruction, while a fault of the delivery pushes the
// instruction's own.

import X86
import X86Decoder

enum InterruptInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.int] = .single({ interrupt($0, $1) })
    t[.int3] = .single({ breakpoint($0, $1) })
    t[.into] = .single({ overflow($0, $1) })
    t[.int1] = .single({ debugTrap($0, $1) })
    t[.iret] = .single({ interruptReturn($0, $1) })
  }
}

private func interrupt(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  let vector = UInt8(truncatingIfNeeded: i.pointee.immediate)
  if c.intercepts(.softwareInterrupt) {
    let exception = c.exit(.softwareInterrupt, i)
    c.s.pointee.exit.register = vector
    return c.raise(exception)
  }
  if c.isProtected && c.isVirtual8086 {
    return attemptStep(c) { () throws(GuestException) in
      if try c.redirectedInterrupt(vector, returnRIP: c.nextRIP(i)) { return Step.reload }
      return c.deliverSoftware(.init(.softwareInterrupt, vector: vector), i)
    }
  }
  return c.deliverSoftware(.init(.softwareInterrupt, vector: vector), i)
}

private func breakpoint(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  CPU(c).deliverSoftware(
    .init(.softwareException, vector: ExceptionVector.breakpoint.rawValue), Handlers.op(i))
}

private func overflow(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  if !CPU(c).of { return Step.next }
  return CPU(c).deliverSoftware(
    .init(.softwareException, vector: ExceptionVector.overflow.rawValue), Handlers.op(i))
}

/// INT1 is a debug exception without a bit of its own in DR6; it includes causes that MOV SS has
/// blocked.
private func debugTrap(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  if c.intercepts(.icebp) { return c.raise(c.exit(.icebp, Handlers.op(i))) }
  let waiting = c.takeWaitingDebugCauses()
  let dr6 = c.s.pointee.dr6
  if waiting != 0 { c.s.pointee.dr6 = dr6 & ~PendingDebug.breakpoints | waiting }
  let step = c.deliverSoftware(
    .init(.privilegedSoftwareException, vector: ExceptionVector.debug.rawValue), Handlers.op(i),
    causes: waiting)
  // If the hypervisor intercepted it, the exit reports the pending causes and the hypervisor
  // updates DR6; a delivery that an exit interrupted is repeated.
  if step == Step.fault, c.s.pointee.exit.cause == .exception,
    c.s.pointee.exit.interrupted == nil
  {
    c.s.pointee.dr6 = dr6
  }
  return step
}

private func interruptReturn(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  if c.intercepts(.iret) { return c.raise(c.exit(.iret, i)) }
  let unblocks = c.takeNMIUnblocking()
  let step = attemptStep(c) { () throws(GuestException) in
    try c.returnFromInterrupt(i)
    return Step.reload
  }
  if step == Step.reload {
    c.s.pointee.unblockedNMI = false
  } else if unblocks {
    c.noteNMIUnblockingInExit()
  }
  return step
}

extension CPU {
  /// Delivers the event of a software interrupt instruction.
  fileprivate func deliverSoftware(
    _ event: GuestEvent, _ i: MicroOpPointer, causes: UInt64 = 0
  ) -> Int32 {
    s.pointee.rip = currentRIP(i)
    var event = event
    event.instructionLength = UInt32(i.pointee.length)
    if offersSoftware(event), intercepts(event, value: causes) { return raise(.vmExit) }
    if deliver(event, returnRIP: nextRIP(i)) { return Step.reload }
    return raise(.vmExit)
  }

  /// Whether exception intercepts apply to a software event: not to INT n, and on SVM INT1 has its
  /// own intercept (APM volume 2, "Instruction Intercepts").
  private func offersSoftware(_ event: GuestEvent) -> Bool {
    switch event.kind {
    case .softwareInterrupt: false
    case .privilegedSoftwareException: s.pointee.intercepts.mode != .svm
    default: true
    }
  }

  // MARK: Virtual-8086 mode extensions

  /// INT n in virtual-8086 mode: delivers it to the 8086 program if the redirection bitmap says so
  /// (SDM volume 3, "Software Interrupt Handling Methods While Operating in Virtual-8086 Mode").
  /// False: it goes through the IDT.
  fileprivate func redirectedInterrupt(
    _ vector: UInt8, returnRIP: UInt64
  ) throws(GuestException) -> Bool {
    let extended = s.pointee.cr4 & CR4.vme.rawValue != 0
    if extended, try !redirectionBit(vector) {
      try deliverToVirtual8086(vector, returnRIP: returnRIP)
      return true
    }
    if iopl < 3 { throw .generalProtection }
    return false
  }

  /// The bit of a vector in the 32 bytes below the I/O permission bitmap of the TSS.
  private func redirectionBit(_ vector: UInt8) throws(GuestException) -> Bool {
    let tr = segment(.tr)
    guard hasLargeTSS, tr.pointee.limit >= 0x67 else { throw .generalProtection }
    let ioBase = try loadSystem(systemAddress(tr.pointee.base &+ 0x66), as: UInt16.self)
    let offset = UInt32(ioBase) &+ UInt32(vector / 8) &- 32
    if offset > tr.pointee.limit { throw .generalProtection }
    let byte = try loadSystem(systemAddress(tr.pointee.base &+ UInt64(offset)), as: UInt8.self)
    return byte >> (vector & 7) & 1 != 0
  }

  private func deliverToVirtual8086(
    _ vector: UInt8, returnRIP: UInt64
  ) throws(GuestException) {
    let entry = try loadSystem(UInt64(vector) * 4, as: UInt32.self)
    let target = try realModeTarget(
      UInt16(truncatingIfNeeded: entry >> 16), offset: UInt64(entry & 0xFFFF))
    var stack = StackFrame(self)
    try stack.push(virtualFlagsImage, size: 2)
    try stack.push(UInt64(segment(.cs).pointee.selector), size: 2)
    try stack.push(returnRIP, size: 2)
    stack.commit()
    let interruptFlag: RFLAGS = iopl == 3 ? .if : .vif
    s.pointee.rflags &= ~RFLAGS([interruptFlag, .tf, .nt, .rf]).rawValue
    noteDelivered(slow: s.pointee.slow)
    enter(target)
  }

  /// FLAGS in virtual-8086 mode with IOPL below 3: IF is VIF, and IOPL 3.
  var virtualFlagsImage: UInt64 {
    let flags = self.flags
    if iopl == 3 { return flags & 0xFFFF }
    let virtual = flags & RFLAGS.vif.rawValue != 0 ? RFLAGS.if.rawValue : 0
    return flags & 0xFFFF & ~RFLAGS.if.rawValue | virtual | RFLAGS.iopl.rawValue
  }
}
