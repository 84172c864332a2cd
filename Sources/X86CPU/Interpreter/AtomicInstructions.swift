// SPDX-License-Identifier: Apache-2.0
//
// XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B. (LOCK on other instructions is with their families.)

import Synchronization
import X86
import X86Decoder

@inline(__always) private func exchangeAddR<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i).pointee
  let (a, b): (T, T) = (c.read(i.dst), c.read(i.src))
  let sum = Add.apply(c, a, b)
  c.write(a, to: i.src)
  c.write(sum, to: i.dst)
  return Step.next
}

/// The same in memory, always atomic: LOCK costs little.
@inline(__always) private func exchangeAddM<T: OperandInteger & AtomicOperand>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    let b: T = c.read(i.pointee.src)
    var a: T
    if let p = try c.pointerForModify(address, size: MemoryLayout<T>.size) {
      a = T.atomicLoad(p)
      while true {
        let (done, found) = T.atomicCompareExchange(p, expected: a, desired: a &+ b)
        if done { break }
        a = found
      }
    } else {
      a = try c.load(address)
      try c.store(a &+ b, at: address)
    }
    _ = Add.apply(c, a, b)
    c.write(a, to: i.pointee.src)
  }
}

@inline(__always) private func compareExchangeR<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i).pointee
  let (accumulator, a): (T, T) = (c.read(c.raw), c.read(i.dst))
  _ = Subtract.apply(c, accumulator, a)
  if accumulator == a {
    c.write(c.read(i.src, as: T.self), to: i.dst)
  } else {
    // Unlike memory, a register is not written: a 32-bit one keeps its upper half.
    c.write(a, to: c.raw)
  }
  return Step.next
}

@inline(__always) private func compareExchangeM<T: OperandInteger & AtomicOperand>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    let (accumulator, new): (T, T) = (c.read(c.raw), c.read(i.pointee.src))
    let found: T
    if let p = try c.pointerForModify(address, size: MemoryLayout<T>.size) {
      found = T.atomicCompareExchange(p, expected: accumulator, desired: new).original
    } else {
      found = try c.load(address)
      try c.store(found == accumulator ? new : found, at: address)
    }
    _ = Subtract.apply(c, accumulator, found)
    if found != accumulator { c.write(found, to: c.raw) }
  }
}

/// CMPXCHG8B: EDX:EAX with 8 bytes of memory, ECX:EBX in.
private let compareExchange8: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: 8, .write)
    let expected = c.gpr[0] & 0xFFFF_FFFF | c.gpr[2] << 32
    let new = c.gpr[3] & 0xFFFF_FFFF | c.gpr[1] << 32
    let found: UInt64
    if let p = try c.pointerForModify(address, size: 8) {
      found = UInt64.atomicCompareExchange(p, expected: expected, desired: new).original
    } else {
      found = try c.load(address)
      try c.store(found == expected ? new : found, at: address)
    }
    c.setZeroFlag(found == expected)
    if found != expected {
      c.gpr[0] = found & 0xFFFF_FFFF
      c.gpr[2] = found >> 32
    }
  }
}

/// CMPXCHG16B: RDX:RAX with 16 aligned bytes of memory, RCX:RBX in.
private let compareExchange16: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: 16, .write)
    if address & 15 != 0 { throw .generalProtection }
    let expected = WordPair(first: UInt(c.gpr[2]), second: UInt(c.gpr[0]))
    guard let p = try c.pointerForModify(address, size: 16) else {
      try compareExchange16Slow(c, address)
      return
    }
    // WordPair's first word is at the higher address.
    let atomic = p.assumingMemoryBound(to: Atomic<WordPair>.self)
    let swapped = WordPairOrder.firstIsLow
    let (low, high) = (UInt(c.gpr[0]), UInt(c.gpr[2]))
    let (newLow, newHigh) = (UInt(c.gpr[3]), UInt(c.gpr[1]))
    let result = atomic.pointee.compareExchange(
      expected: swapped ? WordPair(first: low, second: high) : expected,
      desired: swapped
        ? WordPair(first: newLow, second: newHigh) : WordPair(first: newHigh, second: newLow),
      ordering: .sequentiallyConsistent)
    c.setZeroFlag(result.exchanged)
    if !result.exchanged {
      c.gpr[0] = UInt64(swapped ? result.original.first : result.original.second)
      c.gpr[2] = UInt64(swapped ? result.original.second : result.original.first)
    }
  }
}

/// Which of WordPair's words is at the lower address, determined once.
private enum WordPairOrder {
  static let firstIsLow: Bool = {
    var pair = WordPair(first: 1, second: 2)
    return withUnsafeBytes(of: &pair) { $0.load(as: UInt.self) == 1 }
  }()
}

private func compareExchange16Slow(_ c: CPU, _ address: UInt64) throws(GuestException) {
  let low: UInt64 = try c.load(address)
  let high: UInt64 = try c.load(address &+ 8)
  let equal = low == c.gpr[0] && high == c.gpr[2]
  try c.store(equal ? c.gpr[3] : low, at: address)
  try c.store(equal ? c.gpr[1] : high, at: address &+ 8)
  c.setZeroFlag(equal)
  if !equal { (c.gpr[0], c.gpr[2]) = (low, high) }
}

extension CPU {
  /// Replaces only ZF.
  func setZeroFlag(_ value: Bool) {
    let flags = arithmeticFlags & ~RFLAGS.zf.rawValue
    arithmeticFlags = flags | (value ? RFLAGS.zf.rawValue : 0)
  }
}

enum AtomicInstructions {
  static func register(_ t: inout LoweringTable) {
    // Rows: exchange and add, compare and exchange
    t[.xadd] = .forms(
      register: .init(
        { exchangeAddR(UInt8.self, $0, $1) },
        { exchangeAddR(UInt16.self, $0, $1) },
        { exchangeAddR(UInt32.self, $0, $1) },
        { exchangeAddR(UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { exchangeAddM(UInt8.self, $0, $1) },
        { exchangeAddM(UInt16.self, $0, $1) },
        { exchangeAddM(UInt32.self, $0, $1) },
        { exchangeAddM(UInt64.self, $0, $1) }))
    t[.cmpxchg] = .forms(
      register: .init(
        { compareExchangeR(UInt8.self, $0, $1) },
        { compareExchangeR(UInt16.self, $0, $1) },
        { compareExchangeR(UInt32.self, $0, $1) },
        { compareExchangeR(UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { compareExchangeM(UInt8.self, $0, $1) },
        { compareExchangeM(UInt16.self, $0, $1) },
        { compareExchangeM(UInt32.self, $0, $1) },
        { compareExchangeM(UInt64.self, $0, $1) }))
    // End of rows
    t[.cmpxchg8b] = .single(compareExchange8)
    t[.cmpxchg16b] = .single(compareExchange16)
  }
}
