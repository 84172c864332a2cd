// SPDX-License-Identifier: Apache-2.0
//
// Re-encodes a guest's instruction for the host: the same opcode, vector registers and immediates,
// but memory becomes [RSI] and a general register RAX, or those in `HostPlaces`. Redundant prefixes
// are dropped, so that equal instructions have equal bytes.

import X86
import X86Decoder

/// Host registers, by number, that replace an instruction's operands.
package struct HostPlaces: Sendable {
  /// The base of the memory operand; RSP and R12 only with an index.
  package var address: UInt8
  /// Added to it, shifted left by `scale`; not RSP.
  package var index: UInt8?
  package var scale: UInt8 = 0
  /// The displacement.
  package var displacement: Int32 = 0
  /// Replaces the general register operand.
  package var general: UInt8

  package init(address: UInt8 = 6, general: UInt8 = 0) {
    self.address = address
    self.general = general
  }
}

extension Instruction {
  /// `hostBytes` as an array.
  package func hostCode(_ places: HostPlaces) -> [UInt8] {
    let bytes = hostBytes(places)
    return (0..<bytes.count).map { bytes[$0] }
  }

  /// Bytes to execute on the host, in 64-bit mode.
  func hostBytes(_ places: HostPlaces = HostPlaces()) -> CodeBytes {
    var bytes = CodeBytes()
    let fields = HostFields(self, places)
    if prefixes.contains(.evex) {
      appendEVEX(fields, &bytes)
    } else if prefixes.contains(.vex) {
      appendVEX(fields, &bytes)
    } else {
      appendLegacy(fields, &bytes)
    }
    if encoding.hasModRM {
      bytes.append(fields.modRM)
      if let index = fields.index {
        bytes.append(places.scale << 6 | (index & 7) << 3 | fields.rm & 7)
      }
      if fields.displacement != 0 {
        for n in 0..<4 as Range<Int32> {
          bytes.append(UInt8(truncatingIfNeeded: fields.displacement >> (n * 8)))
        }
      } else if fields.hasDisplacement {
        bytes.append(0)
      }
    }
    if encoding.immediateLength > 0 {
      bytes.append(UInt8(truncatingIfNeeded: immediate))
    }
    if encoding.immediateLength > 1 {
      bytes.append(UInt8(truncatingIfNeeded: immediate2))
    }
    return bytes
  }

  private func appendLegacy(_ fields: HostFields, _ bytes: inout CodeBytes) {
    if !attributes.contains(.x87) {
      switch encoding.mandatoryPrefix {
      case 1: bytes.append(0x66)
      case 2: bytes.append(0xF3)
      case 3: bytes.append(0xF2)
      default: break
      }
    }
    let rex = (fields.w ? 8 : 0) | fields.reg >> 1 & 4 | fields.indexBit << 1 | fields.rm >> 3 & 1
    if rex != 0 { bytes.append(0x40 | rex) }
    if encoding.map != .oneByte { bytes.append(0x0F) }
    if encoding.map == .map0F38 { bytes.append(0x38) }
    if encoding.map == .map0F3A { bytes.append(0x3A) }
    bytes.append(encoding.opcode)
  }

  private func appendVEX(_ fields: HostFields, _ bytes: inout CodeBytes) {
    bytes.append(0xC4)
    let r: UInt8 = fields.reg & 8 == 0 ? 0x80 : 0
    let b: UInt8 = fields.rm & 8 == 0 ? 0x20 : 0
    let x: UInt8 = fields.indexBit == 0 ? 0x40 : 0
    bytes.append(r | x | b | encoding.map.rawValue)
    bytes.append(
      (fields.w ? 0x80 : 0) | (~encoding.vvvv & 0xF) << 3 | hostLength << 2
        | encoding.mandatoryPrefix)
    bytes.append(encoding.opcode)
  }

  /// VEX.L or EVEX.L'L: 0 if ignored; a rounding mode is kept.
  private var hostLength: UInt8 {
    if prefixes.contains(.evex), encoding.evexB, !hasModRMMemory { return encoding.lengthBits }
    switch encoding.vectorLength {
    case 64: return 2
    case 32: return 1
    default: return 0
    }
  }

