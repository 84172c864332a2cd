// SPDX-License-Identifier: Apache-2.0
//
// One delivery of one event through the interrupt table: real mode's vectors, the gates of
// protected mode, and those of IA-32e mode (SDM volume 3, "Exception or Interrupt Handling
// Procedures" and "Interrupt and Exception Handling in IA-32e Mode"). A throw leaves every register
// unchanged.

import X86

/// An interrupt or trap gate, decoded.
private struct InterruptGate {
  var selector: UInt16
  var offset: UInt64
  /// Of each push: 2, 4 or 8.
  var size: UInt8
  var ist: UInt8
  var clearsIF: Bool
}

extension CPU {
  func deliverThroughTable(
    _ event: GuestEvent, _ returnRIP: UInt64
  ) throws(GuestException) {
    let slow = s.pointee.slow
    if !isProtected {
      try deliverInRealMode(event, returnRIP)
    } else if isLongMode {
      // The tables are in 64-bit space even if compatibility-mode code was interrupted.
      let mode = s.pointee.codeMode
      s.pointee.codeMode = 2
      defer { if s.pointee.codeMode == 2 { restoreCodeMode(mode) } }
      try deliverInLongMode(event, returnRIP)
    } else {
      try deliverInProtectedMode(event, returnRIP)
    }
    noteDelivered(slow: slow)
    if event.kind == .nmi { s.pointee.interruptibility |= Interruptibility.blockingByNMI }
  }

  /// After a delivery: ends the interrupt shadow and the halt. `slow` is the value from before: if
  /// nonzero, the end of the instruction must not trap.
  func noteDelivered(slow: UInt32) {
    let both = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
    s.pointee.interruptibility &= ~both
    s.pointee.activity = ActivityState.active
    let marks = SlowReason.interruptShadow | SlowReason.shadowArmed | SlowReason.resumeArmed
    s.pointee.slow &= ~marks
    if slow != 0 { s.pointee.slow |= SlowReason.delivered }
  }

  /// The RFLAGS image that an event pushes.
  private func flagsImage(_ event: GuestEvent) -> UInt64 {
    let flags = self.flags
    if event.isFault { return flags | RFLAGS.rf.rawValue }
    return event.isOfInstruction ? flags & ~RFLAGS.rf.rawValue : flags
  }

  // MARK: Real mode

  private func deliverInRealMode(
    _ event: GuestEvent, _ returnRIP: UInt64
  ) throws(GuestException) {
    let offset = UInt32(event.vector) * 4
    if offset + 3 > s.pointee.idtr.limit { throw .generalProtection(0) }
    let address = systemAddress(s.pointee.idtr.base &+ UInt64(offset))
    let entry = try loadSystem(address, as: UInt32.self)
    let target = try realModeTarget(
      UInt16(truncatingIfNeeded: entry >> 16), offset: UInt64(entry & 0xFFFF))
    var stack = StackFrame(self)
    try stack.push(flags, size: 2)
    try stack.push(UInt64(segment(.cs).pointee.selector), size: 2)
    try stack.push(returnRIP, size: 2)
    stack.commit()
    s.pointee.rflags &= ~RFLAGS([.if, .tf, .ac, .rf]).rawValue
    enter(target)
  }

  // MARK: Gates

  /// Reads and checks an event's gate, of `size` 8 or 16 bytes. Task gates throw the exit.
  private func interruptGate(
    _ event: GuestEvent, size: UInt32
  ) throws(GuestException) -> InterruptGate {
    let vector = UInt32(event.vector)
    let external: UInt32 = isExternal(event) ? 1 : 0
    let code = vector << 3 | 2
    if vector &* size &+ size &- 1 > s.pointee.idtr.limit {
      throw .generalProtection(code | external)
    }
    let address = systemAddress(s.pointee.idtr.base &+ UInt64(vector &* size))
    let low = try loadSystem(address, as: UInt64.self)
    let high = size == 16 ? try loadSystem(address &+ 8, as: UInt64.self) : 0
    let rights = SegmentDescriptor(rawValue: low).accessRights
    guard !rights.isCodeOrData, isInterruptGate(rights.type) else {
      throw .generalProtection(code | external)
    }
    if event.isOfInstruction && event.kind != .privilegedSoftwareException && rights.dpl < cpl {
      throw .generalProtection(code)
    }
    guard rights.isPresent else {
      throw GuestException(.segmentNotPresent, code: code | external)
    }
    let selector = UInt16(truncatingIfNeeded: low >> 16)
    if rights.type == SystemDescriptorType.taskGate {
      try checkTask(selector, .generalProtection, external: isExternal(event))
      let exception = exit(.taskSwitch)
      s.pointee.exit.selector = selector
      s.pointee.exit.taskSource = .interrupt
      throw exception
    }
    let wide = rights.type & 8 != 0
    let offset = low & 0xFFFF | (wide ? low >> 32 & 0xFFFF_0000 : 0) | (high & 0xFFFF_FFFF) << 32
    return InterruptGate(
      selector: selector, offset: offset, size: size == 16 ? 8 : wide ? 4 : 2,
      ist: size == 16 ? UInt8(low >> 32 & 7) : 0, clearsIF: rights.type & 1 == 0)
  }

