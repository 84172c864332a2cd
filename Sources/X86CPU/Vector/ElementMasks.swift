// SPDX-License-Identifier: Apache-2.0
//
// Fault suppression: the parts of its memory operand that a masked instruction accesses (SDM volume
// 2, "Exceptions Type E4, E5, E6, E10" and the NF classes, which do not suppress).

import X86
import X86Decoder

extension Instruction {
  func elementMask(memorySize: Int) -> ElementMask {
    switch mnemonic {
    case .vmaskmovps, .vmaskmovpd, .vpmaskmovd, .vpmaskmovq:
      return signMask(memorySize)
    default: break
    }
    guard prefixes.contains(.evex), encoding.evexMask != 0, !accessesAll
    else { return ElementMask() }
    var mask = ElementMask()
    mask.register = encoding.evexMask
    let vector = Int(encoding.vectorLength)
    if attributes.contains(.broadcast) || isBroadcast {
      // Any selected element of the destination needs the memory operand.
      mask.kind = .any
      mask.elementSize = UInt8(memorySize)
      let element = isBroadcast ? destinationElement : max(destinationElement, memorySize)
      mask.elements = UInt8(min(max(vector / element, 1), 64))
      if isBroadcast && element < memorySize {
        // Several elements that repeat: VBROADCASTI32X2 and the like.
        mask.kind = .repeated
        mask.elementSize = UInt8(element)
        mask.repeats = UInt8(memorySize / element)
      }
      return mask
    }
    mask.kind = Self.counted.contains(mnemonic) ? .count : .opmask
    let element = max(min(memoryElement, memorySize), 1)
    mask.elementSize = UInt8(element)
    mask.elements = UInt8(memorySize / element)
    return mask
  }

  /// The shifts suppress faults only in their immediate forms.
  private var accessesAll: Bool {
    guard Self.unsuppressed.contains(mnemonic) else { return false }
    switch mnemonic {
    case .vpslld, .vpsllq, .vpsllw, .vpsrad, .vpsraq, .vpsraw, .vpsrld, .vpsrlq, .vpsrlw:
      return operands[2].kind != .immediate
    default: return true
    }
  }

  private func signMask(_ memorySize: Int) -> ElementMask {
    let size: UInt8 = mnemonic == .vmaskmovpd || mnemonic == .vpmaskmovq ? 8 : 4
    // The mask is VEX.vvvv: operand 1 both of the load and of the store.
    return ElementMask(
      kind: .signs, register: encoding.vvvv, elementSize: size,
      elements: UInt8(memorySize / Int(size)))
  }

  private var isBroadcast: Bool { Self.name(mnemonic).contains("broadcast") }

  /// Bytes of an element in the destination, to which mask bits apply.
  private var destinationElement: Int {
    let name = Self.name(mnemonic)
    if name.contains("broadcast") {
      if name.contains("x") { return name.contains("64x") ? 8 : 4 }
      return Self.size(letter: name.last) ?? 4
    }
    if let to = name.lastIndex(of: "2"), name.hasPrefix("vcvt") {
      return Self.conversionElement(name[name.index(after: to)...]) ?? 4
    }
    return Self.size(letter: name.last) ?? (encoding.vexW ? 8 : 4)
  }

  /// Bytes of an element in memory.
  private var memoryElement: Int {
    let name = Self.name(mnemonic)
    if name.hasPrefix("vcvt"), let to = name.lastIndex(of: "2") {
      // A store (VCVTPS2PH) has the second type in memory, a load the first.
      let first = name[..<to].drop { $0 != "p" && $0 != "s" && $0 != "d" && $0 != "q" && $0 != "u" }
      let type = memoryOperand == 0 ? name[name.index(after: to)...] : first
      return Self.conversionElement(type) ?? (encoding.vexW ? 8 : 4)
    }
    if name.hasPrefix("vpmovzx") || name.hasPrefix("vpmovsx") {
      return Self.size(letter: name.dropLast().last) ?? 1
    }
    if name.hasPrefix("vmovdq") {
      let digits = name.drop { !$0.isNumber }
      return (Int(digits) ?? 32) / 8
    }
    return Self.size(letter: name.last) ?? (encoding.vexW ? 8 : 4)
  }

