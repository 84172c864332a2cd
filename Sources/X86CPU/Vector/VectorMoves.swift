// SPDX-License-Identifier: Apache-2.0
//
// Plain moves, copied without a stub: whole registers, and 4 or 8 bytes between the low part of a
// register and memory or a general register. All masked moves use stubs.
//
// In the micro-ops of whole-register moves `immediate` is the alignment mask of the memory operand.

import X86
import X86Decoder

// MARK: Whole registers

@inline(__always) private func moveRegister<G: VectorGate, T>(
  _ g: G.Type, _ t: T.Type, clears: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    i.pointee.dst.storeBytes(of: i.pointee.src.loadUnaligned(as: T.self), as: T.self)
    if clears { c.clearUpper(i.pointee.dst, MemoryLayout<T>.size) }
  }
}

@inline(__always) private func moveLoad<G: VectorGate, T>(
  _ g: G.Type, _ t: T.Type, clears: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  let size = MemoryLayout<T>.size
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let address = try c.linearAddress(i, size: size)
    if address & i.pointee.immediate != 0 { throw .generalProtection }
    let source = try c.pointerForRead(address, size: size)
    i.pointee.dst.storeBytes(of: source.loadUnaligned(as: T.self), as: T.self)
    if clears { c.clearUpper(i.pointee.dst, size) }
  }
}

@inline(__always) private func moveStore<G: VectorGate, T>(
  _ g: G.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  let size = MemoryLayout<T>.size
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let address = try c.linearAddress(i, size: size, .write)
    if address & i.pointee.immediate != 0 { throw .generalProtection }
    if let target = try c.pointerForModify(address, size: size) {
      target.storeBytes(of: i.pointee.src.loadUnaligned(as: T.self), as: T.self)
    } else {
      try c.storeBytes(i.pointee.src, at: address, size: size)
    }
  }
}

extension CPU {
  /// Zeroes a vector register from byte 16 or 32 on.
  @inline(__always) fileprivate func clearUpper(_ register: UnsafeMutableRawPointer, _ size: Int) {
    if size == 16 { register.storeBytes(of: .zero, toByteOffset: 16, as: SIMD2<UInt64>.self) }
    if size <= 32 { register.storeBytes(of: .zero, toByteOffset: 32, as: SIMD4<UInt64>.self) }
  }
}

/// Handlers of one gate and width.
private struct WholeMoves {
  var register: Handler
  var load: Handler
  var store: Handler

  static let sse = WholeMoves(
    register: { moveRegister(SSEGate.self, SIMD2<UInt64>.self, clears: false, $0, $1) },
    load: { moveLoad(SSEGate.self, SIMD2<UInt64>.self, clears: false, $0, $1) },
    store: { moveStore(SSEGate.self, SIMD2<UInt64>.self, $0, $1) })
  static let avx16 = WholeMoves(
    register: { moveRegister(AVXGate.self, SIMD2<UInt64>.self, clears: true, $0, $1) },
    load: { moveLoad(AVXGate.self, SIMD2<UInt64>.self, clears: true, $0, $1) },
    store: { moveStore(AVXGate.self, SIMD2<UInt64>.self, $0, $1) })
  static let avx32 = WholeMoves(
    register: { moveRegister(AVXGate.self, SIMD4<UInt64>.self, clears: true, $0, $1) },
    load: { moveLoad(AVXGate.self, SIMD4<UInt64>.self, clears: true, $0, $1) },
    store: { moveStore(AVXGate.self, SIMD4<UInt64>.self, $0, $1) })
  static let evex16 = WholeMoves(
    register: { moveRegister(AVX512Gate.self, SIMD2<UInt64>.self, clears: true, $0, $1) },
    load: { moveLoad(AVX512Gate.self, SIMD2<UInt64>.self, clears: true, $0, $1) },
    store: { moveStore(AVX512Gate.self, SIMD2<UInt64>.self, $0, $1) })
  static let evex32 = WholeMoves(
    register: { moveRegister(AVX512Gate.self, SIMD4<UInt64>.self, clears: true, $0, $1) },
    load: { moveLoad(AVX512Gate.self, SIMD4<UInt64>.self, clears: true, $0, $1) },
    store: { moveStore(AVX512Gate.self, SIMD4<UInt64>.self, $0, $1) })
  static let evex64 = WholeMoves(
    register: { moveRegister(AVX512Gate.self, SIMD8<UInt64>.self, clears: false, $0, $1) },
    load: { moveLoad(AVX512Gate.self, SIMD8<UInt64>.self, clears: false, $0, $1) },
    store: { moveStore(AVX512Gate.self, SIMD8<UInt64>.self, $0, $1) })

