// SPDX-License-Identifier: Apache-2.0
//
// IRET (SDM volume 2, "IRET/IRETD/IRETQ"; volume 3, "Returning from an Interrupt or Exception
// Handler").

import X86

extension CPU {
  func returnFromInterrupt(_ i: MicroOpPointer) throws(GuestException) {
    let size = i.pointee.operandSize
    if !isProtected { return try returnInRealMode(size: size) }
    if isVirtual8086 { return try returnInVirtual8086(size: size) }
    if s.pointee.rflags & RFLAGS.nt.rawValue != 0 {
      if isLongMode { throw .generalProtection }
      throw try nestedTaskReturn(i)
    }
    try returnInProtectedMode(size: size)
  }

  private func returnInProtectedMode(size: UInt8) throws(GuestException) {
    var stack = StackFrame(self)
    let offset = try stack.pop(size: size)
    let selector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
    let image = try stack.pop(size: size)
    if !isLongMode && size == 4 && cpl == 0 && image & RFLAGS.vm.rawValue != 0 {
      return try returnToVirtual8086(&stack, selector, offset: offset, image)
    }
    let target = try returnTarget(selector, offset: offset)
    let mask = returnFlagsMask(size: size)
    if !is64Bit && target.cpl == cpl {
      stack.commit()
      loadFlags(image, mask: mask)
      return enter(target)
    }
    let pointer = try stack.pop(size: size)
    let outer = UInt16(truncatingIfNeeded: try stack.pop(size: size))
    let segment = try returnStack(outer, for: target)
    loadFlags(image, mask: mask)
    enterWithStack(target, segment, pointer: pointer)
  }

  /// The flags that IRET in protected mode changes.
  private func returnFlagsMask(size: UInt8) -> UInt64 {
    var mask: RFLAGS = [.arithmetic, .tf, .df, .nt]
    if size > 2 { mask.formUnion([.rf, .ac, .id]) }
    if cpl <= iopl { mask.insert(.if) }
    if cpl == 0 {
      mask.formUnion(.iopl)
      if size > 2 { mask.formUnion([.vif, .vip]) }
    }
    return mask.rawValue
  }

  /// Replaces the flags in `mask`. RF set by the running instruction stays set.
  func loadFlags(_ image: UInt64, mask: UInt64) {
    flags = flags & ~mask | image & mask
    if image & mask & RFLAGS.rf.rawValue != 0, s.pointee.slow != 0 {
      s.pointee.slow |= SlowReason.resumeArmed
    }
    updateSlow()
  }

  private func returnInRealMode(size: UInt8) throws(GuestException) {
    var stack = StackFrame(self)
    let offset = try stack.pop(size: size)
    let selector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
    let image = try stack.pop(size: size)
    let target = try realModeTarget(selector, offset: offset)
    stack.commit()
    var mask: RFLAGS = [.arithmetic, .tf, .df, .nt, .if, .iopl]
    if size > 2 { mask.formUnion([.rf, .ac, .id]) }
    loadFlags(image, mask: mask.rawValue)
    enter(target)
  }

  private func returnInVirtual8086(size: UInt8) throws(GuestException) {
    let extended = s.pointee.cr4 & CR4.vme.rawValue != 0 && size == 2
    if iopl < 3 && !extended { throw .generalProtection }
    var stack = StackFrame(self)
    let offset = try stack.pop(size: size)
    let selector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
    let image = try stack.pop(size: size)
    let target = try realModeTarget(selector, offset: offset)
    if iopl < 3 {
      try loadVirtualFlags(image)
    } else {
      var mask: RFLAGS = [.arithmetic, .tf, .df, .nt, .if]
      if size > 2 { mask.formUnion([.rf, .ac, .id]) }
      loadFlags(image, mask: mask.rawValue)
    }
    stack.commit()
    enter(target)
  }

  private func returnToVirtual8086(
    _ stack: inout StackFrame, _ selector: UInt16, offset: UInt64, _ image: UInt64
  ) throws(GuestException) {
    let pointer = try stack.pop(size: 4)
    var selectors = [UInt16](repeating: 0, count: 6)
    for register in [SegmentRegister.ss, .es, .ds, .fs, .gs] {
      let value = try stack.pop(size: 4)
      selectors[Int(register.rawValue)] = UInt16(truncatingIfNeeded: value)
    }
    selectors[Int(SegmentRegister.cs.rawValue)] = selector
    if offset > 0xFFFF { throw .generalProtection }
    loadFlags(image, mask: RFLAGS.all.rawValue)
    for register in SegmentRegister.allCases where register.rawValue < 6 {
      segment(register).pointee = realModeSegment(register, selectors[Int(register.rawValue)])
    }
    gpr[4] = pointer
    s.pointee.rip = offset
    updateMode()
  }

  /// IRET with NT: returns to the task in the TSS's link field.
  private func nestedTaskReturn(_ i: MicroOpPointer) throws(GuestException) -> GuestException {
    let link = try loadSystem(systemAddress(segment(.tr).pointee.base), as: UInt16.self)
    try checkTask(link, .invalidTSS, busy: true)
    return taskSwitchExit(i, link, .interruptReturn)
  }

  // MARK: NMI blocking

  /// IRET unblocks NMIs even if it then faults (SDM volume 3, "Handling Multiple NMIs"); if NMIs
  /// exit and are not virtualized, it does not. True if they were blocked.
  func takeNMIUnblocking() -> Bool {
    if intercepts(.nmi) && !intercepts(.virtualNMIs) { return false }
    guard s.pointee.interruptibility & Interruptibility.blockingByNMI != 0 else { return false }
    s.pointee.interruptibility &= ~Interruptibility.blockingByNMI
    s.pointee.unblockedNMI = true
    return true
  }

  /// Notes in a nested fault's record that IRET unblocked NMIs; for an exception, its interception
  /// notes it.
  func noteNMIUnblockingInExit() {
    guard GuestException(rawValue: s.pointee.pendingException).isVMExit else { return }
    s.pointee.unblockedNMI = false
    if s.pointee.exit.cause == .nestedFault {
      s.pointee.exit.details.insert(.unblockedNMI)
    } else if s.pointee.exit.cause == .taskSwitch {
      s.pointee.interruptibility |= Interruptibility.blockingByNMI
    }
  }
}
