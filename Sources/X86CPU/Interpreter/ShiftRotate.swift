// SPDX-License-Identifier: Apache-2.0
//
// ROL, ROR, RCL, RCR, SHL, SHR, SAR, SHLD, SHRD and the flagless BMI2 shifts.
//
// Flags that the manuals leave undefined have the values of the formulas here: OF of a shift or
// rotate by more than one is computed as for one; AF of a shift is clear.

import X86
import X86Decoder

/// The count as the processor masks it: 5 bits, 6 for 64-bit operands.
@inline(__always) private func masked<T: OperandInteger>(_ count: T) -> Int {
  Int(truncatingIfNeeded: count) & (T.bitWidth == 64 ? 63 : 31)
}

@inline(__always) private func topBit<T: OperandInteger>(_ value: T) -> Bool {
  value >> T(T.bitWidth - 1) != 0
}

enum RotateLeft: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let count = masked(b)
    if count == 0 { return a }
    let n = T(truncatingIfNeeded: count & (T.bitWidth - 1))
    let r = a &<< n | a &>> (T(T.bitWidth) &- n)
    c.setCarryOverflow(cf: r & 1 != 0, of: topBit(r) != (r & 1 != 0))
    return r
  }
}

enum RotateRight: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let count = masked(b)
    if count == 0 { return a }
    let n = T(truncatingIfNeeded: count & (T.bitWidth - 1))
    let r = a &>> n | a &<< (T(T.bitWidth) &- n)
    c.setCarryOverflow(cf: topBit(r), of: topBit(r) != topBit(r << 1))
    return r
  }
}

enum RotateCarryLeft: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let count = masked(b)
    if count == 0 { return a }
    let n = count % (T.bitWidth + 1)
    var (r, carry) = (a, c.cf)
    if n != 0 {
      let low: T = carry ? T(1) << T(n - 1) : 0
      // The smart shift gives 0 for a shift by the whole width.
      r = a << n | low | (n > 1 ? a >> (T.bitWidth + 1 - n) : 0)
      carry = (a >> (T.bitWidth - n)) & 1 != 0
    }
    c.setCarryOverflow(cf: carry, of: topBit(r) != carry)
    return r
  }
}

enum RotateCarryRight: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let count = masked(b)
    if count == 0 { return a }
    let n = count % (T.bitWidth + 1)
    var (r, carry) = (a, c.cf)
    if n != 0 {
      let high: T = carry ? T(1) << (T.bitWidth - n) : 0
      r = a >> n | high | (n > 1 ? a << (T.bitWidth + 1 - n) : 0)
      carry = (a >> (n - 1)) & 1 != 0
    }
    c.setCarryOverflow(cf: carry, of: topBit(r) != topBit(r << 1))
    return r
  }
}

enum ShiftLeft: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let count = masked(b)
    if count == 0 { return a }
    let r = a << count
    let carry = count <= T.bitWidth && (a >> (T.bitWidth - count)) & 1 != 0
    c.setLogicFlags(result: r)
    c.setCarryOverflow(cf: carry, of: topBit(r) != carry)
    return r
  }
}

enum ShiftRight: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let count = masked(b)
    if count == 0 { return a }
    let r = a >> count
    let carry = (a >> (count - 1)) & 1 != 0
    c.setLogicFlags(result: r)
    c.setCarryOverflow(cf: carry, of: topBit(r << 1) != topBit(r))
    return r
  }
}

enum ShiftArithmeticRight: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let count = masked(b)
    if count == 0 { return a }
    let wide = Int64(bitPattern: c.signExtended(a))
    let r = T(truncatingIfNeeded: wide >> Int64(count))
    let carry = (wide >> Int64(count - 1)) & 1 != 0
    c.setLogicFlags(result: r)
    c.setCarryOverflow(cf: carry, of: false)
    return r
  }
}

