// SPDX-License-Identifier: Apache-2.0
//
// From a row of the opcode table to the bytes of a random instruction of that row: prefixes, REX,
// ModRM, SIB, displacement and immediate at random where the row leaves them free. The decoder has
// the last word: bytes that it reads as another row are thrown away.

import X86
import X86Decoder

/// Bytes of one instruction, ready for a slot.
package struct Encoding {
  package var bytes: [UInt8]
  package var instruction: Instruction
  package var slot: Int
  package var address: UInt64 { Layout.slot(slot) + UInt64(Layout.instructionOffset) }
  package var end: UInt64 { address + UInt64(instruction.length) }
  /// Where it may go next: the pads, the one right behind it last.
  package var pads: [UInt64] {
    Layout.padOffsets.map { Layout.slot(slot) + UInt64($0) } + [end]
  }
}

struct EncodingGenerator {
  var random: OracleRandom
  private var bytes: [UInt8] = []
  /// Of a displacement without base that has to be set to a place in the sandbox.
  private var fixedDisplacement: Int?

  init(random: OracleRandom) {
    self.random = random
    bytes.reserveCapacity(32)
  }

  /// Nil where no try made an instruction of this row.
  mutating func encoding(of row: RowTemplate, slot: Int) -> Encoding? {
    for _ in 0..<60 {
      bytes.removeAll(keepingCapacity: true)
      fixedDisplacement = nil
      switch row.space {
      case .legacy: appendLegacy(row)
      case .vex: appendVEX(row)
      case .evex: appendEVEX(row)
      }
      bytes.append(row.opcode)
      if row.hasModRM { appendModRM(row) }
      appendImmediate()
      guard let instruction = decoded(row) else { continue }
      var encoding = Encoding(
        bytes: Array(bytes[..<Int(instruction.length)]), instruction: instruction, slot: slot)
      patch(&encoding)
      if Exclusions.excludes(encoding.instruction) { continue }
      return encoding
    }
    return nil
  }

  private func decoded(_ row: RowTemplate) -> Instruction? {
    let result = bytes.withUnsafeBytes { buffer in
      try? Decoder.decodeWithRow(buffer, mode: .bits64)
    }
    guard let result, result.row == row.index else { return nil }
    return result.0
  }
}

// MARK: Prefixes

extension EncodingGenerator {
  private mutating func appendLegacy(_ row: RowTemplate) {
    var prefix = mandatoryPrefix(row)
    if row.operandSize == 2 { prefix = 1 }
    if row.operandSize == 4 && prefix == 1 { prefix = 0 }
    // Near branches with 66 are 16 bits wide on one vendor's processors and not on the other's.
    let isBranch = row.attributes.contains(.branch)
    if isBranch && prefix == 1 { prefix = 0 }
    if row.attributes.contains(.string) && random.below(5) < 3 { prefix = 2 + random.below(2) }
    if prefix == 1 || prefix > 1 && row.prefixes == 0xF && !isBranch && random.oneIn(3) {
      bytes.append(0x66)
    }
    if prefix == 2 { bytes.append(0xF3) }
    if prefix == 3 { bytes.append(0xF2) }
    appendCommonPrefixes(row)
    bytes.shuffle(using: &random)
    appendREX(row)
    if row.map >= 1 { bytes.append(0x0F) }
    if row.map == 2 { bytes.append(0x38) }
    if row.map == 3 { bytes.append(0x3A) }
  }

