// SPDX-License-Identifier: Apache-2.0
//
// `Instruction` to text in Intel syntax, as `objdump -M intel` spells it but with one space:
//
//     Disassembler.text(instruction, at: 0x1000)   // "add rax,QWORD PTR [rbx+rcx*4+0x10]"
//
// For traces and failure messages; it allocates and is not fast.

import X86

public enum Disassembler {
  /// The text of an instruction.
  ///
  /// - Parameters:
  ///   - instruction: the decoded instruction.
  ///   - address: of its first byte, for the targets of branches.
  public static func text(_ instruction: Instruction, at address: UInt64 = 0) -> String {
    var operands: [String] = []
    for index in 0..<Int(instruction.operandCount) {
      operands.append(text(index, of: instruction, at: address))
    }
    if instruction.attributes.contains(.suppressExceptions) {
      let isImmediate = instruction.operands[operands.count - 1].kind == .immediate
      operands[operands.count - (isImmediate ? 2 : 1)] += roundingText(instruction)
    }
    if !operands.isEmpty, instruction.encoding.evexMask != 0 {
      operands[0] += "{k\(instruction.encoding.evexMask)}"
      if instruction.encoding.evexZeroing { operands[0] += "{z}" }
    }
    let words = prefixText(instruction) + name(instruction)
    return operands.isEmpty ? words : words + " " + operands.joined(separator: ",")
  }

  /// Only the mnemonic: conditions in their usual spelling (`je`, not `jz`), with widths that
  /// belong to the name (`iretq`), without our suffixes.
  public static func name(_ instruction: Instruction) -> String {
    let mnemonic = instruction.mnemonic
    let size = instruction.operandSize
    switch mnemonic {
    case .retFar: return size == 8 ? "retfq" : "retf"
    case .sysret: return size == 8 ? "sysretq" : "sysretd"
    case .sysexit: return size == 8 ? "sysexitq" : "sysexitd"
    case .iret: return size == 8 ? "iretq" : size == 2 ? "iretw" : "iret"
    case .jcxz:
      let size = instruction.addressSize
      return size == 8 ? "jrcxz" : size == 4 ? "jecxz" : "jcxz"
    case .mov where instruction.operandCount == 2 && isWide(instruction): return "movabs"
    default: break
    }
    let raw = "\(mnemonic)"
    if mnemonic.rawValue >= Mnemonic.jo.rawValue && mnemonic.rawValue <= Mnemonic.cmovnle.rawValue {
      return conditional(raw)
    }
    let stem = String(raw.prefix { !$0.isUppercase })
    let wide = instruction.prefixes.contains(.rexW) && wideForms.contains(mnemonic)
    return wide ? stem + "64" : stem
  }

  private static let wideForms: Set<Mnemonic> = [
    .fxsave, .fxrstor, .xsave, .xrstor, .xsaveopt, .xsavec, .xsaves, .xrstors,
  ]

  /// A 64-bit immediate or a 64-bit offset.
  private static func isWide(_ instruction: Instruction) -> Bool {
    let opcode = instruction.encoding.opcode
    guard instruction.encoding.map == .oneByte, instruction.mode == .bits64 else { return false }
    if opcode & 0xF8 == 0xB8 { return instruction.operandSize == 8 }
    return instruction.isOffsetMove && instruction.addressSize == 8
  }

  private static func conditional(_ name: String) -> String {
    for stem in ["cmov", "set", "j"] where name.hasPrefix(stem) {
      let condition = String(name.dropFirst(stem.count))
      return stem + (conditionSpellings[condition] ?? condition)
    }
    return name
  }

  private static let conditionSpellings = [
    "nb": "ae", "z": "e", "nz": "ne", "nbe": "a", "nl": "ge", "nle": "g",
  ]

  private static func roundingText(_ instruction: Instruction) -> String {
    guard instruction.attributes.contains(.embeddedRounding) else { return "{sae}" }
    return roundingNames[Int(instruction.roundingControl)]
  }

  private static let roundingNames = ["{rn-sae}", "{rd-sae}", "{ru-sae}", "{rz-sae}"]

  private static func prefixText(_ instruction: Instruction) -> String {
    let locks = instruction.prefixes.contains(.lock) && instruction.mnemonic != .movControl
    var text = locks ? "lock " : ""
    guard instruction.attributes.contains(.string) else { return text }
    let compares = instruction.mnemonic == .cmps || instruction.mnemonic == .scas
    if instruction.prefixes.contains(.rep) { text += compares ? "repz " : "rep " }
    if instruction.prefixes.contains(.repne) { text += "repnz " }
    return text
  }
}

extension Instruction {
  /// Static rounding mode of an EVEX instruction with `.embeddedRounding`, as MXCSR.RC numbers it.
  public var roundingControl: UInt8 { encoding.lengthBits & 3 }
}
