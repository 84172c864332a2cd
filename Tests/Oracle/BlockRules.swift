// SPDX-License-Identifier: Apache-2.0
//
// What an instruction may do in a random block, worked out without a state.

import X86
import X86Decoder

enum BlockRules {
  /// False where executors may differ (see `Footprint.areFaultsAgreed` and `UndefinedResults`).
  static func isAllowed(_ i: Instruction) -> Bool {
    if i.memoryIndex != nil {
      if i.feature == .sha { return false }
      if i.attributes.contains(.aligned) && i.encoding.evexMask != 0 { return false }
    }
    if readsStaleStackPointer(i) { return false }
    // See `ImplementationChoice.emptyRepeat`: what follows would differ, too.
    if i.attributes.contains(.string) && i.addressSize == 4 { return false }
    switch i.mnemonic {
    // A count beyond the width leaves the destination undefined.
    case .shld, .shrd: return i.operandSize > 2
    // See `ImplementationChoice.undefinedDestination`.
    case .bsf, .bsr: return i.operandSize != 4
    case .bswap: return i.operandSize > 2
    default: return true
    }
  }

  /// EVEX.X is ignored with a general register. With RSP, and X set nevertheless, a Zen 5 reads the
  /// RSP from before the PUSH or POP ahead of it.
  private static func readsStaleStackPointer(_ i: Instruction) -> Bool {
    guard i.prefixes.contains(.evex), i.memoryIndex == nil, i.encoding.rex & 2 != 0 else {
      return false
    }
    for n in 0..<Int(i.operandCount) where i.operands[n].kind == .general {
      if i.operands[n].number == 4 { return true }
    }
    return false
  }

  /// Those that end most blocks early, or reach other memory.
  static func isRare(_ i: Instruction, _ roles: BlockRoles) -> Bool {
    if i.attributes.contains(.string) || i.attributes.contains(.privileged) { return true }
    if i.prefixes.contains(.lock) && !i.attributes.contains(.lockable) { return true }
    switch i.mnemonic {
    case .in, .out, .cli, .sti, .div, .idiv, .frstor, .fldenv, .enter: return true
    case .fldcw: return true
    case .leave: return !roles.bases.contains(5)
    case .xlat: return !roles.bases.contains(3)
    case .clzero: return !roles.bases.contains(0)
    case .movdir64b: return !roles.bases.contains(i.operands[0].number)
    case .bt, .bts, .btr, .btc:
      return Footprint.isBitString(i) && i.operands[1].number != roles.index
    default: return false
    }
  }

  /// Whether an explicit memory operand is most likely near what the base registers point at.
  static func reachesSandbox(_ i: Instruction, _ roles: BlockRoles) -> Bool {
    guard i.memoryIndex != nil, i.mnemonic != .lea, !i.attributes.contains(.string) else {
      return true
    }
    if i.base == Instruction.ripRegister { return true }
    let hasIndex = i.index != Instruction.noRegister
    // An absolute address has been pointed at the sandbox.
    if i.base == Instruction.noRegister { return !hasIndex }
    return roles.bases.contains(i.base) && (!hasIndex || i.index == roles.index)
      && abs(i.displacement) <= 1024
  }

  static func touchesMemory(_ i: Instruction) -> Bool {
    if i.memoryIndex != nil || i.attributes.contains(.string) { return true }
    for n in 0..<Int(i.operandCount) where i.operands[n].kind == .general {
      if i.operands[n].number & 15 == 4 && i.operands[n].number < 16 { return true }
    }
    switch i.mnemonic {
    case .push, .pop, .pushf, .popf, .pushSegment, .enter, .leave, .xlat, .clzero: return true
    default: return false
    }
  }

  /// Whether it may write a general register.
  static func writes(_ i: Instruction, _ register: UInt8) -> Bool {
    for n in 0..<Int(i.operandCount) {
      let operand = i.operands[n]
      guard operand.kind == .general, operand.access.contains(.write) else { continue }
      let number = operand.number < 16 ? operand.number : operand.number - 16
      if number == register { return true }
    }
    return implicit.contains(register) && writesImplicitly(i)
  }

  private static let implicit: Set<UInt8> = [0, 1, 2, 5, 6, 7]

  private static func writesImplicitly(_ i: Instruction) -> Bool {
    if i.attributes.contains(.string) { return true }
    switch i.mnemonic {
    case .mul, .imul, .div, .idiv, .cbw, .cwde, .cdqe, .cwd, .cdq, .cqo, .xlat, .cmpxchg,
      .cmpxchg8b,
      .cmpxchg16b, .enter, .leave, .lahf, .fnstsw, .pcmpestri, .pcmpistri, .vpcmpestri, .vpcmpistri,
      .in, .mulx:
      return true
    default: return false
    }
  }
}
