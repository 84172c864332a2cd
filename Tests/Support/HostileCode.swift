// SPDX-License-Identifier: Apache-2.0
//
// Instructions that nobody would write: of every row of the opcode table, in every mode, with the
// displacements and immediates at which arithmetic on them goes wrong. What the bytes do does not
// matter, nor whether a processor accepts them: whoever runs them has to survive.
//
//     var code = HostileCode(seed: 7, mode: .bits64)
//     let bytes = code.instruction(of: HostileCode.rows[0])

import TestRandom
import X86
import X86Decoder

package struct HostileCode {
  package var random: SplitMix
  package var mode: CodeMode

  package init(seed: UInt64, mode: CodeMode) {
    random = SplitMix(seed: seed)
    self.mode = mode
  }

  package static let rows = Decoder.rowTemplates

  /// Numbers at which additions, shifts, conversions and address checks change their outcome.
  package static let edges: [UInt64] = [
    0, 1, 2, 7, 8, 0x0F, 0x1F, 0x3F, 0x7F, 0x80, 0xFF, 0xFFF, 0x1000, 0x7FFF, 0x8000, 0xFFFF,
    0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x1_0000_0000, 0x7FFF_FFFF_FFFF,
    0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, 0x7FFF_FFFF_FFFF_FFFF,
    0x8000_0000_0000_0000, 0x8000_0000_0000_0001, 0xFFFF_FFFF_0000_0000, 0xFFFF_FFFF_7FFF_FFFF,
    0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_FFFF_F000, 0xFFFF_FFFF_FFFF_FFF8, 0xFFFF_FFFF_FFFF_FFFE,
    0xFFFF_FFFF_FFFF_FFFF,
  ]

  /// An edge, a neighbour of one, or anything.
  package mutating func number() -> UInt64 {
    let choice = random.below(8)
    if choice == 0 { return random.next() }
    let edge = Self.edges[random.below(Self.edges.count)]
    return choice < 5 ? edge : edge &+ UInt64(random.below(33)) &- 16
  }

  /// The bytes of an instruction of a row; not all are one, nor of that row.
  package mutating func instruction(of row: RowTemplate) -> [UInt8] {
    var bytes: [UInt8] = []
    switch row.space {
    case .legacy: appendLegacy(row, &bytes)
    case .vex: appendVEX(row, &bytes)
    case .evex: appendEVEX(row, &bytes)
    }
    bytes.append(row.opcode)
    if row.hasModRM { appendModRM(row, &bytes) }
    append(number(), 8, &bytes)
    bytes.append(random.byte())
    return trimmed(bytes)
  }

  /// As long as the decoder says; what it refuses stays whole.
  private func trimmed(_ bytes: [UInt8]) -> [UInt8] {
    let decoded = bytes.withUnsafeBytes { try? Decoder.decode($0, mode: mode) }
    return decoded.map { Array(bytes.prefix(Int($0.length))) } ?? Array(bytes.prefix(15))
  }

  // MARK: Prefixes

  private mutating func appendLegacy(_ row: RowTemplate, _ bytes: inout [UInt8]) {
    let choices = (0..<4).filter { row.prefixes >> UInt8($0) & 1 != 0 }
    var prefix = choices.isEmpty ? 0 : choices[random.below(choices.count)]
    if row.prefixes == 0xF && !row.attributes.contains(.string) && !random.oneIn(6) { prefix = 0 }
    if row.operandSize == 2 && mode != .bits16 { prefix = 1 }
    if prefix > 0 { bytes.append([0x66, 0xF3, 0xF2][prefix - 1]) }
    if row.attributes.contains(.lockable) && random.oneIn(6) { bytes.append(0xF0) }
    if random.oneIn(10) { bytes.append(0x67) }
    if random.oneIn(8) {
      bytes.append([0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65][random.below(6)])
    }
    if mode == .bits64 {
      var rex = random.byte() & 7
      let isWide = row.w ?? (row.operandSize.map { $0 == 8 }) ?? random.oneIn(2)
      if isWide { rex |= 8 }
      if row.rexB == false { rex &= ~1 }
      if row.rexB == true { rex |= 1 }
      if isWide || row.rexB == true || random.oneIn(2) { bytes.append(0x40 | rex) }
    }
    if row.map >= 1 { bytes.append(0x0F) }
    if row.map >= 2 { bytes.append(row.map == 2 ? 0x38 : 0x3A) }
  }

  private mutating func mandatory(_ row: RowTemplate) -> UInt8 {
    let choices = (0..<4 as Range<UInt8>).filter { row.prefixes >> $0 & 1 != 0 }
    return choices.isEmpty ? 0 : choices[random.below(choices.count)]
  }

  private mutating func appendVEX(_ row: RowTemplate, _ bytes: inout [UInt8]) {
    if random.oneIn(10) { bytes.append([0x64, 0x65, 0x67][random.below(3)]) }
    let length = row.length ?? UInt8(random.below(2))
    let vvvv: UInt8 = row.usesVVVV ? random.byte() & 0x78 : 0x78
    let high: UInt8 = mode == .bits64 ? random.byte() & 0xE0 : 0xE0
    let wide: UInt8 = row.w ?? random.oneIn(2) ? 0x80 : 0
    let payload = wide | vvvv | (length & 1) << 2 | mandatory(row)
    bytes += [0xC4, high | UInt8(truncatingIfNeeded: row.map), payload]
  }

  private mutating func appendEVEX(_ row: RowTemplate, _ bytes: inout [UInt8]) {
    if random.oneIn(10) { bytes.append([0x64, 0x65, 0x67][random.below(3)]) }
    let length = row.length ?? UInt8(random.below(3))
    let vvvv: UInt8 = row.usesVVVV ? random.byte() & 0x78 : 0x78
    var last: UInt8 = row.usesVVVV || row.hasVectorIndex ? random.byte() & 8 : 8
    last |= (length & 3) << 5
    if row.needsMask || row.allowsMask && random.oneIn(2) { last |= random.byte() & 7 }
    if row.allowsZeroing && random.oneIn(3) { last |= 0x80 }
    if (row.allowsBroadcast || row.allowsRounding) && random.oneIn(3) { last |= 0x10 }
    let high: UInt8 = mode == .bits64 ? random.byte() & 0xF0 : 0xF0
    let wide: UInt8 = row.w ?? random.oneIn(2) ? 0x80 : 0
    bytes += [0x62, high | UInt8(truncatingIfNeeded: row.map)]
    bytes += [wide | vvvv | 4 | mandatory(row), last]
  }

  // MARK: Operands

  private mutating func appendModRM(_ row: RowTemplate, _ bytes: inout [UInt8]) {
    let isRegister = row.isRegisterForm ?? random.oneIn(3)
    var modRM = random.byte() & 0x3F
    modRM = modRM & ~row.modRMMask | row.modRM & row.modRMMask & 0x3F
    if row.hasVectorIndex { modRM = modRM & 0x38 | 4 }
    if isRegister {
      bytes.append(modRM | 0xC0)
      return
    }
    let mod = [0, 1, 1, 2, 2][random.below(5)] as UInt8
    bytes.append(modRM | mod << 6)
    var noBase = mod == 0 && modRM & 7 == 5
    if mode != .bits16 && modRM & 7 == 4 {
      let sib = random.byte()
      bytes.append(sib)
      noBase = mod == 0 && sib & 7 == 5
    }
    if mod == 1 { append(number(), 1, &bytes) }
    if mod == 2 || noBase { append(displacement(), 4, &bytes) }
  }

  /// Most are small, so that the access is not always a fault.
  private mutating func displacement() -> UInt64 {
    random.oneIn(2) ? number() : UInt64(bitPattern: Int64(random.below(8192) - 4096))
  }

  package func append(_ value: UInt64, _ count: Int, _ bytes: inout [UInt8]) {
    for n in 0..<count { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(n * 8))) }
  }
}
