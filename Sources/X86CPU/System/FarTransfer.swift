// SPDX-License-Identifier: Apache-2.0
//
// Far JMP, CALL and RET (SDM volume 2, "JMP", "CALL", "RET"; volume 3, "Accessing a Code Segment
// Through a Call Gate"). A task switch exits: the hypervisor performs it.

import X86
import X86Decoder

enum FarTransfer {
  static func register(_ t: inout LoweringTable) {
    t[.jmpFar] = .custom { i, op, _ in
      if i.memoryOperand != nil { return { farJump($0, $1, memory: true) } }
      packPointer(i, op)
      return { farJump($0, $1, memory: false) }
    }
    t[.callFar] = .custom { i, op, _ in
      if i.memoryOperand != nil { return { farCall($0, $1, memory: true) } }
      packPointer(i, op)
      return { farCall($0, $1, memory: false) }
    }
    t[.retFar] = .custom { i, op, _ in
      let release = UInt64(UInt16(truncatingIfNeeded: i.immediate))
      op.pointee.immediate = i.operandCount == 0 ? 0 : release
      return { farReturn($0, $1) }
    }
  }

  /// A direct far pointer goes into `immediate`: offset in bits 31:0, selector above.
  private static func packPointer(_ i: Instruction, _ op: MicroOpPointer) {
    let mask: UInt64 = i.operandSize == 2 ? 0xFFFF : 0xFFFF_FFFF
    let offset = UInt64(bitPattern: i.immediate) & mask
    op.pointee.immediate = offset | UInt64(i.immediate2) << 32
  }
}

extension CPU {
  fileprivate func farPointer(
    _ i: MicroOpPointer, memory: Bool
  ) throws(GuestException) -> (offset: UInt64, selector: UInt16) {
    if memory { return try loadFarPointer(i) }
    let packed = i.pointee.immediate
    return (packed & 0xFFFF_FFFF, UInt16(truncatingIfNeeded: packed >> 32))
  }

  /// Returns the exit that every task switch causes.
  func taskSwitchExit(
    _ i: MicroOpPointer, _ selector: UInt16, _ source: TaskSwitchSource
  ) -> GuestException {
    let exception = exit(.taskSwitch, i)
    s.pointee.exit.selector = selector
    s.pointee.exit.taskSource = source
    return exception
  }
}

@inline(__always) private func farJump(
  _ c: RawPointer, _ i: RawPointer, memory: Bool
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptStep(c) { () throws(GuestException) in
    let pointer = try c.farPointer(i, memory: memory)
    try c.jumpFar(i, pointer.selector, pointer.offset)
    return Step.reload
  }
}

@inline(__always) private func farCall(
  _ c: RawPointer, _ i: RawPointer, memory: Bool
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptStep(c) { () throws(GuestException) in
    let pointer = try c.farPointer(i, memory: memory)
    try c.callFar(i, pointer.selector, pointer.offset)
    return Step.reload
  }
}

private func farReturn(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptStep(c) { () throws(GuestException) in
    try c.returnFar(size: i.pointee.operandSize, release: i.pointee.immediate)
    return Step.reload
  }
}

// MARK: JMP and CALL

/// The target of a far JMP or CALL.
fileprivate enum FarDestination {
  case code(FoundDescriptor)
  case gate(CallGate)
}

extension CPU {
  fileprivate func jumpFar(
    _ i: MicroOpPointer, _ selector: UInt16, _ offset: UInt64
  ) throws(GuestException) {
    if hasRealModeSegments { return enter(try realModeTarget(selector, offset: offset)) }
    switch try farDestination(i, selector, .jump) {
    case .code(let found):
      enter(try directCode(found, offset: offset))
    case .gate(let gate):
      let found = try gateCode(gate)
      let rights = found.rights
      let allowed = rights.isConformingOrExpandDown ? rights.dpl <= cpl : rights.dpl == cpl
      if !allowed { throw .selector(.generalProtection, gate.selector) }
      enter(try codeTarget(found, offset: gate.offset, cpl: cpl))
    }
  }

