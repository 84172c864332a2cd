// SPDX-License-Identifier: Apache-2.0
//
// Bus-lock detection (SDM volume 3, "VMM Bus-Lock Detection"): an atomic access that crosses a
// cache line locks the bus, and with the VM-execution control the guest exits after the
// instruction.
//
// It costs nothing while the control is off: blocks decoded with it have a mode key of their own.
// In them a LOCKed instruction ends its block and its handler is `watched`; the end marker behind
// it, whose operands are otherwise unused, holds its original handler and operand size. Such a
// block is not translated.

import X86
import X86Decoder

enum BusLock {
  static let lineSize: UInt64 = 64

  /// Whether an instruction's memory access is atomic for other processors.
  static func locks(_ i: Instruction) -> Bool {
    i.memoryOperand != nil && (i.prefixes.contains(.lock) || i.mnemonic == .xchg)
  }

  /// Watches the instruction of `op`, which the end marker follows.
  static func watch(_ i: Instruction, _ op: MicroOpPointer) {
    guard !op.pointee.isUndefined, let memory = i.memoryOperand else { return }
    let end = op + 1
    end.pointee.immediate = UInt64(
      UInt(bitPattern: unsafeBitCast(op.pointee.handler, to: Int.self)))
    end.pointee.operandSize = i.operands[memory].size
    let isString =
      [.bts, .btr, .btc].contains(i.mnemonic) && i.operandCount > 1
      && i.operands[1].kind == .general
    end.pointee.scale = isString ? 1 : 0
    op.pointee.handler = watched
  }

  private static let watched: Handler = { c, i in
    let cpu = CPU(c)
    let op = Handlers.op(i)
    let end = (op + 1).pointee
    // The instruction may change its registers or drop the block.
    let asserts = cpu.crossesLine(op, end)
    let handler = unsafeBitCast(Int(truncatingIfNeeded: end.immediate), to: Handler.self)
    let next = cpu.nextRIP(op)
    let step = handler(c, i)
    guard asserts, step == Step.next, cpu.s.pointee.emulation == nil else { return step }
    cpu.s.pointee.rip = next
    if cpu.s.pointee.slow & ~SlowReason.counting != 0 {
      // The end of the instruction comes first (`afterSlowInstruction`).
      cpu.s.pointee.slow |= SlowReason.busLock
      return Step.branch
    }
    cpu.noteBusLockExit()
    return Step.trapExit
  }
}

extension Block {
  /// Its last instruction may lock the bus.
  var watchesBusLock: Bool {
    modeKey & ModeKey.busLock != 0 && count > 0 && ops[Int(count)].immediate != 0
  }
}

extension CPU {
  fileprivate func crossesLine(_ op: MicroOpPointer, _ end: MicroOp) -> Bool {
    let size = Int(end.operandSize)
    guard size > 1, let address = try? lockedAddress(op, end, size) else { return false }
    return address & (BusLock.lineSize - 1) &+ UInt64(size) > BusLock.lineSize
  }

  private func lockedAddress(
    _ op: MicroOpPointer, _ end: MicroOp, _ size: Int
  ) throws(GuestException) -> UInt64 {
    guard end.scale != 0 else { return try linearAddress(op, size: size, .write) }
    let bit =
      switch size {
      case 2: signExtended(read(op.pointee.src, as: UInt16.self))
      case 4: signExtended(read(op.pointee.src, as: UInt32.self))
      default: read(op.pointee.src, as: UInt64.self)
      }
    return try bitStringAddress(op, Int64(bitPattern: bit), size, .write)
  }

  /// Records the exit; RIP is past the instruction.
  func noteBusLockExit() {
    _ = exit(.busLock)
  }
}
