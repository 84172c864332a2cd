// SPDX-License-Identifier: Apache-2.0
//
// IN and OUT: permission by IOPL and the TSS's I/O bitmap, exits, I/O breakpoints. INS and OUTS are
// in StringPortInstructions.
//
// Without an exit, port reads return all ones and writes are dropped. During emulation the
// hypervisor's context answers instead.

import X86
import X86Decoder

enum PortInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.in] = portRule(port: 1, { system($0, $1, PortInstructions.input) })
    t[.out] = portRule(port: 0, { system($0, $1, PortInstructions.output) })
    StringPortInstructions.register(&t)
  }

  /// Stores an immediate port in `immediate`, and in `register0` whether it is one.
  private static func portRule(port operand: Int, _ handler: @escaping Handler) -> LoweringRule {
    .custom { instruction, op, _ in
      let isImmediate = instruction.operands[operand].kind == .immediate
      op.pointee.immediate = UInt64(bitPattern: instruction.immediate) & 0xFF
      op.pointee.register0 = isImmediate ? 1 : 0
      op.pointee.operandSize = min(instruction.operandSize, 4)
      return handler
    }
  }

  static func input(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let size = Int(i.pointee.operandSize)
    let port = try prepare(c, i, size, isInput: true)
    let value = try c.readPort(port, size)
    switch size {
    case 1: c.write(UInt8(truncatingIfNeeded: value), to: c.raw)
    case 2: c.write(UInt16(truncatingIfNeeded: value), to: c.raw)
    default: c.write(UInt32(truncatingIfNeeded: value), to: c.raw)
    }
    c.notePortAccess(port, size: size)
    return c.reload(i)
  }

  static func output(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let size = Int(i.pointee.operandSize)
    let port = try prepare(c, i, size, isInput: false)
    let mask: UInt64 = size == 1 ? 0xFF : size == 2 ? 0xFFFF : 0xFFFF_FFFF
    try c.writePort(port, size, c.gpr[0] & mask)
    c.notePortAccess(port, size: size)
    return c.reload(i)
  }

  /// Checks permission, then exits. Returns the port.
  private static func prepare(
    _ c: CPU, _ i: MicroOpPointer, _ size: Int, isInput: Bool
  ) throws(GuestException) -> UInt16 {
    let isImmediate = i.pointee.register0 != 0
    let port = UInt16(truncatingIfNeeded: isImmediate ? i.pointee.immediate : c.gpr[2])
    try c.requirePort(port, size: size)
    if c.portExits(port, size: size) {
      throw c.exit(i, port: port, isInput: isInput, isImmediate ? .isImmediate : [])
    }
    return port
  }
}

extension CPU {
  /// #GP(0) unless IOPL or the TSS's I/O-permission bitmap allows the ports (SDM volume 1, "I/O
  /// Privilege Level" and "I/O Permission Bit Map").
  func requirePort(_ port: UInt16, size: Int) throws(GuestException) {
    if !isProtected { return }
    let iopl = (s.pointee.rflags & RFLAGS.iopl.rawValue) >> RFLAGS.ioplShift
    if UInt64(cpl) <= iopl && !isVirtual8086 { return }
    let tss = segment(.tr)
    let rights = tss.pointee.rights
    let is32Bit = rights.type & ~2 == SystemDescriptorType.tssAvailable
    guard !rights.isUnusable, is32Bit, tss.pointee.limit >= 103 else { throw .generalProtection }
    let map = UInt64(try loadSystem(tss.pointee.base &+ 102, as: UInt16.self))
    // Two bytes are always read, and both must be inside the TSS.
    let offset = map &+ UInt64(port >> 3)
    if offset &+ 1 > UInt64(tss.pointee.limit) { throw .generalProtection }
    let bits = try loadSystem(tss.pointee.base &+ offset, as: UInt16.self)
    let mask = (UInt16(1) << UInt16(size) &- 1) << (port & 7)
    if bits & mask != 0 { throw .generalProtection }
  }

  /// Records the exit of a port access.
  func exit(
    _ i: MicroOpPointer, port: UInt16, isInput: Bool, _ details: ExitDetails
  ) -> GuestException {
    let exception = exit(.ioInstruction, i)
    s.pointee.exit.selector = port
    s.pointee.exit.size = i.pointee.operandSize
    s.pointee.exit.access = isInput ? .read : .write
    s.pointee.exit.details = details
    return exception
  }

  /// Reads a port that did not exit.
  ///
  /// - Throws: `.vmExit` if the context of the running emulation stops.
  func readPort(_ port: UInt16, _ size: Int) throws(GuestException) -> UInt64 {
    guard s.pointee.emulation != nil, let context = owner.emulationContext else {
      return .max
    }
    guard let value = context.readPort(port, size: size) else { throw .vmExit }
    return value
  }

  /// Writes a port that did not exit.
  func writePort(_ port: UInt16, _ size: Int, _ value: UInt64) throws(GuestException) {
    guard s.pointee.emulation != nil, let context = owner.emulationContext else { return }
    if !context.writePort(port, size: size, value: value) { throw .vmExit }
  }
}