  static func of(_ i: Instruction) -> WholeMoves {
    let length = i.encoding.vectorLength
    if i.prefixes.contains(.evex) {
      return length == 64 ? evex64 : length == 32 ? evex32 : evex16
    }
    guard i.prefixes.contains(.vex) else { return sse }
    return length == 32 ? avx32 : avx16
  }
}

// MARK: Low parts

@inline(__always) private func lowLoad<G: VectorGate, T: OperandInteger>(
  _ g: G.Type, _ t: T.Type, clears: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size)
    let value = try c.load(address, as: T.self)
    c.setLow(i.pointee.dst, UInt64(truncatingIfNeeded: value), clears: clears)
  }
}

@inline(__always) private func lowStore<G: VectorGate, T: OperandInteger>(
  _ g: G.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    try c.store(i.pointee.src.load(as: T.self), at: address)
  }
}

/// From a general register, or between vector registers.
@inline(__always) private func lowFrom<G: VectorGate, T: OperandInteger>(
  _ g: G.Type, _ t: T.Type, clears: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    let value = i.pointee.src.load(as: T.self)
    c.setLow(i.pointee.dst, UInt64(truncatingIfNeeded: value), clears: clears)
  }
}

/// To a general register.
@inline(__always) private func lowTo<G: VectorGate, T: OperandInteger>(
  _ g: G.Type, _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try G.check(c)
    c.write(i.pointee.src.load(as: T.self), to: i.pointee.dst)
  }
}

extension CPU {
  /// XMM = value, zero-extended; the rest of the register is kept or cleared.
  @inline(__always) fileprivate func setLow(
    _ register: UnsafeMutableRawPointer, _ value: UInt64, clears: Bool
  ) {
    register.storeBytes(of: SIMD2(value, 0), as: SIMD2<UInt64>.self)
    if clears { clearUpper(register, 16) }
  }
}

/// Handlers of one gate and of 4 or 8 bytes.
private struct LowMoves {
  var load: Handler
  var store: Handler
  var fromRegister: Handler
  var toGeneral: Handler

  static let sse4 = LowMoves(
    load: { lowLoad(SSEGate.self, UInt32.self, clears: false, $0, $1) },
    store: { lowStore(SSEGate.self, UInt32.self, $0, $1) },
    fromRegister: { lowFrom(SSEGate.self, UInt32.self, clears: false, $0, $1) },
    toGeneral: { lowTo(SSEGate.self, UInt32.self, $0, $1) })
  static let sse8 = LowMoves(
    load: { lowLoad(SSEGate.self, UInt64.self, clears: false, $0, $1) },
    store: { lowStore(SSEGate.self, UInt64.self, $0, $1) },
    fromRegister: { lowFrom(SSEGate.self, UInt64.self, clears: false, $0, $1) },
    toGeneral: { lowTo(SSEGate.self, UInt64.self, $0, $1) })
  static let avx4 = LowMoves(
    load: { lowLoad(AVXGate.self, UInt32.self, clears: true, $0, $1) },
    store: { lowStore(AVXGate.self, UInt32.self, $0, $1) },
    fromRegister: { lowFrom(AVXGate.self, UInt32.self, clears: true, $0, $1) },
    toGeneral: { lowTo(AVXGate.self, UInt32.self, $0, $1) })
  static let avx8 = LowMoves(
    load: { lowLoad(AVXGate.self, UInt64.self, clears: true, $0, $1) },
    store: { lowStore(AVXGate.self, UInt64.self, $0, $1) },
    fromRegister: { lowFrom(AVXGate.self, UInt64.self, clears: true, $0, $1) },
    toGeneral: { lowTo(AVXGate.self, UInt64.self, $0, $1) })
}

