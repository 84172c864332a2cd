// SPDX-License-Identifier: Apache-2.0
//
// ADD, ADC, SUB, SBB, CMP, INC, DEC, NEG, AND, OR, XOR, TEST, NOT.

import X86
import X86Decoder

/// A two-operand operation on integers that sets flags.
protocol BinaryOperation {
  static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T
}

enum Add: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let r = a &+ b
    c.setFlags(result: r, carries: (a & b) | ((a | b) & ~r))
    return r
  }
}
enum AddWithCarry: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let r = a &+ b &+ (c.cf ? 1 : 0)
    c.setFlags(result: r, carries: (a & b) | ((a | b) & ~r))
    return r
  }
}
enum Subtract: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let r = a &- b
    c.setFlags(result: r, carries: (~a & b) | ((~a | b) & r))
    return r
  }
}
enum SubtractWithBorrow: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let r = a &- b &- (c.cf ? 1 : 0)
    c.setFlags(result: r, carries: (~a & b) | ((~a | b) & r))
    return r
  }
}
enum And: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let r = a & b
    c.setLogicFlags(result: r)
    return r
  }
}
enum Or: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let r = a | b
    c.setLogicFlags(result: r)
    return r
  }
}
enum Xor: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let r = a ^ b
    c.setLogicFlags(result: r)
    return r
  }
}

enum Compare: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    Subtract.apply(c, a, b)
  }
}

typealias RawPointer = UnsafeMutableRawPointer

/// register op= register or immediate.
@inline(__always) func binaryR<O: BinaryOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i).pointee
  c.write(O.apply(c, c.read(i.dst, as: T.self), c.read(i.src, as: T.self)), to: i.dst)
  return Step.next
}

/// register op= memory.
@inline(__always) func binaryL<O: BinaryOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size)
    let b = try c.load(address, as: T.self)
    c.write(O.apply(c, c.read(i.pointee.dst, as: T.self), b), to: i.pointee.dst)
  }
}

/// memory op= register or immediate.
@inline(__always) func binaryS<O: BinaryOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    let b = c.read(i.pointee.src, as: T.self)
    if let p = try c.pointerForModify(address, size: MemoryLayout<T>.size) {
      p.storeBytes(of: O.apply(c, p.loadUnaligned(as: T.self), b), as: T.self)
    } else {
      try modifySlow(O.self, T.self, c, address, b)
    }
  }
}

/// The slow path of `binaryS`, for memory without a host pointer. The store precedes the flags.
@inline(never) func modifySlow<O: BinaryOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ c: CPU, _ address: UInt64, _ b: T
) throws(GuestException) {
  let a = try c.load(address, as: T.self)
  let (result, aux) = (c.s.pointee.flagResult, c.s.pointee.flagAux)
  let r = O.apply(c, a, b)
  do throws(GuestException) {
    try c.store(r, at: address)
  } catch {
    c.s.pointee.flagResult = result
    c.s.pointee.flagAux = aux
    throw error
  }
}

/// LOCK memory op= register or immediate: atomic against other CPUs and against the host.
@inline(__always) func binaryLocked<O: BinaryOperation, T: OperandInteger & AtomicOperand>(
  _ o: O.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    let b = c.read(i.pointee.src, as: T.self)
    if let p = try c.pointerForModify(address, size: MemoryLayout<T>.size) {
      let (cf, aux) = (c.s.pointee.flagResult, c.s.pointee.flagAux)
      var old = T.atomicLoad(p)
      while true {
        c.s.pointee.flagResult = cf
        c.s.pointee.flagAux = aux
        let new = O.apply(c, old, b)
        let (exchanged, original) = T.atomicCompareExchange(p, expected: old, desired: new)
        if exchanged { break }
        old = original
      }
    } else {
      try splitLock { () throws(GuestException) in try modifySlow(O.self, T.self, c, address, b) }
    }
  }
}

/// register or memory against register or immediate, flags only (CMP, TEST).
@inline(__always) func compareR<O: BinaryOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i).pointee
  _ = O.apply(c, c.read(i.dst, as: T.self), c.read(i.src, as: T.self))
  return Step.next
}

@inline(__always) func compareL<O: BinaryOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let b = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size), as: T.self)
    _ = O.apply(c, c.read(i.pointee.dst, as: T.self), b)
  }
}

@inline(__always) func compareS<O: BinaryOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let a = try c.load(try c.linearAddress(i, size: MemoryLayout<T>.size), as: T.self)
    _ = O.apply(c, a, c.read(i.pointee.src, as: T.self))
  }
}

// Operations on one operand ignore the second one that `BinaryOperation` passes.

enum Increment: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let carry = c.cf
    let r = Add.apply(c, a, 1)
    c.setCarry(carry)
    return r
  }
}
enum Decrement: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    let carry = c.cf
    let r = Subtract.apply(c, a, 1)
    c.setCarry(carry)
    return r
  }
}
enum Negate: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T {
    Subtract.apply(c, 0, a)
  }
}
enum Not: BinaryOperation {
  @inline(__always) static func apply<T: OperandInteger>(_ c: CPU, _ a: T, _ b: T) -> T { ~a }
}
