// SPDX-License-Identifier: Apache-2.0
//
// MUL, IMUL, DIV, IDIV, MULX, ADCX, ADOX.
//
// Flags that the manuals leave undefined: after a multiplication SF, ZF, AF and PF keep their
// values if the host's do (see the oracle's list); a division leaves all flags unchanged.

import X86
import X86Decoder

/// CF and OF of a multiplication; the rest are undefined and follow the low result.
@inline(__always) private func setMultiplyFlags<T: OperandInteger>(
  _ c: CPU, _ low: T, _ overflow: Bool
) {
  c.setLogicFlags(result: low)
  c.setCarryOverflow(cf: overflow, of: overflow)
}

/// The high half of a result: AH of a byte operation, else rDX.
@inline(__always) private func writeWide<T: OperandInteger>(_ c: CPU, low: T, high: T) {
  c.write(low, to: c.raw)
  c.write(high, to: MemoryLayout<T>.size == 1 ? c.raw + 1 : c.raw + 16)
}

@inline(__always) private func highOperand<T: OperandInteger>(_ c: CPU, _ t: T.Type) -> T {
  c.read(MemoryLayout<T>.size == 1 ? c.raw + 1 : c.raw + 16)
}

/// The operation of MUL, IMUL, DIV and IDIV on rAX, rDX and their operand.
private enum WideOperation { case multiply, signedMultiply, divide, signedDivide }

@inline(__always) private func wide<T: OperandInteger, S: FixedWidthInteger & SignedInteger>(
  _ t: T.Type, _ signed: S.Type, _ kind: WideOperation, memory: Bool, _ c: RawPointer,
  _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let b: T
    if memory {
      b = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size))
    } else {
      b = c.read(i.pointee.dst)
    }
    let a: T = c.read(c.raw)
    switch kind {
    case .multiply:
      let product = a.multipliedFullWidth(by: b)
      let low = T(truncatingIfNeeded: product.low)
      writeWide(c, low: low, high: product.high)
      setMultiplyFlags(c, low, product.high != 0)
    case .signedMultiply:
      let product = S(truncatingIfNeeded: a).multipliedFullWidth(by: S(truncatingIfNeeded: b))
      let low = T(truncatingIfNeeded: product.low)
      writeWide(c, low: low, high: T(truncatingIfNeeded: product.high))
      setMultiplyFlags(c, low, product.high != S(truncatingIfNeeded: low) >> (S.bitWidth - 1))
    case .divide:
      let high = highOperand(c, T.self)
      if b == 0 || high >= b { throw .divideError }
      let (quotient, remainder) = b.dividingFullWidth(
        (high, T.Magnitude(truncatingIfNeeded: a)))
      writeWide(c, low: quotient, high: remainder)
    case .signedDivide:
      try signedDivide(c, S.self, a, highOperand(c, T.self), b)
    }
  }
}

/// IDIV by magnitudes, so that only quotients that fit are computed.
@inline(__always)
private func signedDivide<
  T: OperandInteger, S: FixedWidthInteger & SignedInteger
>(_ c: CPU, _ s: S.Type, _ low: T, _ high: T, _ divisor: T) throws(GuestException) {
  if divisor == 0 { throw .divideError }
  let negative = S(truncatingIfNeeded: high) < 0
  let divisorNegative = S(truncatingIfNeeded: divisor) < 0
  // The dividend's magnitude, a number of twice the width.
  let magnitudeLow = negative ? ~low &+ 1 : low
  let magnitudeHigh = negative ? ~high &+ (low == 0 ? 1 : 0) : high
  let magnitudeDivisor = divisorNegative ? ~divisor &+ 1 : divisor
  if magnitudeHigh >= magnitudeDivisor { throw .divideError }
  let (q, r) = magnitudeDivisor.dividingFullWidth(
    (magnitudeHigh, T.Magnitude(truncatingIfNeeded: magnitudeLow)))
  let top = T(1) << T(T.bitWidth - 1)
  if negative != divisorNegative {
    if q > top { throw .divideError }
    writeWide(c, low: ~q &+ 1, high: negative ? ~r &+ 1 : r)
  } else {
    if q >= top { throw .divideError }
    writeWide(c, low: q, high: negative ? ~r &+ 1 : r)
  }
}

/// IMUL with two or three operands: dst = a * b.
@inline(__always)
private func multiplyTruncated<
  T: OperandInteger, S: FixedWidthInteger & SignedInteger
