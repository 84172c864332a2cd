// SPDX-License-Identifier: Apache-2.0
//
// MOV, PUSH and POP of segment registers; LDS, LES, LSS, LFS, LGS.

import X86
import X86Decoder

enum SegmentInstructions {
  static func register(_ t: inout LoweringTable) {
    registerMoves(&t)
    DescriptorInstructions.register(&t)
  }

  private static func registerMoves(_ t: inout LoweringTable) {
    t[.movSegment] = .custom { i, _, _ in
      if i.operands[0].kind == .segment {
        if !isLoadable(i.operands[0].number) { return nil }
        return i.memoryOperand == nil
          ? { moveToSegment($0, $1, memory: false) } : { moveToSegment($0, $1, memory: true) }
      }
      if i.operands[1].number > SegmentRegister.gs.rawValue { return nil }
      return i.memoryOperand == nil ? { moveFromSegment($0, $1) } : { storeSegment($0, $1) }
    }
    t[.pushSegment] = .single({ pushSegment($0, $1) })
    t[.popSegment] = .single({ popSegment($0, $1) })
    t[.les] = .single({ loadFarPointer($0, $1, .es) })
    t[.lds] = .single({ loadFarPointer($0, $1, .ds) })
    t[.lss] = .single({ loadFarPointer($0, $1, .ss) })
    t[.lfs] = .single({ loadFarPointer($0, $1, .fs) })
    t[.lgs] = .single({ loadFarPointer($0, $1, .gs) })
  }

  /// ES, SS, DS, FS, GS: not CS, nor the two unused numbers.
  private static func isLoadable(_ number: UInt8) -> Bool {
    number != SegmentRegister.cs.rawValue && number <= SegmentRegister.gs.rawValue
  }
}

/// Selects between a handler for a register as r/m operand and one for memory.
func byMemory(register: @escaping Handler, memory: @escaping Handler) -> LoweringRule {
  .custom { i, _, _ in i.memoryOperand == nil ? register : memory }
}

/// Runs the body of a handler that returns its own `Step`.
@inline(__always) func attemptStep(
  _ c: CPU, _ body: () throws(GuestException) -> Int32
) -> Int32 {
  do { return try body() } catch { return c.raise(error) }
}

extension CPU {
  /// A 16-bit r/m source operand.
  @inline(__always) func wordOperand(
    _ i: MicroOpPointer, _ register: UnsafeMutableRawPointer, memory: Bool
  ) throws(GuestException) -> UInt16 {
    if memory { return try load(linearAddress(i, size: 2), as: UInt16.self) }
    return register.load(as: UInt16.self)
  }

  /// Writes a register operand of the instruction's operand size.
  @inline(__always) func writeSized(
    _ value: UInt64, to register: UnsafeMutableRawPointer, size: UInt8
  ) {
    switch size {
    case 2: write(UInt16(truncatingIfNeeded: value), to: register)
    case 4: write(UInt32(truncatingIfNeeded: value), to: register)
    default: write(value, to: register)
    }
  }

  /// Blocks interrupts until the end of the next instruction (SDM volume 3, "Masking Exceptions and
  /// Interrupts When Switching Stacks"). `kind` is one bit of `Interruptibility`.
  package func blockInterrupts(_ kind: UInt32) {
    let both = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
    s.pointee.interruptibility = s.pointee.interruptibility & ~both | kind
    let slow = s.pointee.slow
    let armed = slow != 0 ? SlowReason.shadowArmed : 0
    s.pointee.slow = slow | SlowReason.interruptShadow | armed
  }

  /// MOV SS and POP SS. Only the first of several in a row blocks.
  fileprivate func blockAfterStackLoad() {
    if s.pointee.interruptibility & Interruptibility.blockingByMovSS != 0 { return }
    blockInterrupts(Interruptibility.blockingByMovSS)
  }
}

extension SlowReason {
  /// The running instruction set `interruptShadow` for the next one.
  package static let shadowArmed: UInt32 = 1 << 16
  /// The running instruction set RFLAGS.RF for the next one.
  package static let resumeArmed: UInt32 = 1 << 17
  /// The running instruction delivered an event: no trap follows it.
  package static let delivered: UInt32 = 1 << 18
  /// The running instruction asserted a bus lock that must exit.
  package static let busLock: UInt32 = 1 << 19
  /// The running instruction may have changed modes or unblocked events.
  package static let reloads: UInt32 = 1 << 20
  /// Bits for the running instruction only.
  package static let marks = shadowArmed | resumeArmed | delivered | busLock | reloads
}

@inline(__always) private func moveToSegment(
  _ c: RawPointer, _ i: RawPointer, memory: Bool
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptStep(c) { () throws(GuestException) in
    let selector = try c.wordOperand(i, i.pointee.src, memory: memory)
    let register = SegmentRegister(rawValue: i.pointee.register0) ?? .ds
    try c.loadSegment(register, selector)
    if register == .ss { c.blockAfterStackLoad() }
    return c.reload(i)
  }
}

private func moveFromSegment(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  let register = SegmentRegister(rawValue: i.pointee.register1) ?? .ds
  let selector = UInt64(c.segment(register).pointee.selector)
  c.writeSized(selector, to: i.pointee.dst, size: i.pointee.operandSize)
  return Step.next
}

private func storeSegment(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let register = SegmentRegister(rawValue: i.pointee.register1) ?? .ds
    try c.store(c.segment(register).pointee.selector, at: c.linearAddress(i, size: 2, .write))
  }
}

private func pushSegment(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let register = SegmentRegister(rawValue: i.pointee.register0) ?? .ds
    var stack = StackFrame(c)
    let selector = UInt64(c.segment(register).pointee.selector)
    try stack.push(selector, size: i.pointee.operandSize)
    stack.commit()
  }
}

private func popSegment(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptStep(c) { () throws(GuestException) in
    let register = SegmentRegister(rawValue: i.pointee.register0) ?? .ds
    var stack = StackFrame(c)
    let selector = UInt16(truncatingIfNeeded: try stack.pop(size: i.pointee.operandSize))
    let value = try c.segmentValue(register, selector)
    stack.commit()
    c.segment(register).pointee = value
    if register == .ss {
      c.updateMode()
      c.blockAfterStackLoad()
    } else {
      c.updateFlatness()
    }
    return c.reload(i)
  }
}

extension CPU {
  /// Loads a far pointer from the memory operand: an offset of operand size, then the selector.
  func loadFarPointer(
    _ i: MicroOpPointer
  ) throws(GuestException) -> (offset: UInt64, selector: UInt16) {
    let size = Int(i.pointee.operandSize)
    let address = try linearAddress(i, size: size + 2)
    let offset: UInt64
    switch size {
    case 2: offset = UInt64(try load(address, as: UInt16.self))
    case 4: offset = UInt64(try load(address, as: UInt32.self))
    default: offset = try load(address, as: UInt64.self)
    }
    return (offset, try load(address &+ UInt64(size), as: UInt16.self))
  }
}

@inline(__always) private func loadFarPointer(
  _ c: RawPointer, _ i: RawPointer, _ register: SegmentRegister
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptStep(c) { () throws(GuestException) in
    let pointer = try c.loadFarPointer(i)
    try c.loadSegment(register, pointer.selector)
    c.writeSized(pointer.offset, to: i.pointee.dst, size: i.pointee.operandSize)
    return c.reload(i)
  }
}
