// SPDX-License-Identifier: Apache-2.0
//
// Near JMP, CALL, RET, LOOP, JCXZ.

import X86
import X86Decoder

/// Continues at the next instruction, after one that ends its block.
@inline(__always) func fallThrough(_ c: CPU, _ i: MicroOpPointer) -> Int32 {
  c.s.pointee.rip = c.nextRIP(i)
  return Step.branch
}

/// A relative jump outside 64-bit mode (in it, LOOP and JCXZ use this too).
func jumpRelativeLegacy(_ c: CPU, _ i: MicroOpPointer) -> Int32 {
  attemptBranch(c) { () throws(GuestException) in
    try c.branchTarget(c.nextRIP(i) &+ i.pointee.immediate, size: i.pointee.operandSize)
  }
}

extension CPU {
  /// Checks and masks the target of a near transfer: operand size, code-segment limit, canonical
  /// form.
  @inline(__always) func branchTarget(
    _ target: UInt64, size: UInt8
  ) throws(GuestException) -> UInt64 {
    if is64Bit {
      if !isCanonical(target) { throw .generalProtection }
      return target
    }
    let target = size == 2 ? target & 0xFFFF : target & 0xFFFF_FFFF
    if target > UInt64(segment(.cs).pointee.limit) { throw .generalProtection }
    return target
  }
}

/// Runs the body of a transfer, which returns the new RIP.
@inline(__always) func attemptBranch(
  _ c: CPU, _ body: () throws(GuestException) -> UInt64
) -> Int32 {
  do throws(GuestException) {
    c.s.pointee.rip = try body()
    return Step.branch
  } catch {
    return c.raise(error)
  }
}

enum NearTransfer {
  static func register(_ t: inout LoweringTable) {
    t[.jmp] = .custom { i, op, _ in
      if i.operands[0].kind == .relative {
        return relative(
          i, op, { jumpRelative64($0, $1) }, { jumpRelativeLegacy(CPU($0), Handlers.op($1)) })
      }
      return i.memoryOperand == nil ? jumpRegister : jumpMemory
    }
    t[.call] = .custom { i, op, _ in
      if i.operands[0].kind == .relative {
        op.pointee.segment = SegmentRegister.ss.rawValue
        return relative(i, op, { callRelative64($0, $1) }, callRelativeLegacy)
      }
      return i.memoryOperand == nil ? callRegister : callMemory
    }
    t[.ret] = .custom { i, op, _ in
      // `immediate` is RET's operand; 0 without one.
      if i.immediateOperandCount == 0 { op.pointee.immediate = 0 }
      op.pointee.segment = SegmentRegister.ss.rawValue
      return i.mode == .bits64 ? ret64 : retLegacy
    }
    t[.loop] = .single(loopAlways)
    t[.loope] = .single(loopEqual)
    t[.loopne] = .single(loopNotEqual)
    t[.jcxz] = .single(jumpCountZero)
  }

  /// In 64-bit mode the immediate becomes the target's distance from the block's start.
  private static func relative(
    _ i: Instruction, _ op: MicroOpPointer, _ long: Handler, _ legacy: Handler
  ) -> Handler {
    if i.mode != .bits64 { return legacy }
    op.pointee.immediate =
      UInt64(bitPattern: i.immediate) &+ UInt64(op.pointee.offset) &+ UInt64(i.length)
    return long
  }
}

@inline(__always) private func jumpRelative64(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  c.s.pointee.rip = c.s.pointee.blockRIP &+ Handlers.op(i).pointee.immediate
  return Step.branch
}

@inline(__always) private func callRelative64(_ c: RawPointer, _ i: RawPointer) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptBranch(c) { () throws(GuestException) in
    let sp = c.gpr[4] &- 8
    try c.store(c.nextRIP(i), at: sp)
    c.gpr[4] = sp
    return c.s.pointee.blockRIP &+ i.pointee.immediate
  }
}

private let callRelativeLegacy: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptBranch(c) { () throws(GuestException) in
    let size = i.pointee.operandSize
    let target = try c.branchTarget(c.nextRIP(i) &+ i.pointee.immediate, size: size)
    try c.push(c.nextRIP(i), size: size)
    return target
  }
}

extension CPU {
  /// The operand of an indirect near transfer.
  private func transferOperand(_ i: MicroOpPointer) throws(GuestException) -> UInt64 {
    let address = try linearAddress(i, size: Int(i.pointee.operandSize))
    return try load(address, size: i.pointee.operandSize)
  }

