// SPDX-License-Identifier: Apache-2.0
//
// Jcc, SETcc and CMOVcc by condition.

import X86
import X86Decoder

/// Jcc in 64-bit mode: `immediate` is the target's distance from the block's start.
@inline(__always) private func jump64<C: Condition>(
  _ condition: C.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  let next = UInt64(i.pointee.offset) &+ UInt64(i.pointee.length)
  c.s.pointee.rip = c.s.pointee.blockRIP &+ (C.holds(c) ? i.pointee.immediate : next)
  return Step.branch
}

/// Jcc in other modes: the target is masked to the operand size and checked against the limit.
@inline(__always) private func jumpLegacy<C: Condition>(
  _ condition: C.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return C.holds(c) ? jumpRelativeLegacy(c, i) : fallThrough(c, i)
}

@inline(__always) private func set<C: Condition>(
  _ condition: C.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  c.write(UInt8(C.holds(c) ? 1 : 0), to: Handlers.op(i).pointee.dst)
  return Step.next
}

@inline(__always) private func setMemory<C: Condition>(
  _ condition: C.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try c.store(UInt8(C.holds(c) ? 1 : 0), at: try c.linearAddress(i, size: 1, .write))
  }
}

/// CMOVcc; a 32-bit one clears the upper half whether it moves or not.
@inline(__always) private func move<C: Condition, T: OperandInteger>(
  _ condition: C.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i).pointee
  c.write(c.read(C.holds(c) ? i.src : i.dst, as: T.self), to: i.dst)
  return Step.next
}

@inline(__always) private func moveLoad<C: Condition, T: OperandInteger>(
  _ condition: C.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let value = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size), as: T.self)
    c.write(C.holds(c) ? value : c.read(i.pointee.dst, as: T.self), to: i.pointee.dst)
  }
}

enum ConditionalInstructions {
  static func register(_ t: inout LoweringTable) {
    registerJumps(&t)
    registerSets(&t)
    registerMoves(&t)
  }

  private static func jumpRule(_ long: Handler, _ legacy: Handler) -> LoweringRule {
    .custom { i, op, _ in
      if i.mode != .bits64 { return legacy }
      op.pointee.immediate =
        UInt64(bitPattern: i.immediate) &+ UInt64(op.pointee.offset) &+ UInt64(i.length)
      return long
    }
  }

  private static func registerJumps(_ t: inout LoweringTable) {
    // Rows: jumps
    t[.jo] = jumpRule(
      { jump64(Conditions.Overflow.self, $0, $1) },
      { jumpLegacy(Conditions.Overflow.self, $0, $1) })
    t[.jno] = jumpRule(
      { jump64(Conditions.NotOverflow.self, $0, $1) },
      { jumpLegacy(Conditions.NotOverflow.self, $0, $1) })
    t[.jb] = jumpRule(
      { jump64(Conditions.Below.self, $0, $1) },
      { jumpLegacy(Conditions.Below.self, $0, $1) })
    t[.jnb] = jumpRule(
      { jump64(Conditions.NotBelow.self, $0, $1) },
      { jumpLegacy(Conditions.NotBelow.self, $0, $1) })
    t[.jz] = jumpRule(
      { jump64(Conditions.Zero.self, $0, $1) },
      { jumpLegacy(Conditions.Zero.self, $0, $1) })
    t[.jnz] = jumpRule(
      { jump64(Conditions.NotZero.self, $0, $1) },
      { jumpLegacy(Conditions.NotZero.self, $0, $1) })
    t[.jbe] = jumpRule(
      { jump64(Conditions.BelowOrEqual.self, $0, $1) },
      { jumpLegacy(Conditions.BelowOrEqual.self, $0, $1) })
    t[.jnbe] = jumpRule(
      { jump64(Conditions.NotBelowOrEqual.self, $0, $1) },
      { jumpLegacy(Conditions.NotBelowOrEqual.self, $0, $1) })
    t[.js] = jumpRule(
      { jump64(Conditions.Sign.self, $0, $1) },
      { jumpLegacy(Conditions.Sign.self, $0, $1) })
    t[.jns] = jumpRule(
      { jump64(Conditions.NotSign.self, $0, $1) },
      { jumpLegacy(Conditions.NotSign.self, $0, $1) })
    t[.jp] = jumpRule(
      { jump64(Conditions.Parity.self, $0, $1) },
      { jumpLegacy(Conditions.Parity.self, $0, $1) })
    t[.jnp] = jumpRule(
      { jump64(Conditions.NotParity.self, $0, $1) },
      { jumpLegacy(Conditions.NotParity.self, $0, $1) })
    t[.jl] = jumpRule(
      { jump64(Conditions.Less.self, $0, $1) },
      { jumpLegacy(Conditions.Less.self, $0, $1) })
    t[.jnl] = jumpRule(
      { jump64(Conditions.NotLess.self, $0, $1) },
      { jumpLegacy(Conditions.NotLess.self, $0, $1) })
    t[.jle] = jumpRule(
      { jump64(Conditions.LessOrEqual.self, $0, $1) },
      { jumpLegacy(Conditions.LessOrEqual.self, $0, $1) })
    t[.jnle] = jumpRule(
      { jump64(Conditions.NotLessOrEqual.self, $0, $1) },
      { jumpLegacy(Conditions.NotLessOrEqual.self, $0, $1) })
    // End of rows
  }