  /// Element size of `ps`, `udq`, `qq`, `ph` in VCVT's names.
  private static func conversionElement(_ type: Substring) -> Int? {
    switch type {
    case "ph", "w", "uw", "neps": 2
    case "ps", "ss", "dq", "udq", "tps", "tss", "si", "usi": 4
    case "pd", "sd", "qq", "uqq", "tpd", "tsd": 8
    default: nil
    }
  }

  /// Of a name's last letter: b, w, d, q, and s or d of ps, ss, pd, sd.
  private static func size(letter: Character?) -> Int? {
    switch letter {
    case "b": 1
    case "w": 2
    case "d", "s": 4
    case "q": 8
    default: nil
    }
  }

  /// `vaddpd` as `vaddpq`, so that the last letter is the element's.
  private static func name(_ mnemonic: Mnemonic) -> String {
    let name = "\(mnemonic)"
    if name.hasSuffix("pd") || name.hasSuffix("sd"), !name.hasPrefix("vp") {
      return name.hasPrefix("vcvt") ? name : String(name.dropLast()) + "q"
    }
    return floatPermutes.contains(mnemonic) ? String(name.dropLast()) + "q" : name
  }

  /// `vp...pd` names that mean doubles.
  private static let floatPermutes: Set<Mnemonic> = [
    .vpermpd, .vpermilpd, .vpermi2pd, .vpermt2pd, .vpgatherqd,
  ]

  private static let counted: Set<Mnemonic> = [
    .vcompresspd, .vcompressps, .vpcompressb, .vpcompressw, .vpcompressd, .vpcompressq,
    .vexpandpd, .vexpandps, .vpexpandb, .vpexpandw, .vpexpandd, .vpexpandq,
  ]

  /// Instructions that access every byte of the operand whatever the mask.
  private static let unsuppressed: Set<Mnemonic> = [
    .valignd, .valignq, .vcvtne2ps2bf16, .vpconflictd, .vpconflictq,
    .vdbpsadbw, .vextractf32x4, .vextractf32x8, .vextractf64x2,
    .vextractf64x4, .vextracti32x4, .vextracti32x8, .vextracti64x2, .vextracti64x4,
    .vgf2p8affineinvqb, .vgf2p8affineqb, .vinsertf32x4, .vinsertf32x8, .vinsertf64x2,
    .vinsertf64x4, .vinserti32x4, .vinserti32x8, .vinserti64x2, .vinserti64x4, .vmovddup,
    .vmovshdup, .vmovsldup, .vpackssdw, .vpacksswb, .vpackusdw, .vpackuswb, .vpalignr, .vpermb,
    .vpermd, .vpermi2b, .vpermi2d, .vpermi2pd, .vpermi2ps, .vpermi2q, .vpermi2w, .vpermilpd,
    .vpermilps, .vpermpd, .vpermps, .vpermq, .vpermt2b, .vpermt2d, .vpermt2pd, .vpermt2ps,
    .vpermt2q, .vpermt2w, .vpermw, .vpmaddubsw, .vpmaddwd, .vpmultishiftqb, .vpshufb,
    .vpshufd, .vpshufhw, .vpshuflw, .vpslld, .vpsllq, .vpsllw, .vpsrad, .vpsraq,
    .vpsraw, .vpsrld, .vpsrlq, .vpsrlw, .vpunpckhbw, .vpunpckhdq, .vpunpckhqdq, .vpunpckhwd,
    .vpunpcklbw, .vpunpckldq, .vpunpcklqdq, .vpunpcklwd, .vshuff32x4, .vshuff64x2, .vshufi32x4,
    .vshufi64x2, .vshufpd, .vshufps, .vunpckhpd, .vunpckhps, .vunpcklpd, .vunpcklps,
  ]
}