  private func appendEVEX(_ fields: HostFields, _ bytes: inout CodeBytes) {
    bytes.append(0x62)
    let r: UInt8 = fields.reg & 8 == 0 ? 0x80 : 0
    let x: UInt8 = fields.rm & 16 == 0 && fields.indexBit == 0 ? 0x40 : 0
    let b: UInt8 = fields.rm & 8 == 0 ? 0x20 : 0
    let r2: UInt8 = fields.reg & 16 == 0 ? 0x10 : 0
    bytes.append(r | x | b | r2 | encoding.map.rawValue)
    bytes.append(
      (fields.w ? 0x80 : 0) | (~encoding.vvvv & 0xF) << 3 | 4 | encoding.mandatoryPrefix)
    bytes.append(
      (encoding.evexZeroing ? 0x80 : 0) | hostLength << 5
        | (encoding.evexB ? 0x10 : 0) | (encoding.vvvv & 16 == 0 ? 8 : 0) | encoding.evexMask)
    bytes.append(encoding.opcode)
  }
}

/// The register fields of an encoding, extended, after replacing general registers and memory.
private struct HostFields {
  var reg: UInt8
  var rm: UInt8
  var w: Bool
  var isMemory: Bool
  var index: UInt8?
  var displacement: Int32 = 0

  var indexBit: UInt8 { (index ?? 0) >> 3 & 1 }

  init(_ i: Instruction, _ places: HostPlaces) {
    let e = i.encoding
    reg = e.modRM >> 3 & 7 | (e.rex & 4) << 1
    rm = e.modRM & 7 | (e.rex & 1) << 3
    w = e.rex & 8 != 0 || e.vexW
    if i.prefixes.contains(.evex) {
      reg |= e.rex & 16
      rm |= (e.rex & 2) << 3
    }
    isMemory = i.hasModRMMemory
    if isMemory {
      rm = places.address
      index = places.index
      displacement = places.displacement
    }
    if i.generalOperand != nil {
      if i.hasGeneralInReg { reg = places.general } else if !isMemory { rm = places.general }
    }
    // Outside 64-bit mode W widens neither a general register nor the memory operand instead of it.
    let usesGeneral =
      i.generalOperand != nil || i.comparesStrings || Self.doublewords.contains(i.mnemonic)
    if i.mode != .bits64 && usesGeneral { w = false }
    if i.attributes.contains(.x87) {
      // FNSTSW AX and FCOM's register forms: ModRM unchanged, REX has no effect.
      reg &= 7
      rm = isMemory ? places.address : e.modRM & 7
      w = false
    }
  }

  /// Instructions with a general register or a memory operand of its size.
  private static let doublewords: Set<Mnemonic> = [
    .movd, .vmovd, .pinsrd, .vpinsrd, .pextrd, .vpextrd, .cvtsi2ss, .cvtsi2sd, .vcvtsi2ss,
    .vcvtsi2sd,
    .vcvtusi2ss, .vcvtusi2sd,
  ]

  /// [RBP] and [R13] have no form without a displacement.
  var hasDisplacement: Bool { isMemory && rm & 7 == 5 }

  var modRM: UInt8 {
    let mode: UInt8 = !isMemory ? 0xC0 : displacement != 0 ? 0x80 : hasDisplacement ? 0x40 : 0
    return mode | (reg & 7) << 3 | (index == nil ? rm & 7 : 4)
  }
}

extension Instruction {
  var hasModRMMemory: Bool {
    encoding.hasModRM && encoding.modRM < 0xC0 && memoryOperand != nil
  }

  /// The operand that is a general register.
  package var generalOperand: Operand? {
    for n in 0..<Int(operandCount) where operands[n].kind == .general { return operands[n] }
    return nil
  }

  /// Whether ModRM.reg is the general register: MOVMSKPS, CVTSD2SI, PMOVMSKB and PEXTRW and KMOV to
  /// a general register, EVEX's VCVTSD2USI.
  fileprivate var hasGeneralInReg: Bool {
    encoding.map == .map0F
      && [0x2C, 0x2D, 0x50, 0x78, 0x79, 0x93, 0xC5, 0xD7].contains(encoding.opcode)
  }

  /// PCMPESTRI and its variants, which have implicit operands.
  package var comparesStrings: Bool {
    switch mnemonic {
    case .pcmpestri, .pcmpestrm, .pcmpistri, .pcmpistrm, .vpcmpestri, .vpcmpestrm, .vpcmpistri,
      .vpcmpistrm:
      true
    default: false
    }
  }
}