  private static func setRule(_ register: Handler, _ memory: Handler) -> LoweringRule {
    .custom { i, _, _ in i.memoryOperand == nil ? register : memory }
  }

  private static func registerSets(_ t: inout LoweringTable) {
    // Rows: sets
    t[.seto] = setRule(
      { set(Conditions.Overflow.self, $0, $1) },
      { setMemory(Conditions.Overflow.self, $0, $1) })
    t[.setno] = setRule(
      { set(Conditions.NotOverflow.self, $0, $1) },
      { setMemory(Conditions.NotOverflow.self, $0, $1) })
    t[.setb] = setRule(
      { set(Conditions.Below.self, $0, $1) },
      { setMemory(Conditions.Below.self, $0, $1) })
    t[.setnb] = setRule(
      { set(Conditions.NotBelow.self, $0, $1) },
      { setMemory(Conditions.NotBelow.self, $0, $1) })
    t[.setz] = setRule(
      { set(Conditions.Zero.self, $0, $1) },
      { setMemory(Conditions.Zero.self, $0, $1) })
    t[.setnz] = setRule(
      { set(Conditions.NotZero.self, $0, $1) },
      { setMemory(Conditions.NotZero.self, $0, $1) })
    t[.setbe] = setRule(
      { set(Conditions.BelowOrEqual.self, $0, $1) },
      { setMemory(Conditions.BelowOrEqual.self, $0, $1) })
    t[.setnbe] = setRule(
      { set(Conditions.NotBelowOrEqual.self, $0, $1) },
      { setMemory(Conditions.NotBelowOrEqual.self, $0, $1) })
    t[.sets] = setRule(
      { set(Conditions.Sign.self, $0, $1) },
      { setMemory(Conditions.Sign.self, $0, $1) })
    t[.setns] = setRule(
      { set(Conditions.NotSign.self, $0, $1) },
      { setMemory(Conditions.NotSign.self, $0, $1) })
    t[.setp] = setRule(
      { set(Conditions.Parity.self, $0, $1) },
      { setMemory(Conditions.Parity.self, $0, $1) })
    t[.setnp] = setRule(
      { set(Conditions.NotParity.self, $0, $1) },
      { setMemory(Conditions.NotParity.self, $0, $1) })
    t[.setl] = setRule(
      { set(Conditions.Less.self, $0, $1) },
      { setMemory(Conditions.Less.self, $0, $1) })
    t[.setnl] = setRule(
      { set(Conditions.NotLess.self, $0, $1) },
      { setMemory(Conditions.NotLess.self, $0, $1) })
    t[.setle] = setRule(
      { set(Conditions.LessOrEqual.self, $0, $1) },
      { setMemory(Conditions.LessOrEqual.self, $0, $1) })
    t[.setnle] = setRule(
      { set(Conditions.NotLessOrEqual.self, $0, $1) },
      { setMemory(Conditions.NotLessOrEqual.self, $0, $1) })
    // End of rows
  }