  private mutating func appendCommonPrefixes(_ row: RowTemplate) {
    let lockable = row.attributes.contains(.lockable)
    if lockable && random.oneIn(6) || random.oneIn(100) { bytes.append(0xF0) }
    if random.oneIn(12) { bytes.append(0x67) }
    if random.oneIn(8) {
      let segments: [UInt8] = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x64, 0x65]
      bytes.append(segments[random.below(8)])
    }
  }

  private mutating func mandatoryPrefix(_ row: RowTemplate) -> Int {
    if row.prefixes == 0xF {
      let choice = random.below(20)
      return choice < 13 ? 0 : choice < 18 ? 1 : choice - 16
    }
    let choices = (0..<4).filter { row.prefixes >> UInt8($0) & 1 != 0 }
    return choices[random.below(choices.count)]
  }

  private mutating func appendREX(_ row: RowTemplate) {
    var rex: UInt8 = random.byte() & 7
    var wanted = random.below(5) < 3
    let w = row.w ?? (row.operandSize.map { $0 == 8 }) ?? random.oneIn(3)
    if w {
      rex |= 8
      wanted = true
    }
    if let b = row.rexB {
      rex = rex & ~1 | (b ? 1 : 0)
      if b { wanted = true }
    }
    if wanted { bytes.append(0x40 | rex) }
  }

  private mutating func appendVEX(_ row: RowTemplate) {
    if random.oneIn(16) { bytes.append(0x67) }
    if random.oneIn(10) { bytes.append(random.oneIn(2) ? 0x64 : 0x65) }
    let prefix = UInt8(mandatoryPrefix(row))
    let w = row.w ?? random.oneIn(2)
    let length = row.length ?? UInt8(random.below(2))
    let vvvv: UInt8 = row.usesVVVV ? random.byte() & 0x78 : 0x78
    let payload = vvvv | (length & 1) << 2 | prefix
    if row.map == 1 && !w && random.oneIn(2) {
      bytes += [0xC5, random.byte() & 0x80 | payload]
    } else {
      bytes += [0xC4, random.byte() & 0xE0 | UInt8(row.map), (w ? 0x80 : 0) | payload]
    }
  }

  private mutating func appendEVEX(_ row: RowTemplate) {
    if random.oneIn(16) { bytes.append(0x67) }
    if random.oneIn(10) { bytes.append(random.oneIn(2) ? 0x64 : 0x65) }
    let w = row.w ?? random.oneIn(2)
    let vvvv: UInt8 = row.usesVVVV ? random.byte() & 0x78 : 0x78
    let length = row.length ?? UInt8(random.below(3))
    var last: UInt8 = row.usesVVVV || row.hasVectorIndex ? random.byte() & 8 : 8
    last |= length << 5
    if row.needsMask || row.allowsMask && random.oneIn(2) {
      last |= random.byte() & 7
      if last & 7 != 0 && row.allowsZeroing { last |= random.byte() & 0x80 }
    }
    if (row.allowsBroadcast || row.allowsRounding) && random.oneIn(3) { last |= 0x10 }
    bytes += [0x62, random.byte() & 0xF0 | UInt8(row.map)]
    bytes += [(w ? 0x80 : 0) | vvvv | 4 | UInt8(mandatoryPrefix(row)), last]
  }
}

// MARK: Operands

extension EncodingGenerator {
  private mutating func appendModRM(_ row: RowTemplate) {
    let isRegister = row.isRegisterForm ?? (random.below(20) < 9)
    var modRM = random.byte() & 0x3F
    modRM = modRM & ~row.modRMMask | row.modRM & row.modRMMask & 0x3F
    if row.hasVectorIndex { modRM = modRM & 0x38 | 4 }
    guard !isRegister else {
      bytes.append(modRM | 0xC0)
      return
    }
    let mod = UInt8(random.below(3))
    bytes.append(modRM | mod << 6)
    var noBase = mod == 0 && modRM & 7 == 5
    if modRM & 7 == 4 {
      let sib = random.byte()
      bytes.append(sib)
      noBase = mod == 0 && sib & 7 == 5
    }
    if noBase { fixedDisplacement = bytes.count }
    if mod == 1 {
      bytes.append(random.byte())
    } else if mod == 2 || noBase {
      let small = UInt32(bitPattern: Int32(random.below(4096) - 2048))
      append(random.oneIn(2) ? small : UInt32(truncatingIfNeeded: random.next()))
    }
  }

  private mutating func append(_ value: UInt32) {
    for shift: UInt32 in [0, 8, 16, 24] { bytes.append(UInt8(truncatingIfNeeded: value >> shift)) }
  }

