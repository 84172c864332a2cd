// SPDX-License-Identifier: Apache-2.0
//
// PUSH, POP, PUSHA, POPA, ENTER, LEAVE, and the stack operations that other families share.

import X86
import X86Decoder

extension CPU {
  /// Mask of the stack pointer: by SS.B outside 64-bit mode.
  @inline(__always) package var stackMask: UInt64 {
    switch s.pointee.stackMode {
    case 2: .max
    case 1: 0xFFFF_FFFF
    default: 0xFFFF
    }
  }

  /// Sets the part of the stack pointer that the stack's width uses.
  @inline(__always) package func setStackPointer(_ value: UInt64) {
    let mask = stackMask
    gpr[4] = mask == 0xFFFF ? gpr[4] & ~mask | value & mask : value & mask
  }

  @inline(__always) package func addToStackPointer(_ delta: UInt64) {
    setStackPointer(gpr[4] &+ delta)
  }

  @inline(__always) package func load(
    _ linear: UInt64, size: UInt8
  ) throws(GuestException) -> UInt64 {
    switch size {
    case 8: return try load(linear, as: UInt64.self)
    case 4: return UInt64(try load(linear, as: UInt32.self))
    case 2: return UInt64(try load(linear, as: UInt16.self))
    default: return UInt64(try load(linear, as: UInt8.self))
    }
  }

  @inline(__always) package func store(
    _ value: UInt64, at linear: UInt64, size: UInt8
  ) throws(GuestException) {
    switch size {
    case 8: try store(value, at: linear)
    case 4: try store(UInt32(truncatingIfNeeded: value), at: linear)
    case 2: try store(UInt16(truncatingIfNeeded: value), at: linear)
    default: try store(UInt8(truncatingIfNeeded: value), at: linear)
    }
  }

  /// Pushes `size` (2, 4 or 8) bytes.
  @inline(__always) package func push(_ value: UInt64, size: UInt8) throws(GuestException) {
    let sp = (gpr[4] &- UInt64(size)) & stackMask
    let address = is64Bit ? sp : try linear(.ss, sp, size: Int(size), .write)
    do throws(GuestException) {
      try store(value, at: address, size: size)
    } catch {
      throw stackError(error)
    }
    setStackPointer(sp)
  }

  /// Faults as a push of 8 bytes would, in 64-bit mode.
  func probePush() throws(GuestException) {
    do throws(GuestException) {
      _ = try pointerForModify(gpr[4] &- 8, size: 8)
    } catch {
      throw stackError(error)
    }
  }

  /// The value that a pop would return.
  @inline(__always) package func peekStack(
    size: UInt8, offset: UInt64 = 0
  ) throws(GuestException) -> UInt64 {
    let sp = (gpr[4] &+ offset) & stackMask
    let address = is64Bit ? sp : try linear(.ss, sp, size: Int(size), .read)
    do throws(GuestException) {
      return try load(address, size: size)
    } catch {
      throw stackError(error)
    }
  }

  @inline(__always) package func pop(size: UInt8) throws(GuestException) -> UInt64 {
    let value = try peekStack(size: size)
    addToStackPointer(UInt64(size))
    return value
  }

  /// A stack address that is not canonical is #SS(0).
  @inline(__always) func stackError(_ error: GuestException) -> GuestException {
    error.rawValue & GuestException.nonCanonicalBit != 0 ? .stackFault : error
  }
}

enum StackInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.push] = .custom { i, op, _ in
      if i.memoryOperand != nil { return pushMemory }
      // The immediate is operand 0, for which lowering makes no pointer.
      if i.operands[0].kind == .immediate {
        op.pointee.dst =
          UnsafeMutableRawPointer(op) + MemoryLayout<MicroOp>.offset(of: \.immediate)!
      }
      op.pointee.segment = SegmentRegister.ss.rawValue
      return i.operandSize == 8 ? push64 : pushLegacy
    }
    t[.pop] = .custom { i, op, _ in
      if i.memoryOperand != nil { return popMemory }
      op.pointee.segment = SegmentRegister.ss.rawValue
      return i.operandSize == 8 ? pop64 : popLegacy
    }
    t[.pusha] = .single(pushAll)
    t[.popa] = .single(popAll)
    t[.enter] = .custom { i, op, _ in
      op.pointee.immediate =
        UInt64(UInt16(truncatingIfNeeded: i.immediate)) | UInt64(i.immediate2) << 16
      return enter
    }
    t[.leave] = .single(leave)
  }
}

private let push64: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let sp = c.gpr[4] &- 8
    try c.store(i.pointee.dst.load(as: UInt64.self), at: sp)
    c.gpr[4] = sp
  }
}