  fileprivate func jumpIndirect(_ i: MicroOpPointer, memory: Bool) throws(GuestException) -> UInt64
  {
    let operand = memory ? try transferOperand(i) : i.pointee.dst.load(as: UInt64.self)
    return try branchTarget(operand, size: i.pointee.operandSize)
  }

  fileprivate func callIndirect(_ i: MicroOpPointer, memory: Bool) throws(GuestException) -> UInt64
  {
    let operand = memory ? try transferOperand(i) : i.pointee.dst.load(as: UInt64.self)
    if is64Bit && !isCanonical(operand) {
      // The stack's faults precede the target's.
      try probePush()
      throw .generalProtection
    }
    let target = try branchTarget(operand, size: i.pointee.operandSize)
    try push(nextRIP(i), size: i.pointee.operandSize)
    return target
  }
}

private let jumpRegister: Handler = { c, i in
  attemptBranch(CPU(c)) { () throws(GuestException) in
    try CPU(c).jumpIndirect(Handlers.op(i), memory: false)
  }
}
private let jumpMemory: Handler = { c, i in
  attemptBranch(CPU(c)) { () throws(GuestException) in
    try CPU(c).jumpIndirect(Handlers.op(i), memory: true)
  }
}
private let callRegister: Handler = { c, i in
  attemptBranch(CPU(c)) { () throws(GuestException) in
    try CPU(c).callIndirect(Handlers.op(i), memory: false)
  }
}
private let callMemory: Handler = { c, i in
  attemptBranch(CPU(c)) { () throws(GuestException) in
    try CPU(c).callIndirect(Handlers.op(i), memory: true)
  }
}

private let ret64: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptBranch(c) { () throws(GuestException) in
    let target: UInt64 = try c.load(c.gpr[4])
    if !c.isCanonical(target) { throw .generalProtection }
    c.gpr[4] &+= 8 &+ (i.pointee.immediate & 0xFFFF)
    return target
  }
}

private let retLegacy: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attemptBranch(c) { () throws(GuestException) in
    let size = i.pointee.operandSize
    let target = try c.branchTarget(try c.peekStack(size: size), size: size)
    c.addToStackPointer(UInt64(size) &+ (i.pointee.immediate & 0xFFFF))
    return target
  }
}

// MARK: LOOP and JCXZ

extension CPU {
  /// RCX, ECX or CX by address size.
  fileprivate func count(_ i: MicroOpPointer) -> UInt64 {
    gpr[1] & addressMask(i)
  }

  @inline(__always) package func addressMask(_ i: MicroOpPointer) -> UInt64 {
    switch i.pointee.addressSize {
    case 8: .max
    case 4: 0xFFFF_FFFF
    default: 0xFFFF
    }
  }

  /// Writes a register by address size: 16-bit writes keep the rest, 32-bit ones clear it.
  @inline(__always) package func writeAddressSized(
    _ register: Int, _ value: UInt64, _ i: MicroOpPointer
  ) {
    switch i.pointee.addressSize {
    case 8: gpr[register] = value
    case 4: gpr[register] = value & 0xFFFF_FFFF
    default: gpr[register] = gpr[register] & ~0xFFFF | value & 0xFFFF
    }
  }

  fileprivate func loop(_ i: MicroOpPointer, while condition: Bool) -> Int32 {
    let value = (count(i) &- 1) & addressMask(i)
    if value == 0 || !condition {
      writeAddressSized(1, value, i)
      return fallThrough(self, i)
    }
    return attemptBranch(self) { () throws(GuestException) in
      let target = try branchTarget(nextRIP(i) &+ i.pointee.immediate, size: i.pointee.operandSize)
      writeAddressSized(1, value, i)
      return target
    }
  }
}

private let loopAlways: Handler = { c, i in CPU(c).loop(Handlers.op(i), while: true) }
private let loopEqual: Handler = { c, i in CPU(c).loop(Handlers.op(i), while: CPU(c).zf) }
private let loopNotEqual: Handler = { c, i in CPU(c).loop(Handlers.op(i), while: !CPU(c).zf) }
private let jumpCountZero: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return c.count(i) == 0 ? jumpRelativeLegacy(c, i) : fallThrough(c, i)
}

extension Instruction {
  var immediateOperandCount: Int {
    var count = 0
    for n in 0..<Int(operandCount) where operands[n].kind == .immediate { count += 1 }
    return count
  }
}
