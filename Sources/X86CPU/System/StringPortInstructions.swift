// SPDX-License-Identifier: Apache-2.0
//
// INS and OUTS, with REP. They exit before the first iteration, with the linear address of the
// memory operand; the hypervisor then has the processor execute them again, with a context that
// answers for the ports. A repeated one continues until RCX is 0, a request is pending, or the
// context stops: the registers then say where.
//
//     micro-op: immediate = OperandSummary; register0 bit 0 = REP

import X86
import X86Decoder

enum StringPortInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.ins] = rule({ system($0, $1, StringPortInstructions.ins) })
    t[.outs] = rule({ system($0, $1, StringPortInstructions.outs) })
  }

  private static func rule(_ handler: @escaping Handler) -> LoweringRule {
    .custom { instruction, op, _ in
      op.pointee.immediate = UInt64(OperandSummary(instruction).rawValue)
      let isRepeated = !instruction.prefixes.isDisjoint(with: [.rep, .repne])
      op.pointee.register0 = isRepeated ? 1 : 0
      op.pointee.operandSize = min(instruction.operandSize, 4)
      return handler
    }
  }

  static func ins(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try run(c, i, isInput: true, pointer: GeneralRegister.rdi, segment: .es)
  }

  static func outs(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let segment = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    return try run(c, i, isInput: false, pointer: GeneralRegister.rsi, segment: segment)
  }

  private static func run(
    _ c: CPU, _ i: MicroOpPointer, isInput: Bool, pointer: GeneralRegister,
    segment: SegmentRegister
  ) throws(GuestException) -> Int32 {
    let size = Int(i.pointee.operandSize)
    let isRepeated = i.pointee.register0 != 0
    let mask = addressMask(i)
    let register = Int(pointer.rawValue)
    let port = UInt16(truncatingIfNeeded: c.gpr[2])
    try c.requirePort(port, size: size)
    if isRepeated && c.gpr[1] & mask == 0 { return Step.next }
    if c.portExits(port, size: size) {
      throw exit(c, i, isInput, port, segment, c.gpr[register] & mask)
    }
    let step = UInt64(size)
    let delta = c.s.pointee.rflags & RFLAGS.df.rawValue != 0 ? 0 &- step : step
    while true {
      let offset = c.gpr[register] & mask
      if isInput {
        try inputOne(c, port, size, segment, offset)
      } else {
        let address = try c.linear(segment, offset, size: size, .read)
        try c.writePort(port, size, try load(c, address, size))
      }
      advance(c, register, by: delta, mask)
      c.notePortAccess(port, size: size)
      if !isRepeated { return c.reload(i) }
      advance(c, 1, by: .max, mask)
      if c.gpr[1] & mask == 0 { return c.reload(i) }
      // Emulation continues: it was entered to complete the transfer.
      let isAsked = c.s.requests != 0 && c.s.pointee.emulation == nil
      if isAsked || c.s.pointee.slow & ~SlowReason.counting != 0 {
        c.s.pointee.rip = c.currentRIP(i)
        c.noteUnfinished()
        return Step.reload
      }
    }
  }

  private static func exit(
    _ c: CPU, _ i: MicroOpPointer, _ isInput: Bool, _ port: UInt16, _ segment: SegmentRegister,
    _ offset: UInt64
  ) -> GuestException {
    let details: ExitDetails = i.pointee.register0 != 0 ? [.isString, .isRepeated] : .isString
    let exit = c.exit(i, port: port, isInput: isInput, details)
    let base = c.is64Bit && segment != .fs && segment != .gs ? 0 : c.segment(segment).pointee.base
    let linear = offset &+ base
    c.s.pointee.exit.linear = c.is64Bit ? linear : linear & 0xFFFF_FFFF
    c.s.pointee.exit.operands = OperandSummary(of: i)
    return exit
  }

  /// Checks that the destination is writable before reading the port: a read may have side effects.
  private static func inputOne(
    _ c: CPU, _ port: UInt16, _ size: Int, _ segment: SegmentRegister, _ offset: UInt64
  ) throws(GuestException) {
    let address = try c.linear(segment, offset, size: size, .write)
    _ = try c.pointerForModify(address, size: 1)
    _ = try c.pointerForModify(address &+ UInt64(truncatingIfNeeded: size &- 1), size: 1)
    let value = try c.readPort(port, size)
    switch size {
    case 1: try c.store(UInt8(truncatingIfNeeded: value), at: address)
    case 2: try c.store(UInt16(truncatingIfNeeded: value), at: address)
    default: try c.store(UInt32(truncatingIfNeeded: value), at: address)
    }
  }

  private static func load(
    _ c: CPU, _ address: UInt64, _ size: Int
  ) throws(GuestException) -> UInt64 {
    switch size {
    case 1: UInt64(try c.load(address, as: UInt8.self))
    case 2: UInt64(try c.load(address, as: UInt16.self))
    default: UInt64(try c.load(address, as: UInt32.self))
    }
  }

  private static func addressMask(_ i: MicroOpPointer) -> UInt64 {
    switch i.pointee.addressSize {
    case 8: .max
    case 4: 0xFFFF_FFFF
    default: 0xFFFF
    }
  }

  /// Adds to a register at the address size: 16 bits keep the rest, 32 bits clear the upper half.
  private static func advance(_ c: CPU, _ register: Int, by delta: UInt64, _ mask: UInt64) {
    let value = (c.gpr[register] &+ delta) & mask
    c.gpr[register] = mask == 0xFFFF ? c.gpr[register] & ~mask | value : value
  }
}