  private static func registerMoves(_ t: inout LoweringTable) {
    // Rows: moves
    t[.cmovo] = .forms(
      register: .init(
        nil,
        { move(Conditions.Overflow.self, UInt16.self, $0, $1) },
        { move(Conditions.Overflow.self, UInt32.self, $0, $1) },
        { move(Conditions.Overflow.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.Overflow.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.Overflow.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.Overflow.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovno] = .forms(
      register: .init(
        nil,
        { move(Conditions.NotOverflow.self, UInt16.self, $0, $1) },
        { move(Conditions.NotOverflow.self, UInt32.self, $0, $1) },
        { move(Conditions.NotOverflow.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.NotOverflow.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.NotOverflow.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.NotOverflow.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovb] = .forms(
      register: .init(
        nil,
        { move(Conditions.Below.self, UInt16.self, $0, $1) },
        { move(Conditions.Below.self, UInt32.self, $0, $1) },
        { move(Conditions.Below.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.Below.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.Below.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.Below.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovnb] = .forms(
      register: .init(
        nil,
        { move(Conditions.NotBelow.self, UInt16.self, $0, $1) },
        { move(Conditions.NotBelow.self, UInt32.self, $0, $1) },
        { move(Conditions.NotBelow.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.NotBelow.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.NotBelow.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.NotBelow.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovz] = .forms(
      register: .init(
        nil,
        { move(Conditions.Zero.self, UInt16.self, $0, $1) },
        { move(Conditions.Zero.self, UInt32.self, $0, $1) },
        { move(Conditions.Zero.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.Zero.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.Zero.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.Zero.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovnz] = .forms(
      register: .init(
        nil,
        { move(Conditions.NotZero.self, UInt16.self, $0, $1) },
        { move(Conditions.NotZero.self, UInt32.self, $0, $1) },
        { move(Conditions.NotZero.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.NotZero.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.NotZero.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.NotZero.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovbe] = .forms(
      register: .init(
        nil,
        { move(Conditions.BelowOrEqual.self, UInt16.self, $0, $1) },
        { move(Conditions.BelowOrEqual.self, UInt32.self, $0, $1) },
        { move(Conditions.BelowOrEqual.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.BelowOrEqual.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.BelowOrEqual.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.BelowOrEqual.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovnbe] = .forms(
      register: .init(
        nil,
        { move(Conditions.NotBelowOrEqual.self, UInt16.self, $0, $1) },
        { move(Conditions.NotBelowOrEqual.self, UInt32.self, $0, $1) },
        { move(Conditions.NotBelowOrEqual.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.NotBelowOrEqual.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.NotBelowOrEqual.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.NotBelowOrEqual.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovs] = .forms(
      register: .init(
        nil,
        { move(Conditions.Sign.self, UInt16.self, $0, $1) },
        { move(Conditions.Sign.self, UInt32.self, $0, $1) },
        { move(Conditions.Sign.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.Sign.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.Sign.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.Sign.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovns] = .forms(
      register: .init(
        nil,
        { move(Conditions.NotSign.self, UInt16.self, $0, $1) },
        { move(Conditions.NotSign.self, UInt32.self, $0, $1) },
        { move(Conditions.NotSign.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.NotSign.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.NotSign.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.NotSign.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovp] = .forms(
      register: .init(
        nil,
        { move(Conditions.Parity.self, UInt16.self, $0, $1) },
        { move(Conditions.Parity.self, UInt32.self, $0, $1) },
        { move(Conditions.Parity.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.Parity.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.Parity.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.Parity.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovnp] = .forms(
      register: .init(
        nil,
        { move(Conditions.NotParity.self, UInt16.self, $0, $1) },
        { move(Conditions.NotParity.self, UInt32.self, $0, $1) },
        { move(Conditions.NotParity.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.NotParity.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.NotParity.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.NotParity.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovl] = .forms(
      register: .init(
        nil,
        { move(Conditions.Less.self, UInt16.self, $0, $1) },
        { move(Conditions.Less.self, UInt32.self, $0, $1) },
        { move(Conditions.Less.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.Less.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.Less.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.Less.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovnl] = .forms(
      register: .init(
        nil,
        { move(Conditions.NotLess.self, UInt16.self, $0, $1) },
        { move(Conditions.NotLess.self, UInt32.self, $0, $1) },
        { move(Conditions.NotLess.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.NotLess.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.NotLess.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.NotLess.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovle] = .forms(
      register: .init(
        nil,
        { move(Conditions.LessOrEqual.self, UInt16.self, $0, $1) },
        { move(Conditions.LessOrEqual.self, UInt32.self, $0, $1) },
        { move(Conditions.LessOrEqual.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.LessOrEqual.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.LessOrEqual.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.LessOrEqual.self, UInt64.self, $0, $1) }),
      store: .init())
    t[.cmovnle] = .forms(
      register: .init(
        nil,
        { move(Conditions.NotLessOrEqual.self, UInt16.self, $0, $1) },
        { move(Conditions.NotLessOrEqual.self, UInt32.self, $0, $1) },
        { move(Conditions.NotLessOrEqual.self, UInt64.self, $0, $1) }),
      load: .init(
        nil,
        { moveLoad(Conditions.NotLessOrEqual.self, UInt16.self, $0, $1) },
        { moveLoad(Conditions.NotLessOrEqual.self, UInt32.self, $0, $1) },
        { moveLoad(Conditions.NotLessOrEqual.self, UInt64.self, $0, $1) }),
      store: .init())
    // End of rows
  }
}