// MARK: XOR of registers, mostly used to zero them

private let exclusiveOr: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try SSEGate.check(c)
    let a = i.pointee.dst.load(as: SIMD2<UInt64>.self)
    let b = i.pointee.src.load(as: SIMD2<UInt64>.self)
    i.pointee.dst.storeBytes(of: a ^ b, as: SIMD2<UInt64>.self)
  }
}

// MARK: Selection

enum VectorMoves {
  static func register(_ t: inout LoweringTable) {
    for mnemonic in whole { t[mnemonic] = .custom(lowerWhole) }
    for mnemonic in low { t[mnemonic] = .custom(lowerLow) }
    for mnemonic in [.pxor, .xorps, .xorpd] as [Mnemonic] {
      t[mnemonic] = .custom { i, op, c in
        guard i.operands[0].kind == .vector, i.operands[1].kind == .vector,
          VectorInstructions.isAvailable(i, c)
        else { return VectorInstructions.lowerStub(i, op, c) }
        return exclusiveOr
      }
    }
  }

  private static let whole: [Mnemonic] = [
    .movups, .movaps, .movupd, .movapd, .movdqa, .movdqu, .lddqu, .movntdqa, .movntps, .movntpd,
    .movntdq, .vmovups, .vmovaps, .vmovupd, .vmovapd, .vmovdqa, .vmovdqu, .vlddqu, .vmovntdqa,
    .vmovntps, .vmovntpd, .vmovntdq, .vmovdqu8, .vmovdqu16, .vmovdqu32, .vmovdqu64, .vmovdqa32,
    .vmovdqa64,
  ]

  private static let low: [Mnemonic] = [
    .movd, .movq, .movss, .movsd, .vmovd, .vmovq, .vmovss, .vmovsd,
  ]

  private static func lowerWhole(_ i: Instruction, _ op: MicroOpPointer, _ c: CPU) -> Handler? {
    guard VectorInstructions.isAvailable(i, c) else { return nil }
    if i.encoding.evexMask != 0 { return VectorInstructions.lowerStub(i, op, c) }
    let size = i.encoding.vectorLength
    let isAligned = i.attributes.contains(.aligned) && i.memoryOperand != nil
    op.pointee.immediate = isAligned ? UInt64(size - 1) : 0
    let moves = WholeMoves.of(i)
    switch i.memoryOperand {
    case nil: return moves.register
    case 0: return moves.store
    default: return moves.load
    }
  }

  private static func lowerLow(_ i: Instruction, _ op: MicroOpPointer, _ c: CPU) -> Handler? {
    guard VectorInstructions.isAvailable(i, c) else { return nil }
    let isScalar = i.encoding.opcode == 0x10 || i.encoding.opcode == 0x11
    let mergesRegisters = isScalar && i.memoryOperand == nil
    if i.usesMMX || i.prefixes.contains(.evex) || mergesRegisters {
      return VectorInstructions.lowerStub(i, op, c)
    }
    let isVEX = i.prefixes.contains(.vex)
    let moves = width(i) == 8 ? (isVEX ? LowMoves.avx8 : .sse8) : (isVEX ? .avx4 : .sse4)
    switch i.memoryOperand {
    case 0: return moves.store
    case 1: return moves.load
    default: return i.operands[0].kind == .general ? moves.toGeneral : moves.fromRegister
    }
  }

  private static func width(_ i: Instruction) -> UInt8 {
    switch i.mnemonic {
    case .movd, .vmovd, .movss, .vmovss: 4
    case .movq, .vmovq: i.mode == .bits64 || i.generalOperand == nil ? 8 : 4
    default: 8
    }
  }
}
