// SPDX-License-Identifier: Apache-2.0
//
// Selects the handlers of vector and x87 instructions. Most run their stub (VectorStub); plain
// moves, instructions with several memory accesses, and those that access only control words have
// their own.

import X86
import X86Decoder

enum VectorInstructions {
  static func register(_ t: inout LoweringTable) {
    // All mnemonics from x87 on are vector instructions.
    for mnemonic in Mnemonic.allCases where mnemonic.rawValue >= Mnemonic.f2xm1.rawValue {
      t[mnemonic] = .custom(lowerStub)
    }
    t[.fwait] = .single(X87Handlers.wait)
    t[.fninit] = .single(X87Handlers.initialize)
    t[.fnclex] = .single(X87Handlers.clearExceptions)
    t[.emms] = .single(MMXHandlers.empty)
    VectorMoves.register(&t)
    VectorControl.register(&t)
    X87Environment.register(&t)
    GatherScatter.register(&t)
  }

  /// Whether host and mode support the instruction.
  static func isAvailable(_ i: Instruction, _ c: CPU) -> Bool {
    if !i.prefixes.isDisjoint(with: [.vex, .evex]) {
      guard c.isProtected, !c.isVirtual8086 else { return false }
    }
    return HostFeatures.current.has(i)
  }

  /// The handler that runs the instruction's stub; nil is #UD.
  static func lowerStub(_ i: Instruction, _ op: MicroOpPointer, _ c: CPU) -> Handler? {
    guard isAvailable(i, c), let stub = VectorStubs.stub(i) else { return nil }
    op.pointee.immediate = UInt64(UInt(bitPattern: stub))
    op.pointee.dst = c.raw
    if let general = i.generalOperand, !i.comparesStrings {
      op.pointee.dst = Lowering.generalRegister(general.number, c)
    }
    if i.attributes.contains(.x87) { return X87Handlers.execute }
    if i.usesMMX {
      let usesVector = i.hostOperands.contains { $0.kind == .vector }
      return usesVector ? MMXHandlers.sseAndMMX : MMXHandlers.mmx
    }
    let memory = i.memoryOperand.map { i.operands[$0] }
    let reports = !i.attributes.isDisjoint(with: [.floatingPoint, .writesFlags])
    return handlers(i).handler(memory: memory, reports: reports)
  }

  private static func handlers(_ i: Instruction) -> StubHandlers {
    if i.prefixes.contains(.evex) { return .avx512 }
    guard i.prefixes.contains(.vex) else { return .sse }
    return i.hostOperands.contains { $0.kind == .mask } ? .avx512 : .avx
  }
}
