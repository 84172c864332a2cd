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

/// The way of `binaryS` where memory has no host pointer. The store comes before the flags.
@inline(never) func modifySlow<O: BinaryOperation, T: OperandInteger>(
  _ o: O.Type, _ t: T.Type, _ c: CPU, _ address: UInt64, _ b: T
) throws(GuestException) {
  let a = try c.load(address, as: T.self)
  let (result, aux) = (c.s.pointee.flagResult, c.s.pointee.flagAux)
  let r = O.apply(c, a, b)
  do {
    try c.store(r, at: address)
  } catch {
    c.s.pointee.flagResult = result
    c.s.pointee.flagAux = aux
    throw error
  }
}

enum Arithmetic {
  static func register(_ t: inout LoweringTable) {
    t[.add] = .forms(
      register: .init(
        { binaryR(Add.self, UInt8.self, $0, $1) }, { binaryR(Add.self, UInt16.self, $0, $1) },
        { binaryR(Add.self, UInt32.self, $0, $1) }, { binaryR(Add.self, UInt64.self, $0, $1) }),
      load: .init(
        { binaryL(Add.self, UInt8.self, $0, $1) }, { binaryL(Add.self, UInt16.self, $0, $1) },
        { binaryL(Add.self, UInt32.self, $0, $1) }, { binaryL(Add.self, UInt64.self, $0, $1) }),
      store: .init(
        { binaryS(Add.self, UInt8.self, $0, $1) }, { binaryS(Add.self, UInt16.self, $0, $1) },
        { binaryS(Add.self, UInt32.self, $0, $1) }, { binaryS(Add.self, UInt64.self, $0, $1) }))
  }
}
