// SPDX-License-Identifier: Apache-2.0
//
// MOV, MOVZX, MOVSX, MOVSXD, LEA, XCHG, BSWAP, CBW and CWD families, XLAT, MOVNTI, MOVBE.

import X86
import X86Decoder

@inline(__always) private func moveR<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let i = Handlers.op(i).pointee
  let c = CPU(c)
  c.write(c.read(i.src, as: T.self), to: i.dst)
  return Step.next
}

@inline(__always) private func moveL<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size)
    c.write(try c.load(address, as: T.self), to: i.pointee.dst)
  }
}

@inline(__always) private func moveS<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    try c.store(c.read(i.pointee.src, as: T.self), at: address)
  }
}

/// MOV between accumulator and an absolute offset, all of which is in `immediate`.
@inline(__always) private func moveAbsolute<T: OperandInteger>(
  _ t: T.Type, store: Bool, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let register = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    let size = MemoryLayout<T>.size
    let address = try c.linear(register, i.pointee.immediate, size: size, store ? .write : .read)
    if store {
      try c.store(c.read(c.raw, as: T.self), at: address)
    } else {
      c.write(try c.load(address, as: T.self), to: c.raw)
    }
  }
}

/// The register form of an extending move from S to D; signed if `D` is.
@inline(__always) private func extendR<S: FixedWidthInteger & Sendable, D: OperandInteger>(
  _ s: S.Type, _ d: D.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let i = Handlers.op(i).pointee
  CPU(c).write(D(truncatingIfNeeded: i.src.load(as: S.self)), to: i.dst)
  return Step.next
}

@inline(__always)
private func extendL<S: FixedWidthInteger & Sendable, U: OperandInteger, D: OperandInteger>(
  _ s: S.Type, _ u: U.Type, _ d: D.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<S>.size)
    let value = S(truncatingIfNeeded: try c.load(address, as: U.self))
    c.write(D(truncatingIfNeeded: value), to: i.pointee.dst)
  }
}

@inline(__always) private func loadAddress<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  c.write(T(truncatingIfNeeded: c.effectiveAddress(i)), to: i.pointee.dst)
  return Step.next
}

@inline(__always) private func exchangeR<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i).pointee
  let (a, b) = (c.read(i.dst, as: T.self), c.read(i.src, as: T.self))
  c.write(b, to: i.dst)
  c.write(a, to: i.src)
  return Step.next
}

/// XCHG with memory is locked with or without the prefix. `register` is the register operand.
@inline(__always) private func exchangeM<T: OperandInteger & AtomicOperand>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    let register = i.pointee.src
    let value = c.read(register, as: T.self)
    if let p = try c.pointerForModify(address, size: MemoryLayout<T>.size) {
      c.write(T.atomicExchange(p, value), to: register)
    } else {
      try splitLock { () throws(GuestException) in
        let old = try c.load(address, as: T.self)
        try c.store(value, at: address)
        c.write(old, to: register)
      }
    }
  }
}

@inline(__always) private func swapLoad<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size)
    c.write(try c.load(address, as: T.self).byteSwapped, to: i.pointee.dst)
  }
}

@inline(__always) private func swapStore<T: OperandInteger>(
  _ t: T.Type, _ c: RawPointer, _ i: RawPointer
) -> Int32 {
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let address = try c.linearAddress(i, size: MemoryLayout<T>.size, .write)
    try c.store(c.read(i.pointee.src, as: T.self).byteSwapped, at: address)
  }
}

enum DataMovement {
  static func register(_ t: inout LoweringTable) {
    registerMove(&t)
    registerExtend(&t)
    registerExchange(&t)
    registerConversions(&t)
  }