/// SHLD and SHRD. A count beyond a 16-bit operand's width is undefined; here the shift continues
/// into the source as if the two were repeated.
@inline(__always) private func doubleShift<T: OperandInteger>(
  _ c: CPU, _ a: T, _ b: T, _ count: Int, left: Bool
) -> T {
  let width = T.bitWidth
  let count = count & (width == 64 ? 63 : 31)
  if count == 0 { return a }
  var r: T
  let carry: Bool
  if left {
    if count <= width {
      r = a << count | b >> (width - count)
      carry = (a >> (width - count)) & 1 != 0
    } else {
      r = b << (count - width) | a >> (2 * width - count)
      carry = (b >> (2 * width - count)) & 1 != 0
    }
  } else {
    if count <= width {
      r = a >> count | b << (width - count)
      carry = (a >> (count - 1)) & 1 != 0
    } else {
      r = b >> (count - width) | a << (2 * width - count)
      carry = (b >> (count - width - 1)) & 1 != 0
    }
  }
  c.setLogicFlags(result: r)
  c.setCarryOverflow(cf: carry, of: topBit(a) != topBit(r))
  return r
}

@inline(__always) private func doubleShiftR<T: OperandInteger>(
  _ t: T.Type, left: Bool, byCL: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i).pointee
  let count = Int(truncatingIfNeeded: byCL ? c.gpr[1] & 0xFF : i.immediate & 0xFF)
  let r = doubleShift(c, c.read(i.dst, as: T.self), c.read(i.src, as: T.self), count, left: left)
  c.write(r, to: i.dst)
  return Step.next
}

@inline(__always) private func doubleShiftS<T: OperandInteger>(
  _ t: T.Type, left: Bool, byCL: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    let count = Int(truncatingIfNeeded: byCL ? c.gpr[1] & 0xFF : i.pointee.immediate & 0xFF)
    _ = try c.pointerForModify(address, size: MemoryLayout<T>.size)
    let a = try c.load(address, as: T.self)
    let saved = (c.s.pointee.flagResult, c.s.pointee.flagAux)
    let r = doubleShift(c, a, c.read(i.pointee.src, as: T.self), count, left: left)
    try keepingFlags(c, saved) { () throws(GuestException) in try c.store(r, at: address) }
  }
}

/// Runs a store after flags were computed; a fault restores the old flags.
@inline(__always) func keepingFlags(
  _ c: CPU, _ saved: (UInt64, UInt64), _ body: () throws(GuestException) -> Void
) throws(GuestException) {
  do throws(GuestException) {
    try body()
  } catch {
    (c.s.pointee.flagResult, c.s.pointee.flagAux) = saved
    throw error
  }
}

/// The BMI2 shifts: no flags, count in a register or immediate.
enum FlaglessShift { case left, right, arithmeticRight, rotateRight }

@inline(__always) private func flagless<T: OperandInteger>(
  _ kind: FlaglessShift, _ c: CPU, _ a: T, _ count: UInt64
) -> T {
  let n = T(truncatingIfNeeded: count) & T(T.bitWidth - 1)
  switch kind {
  case .left: return a &<< n
  case .right: return a &>> n
  case .arithmeticRight:
    return T(truncatingIfNeeded: Int64(bitPattern: c.signExtended(a)) >> Int64(n))
  case .rotateRight: return a &>> n | a &<< (T(T.bitWidth) &- n)
  }
}

@inline(__always) private func flaglessShift<T: OperandInteger>(
  _ t: T.Type, _ kind: FlaglessShift, memory: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let a: T
    if memory {
      a = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size))
    } else {
      a = c.read(i.pointee.src)
    }
    let count =
      kind == .rotateRight
      ? i.pointee.immediate : c.third(i).load(as: UInt64.self)
    c.write(flagless(kind, c, a, count), to: i.pointee.dst)
  }
}

enum ShiftRotate {
  static func register(_ t: inout LoweringTable) {
    registerShifts(&t)
    registerDouble(&t)
    registerFlagless(&t)
  }

