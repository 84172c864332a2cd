// SPDX-License-Identifier: Apache-2.0
//
// BT, BTS, BTR, BTC, BSF, BSR, LZCNT, TZCNT, POPCNT, CRC32, ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI,
// PDEP, PEXT.

import X86
import X86Decoder

/// The effect of BT, BTS, BTR and BTC on the bit.
enum BitAction { case test, set, reset, complement }

@inline(__always) private func applied<T: OperandInteger>(_ action: BitAction, _ a: T, _ bit: T)
  -> T
{
  switch action {
  case .test: a
  case .set: a | bit
  case .reset: a & ~bit
  case .complement: a ^ bit
  }
}

/// A bit of a register.
@inline(__always) func bitR<T: OperandInteger>(
  _ t: T.Type, _ action: BitAction, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i).pointee
  let bit = T(1) &<< c.read(i.src, as: T.self)
  let a: T = c.read(i.dst)
  c.setCarry(a & bit != 0)
  if action != .test { c.write(applied(action, a, bit), to: i.dst) }
  return Step.next
}

/// A bit of memory. With a register offset the bit string may be far from the operand's address.
@inline(__always) func bitM<T: OperandInteger & AtomicOperand>(
  _ t: T.Type, _ action: BitAction, string: Bool, locked: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let size = MemoryLayout<T>.size
    let offset: T = c.read(i.pointee.src)
    let bit = T(1) &<< offset
    let access: AccessKind = action == .test ? .read : .write
    let address =
      string
      ? try c.bitStringAddress(i, Int64(bitPattern: c.signExtended(offset)), size, access)
      : try c.linearAddress(i, size: size, access)
    if action == .test {
      c.setCarry(try c.load(address, as: T.self) & bit != 0)
      return
    }
    if locked, let p = try c.pointerForModify(address, size: size) {
      var old = T.atomicLoad(p)
      while true {
        let (done, found) = T.atomicCompareExchange(
          p, expected: old, desired: applied(action, old, bit))
        if done { break }
        old = found
      }
      c.setCarry(old & bit != 0)
      return
    }
    _ = try c.pointerForModify(address, size: size)
    let a = try c.load(address, as: T.self)
    try c.store(applied(action, a, bit), at: address)
    c.setCarry(a & bit != 0)
  }
}

extension CPU {
  /// The linear address of the operand-sized word that holds a bit of a bit string.
  @inline(never) func bitStringAddress(
    _ i: MicroOpPointer, _ bit: Int64, _ size: Int, _ access: AccessKind
  ) throws(GuestException) -> UInt64 {
    let word = bit >> Int64(size == 2 ? 4 : size == 4 ? 5 : 6)
    let offset = effectiveAddress(i) &+ UInt64(bitPattern: word &* Int64(size))
    let register = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    return try linear(register, offset & addressMask(i), size: size, access)
  }
}

/// An instruction that computes a result from one register or memory operand.
protocol UnaryBitOperation {
  static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T
  /// A zero source leaves the destination unchanged.
  static var keepsDestination: Bool { get }
}

extension UnaryBitOperation {
  @inline(__always) static var keepsDestination: Bool { false }
}

/// `operand` is 1 if the source is operand 1, 2 if it is operand 2 or for BLS* in VEX form.
@inline(__always) func unaryBits<O: UnaryBitOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, memory: Bool, _ c: RawPointer, _ i: RawPointer
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
    let result = O.apply(c, a, old: c.read(i.pointee.dst))
    if O.keepsDestination && a == 0 { return }
    c.write(result, to: i.pointee.dst)
  }
}

/// BSF and BSR: a zero source leaves the destination unchanged, even a 32-bit one's upper half.
enum BitScanForward: UnaryBitOperation {
  @inline(__always) static var keepsDestination: Bool { true }
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T {
    c.setScanFlags(zero: a == 0)
    return a == 0 ? old : T(a.trailingZeroBitCount)
  }
}
enum BitScanReverse: UnaryBitOperation {
  @inline(__always) static var keepsDestination: Bool { true }
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T {
    c.setScanFlags(zero: a == 0)
    return a == 0 ? old : T(T.bitWidth - 1 - a.leadingZeroBitCount)
  }
}
enum LeadingZeroCount: UnaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T {
    let r = T(a.leadingZeroBitCount)
    c.setCountFlags(carry: a == 0, zero: r == 0)
    return r
  }
}
enum TrailingZeroCount: UnaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T {
    let r = T(a.trailingZeroBitCount)
    c.setCountFlags(carry: a == 0, zero: r == 0)
    return r
  }
}
enum PopulationCount: UnaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T {
    c.arithmeticFlags = a == 0 ? RFLAGS.zf.rawValue : 0
    return T(a.nonzeroBitCount)
  }
}
enum LowestSetBit: UnaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T {
    let r = a & (0 &- a)
    c.setLogicFlags(result: r)
    c.setCarryOverflow(cf: a != 0, of: false)
    return r
  }
}
enum MaskToLowestSetBit: UnaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T {
    let r = a ^ (a &- 1)
    c.setLogicFlags(result: r)
    c.setCarryOverflow(cf: a == 0, of: false)
    return r
  }
}
enum ResetLowestSetBit: UnaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, old: T) -> T {
    let r = a & (a &- 1)
    c.setLogicFlags(result: r)
    c.setCarryOverflow(cf: a == 0, of: false)
    return r
  }
}

