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
    if row.attributes.contains(.privileged) { return "privileged" }
    if row.attributes.contains(.notForOracle) { return "its result depends on the host" }
    if !hostHas(row.feature) { return "the host has no \(row.feature)" }
    if row.hasVectorIndex { return "addresses by vector elements" }
    if row.attributes.contains(.vector) || row.space != .legacy && !isGeneral(row.feature)
      || row.attributes.contains(.x87)
    {
      return "vector instructions are not compared yet"
    }
    return nil
  }

  private static func isGeneral(_ feature: Feature) -> Bool { feature == .bmi1 || feature == .bmi2 }

  private static let descriptors = "loads a descriptor of the host kernel's tables"

  private static let mnemonics: [Mnemonic: String] = [
    .callFar: descriptors, .jmpFar: descriptors, .retFar: descriptors, .iret: descriptors,
    .lss: descriptors, .lfs: descriptors, .lgs: descriptors, .popSegment: descriptors,
    .movSegment: "selectors are the host kernel's", .pushSegment: "selectors are the host kernel's",
    .clzero: "the processor model does not offer it",
    .ud2: "is the landing pad of the interpreter",
  ]

  /// Single encodings that differ between vendors or reach outside.
  static func excludes(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    // 0F 0D with a register: NOP or #UD.
    case .nop: return i.encoding.map == .map0F && i.encoding.opcode == 0x0D
    // A repeat prefix changes the condition on some processors.
    case .loope, .loopne: return !i.prefixes.isDisjoint(with: [.rep, .repne])
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