  private static func registerShifts(_ t: inout LoweringTable) {
    // Rows: shifts
    t[.rol] = .forms(
      register: .init(
        { binaryR(RotateLeft.self, UInt8.self, $0, $1) },
        { binaryR(RotateLeft.self, UInt16.self, $0, $1) },
        { binaryR(RotateLeft.self, UInt32.self, $0, $1) },
        { binaryR(RotateLeft.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(RotateLeft.self, UInt8.self, $0, $1) },
        { binaryS(RotateLeft.self, UInt16.self, $0, $1) },
        { binaryS(RotateLeft.self, UInt32.self, $0, $1) },
        { binaryS(RotateLeft.self, UInt64.self, $0, $1) }))
    t[.ror] = .forms(
      register: .init(
        { binaryR(RotateRight.self, UInt8.self, $0, $1) },
        { binaryR(RotateRight.self, UInt16.self, $0, $1) },
        { binaryR(RotateRight.self, UInt32.self, $0, $1) },
        { binaryR(RotateRight.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(RotateRight.self, UInt8.self, $0, $1) },
        { binaryS(RotateRight.self, UInt16.self, $0, $1) },
        { binaryS(RotateRight.self, UInt32.self, $0, $1) },
        { binaryS(RotateRight.self, UInt64.self, $0, $1) }))
    t[.rcl] = .forms(
      register: .init(
        { binaryR(RotateCarryLeft.self, UInt8.self, $0, $1) },
        { binaryR(RotateCarryLeft.self, UInt16.self, $0, $1) },
        { binaryR(RotateCarryLeft.self, UInt32.self, $0, $1) },
        { binaryR(RotateCarryLeft.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(RotateCarryLeft.self, UInt8.self, $0, $1) },
        { binaryS(RotateCarryLeft.self, UInt16.self, $0, $1) },
        { binaryS(RotateCarryLeft.self, UInt32.self, $0, $1) },
        { binaryS(RotateCarryLeft.self, UInt64.self, $0, $1) }))
    t[.rcr] = .forms(
      register: .init(
        { binaryR(RotateCarryRight.self, UInt8.self, $0, $1) },
        { binaryR(RotateCarryRight.self, UInt16.self, $0, $1) },
        { binaryR(RotateCarryRight.self, UInt32.self, $0, $1) },
        { binaryR(RotateCarryRight.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(RotateCarryRight.self, UInt8.self, $0, $1) },
        { binaryS(RotateCarryRight.self, UInt16.self, $0, $1) },
        { binaryS(RotateCarryRight.self, UInt32.self, $0, $1) },
        { binaryS(RotateCarryRight.self, UInt64.self, $0, $1) }))
    t[.shl] = .forms(
      register: .init(
        { binaryR(ShiftLeft.self, UInt8.self, $0, $1) },
        { binaryR(ShiftLeft.self, UInt16.self, $0, $1) },
        { binaryR(ShiftLeft.self, UInt32.self, $0, $1) },
        { binaryR(ShiftLeft.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(ShiftLeft.self, UInt8.self, $0, $1) },
        { binaryS(ShiftLeft.self, UInt16.self, $0, $1) },
        { binaryS(ShiftLeft.self, UInt32.self, $0, $1) },
        { binaryS(ShiftLeft.self, UInt64.self, $0, $1) }))
    t[.shr] = .forms(
      register: .init(
        { binaryR(ShiftRight.self, UInt8.self, $0, $1) },
        { binaryR(ShiftRight.self, UInt16.self, $0, $1) },
        { binaryR(ShiftRight.self, UInt32.self, $0, $1) },
        { binaryR(ShiftRight.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(ShiftRight.self, UInt8.self, $0, $1) },
        { binaryS(ShiftRight.self, UInt16.self, $0, $1) },
        { binaryS(ShiftRight.self, UInt32.self, $0, $1) },
        { binaryS(ShiftRight.self, UInt64.self, $0, $1) }))
    t[.sar] = .forms(
      register: .init(
        { binaryR(ShiftArithmeticRight.self, UInt8.self, $0, $1) },
        { binaryR(ShiftArithmeticRight.self, UInt16.self, $0, $1) },
        { binaryR(ShiftArithmeticRight.self, UInt32.self, $0, $1) },
        { binaryR(ShiftArithmeticRight.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(ShiftArithmeticRight.self, UInt8.self, $0, $1) },
        { binaryS(ShiftArithmeticRight.self, UInt16.self, $0, $1) },
        { binaryS(ShiftArithmeticRight.self, UInt32.self, $0, $1) },
        { binaryS(ShiftArithmeticRight.self, UInt64.self, $0, $1) }))
    // End of rows
  }

  /// By count operand: operand 2 is CL or an immediate.
  private static func doubleRule(
    register: WidthHandlers, registerCL: WidthHandlers, memory: WidthHandlers,
    memoryCL: WidthHandlers
  ) -> LoweringRule {
    .custom { i, _, _ in
      let byCL = i.operands[2].kind == .general
      if i.memoryOperand == nil { return (byCL ? registerCL : register)[i.operandSize] }
      return (byCL ? memoryCL : memory)[i.operandSize]
    }
  }

  private static func registerDouble(_ t: inout LoweringTable) {
    // Rows: double shifts
    t[.shld] = doubleRule(
      register: .init(
        nil,
        { doubleShiftR(UInt16.self, left: true, byCL: false, $0, $1) },
        { doubleShiftR(UInt32.self, left: true, byCL: false, $0, $1) },
        { doubleShiftR(UInt64.self, left: true, byCL: false, $0, $1) }),
      registerCL: .init(
        nil,
        { doubleShiftR(UInt16.self, left: true, byCL: true, $0, $1) },
        { doubleShiftR(UInt32.self, left: true, byCL: true, $0, $1) },
        { doubleShiftR(UInt64.self, left: true, byCL: true, $0, $1) }),
      memory: .init(
        nil,
        { doubleShiftS(UInt16.self, left: true, byCL: false, $0, $1) },
        { doubleShiftS(UInt32.self, left: true, byCL: false, $0, $1) },
        { doubleShiftS(UInt64.self, left: true, byCL: false, $0, $1) }),
      memoryCL: .init(
        nil,
        { doubleShiftS(UInt16.self, left: true, byCL: true, $0, $1) },
        { doubleShiftS(UInt32.self, left: true, byCL: true, $0, $1) },
        { doubleShiftS(UInt64.self, left: true, byCL: true, $0, $1) }))
    t[.shrd] = doubleRule(
      register: .init(
        nil,
        { doubleShiftR(UInt16.self, left: false, byCL: false, $0, $1) },
        { doubleShiftR(UInt32.self, left: false, byCL: false, $0, $1) },
        { doubleShiftR(UInt64.self, left: false, byCL: false, $0, $1) }),
      registerCL: .init(
        nil,
        { doubleShiftR(UInt16.self, left: false, byCL: true, $0, $1) },
        { doubleShiftR(UInt32.self, left: false, byCL: true, $0, $1) },
        { doubleShiftR(UInt64.self, left: false, byCL: true, $0, $1) }),
      memory: .init(
        nil,
        { doubleShiftS(UInt16.self, left: false, byCL: false, $0, $1) },
        { doubleShiftS(UInt32.self, left: false, byCL: false, $0, $1) },
        { doubleShiftS(UInt64.self, left: false, byCL: false, $0, $1) }),
      memoryCL: .init(
        nil,
        { doubleShiftS(UInt16.self, left: false, byCL: true, $0, $1) },
        { doubleShiftS(UInt32.self, left: false, byCL: true, $0, $1) },
        { doubleShiftS(UInt64.self, left: false, byCL: true, $0, $1) }))
    // End of rows
  }

  private static func registerFlagless(_ t: inout LoweringTable) {
    // Rows: shifts without flags
    t[.shlx] = .forms(
      register: .init(
        nil,
        nil,
        { flaglessShift(UInt32.self, .left, memory: false, $0, $1) },
        { flaglessShift(UInt64.self, .left, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { flaglessShift(UInt32.self, .left, memory: true, $0, $1) },
        { flaglessShift(UInt64.self, .left, memory: true, $0, $1) }),
      store: .init())
    t[.shrx] = .forms(
      register: .init(
        nil,
        nil,
        { flaglessShift(UInt32.self, .right, memory: false, $0, $1) },
        { flaglessShift(UInt64.self, .right, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { flaglessShift(UInt32.self, .right, memory: true, $0, $1) },
        { flaglessShift(UInt64.self, .right, memory: true, $0, $1) }),
      store: .init())
    t[.sarx] = .forms(
      register: .init(
        nil,
        nil,
        { flaglessShift(UInt32.self, .arithmeticRight, memory: false, $0, $1) },
        { flaglessShift(UInt64.self, .arithmeticRight, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { flaglessShift(UInt32.self, .arithmeticRight, memory: true, $0, $1) },
        { flaglessShift(UInt64.self, .arithmeticRight, memory: true, $0, $1) }),
      store: .init())
    t[.rorx] = .forms(
      register: .init(
        nil,
        nil,
        { flaglessShift(UInt32.self, .rotateRight, memory: false, $0, $1) },
        { flaglessShift(UInt64.self, .rotateRight, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { flaglessShift(UInt32.self, .rotateRight, memory: true, $0, $1) },
        { flaglessShift(UInt64.self, .rotateRight, memory: true, $0, $1) }),
      store: .init())
    // End of rows
  }
}
