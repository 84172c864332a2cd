// SPDX-License-Identifier: Apache-2.0
//
// What the oracle leaves out, each with its reason. A row of the opcode table that was never
// compared and has no reason here fails the test of coverage.

import CHost
import X86
import X86CPU
import X86Decoder

package enum Exclusions {
  /// Why a whole row is left out, or nil.
  package static func reason(_ row: RowTemplate) -> String? {
    if row.mnemonic == .nop && row.map == 1 && row.opcode == 0x0D {
      return "a NOP on some processors, #UD on others"
    }
    if row.is64Bit == false { return "outside 64-bit mode only" }
    if let text = mnemonics[row.mnemonic] { return text }
    if row.mnemonic == .movSegment && row.opcode == 0x8E { return descriptors }
    if row.attributes.contains(.privileged) {
      // #GP at CPL 3.
      if row.feature == .base { return nil }
      return "privileged, of an extension that the host may not have"
    }
    if row.attributes.contains(.notForOracle) && !unprivileged.contains(row.mnemonic) {
      return "its result depends on the host or its kernel"
    }
    if !CPUIDModel.offers(row.feature) {
      return "the processor model does not offer \(row.feature)"
    }
    if !hostHas(row.feature) { return "the host has no \(row.feature)" }
    return nil
  }

  /// Instructions that the table keeps from the oracle, and which it runs nevertheless: those that
  /// fault at CPL 3 with IOPL 0, and those whose state the native executor looks after.
  private static let unprivileged: Set<Mnemonic> = [
    .cli, .sti, .in, .out, .ins, .outs, .popf, .rdfsbase, .rdgsbase, .wrfsbase, .wrgsbase,
  ]

  private static let pointers = "stores x87 pointers, which the host keeps after exceptions only"
  private static let descriptors = "loads a descriptor of the host kernel's tables"

  private static let mnemonics: [Mnemonic: String] = [
    .callFar: descriptors, .jmpFar: descriptors, .retFar: descriptors, .iret: descriptors,
    .lss: descriptors, .lfs: descriptors, .lgs: descriptors, .popSegment: descriptors,
    .fnsave: pointers, .fnstenv: pointers,
    .ud2: "is the landing pad of the interpreter",
  ]

  /// States and forms of compared rows that are not compared, with the reason.
  package static let conditions = [
    "near branches with 66: 16 bits wide on one vendor's processors, not on the other's",
    "LOOPE and LOOPNE with a repeat prefix: changes the condition on some processors",
    "F3 90 with REX.B: PAUSE on one vendor's processors, XCHG on the other's",
    "MOVSXD with a 16-bit destination: reads 2 bytes on one vendor's processors, 4 on the other's",
    "FS and GS offsets that are not canonical with a base that makes them so: #GP on some processors",
    "unmasked SIMD overflow, underflow and precision (see KNOWN-GAPS), and any of DPPS and DPPD",
    "MXCSR bit 17: exists on one vendor's processors",
    "x87 instruction and data pointers: kept after unmasked exceptions only by some processors",
    "legacy SHA with an unaligned operand: #GP by one vendor's manual only",
    "EVEX-masked aligned moves with an unaligned operand: #GP or not where the mask is 0",
    "byte-masked stores that may fault: implementation dependent by the manuals",
    "the page-fault code's P bit in the kernel's half: hidden by the host's kernel",
    "SHLD and SHRD by more than the operand size: destination and flags are undefined",
    "FS and GS bases that are canonical with 57 bits only: #GP by the processor's model",
    "RFLAGS.TF, AC, NT and IOPL before, and RF and VM after: the host's kernel's",
  ]

  /// Single encodings that differ between vendors or reach outside.
  static func excludes(_ i: Instruction) -> Bool {
    if !HostFeatures.current.has(i) { return true }
    switch i.mnemonic {
    // 0F 0D with a register: NOP or #UD.
    case .nop: return i.encoding.map == .map0F && i.encoding.opcode == 0x0D
    // A repeat prefix changes the condition on some processors.
    case .loope, .loopne: return !i.prefixes.isDisjoint(with: [.rep, .repne])
    // PAUSE, or an exchange with R8.
    case .xchg: return i.encoding.opcode == 0x90 && i.prefixes.contains(.rep)
    // The 16-bit form reads 2 bytes, or 4.
    case .movsxd: return i.operandSize == 2
    default: return false
    }
  }

  /// Whether the host offers a feature.
  package static func hostHas(_ feature: Feature) -> Bool {
    guard let (leaf, register, bit) = bits[feature] else {
      return HostFeatures.current.has(feature)
    }
    var words: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
    withUnsafeMutablePointer(to: &words) {
      $0.withMemoryRebound(to: UInt32.self, capacity: 4) { chost_cpuid(leaf, 0, $0) }
    }
    let value = [words.0, words.1, words.2, words.3][register]
    return value >> UInt32(bit) & 1 != 0
  }

  /// CPUID leaf, register (EAX, EBX, ECX, EDX) and bit of features that are not of vectors.
  private static let bits: [Feature: (UInt32, Int, Int)] = [
    .cmov: (1, 3, 15), .cx8: (1, 3, 8), .cx16: (1, 2, 13), .popcnt: (1, 2, 23),
    .movbe: (1, 2, 22), .sse42: (1, 2, 20), .clflush: (1, 3, 19), .bmi1: (7, 1, 3),
    .bmi2: (7, 1, 8), .adx: (7, 1, 19), .rtm: (7, 1, 11), .clflushopt: (7, 1, 23),
    .clwb: (7, 1, 24), .prefetchwt1: (7, 2, 0), .cldemote: (7, 2, 25), .movdiri: (7, 2, 27),
    .movdir64b: (7, 2, 28), .waitpkg: (7, 2, 5), .serialize: (7, 3, 14),
    .lzcnt: (0x8000_0001, 2, 5), .prefetchw: (0x8000_0001, 2, 8), .lahf64: (0x8000_0001, 2, 0),
    .clzero: (0x8000_0008, 1, 0),
  ]
}