  private func isInterruptGate(_ type: UInt8) -> Bool {
    switch type {
    case SystemDescriptorType.interruptGate, SystemDescriptorType.trapGate: true
    case SystemDescriptorType.interruptGate16, SystemDescriptorType.trapGate16,
      SystemDescriptorType.taskGate:
      !isLongMode
    default: false
    }
  }

  /// The handler's code segment and its privilege level.
  private func handlerCode(
    _ gate: InterruptGate, external: Bool
  ) throws(GuestException) -> CodeTarget {
    if Selector.isNull(gate.selector) {
      throw GuestException(.generalProtection, code: external ? 1 : 0)
    }
    let found = try readDescriptor(gate.selector, else: .generalProtection, external: external)
    let rights = found.rights
    guard rights.isCode, rights.dpl <= cpl, !isLongMode || rights.isLong else {
      throw .selector(.generalProtection, gate.selector, external: external)
    }
    let level = rights.isConformingOrExpandDown ? cpl : rights.dpl
    if isVirtual8086 && level != 0 {
      throw .selector(.generalProtection, gate.selector, external: external)
    }
    return try codeTarget(found, offset: gate.offset, cpl: level, external: external)
  }

  private func enterHandler(_ gate: InterruptGate, _ target: CodeTarget, _ stack: StackFrame) {
    segment(.ss).pointee = stack.segment
    stack.commit()
    var cleared: RFLAGS = [.tf, .nt, .rf, .vm]
    if gate.clearsIF { cleared.insert(.if) }
    s.pointee.rflags &= ~cleared.rawValue
    enter(target)
  }

  // MARK: Protected mode

  private func deliverInProtectedMode(
    _ event: GuestEvent, _ returnRIP: UInt64
  ) throws(GuestException) {
    let external = isExternal(event)
    let gate = try interruptGate(event, size: 8)
    let target = try handlerCode(gate, external: external)
    let inner = target.cpl < cpl
    var stack =
      inner
      ? try innerStack(cpl: target.cpl, external: external) : StackFrame(self, external: external)
    let virtual = isVirtual8086
    if virtual {
      for register in [SegmentRegister.gs, .fs, .ds, .es] {
        try stack.push(UInt64(segment(register).pointee.selector), size: gate.size)
      }
    }
    if inner {
      try stack.push(UInt64(segment(.ss).pointee.selector), size: gate.size)
      try stack.push(gpr[4], size: gate.size)
    }
    try stack.push(flagsImage(event), size: gate.size)
    try stack.push(UInt64(segment(.cs).pointee.selector), size: gate.size)
    try stack.push(returnRIP, size: gate.size)
    if let code = event.errorCode { try stack.push(UInt64(code), size: gate.size) }
    if virtual {
      for register in [SegmentRegister.gs, .fs, .ds, .es] {
        segment(register).pointee = nullKept(register)
      }
    }
    enterHandler(gate, target, stack)
  }

  // MARK: IA-32e mode

  private func deliverInLongMode(
    _ event: GuestEvent, _ returnRIP: UInt64
  ) throws(GuestException) {
    let external = isExternal(event)
    let gate = try interruptGate(event, size: 16)
    let target = try handlerCode(gate, external: external)
    let inner = target.cpl < cpl
    var pointer = gpr[4]
    if gate.ist != 0 || inner {
      pointer = try longStackPointer(cpl: target.cpl, ist: gate.ist, external: external)
    }
    var stack = longInnerStack(cpl: target.cpl, pointer: pointer & ~15, external: external)
    if !inner { stack.segment = segment(.ss).pointee }
    try stack.push(UInt64(segment(.ss).pointee.selector), size: 8)
    try stack.push(gpr[4], size: 8)
    try stack.push(flagsImage(event), size: 8)
    try stack.push(UInt64(segment(.cs).pointee.selector), size: 8)
    try stack.push(returnRIP, size: 8)
    if let code = event.errorCode { try stack.push(UInt64(code), size: 8) }
    enterHandler(gate, target, stack)
  }

  private func restoreCodeMode(_ mode: UInt8) {
    if segment(.cs).pointee.rights.isLong { return }
    s.pointee.codeMode = mode
  }
}