private let pop64: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let value: UInt64 = try c.load(c.gpr[4])
    c.gpr[4] &+= 8
    i.pointee.dst.storeBytes(of: value, as: UInt64.self)
  }
}

private let pushLegacy: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    try c.push(i.pointee.dst.load(as: UInt64.self), size: i.pointee.operandSize)
  }
}

private let popLegacy: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let size = i.pointee.operandSize
    let value = try c.pop(size: size)
    switch size {
    case 2: c.write(UInt16(truncatingIfNeeded: value), to: i.pointee.dst)
    case 4: c.write(UInt32(truncatingIfNeeded: value), to: i.pointee.dst)
    default: c.write(value, to: i.pointee.dst)
    }
  }
}

private let pushMemory: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let size = i.pointee.operandSize
    let value = try c.load(try c.linearAddress(i, size: Int(size)), size: size)
    try c.push(value, size: size)
  }
}

/// POP m: an address based on RSP uses RSP after the increment.
private let popMemory: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let size = i.pointee.operandSize
    try c.keepingStack { () throws(GuestException) in
      let value = try c.pop(size: size)
      try c.store(value, at: try c.linearAddress(i, size: Int(size), .write), size: size)
    }
  }
}

private let pushAll: Handler = { c, i in
  let c = CPU(c)
  let size = Handlers.op(i).pointee.operandSize
  return attempt(c) { () throws(GuestException) in
    let saved = c.gpr[4]
    try c.keepingStack { () throws(GuestException) in
      for n in 0..<8 { try c.push(n == 4 ? saved : c.gpr[n], size: size) }
    }
  }
}

private let popAll: Handler = { c, i in
  let c = CPU(c)
  let size = Handlers.op(i).pointee.operandSize
  return attempt(c) { () throws(GuestException) in
    var values = InlineArray<8, UInt64>(repeating: 0)
    for n in 0..<8 { values[n] = try c.peekStack(size: size, offset: UInt64(n) * UInt64(size)) }
    for n in 0..<8 where n != 3 {
      let pointer = c.raw + (7 - n) * 8
      if size == 2 {
        c.write(UInt16(truncatingIfNeeded: values[n]), to: pointer)
      } else {
        c.write(UInt32(truncatingIfNeeded: values[n]), to: pointer)
      }
    }
    c.addToStackPointer(UInt64(size) * 8)
  }
}

/// ENTER: immediate has the frame's size in bits 15:0 and the nesting level above.
private let enter: Handler = { c, i in
  let c = CPU(c)
  let i = Handlers.op(i)
  return attempt(c) { () throws(GuestException) in
    let size = i.pointee.operandSize
    do throws(GuestException) {
      try c.keepingStack { () throws(GuestException) in try c.enterFrame(i, size) }
    } catch {
      throw c.stackError(error)
    }
  }
}

extension CPU {
  fileprivate func enterFrame(_ i: MicroOpPointer, _ size: UInt8) throws(GuestException) {
    let allocation = i.pointee.immediate & 0xFFFF
    let level = (i.pointee.immediate >> 16) & 31
    try push(gpr[5], size: size)
    let frame = gpr[4]
    if level > 0 {
      var bp = gpr[5]
      for _ in 1..<max(level, 1) {
        bp = bp &- UInt64(size)
        let offset = bp & stackMask
        let address = is64Bit ? offset : try linear(.ss, offset, size: Int(size), .read)
        try push(try load(address, size: size), size: size)
      }
      try push(frame, size: size)
    }
    setSized(5, frame, size)
    let sp = (gpr[4] &- allocation) & stackMask
    // The new top of the stack must be writable, though nothing is written there.
    let address = is64Bit ? sp : try linear(.ss, sp, size: Int(size), .write)
    _ = try pointerForModify(address, size: Int(size))
    setStackPointer(sp)
  }

  /// Writes a register's low `size` bytes as an operand of that size.
  fileprivate func setSized(_ register: Int, _ value: UInt64, _ size: UInt8) {
    switch size {
    case 2: write(UInt16(truncatingIfNeeded: value), to: raw + register * 8)
    case 4: write(UInt32(truncatingIfNeeded: value), to: raw + register * 8)
    default: gpr[register] = value
    }
  }
}

private let leave: Handler = { c, i in
  let c = CPU(c)
  let size = Handlers.op(i).pointee.operandSize
  return attempt(c) { () throws(GuestException) in
    try c.keepingStack { () throws(GuestException) in
      c.setStackPointer(c.gpr[5])
      c.setSized(5, try c.pop(size: size), size)
    }
  }
}