extension CPU {
  /// Sets only ZF; the others are undefined and keep their values.
  @inline(__always) func setScanFlags(zero: Bool) {
    let flags = arithmeticFlags & ~RFLAGS.zf.rawValue
    arithmeticFlags = flags | (zero ? RFLAGS.zf.rawValue : 0)
  }

  /// Sets CF and ZF; the others are undefined and keep their values.
  @inline(__always) func setCountFlags(carry: Bool, zero: Bool) {
    let flags = arithmeticFlags & ~(RFLAGS.zf.rawValue | RFLAGS.cf.rawValue)
    arithmeticFlags =
      flags | (zero ? RFLAGS.zf.rawValue : 0) | (carry ? RFLAGS.cf.rawValue : 0)
  }
}

/// An instruction with two sources: ANDN, BEXTR, BZHI, PDEP, PEXT. `a` is the first in the manual's
/// formula, `b` the second.
protocol BinaryBitOperation {
  static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T
}

/// Operand 1 is a register, operand 2 register or memory (ANDN, PDEP, PEXT).
@inline(__always) func binaryBitsLast<O: BinaryBitOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, memory: Bool, _ c: RawPointer, _ i: RawPointer
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
    c.write(O.apply(c, c.read(i.pointee.src), b), to: i.pointee.dst)
  }
}

/// Operand 1 is register or memory, operand 2 a register (BEXTR, BZHI).
@inline(__always) func binaryBitsMiddle<O: BinaryBitOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, memory: Bool, _ c: RawPointer, _ i: RawPointer
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
    c.write(O.apply(c, a, c.read(c.third(i))), to: i.pointee.dst)
  }
}

enum AndNot: BinaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let r = ~a & b
    c.setLogicFlags(result: r)
    return r
  }
}
enum ExtractField: BinaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let start = Int(truncatingIfNeeded: b & 0xFF)
    let length = Int(truncatingIfNeeded: (b >> 8) & 0xFF)
    let field = a >> start
    let r = length >= T.bitWidth ? field : field & ((T(1) << length) &- 1)
    c.arithmeticFlags = r == 0 ? RFLAGS.zf.rawValue : 0
    return r
  }
}
enum ZeroHighBits: BinaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let index = Int(truncatingIfNeeded: b & 0xFF)
    let r = index >= T.bitWidth ? a : a & ((T(1) << index) &- 1)
    c.setLogicFlags(result: r)
    c.setCarryOverflow(cf: index >= T.bitWidth, of: false)
    return r
  }
}
enum DepositBits: BinaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    var (mask, source, r) = (b, a, T(0))
    while mask != 0 {
      let bit = mask & (0 &- mask)
      if source & 1 != 0 { r |= bit }
      source >>= 1
      mask &= mask &- 1
    }
    return r
  }
}
enum ExtractBits: BinaryBitOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    var (mask, r, out) = (b, T(0), T(1))
    while mask != 0 {
      let bit = mask & (0 &- mask)
      if a & bit != 0 { r |= out }
      out <<= 1
      mask &= mask &- 1
    }
    return r
  }
}

/// CRC32 (Castagnoli polynomial, reflected) of the source's bytes into a 32-bit destination.
@inline(__always) func crc<T: OperandInteger>(
  _ t: T.Type, memory: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    var value: T
    if memory {
      value = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size))
    } else {
      value = c.read(i.pointee.src)
    }
    var crc: UInt32 = c.read(i.pointee.dst)
    for _ in 0..<MemoryLayout<T>.size {
      crc =
        castagnoli[Int(UInt8(truncatingIfNeeded: crc) ^ UInt8(truncatingIfNeeded: value))] ^ crc
        >> 8
      value = T.bitWidth > 8 ? value >> 8 : 0
    }
    c.write(crc, to: i.pointee.dst)
  }
}

private let castagnoli: InlineArray<256, UInt32> = {
  var table = InlineArray<256, UInt32>(repeating: 0)
  for n in 0..<256 {
    var value = UInt32(n)
    for _ in 0..<8 { value = value & 1 != 0 ? value >> 1 ^ 0x82F6_3B78 : value >> 1 }
    table[n] = value
  }
  return table
}()