  fileprivate func callFar(
    _ i: MicroOpPointer, _ selector: UInt16, _ offset: UInt64
  ) throws(GuestException) {
    let size = i.pointee.operandSize
    if hasRealModeSegments {
      let target = try realModeTarget(selector, offset: offset)
      return try callSameLevel(target, returnRIP: nextRIP(i), size: size)
    }
    switch try farDestination(i, selector, .call) {
    case .code(let found):
      let target = try directCode(found, offset: offset)
      try callSameLevel(target, returnRIP: nextRIP(i), size: size)
    case .gate(let gate):
      let found = try gateCode(gate)
      let rights = found.rights
      if rights.dpl > cpl { throw .selector(.generalProtection, gate.selector) }
      if rights.isConformingOrExpandDown || rights.dpl == cpl {
        let target = try codeTarget(found, offset: gate.offset, cpl: cpl)
        try callSameLevel(target, returnRIP: nextRIP(i), size: gate.size)
      } else {
        try callInner(gate, found, returnRIP: nextRIP(i))
      }
    }
  }

  private func callSameLevel(
    _ target: CodeTarget, returnRIP: UInt64, size: UInt8
  ) throws(GuestException) {
    var stack = StackFrame(self)
    try stack.push(UInt64(segment(.cs).pointee.selector), size: size)
    try stack.push(returnRIP, size: size)
    stack.commit()
    enter(target)
  }

  /// A call gate to more privilege: copies parameters to the new level's stack.
  private func callInner(
    _ gate: CallGate, _ found: FoundDescriptor, returnRIP: UInt64
  ) throws(GuestException) {
    let level = found.rights.dpl
    let target = try codeTarget(found, offset: gate.offset, cpl: level)
    var stack: StackFrame
    if isLongMode {
      let pointer = try longStackPointer(cpl: level, external: false)
      stack = longInnerStack(cpl: level, pointer: pointer, external: false)
    } else {
      stack = try innerStack(cpl: level, external: false)
    }
    try stack.push(UInt64(segment(.ss).pointee.selector), size: gate.size)
    try stack.push(gpr[4], size: gate.size)
    if gate.parameters != 0 {
      for parameter in try gateParameters(gate) { try stack.push(parameter, size: gate.size) }
    }
    try stack.push(UInt64(segment(.cs).pointee.selector), size: gate.size)
    try stack.push(returnRIP, size: gate.size)
    segment(.ss).pointee = stack.segment
    stack.commit()
    enter(target)
  }

  /// The caller's parameters, in the order in which they are pushed again.
  private func gateParameters(_ gate: CallGate) throws(GuestException) -> [UInt64] {
    var caller = StackFrame(self)
    var parameters: [UInt64] = []
    for _ in 0..<gate.parameters { parameters.append(try caller.pop(size: gate.size)) }
    return parameters.reversed()
  }

  // MARK: Gates

  /// Looks up the selector of a far JMP or CALL. Task gates and TSSs exit.
  private func farDestination(
    _ i: MicroOpPointer, _ selector: UInt16, _ source: TaskSwitchSource
  ) throws(GuestException) -> FarDestination {
    if Selector.isNull(selector) { throw .generalProtection }
    let found = try readDescriptor(selector, else: .generalProtection)
    let rights = found.rights
    if rights.isCodeOrData { return .code(found) }
    let isCallGate =
      rights.type == SystemDescriptorType.callGate
      || rights.type == SystemDescriptorType.callGate16 && !isLongMode
    let isTask =
      !isLongMode
      && (rights.type == SystemDescriptorType.taskGate
        || rights.type == SystemDescriptorType.tssAvailable
        || rights.type == SystemDescriptorType.tss16Available)
    guard isCallGate || isTask, rights.dpl >= max(cpl, Selector.rpl(selector)) else {
      throw .selector(.generalProtection, selector)
    }
    guard rights.isPresent else { throw .selector(.segmentNotPresent, selector) }
    if isCallGate { return .gate(try callGate(found)) }
    var task = selector
    if rights.type == SystemDescriptorType.taskGate {
      task = UInt16(truncatingIfNeeded: found.descriptor.rawValue >> 16)
      try checkTask(task, .generalProtection)
    }
    throw taskSwitchExit(i, task, source)
  }