>(_ t: T.Type, _ s: S.Type, memory: Bool, immediate: Bool, _ c: RawPointer, _ i: RawPointer)
  -> Int32
{
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let b: T
    if memory {
      b = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size))
    } else {
      b = c.read(i.pointee.src)
    }
    let a = immediate ? T(truncatingIfNeeded: i.pointee.immediate) : c.read(i.pointee.dst)
    let (product, overflow) = S(truncatingIfNeeded: a).multipliedReportingOverflow(
      by: S(truncatingIfNeeded: b))
    let r = T(truncatingIfNeeded: product)
    setMultiplyFlags(c, r, overflow)
    c.write(r, to: i.pointee.dst)
  }
}

/// MULX: operand 0 gets the high half, operand 1 the low one; no flags.
@inline(__always) private func multiplyFlagless<T: OperandInteger>(
  _ t: T.Type, memory: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let b: T
    if memory {
      b = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size))
    } else {
      b = c.read(c.third(i))
    }
    let product = c.read(c.raw + 16, as: T.self).multipliedFullWidth(by: b)
    c.write(T(truncatingIfNeeded: product.low), to: i.pointee.src)
    c.write(product.high, to: i.pointee.dst)
  }
}

/// ADCX and ADOX: an addition whose carry flag is CF or OF.
@inline(__always) private func addCarryFlag<T: OperandInteger>(
  _ t: T.Type, overflowFlag: Bool, memory: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let b: T
    if memory {
      b = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size))
    } else {
      b = c.read(i.pointee.src)
    }
    let carryIn: T = (overflowFlag ? c.of : c.cf) ? 1 : 0
    let (first, o1) = c.read(i.pointee.dst, as: T.self).addingReportingOverflow(b)
    let (sum, o2) = first.addingReportingOverflow(carryIn)
    let carry = o1 || o2
    c.setCarryOverflow(cf: overflowFlag ? c.cf : carry, of: overflowFlag ? carry : c.of)
    c.write(sum, to: i.pointee.dst)
  }
}

enum MultiplyDivide {
  static func register(_ t: inout LoweringTable) {
    registerWide(&t)
    registerTruncated(&t)
    registerFlagOnly(&t)
  }

  private static func registerWide(_ t: inout LoweringTable) {
    // Rows: of the accumulator
    t[.mul] = .forms(
      register: .init(
        { wide(UInt8.self, Int8.self, .multiply, memory: false, $0, $1) },
        { wide(UInt16.self, Int16.self, .multiply, memory: false, $0, $1) },
        { wide(UInt32.self, Int32.self, .multiply, memory: false, $0, $1) },
        { wide(UInt64.self, Int64.self, .multiply, memory: false, $0, $1) }),
      load: .init(),
      store: .init(
        { wide(UInt8.self, Int8.self, .multiply, memory: true, $0, $1) },
        { wide(UInt16.self, Int16.self, .multiply, memory: true, $0, $1) },
        { wide(UInt32.self, Int32.self, .multiply, memory: true, $0, $1) },
        { wide(UInt64.self, Int64.self, .multiply, memory: true, $0, $1) }))
    t[.div] = .forms(
      register: .init(
        { wide(UInt8.self, Int8.self, .divide, memory: false, $0, $1) },
        { wide(UInt16.self, Int16.self, .divide, memory: false, $0, $1) },
        { wide(UInt32.self, Int32.self, .divide, memory: false, $0, $1) },
        { wide(UInt64.self, Int64.self, .divide, memory: false, $0, $1) }),
      load: .init(),
      store: .init(
        { wide(UInt8.self, Int8.self, .divide, memory: true, $0, $1) },
        { wide(UInt16.self, Int16.self, .divide, memory: true, $0, $1) },
        { wide(UInt32.self, Int32.self, .divide, memory: true, $0, $1) },
        { wide(UInt64.self, Int64.self, .divide, memory: true, $0, $1) }))
    t[.idiv] = .forms(
      register: .init(
        { wide(UInt8.self, Int8.self, .signedDivide, memory: false, $0, $1) },
        { wide(UInt16.self, Int16.self, .signedDivide, memory: false, $0, $1) },
        { wide(UInt32.self, Int32.self, .signedDivide, memory: false, $0, $1) },
        { wide(UInt64.self, Int64.self, .signedDivide, memory: false, $0, $1) }),
      load: .init(),
      store: .init(
        { wide(UInt8.self, Int8.self, .signedDivide, memory: true, $0, $1) },
        { wide(UInt16.self, Int16.self, .signedDivide, memory: true, $0, $1) },
        { wide(UInt32.self, Int32.self, .signedDivide, memory: true, $0, $1) },
        { wide(UInt64.self, Int64.self, .signedDivide, memory: true, $0, $1) }))
    // End of rows
  }