  private static func registerMove(_ t: inout LoweringTable) {
    // Rows: MOV
    let register = WidthHandlers(
      { moveR(UInt8.self, $0, $1) },
      { moveR(UInt16.self, $0, $1) },
      { moveR(UInt32.self, $0, $1) },
      { moveR(UInt64.self, $0, $1) })
    let load = WidthHandlers(
      { moveL(UInt8.self, $0, $1) },
      { moveL(UInt16.self, $0, $1) },
      { moveL(UInt32.self, $0, $1) },
      { moveL(UInt64.self, $0, $1) })
    let store = WidthHandlers(
      { moveS(UInt8.self, $0, $1) },
      { moveS(UInt16.self, $0, $1) },
      { moveS(UInt32.self, $0, $1) },
      { moveS(UInt64.self, $0, $1) })
    let absoluteLoad = WidthHandlers(
      { moveAbsolute(UInt8.self, store: false, $0, $1) },
      { moveAbsolute(UInt16.self, store: false, $0, $1) },
      { moveAbsolute(UInt32.self, store: false, $0, $1) },
      { moveAbsolute(UInt64.self, store: false, $0, $1) })
    let absoluteStore = WidthHandlers(
      { moveAbsolute(UInt8.self, store: true, $0, $1) },
      { moveAbsolute(UInt16.self, store: true, $0, $1) },
      { moveAbsolute(UInt32.self, store: true, $0, $1) },
      { moveAbsolute(UInt64.self, store: true, $0, $1) })
    // End of rows
    t[.mov] = .custom { i, op, _ in
      let size = i.operandSize
      guard let memory = i.memoryOperand else { return register[size] }
      if i.isAbsolute {
        op.pointee.immediate = UInt64(bitPattern: i.displacement)
        return memory == 0 ? absoluteStore[size] : absoluteLoad[size]
      }
      return memory == 0 ? store[size] : load[size]
    }
    t[.movnti] = .widths(store)
    // Rows: LEA
    t[.lea] = .widths(
      .init(
        nil,
        { loadAddress(UInt16.self, $0, $1) },
        { loadAddress(UInt32.self, $0, $1) },
        { loadAddress(UInt64.self, $0, $1) }))
    // End of rows
    t[.xlat] = .single(translateByte)
  }

  /// By source size (operand 1) and destination size.
  private static func extendRule(
    _ register: [UInt8: WidthHandlers], _ load: [UInt8: WidthHandlers]
  ) -> LoweringRule {
    .custom { i, _, _ in
      (i.memoryOperand == nil ? register : load)[i.operands[1].size]?[i.operandSize]
    }
  }

  private static func registerExtend(_ t: inout LoweringTable) {
    // Rows: extending moves
    t[.movzx] = extendRule(
      [
        1: .init(
          nil,
          { extendR(UInt8.self, UInt16.self, $0, $1) },
          { extendR(UInt8.self, UInt32.self, $0, $1) },
          { extendR(UInt8.self, UInt64.self, $0, $1) }),
        2: .init(
          nil,
          { extendR(UInt16.self, UInt16.self, $0, $1) },
          { extendR(UInt16.self, UInt32.self, $0, $1) },
          { extendR(UInt16.self, UInt64.self, $0, $1) }),
      ],
      [
        1: .init(
          nil,
          { extendL(UInt8.self, UInt8.self, UInt16.self, $0, $1) },
          { extendL(UInt8.self, UInt8.self, UInt32.self, $0, $1) },
          { extendL(UInt8.self, UInt8.self, UInt64.self, $0, $1) }),
        2: .init(
          nil,
          { extendL(UInt16.self, UInt16.self, UInt16.self, $0, $1) },
          { extendL(UInt16.self, UInt16.self, UInt32.self, $0, $1) },
          { extendL(UInt16.self, UInt16.self, UInt64.self, $0, $1) }),
      ])
    t[.movsx] = extendRule(
      [
        1: .init(
          nil,
          { extendR(Int8.self, UInt16.self, $0, $1) },
          { extendR(Int8.self, UInt32.self, $0, $1) },
          { extendR(Int8.self, UInt64.self, $0, $1) }),
        2: .init(
          nil,
          { extendR(Int16.self, UInt16.self, $0, $1) },
          { extendR(Int16.self, UInt32.self, $0, $1) },
          { extendR(Int16.self, UInt64.self, $0, $1) }),
      ],
      [
        1: .init(
          nil,
          { extendL(Int8.self, UInt8.self, UInt16.self, $0, $1) },
          { extendL(Int8.self, UInt8.self, UInt32.self, $0, $1) },
          { extendL(Int8.self, UInt8.self, UInt64.self, $0, $1) }),
        2: .init(
          nil,
          { extendL(Int16.self, UInt16.self, UInt16.self, $0, $1) },
          { extendL(Int16.self, UInt16.self, UInt32.self, $0, $1) },
          { extendL(Int16.self, UInt16.self, UInt64.self, $0, $1) }),
      ])
    t[.movsxd] = extendRule(
      [
        2: .init(
          nil,
          { extendR(Int16.self, UInt16.self, $0, $1) },
          { extendR(Int16.self, UInt32.self, $0, $1) },
          { extendR(Int16.self, UInt64.self, $0, $1) }),
        4: .init(
          nil,
          { extendR(Int32.self, UInt16.self, $0, $1) },
          { extendR(Int32.self, UInt32.self, $0, $1) },
          { extendR(Int32.self, UInt64.self, $0, $1) }),
      ],
      [
        2: .init(
          nil,
          { extendL(Int16.self, UInt16.self, UInt16.self, $0, $1) },
          { extendL(Int16.self, UInt16.self, UInt32.self, $0, $1) },
          { extendL(Int16.self, UInt16.self, UInt64.self, $0, $1) }),
        4: .init(
          nil,
          { extendL(Int32.self, UInt32.self, UInt16.self, $0, $1) },
          { extendL(Int32.self, UInt32.self, UInt32.self, $0, $1) },
          { extendL(Int32.self, UInt32.self, UInt64.self, $0, $1) }),
      ])
    // End of rows
  }