  private func callGate(_ found: FoundDescriptor) throws(GuestException) -> CallGate {
    let raw = found.descriptor.rawValue
    var gate = CallGate(
      selector: UInt16(truncatingIfNeeded: raw >> 16),
      offset: raw & 0xFFFF | raw >> 32 & 0xFFFF_0000, parameters: Int(raw >> 32 & 31), size: 4)
    if isLongMode {
      gate.offset |= try readUpperHalf(found, else: .generalProtection) << 32
      gate.parameters = 0
      gate.size = 8
    } else if found.rights.type == SystemDescriptorType.callGate16 {
      gate.offset &= 0xFFFF
      gate.size = 2
    }
    return gate
  }

  /// The code segment of a call gate.
  private func gateCode(_ gate: CallGate) throws(GuestException) -> FoundDescriptor {
    if Selector.isNull(gate.selector) { throw .generalProtection }
    let found = try readDescriptor(gate.selector, else: .generalProtection)
    guard found.rights.isCode, !isLongMode || found.rights.isLong else {
      throw .selector(.generalProtection, gate.selector)
    }
    return found
  }

  /// Checks the TSS of a task switch: in the GDT, available and present (SDM volume 3, "Treatment
  /// of Task Switches").
  @discardableResult func checkTask(
    _ selector: UInt16, _ vector: ExceptionVector, busy: Bool = false, external: Bool = false
  ) throws(GuestException) -> FoundDescriptor {
    let bad = GuestException.selector(vector, selector, external: external)
    if Selector.isNull(selector) || selector & Selector.local != 0 { throw bad }
    let found = try readDescriptor(selector, else: vector, external: external)
    let wanted = SystemDescriptorType.tss16Available | (busy ? 2 : 0)
    guard !found.rights.isCodeOrData, found.rights.type & ~8 == wanted else { throw bad }
    guard found.rights.isPresent else {
      throw .selector(.segmentNotPresent, selector, external: external)
    }
    return found
  }
}

fileprivate struct CallGate {
  var selector: UInt16
  var offset: UInt64
  var parameters: Int
  /// Of each push: 2, 4 or 8.
  var size: UInt8
}

// MARK: RET

extension CPU {
  /// The code segment that RET and IRET return to.
  func returnTarget(_ selector: UInt16, offset: UInt64) throws(GuestException) -> CodeTarget {
    if Selector.isNull(selector) { throw .generalProtection }
    let found = try readDescriptor(selector, else: .generalProtection)
    let rights = found.rights
    let rpl = Selector.rpl(selector)
    let allowed = rights.isConformingOrExpandDown ? rights.dpl <= rpl : rights.dpl == rpl
    guard rights.isCode, rpl >= cpl, allowed else {
      throw .selector(.generalProtection, selector)
    }
    return try codeTarget(found, offset: offset, cpl: rpl)
  }

  /// SS for a return to `target`.
  func returnStack(
    _ selector: UInt16, for target: CodeTarget
  ) throws(GuestException) -> SegmentState {
    try stackSegment(
      selector, cpl: target.cpl, .generalProtection,
      long: isLongMode && target.segment.rights.isLong)
  }

  /// Ends a return that loads SS:RSP.
  func enterWithStack(_ target: CodeTarget, _ stack: SegmentState, pointer: UInt64) {
    let outer = target.cpl > cpl
    segment(.ss).pointee = stack
    if outer { dropPrivilegedSegments(cpl: target.cpl) }
    if isLongMode && target.segment.rights.isLong {
      gpr[4] = pointer
    } else if stack.rights.isBig {
      gpr[4] = pointer & 0xFFFF_FFFF
    } else {
      gpr[4] = gpr[4] & ~0xFFFF | pointer & 0xFFFF
    }
    enter(target)
  }

  fileprivate func returnFar(size: UInt8, release: UInt64) throws(GuestException) {
    var stack = StackFrame(self)
    let offset = try stack.pop(size: size)
    let selector = UInt16(truncatingIfNeeded: try stack.pop(size: size))
    if hasRealModeSegments {
      let target = try realModeTarget(selector, offset: offset)
      stack.release(release)
      stack.commit()
      return enter(target)
    }
    let target = try returnTarget(selector, offset: offset)
    stack.release(release)
    if target.cpl == cpl {
      stack.commit()
      return enter(target)
    }
    let pointer = try stack.pop(size: size)
    let outer = UInt16(truncatingIfNeeded: try stack.pop(size: size))
    let segment = try returnStack(outer, for: target)
    enterWithStack(target, segment, pointer: pointer &+ release)
  }
}