  private static func registerTruncated(_ t: inout LoweringTable) {
    // Rows: signed, of the accumulator
    let wideRegister = WidthHandlers(
      { wide(UInt8.self, Int8.self, .signedMultiply, memory: false, $0, $1) },
      { wide(UInt16.self, Int16.self, .signedMultiply, memory: false, $0, $1) },
      { wide(UInt32.self, Int32.self, .signedMultiply, memory: false, $0, $1) },
      { wide(UInt64.self, Int64.self, .signedMultiply, memory: false, $0, $1) })
    let wideMemory = WidthHandlers(
      { wide(UInt8.self, Int8.self, .signedMultiply, memory: true, $0, $1) },
      { wide(UInt16.self, Int16.self, .signedMultiply, memory: true, $0, $1) },
      { wide(UInt32.self, Int32.self, .signedMultiply, memory: true, $0, $1) },
      { wide(UInt64.self, Int64.self, .signedMultiply, memory: true, $0, $1) })
    // End of rows
    // Rows: signed, of a register
    let register = WidthHandlers(
      nil,
      { multiplyTruncated(UInt16.self, Int16.self, memory: false, immediate: false, $0, $1) },
      { multiplyTruncated(UInt32.self, Int32.self, memory: false, immediate: false, $0, $1) },
      { multiplyTruncated(UInt64.self, Int64.self, memory: false, immediate: false, $0, $1) })
    let memory = WidthHandlers(
      nil,
      { multiplyTruncated(UInt16.self, Int16.self, memory: true, immediate: false, $0, $1) },
      { multiplyTruncated(UInt32.self, Int32.self, memory: true, immediate: false, $0, $1) },
      { multiplyTruncated(UInt64.self, Int64.self, memory: true, immediate: false, $0, $1) })
    let registerImmediate = WidthHandlers(
      nil,
      { multiplyTruncated(UInt16.self, Int16.self, memory: false, immediate: true, $0, $1) },
      { multiplyTruncated(UInt32.self, Int32.self, memory: false, immediate: true, $0, $1) },
      { multiplyTruncated(UInt64.self, Int64.self, memory: false, immediate: true, $0, $1) })
    let memoryImmediate = WidthHandlers(
      nil,
      { multiplyTruncated(UInt16.self, Int16.self, memory: true, immediate: true, $0, $1) },
      { multiplyTruncated(UInt32.self, Int32.self, memory: true, immediate: true, $0, $1) },
      { multiplyTruncated(UInt64.self, Int64.self, memory: true, immediate: true, $0, $1) })
    // End of rows
    t[.imul] = .custom { i, _, _ in
      let size = i.operandSize
      let inMemory = i.memoryOperand != nil
      switch i.operandCount {
      case 1: return (inMemory ? wideMemory : wideRegister)[size]
      case 2: return (inMemory ? memory : register)[size]
      default: return (inMemory ? memoryImmediate : registerImmediate)[size]
      }
    }
  }

  private static func registerFlagOnly(_ t: inout LoweringTable) {
    // Rows: with some of the flags
    t[.mulx] = .forms(
      register: .init(
        nil,
        nil,
        { multiplyFlagless(UInt32.self, memory: false, $0, $1) },
        { multiplyFlagless(UInt64.self, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { multiplyFlagless(UInt32.self, memory: true, $0, $1) },
        { multiplyFlagless(UInt64.self, memory: true, $0, $1) }),
      store: .init())
    t[.adox] = .forms(
      register: .init(
        nil,
        nil,
        { addCarryFlag(UInt32.self, overflowFlag: true, memory: false, $0, $1) },
        { addCarryFlag(UInt64.self, overflowFlag: true, memory: false, $0, $1) }),
      load: .init(
        nil,
        nil,
        { addCarryFlag(UInt32.self, overflowFlag: true, memory: true, $0, $1) },
        { addCarryFlag(UInt64.self, overflowFlag: true, memory: true, $0, $1) }),
      store: .init())
    // End of rows
    // 66 is a part of ADCX's opcode: the operands have the size.
    t[.adcx] = .custom { i, _, _ in
      let isMemory = i.memoryOperand != nil
      if i.operands[0].size == 8 {
        return isMemory
          ? { addCarryFlag(UInt64.self, overflowFlag: false, memory: true, $0, $1) }
          : { addCarryFlag(UInt64.self, overflowFlag: false, memory: false, $0, $1) }
      }
      return isMemory
        ? { addCarryFlag(UInt32.self, overflowFlag: false, memory: true, $0, $1) }
        : { addCarryFlag(UInt32.self, overflowFlag: false, memory: false, $0, $1) }
    }
  }
}