  private static func registerExchange(_ t: inout LoweringTable) {
    // Rows: XCHG
    let register = WidthHandlers(
      { exchangeR(UInt8.self, $0, $1) },
      { exchangeR(UInt16.self, $0, $1) },
      { exchangeR(UInt32.self, $0, $1) },
      { exchangeR(UInt64.self, $0, $1) })
    let memory = WidthHandlers(
      { exchangeM(UInt8.self, $0, $1) },
      { exchangeM(UInt16.self, $0, $1) },
      { exchangeM(UInt32.self, $0, $1) },
      { exchangeM(UInt64.self, $0, $1) })
    // End of rows
    t[.xchg] = .custom { i, op, c in
      guard let operand = i.memoryOperand else { return register[i.operandSize] }
      // The handler wants the register in `src`, whichever operand it is.
      op.pointee.src = Lowering.generalRegister(i.operands[1 - operand].number, c)
      return memory[i.operandSize]
    }
    // Rows: MOVBE
    t[.movbe] = .forms(
      register: .init(),
      load: .init(
        nil,
        { swapLoad(UInt16.self, $0, $1) },
        { swapLoad(UInt32.self, $0, $1) },
        { swapLoad(UInt64.self, $0, $1) }),
      store: .init(
        nil,
        { swapStore(UInt16.self, $0, $1) },
        { swapStore(UInt32.self, $0, $1) },
        { swapStore(UInt64.self, $0, $1) }))
    // End of rows
  }

  private static func registerConversions(_ t: inout LoweringTable) {
    // BSWAP of a 16-bit register is undefined; processors clear it.
    t[.bswap] = .widths(
      .init(
        nil,
        { c, i in
          CPU(c).write(UInt16(0), to: Handlers.op(i).pointee.dst)
          return Step.next
        },
        { c, i in
          let dst = Handlers.op(i).pointee.dst
          CPU(c).write(dst.load(as: UInt32.self).byteSwapped, to: dst)
          return Step.next
        },
        { c, i in
          let dst = Handlers.op(i).pointee.dst
          CPU(c).write(dst.load(as: UInt64.self).byteSwapped, to: dst)
          return Step.next
        }))
    t[.cbw] = .single { c, _ in
      CPU(c).write(UInt16(bitPattern: Int16(c.load(as: Int8.self))), to: c)
      return Step.next
    }
    t[.cwde] = .single { c, _ in
      CPU(c).write(UInt32(bitPattern: Int32(c.load(as: Int16.self))), to: c)
      return Step.next
    }
    t[.cdqe] = .single { c, _ in
      CPU(c).write(UInt64(bitPattern: Int64(c.load(as: Int32.self))), to: c)
      return Step.next
    }
    t[.cwd] = .single { c, _ in
      CPU(c).write(UInt16(bitPattern: c.load(as: Int16.self) >> 15), to: c + 16)
      return Step.next
    }
    t[.cdq] = .single { c, _ in
      CPU(c).write(UInt32(bitPattern: c.load(as: Int32.self) >> 31), to: c + 16)
      return Step.next
    }
    t[.cqo] = .single { c, _ in
      CPU(c).write(UInt64(bitPattern: c.load(as: Int64.self) >> 63), to: c + 16)
      return Step.next
    }
  }
}

private let translateByte: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let offset = (c.gpr[3] &+ (c.gpr[0] & 0xFF)) & c.addressMask(i)
    let register = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    let address = try c.linear(register, offset, size: 1, .read)
    c.write(try c.load(address, as: UInt8.self), to: c.raw)
  }
}

extension Instruction {
  /// MOV between the accumulator and an absolute offset (opcodes A0 to A3).
  fileprivate var isAbsolute: Bool {
    encoding.map == .oneByte && encoding.opcode & 0xFC == 0xA0
  }
}