  private mutating func appendImmediate() {
    switch random.below(5) {
    case 0: for _ in 0..<8 { bytes.append(0) }
    case 1: for _ in 0..<8 { bytes.append(0xFF) }
    case 2:
      bytes.append(UInt8(random.below(70)))
      for _ in 0..<7 { bytes.append(0) }
    default: for _ in 0..<8 { bytes.append(random.byte()) }
    }
    bytes.append(0)
  }

  /// Points what is absolute or relative to the instruction at the sandbox and the pads.
  private mutating func patch(_ e: inout Encoding) {
    let i = e.instruction
    var changed = false
    if let place = fixedDisplacement, i.index == Instruction.noRegister || random.oneIn(2) {
      let target = Target.random(&random, size: Int(i.memorySize), alignment: i.alignment)
      let isRelative = i.base == Instruction.ripRegister
      set(&e, place, 4, isRelative ? target &- e.end : target)
      changed = true
    }
    for n in 0..<Int(i.operandCount) {
      let length = Int(i.encoding.immediateLength)
      switch i.operands[n].kind {
      case .relative:
        let pads = e.pads
        set(&e, e.bytes.count - length, length, pads[random.below(pads.count)] &- e.end)
        changed = true
      case .memory where length > 0 && !i.encoding.hasModRM && !i.attributes.contains(.string):
        let target = Target.random(&random, size: Int(i.memorySize), alignment: 1)
        set(&e, e.bytes.count - length, length, target)
        changed = true
      default: break
      }
    }
    if i.mnemonic == .enter {
      set(&e, e.bytes.count - 3, 2, UInt64(random.below(512)))
      changed = true
    }
    if changed, let again = e.bytes.withUnsafeBytes({ try? Decoder.decode($0, mode: .bits64) }) {
      e.instruction = again
    }
  }

  private func set(_ e: inout Encoding, _ place: Int, _ size: Int, _ value: UInt64) {
    for n in 0..<size { e.bytes[place + n] = UInt8(truncatingIfNeeded: value >> UInt64(n * 8)) }
  }
}

extension Instruction {
  /// Size of the memory operand, 0 without one.
  var memorySize: UInt8 {
    for n in 0..<Int(operandCount) where operands[n].kind == .memory { return operands[n].size }
    return 0
  }

  /// What the memory operand's address must be a multiple of.
  var alignment: Int { attributes.contains(.aligned) ? max(1, Int(memorySize)) : 1 }
}

/// Addresses for memory operands: most are good, some fault in each of the ways.
enum Target {
  @inline(__always)
  static func random(_ random: inout OracleRandom, size: Int, alignment: Int) -> UInt64 {
    let start = Layout.sandbox
    let writable = UInt64(Layout.writableSize)
    let length = UInt64(max(size, 1))
    let offset: UInt64
    switch random.below(64) {
    case 0..<46: offset = UInt64(random.below(Layout.writableSize - Int(length)))
    case 46..<54: offset = 0x1000 &- UInt64(random.below(Int(length) + 1))
    case 54..<57: offset = writable &- UInt64(random.below(Int(length) + 1))
    case 57..<59: offset = writable &+ UInt64(random.below(0x1000 - Int(length)))
    case 59: offset = UInt64(Layout.sandboxSize) &- UInt64(random.below(Int(length) + 1))
    case 60: offset = 0 &- UInt64(random.below(Int(length) + 8))
    default: offset = UInt64(random.below(Layout.writableSize - Int(length)))
    }
    if alignment > 1 && !random.oneIn(12) { return (start &+ offset) & ~UInt64(alignment - 1) }
    return start &+ offset
  }

  /// Addresses that have nothing but a fault.
  static func bad(_ random: inout OracleRandom) -> UInt64 {
    switch random.below(4) {
    case 0: random.next() & 0xFFF
    case 1: 0x8000_0000_0000 &+ random.next() >> 20
    case 2: 0xFFFF_8000_0000_0000 | random.next() >> 20
    default: 0xFFFF_0000_0000_0000 | random.next() >> 24
    }
  }
}
