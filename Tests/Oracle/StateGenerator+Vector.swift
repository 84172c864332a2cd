// SPDX-License-Identifier: Apache-2.0
//
// Random vector and x87 state: numbers where floating point has its edges, all kinds of mask
// registers, x87 stacks filled here and there.

import X86
import X86CPU
import X86Decoder

extension StateGenerator {
  mutating func fill(_ v: UnsafeMutablePointer<VectorState>) {
    let raw = UnsafeMutableRawPointer(v)
    for register in 0..<32 { fillRegister(raw + register * 64) }
    for n in 0..<8 { v.pointee.opmask[n] = maskRegister() }
    fillX87(raw + MemoryLayout<VectorState>.offset(of: \.fx)!)
  }

  mutating func fill(_ v: UnsafeMutablePointer<VectorState>, for e: Encoding) {
    fill(v)
    switch e.instruction.mnemonic {
    // Several operations in one: which of their unmasked exceptions come together is not defined.
    case .dpps, .dppd, .vdpps, .vdppd:
      v.pointee.fx[3] |= 0x1F80
    default: break
    }
    if e.instruction.attributes.contains(.vsib) { fillIndexes(v, e.instruction) }
  }

  private mutating func maskRegister() -> UInt64 {
    switch random.below(6) {
    case 0: 0
    case 1: .max
    case 2: random.next() & random.next()
    case 3: random.next() & 0xFF
    default: random.next()
    }
  }

  private mutating func fillRegister(_ register: UnsafeMutableRawPointer) {
    let words = register.assumingMemoryBound(to: UInt64.self)
    let style = random.below(8)
    for n in 0..<8 {
      switch style {
      case 0, 1: words[n] = random.next()
      case 2, 3: words[n] = UInt64(single()) | UInt64(single()) << 32
      case 4, 5: words[n] = double()
      case 6: words[n] = bytes()
      default: words[n] = value()
      }
    }
  }

  /// Bits of a single: specials, small integers, anything.
  private mutating func single() -> UInt32 {
    let word = UInt32(truncatingIfNeeded: random.next() >> 16)
    let sign = word & 0x8000_0000
    switch word & 15 {
    case 0: return sign
    case 1: return sign | 0x7F80_0000
    case 2: return sign | 0x7FC0_0000 | word >> 8 & 0xFFFF
    case 3: return sign | 0x7F80_0001 | word >> 8 & 0xFFFF
    case 4: return sign | word >> 4 & 0x7F_FFFF
    case 5: return sign | 0x0080_0000
    case 6: return sign | 0x7F7F_FFFF
    case 7, 8: return Float(Int32(bitPattern: word) >> 20).bitPattern
    case 9, 10: return sign | 0x3F00_0000 &+ (word >> 4 & 0x1FF_FFFF)
    default: return word
    }
  }

  private mutating func double() -> UInt64 {
    let word = random.next()
    let sign = word & 1 << 63
    switch word & 15 {
    case 0: return sign
    case 1: return sign | 0x7FF << 52
    case 2: return sign | 0x7FF8 << 48 | word >> 8 & 0xFFFF
    case 3: return sign | 0x7FF0 << 48 | 1 | word >> 8 & 0xFFFF
    case 4: return sign | word >> 4 & (1 << 52 - 1)
    case 5: return sign | 1 << 52
    case 6: return sign | 0x7FEF << 48 | (1 << 48 - 1)
    case 7, 8: return Double(Int64(bitPattern: word) >> 50).bitPattern
    case 9, 10: return sign | 0x3FE0 << 48 &+ (word >> 4 & (1 << 54 - 1))
    // Around the limits of integers and of singles.
    case 11: return sign | (0x41D0 << 48 &+ (word >> 4 & 0x2F_FFFF_FFFF_FFFF))
    default: return word
    }
  }

  private mutating func bytes() -> UInt64 {
    let choices: [UInt64] = [0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x0F, 0x81]
    var word = random.next()
    var result: UInt64 = 0
    for _ in 0..<8 {
      result = result << 8 | choices[Int(word & 7)]
      word >>= 3
    }
    return result
  }

  private mutating func fillX87(_ fx: UnsafeMutableRawPointer) {
    let word = random.next()
    var control: UInt16 = 0x7F | UInt16(truncatingIfNeeded: word & 0xF00)
    if word >> 16 & 15 == 0 { control &= ~UInt16(truncatingIfNeeded: word >> 20 & 0x3F) }
    // Precision control 1 is reserved.
    if control & 0x300 == 0x100 { control |= 0x200 }
    var status = UInt16(truncatingIfNeeded: word >> 32) & 0x7F00
    if word >> 48 & 7 == 0 { status |= UInt16(truncatingIfNeeded: word >> 52 & 0x7F) }
    let pending = status & ~control & 0x3F != 0
    if pending && word >> 60 != 0 { status &= 0x7F00 }
    if status & ~control & 0x3F != 0 { status |= 0x8080 }
    let filled = random.next()
    let tags = filled & 3 == 0 ? UInt8(truncatingIfNeeded: filled >> 8) : filled & 3 == 1 ? 0 : 0xFF
    fx.storeBytes(of: control, toByteOffset: 0, as: UInt16.self)
    fx.storeBytes(of: status, toByteOffset: 2, as: UInt16.self)
    fx.storeBytes(of: UInt32(tags), toByteOffset: 4, as: UInt32.self)
    for offset in stride(from: 8, to: 24, by: 8) {
      fx.storeBytes(of: 0, toByteOffset: offset, as: UInt64.self)
    }
    fx.storeBytes(of: mxcsr(), toByteOffset: 24, as: UInt32.self)
    fx.storeBytes(of: 0xFFFF, toByteOffset: 28, as: UInt32.self)
    for n in 0..<8 {
      let (significand, exponent) = extended()
      fx.storeBytes(of: significand, toByteOffset: 32 + n * 16, as: UInt64.self)
      fx.storeBytes(of: UInt64(exponent), toByteOffset: 40 + n * 16, as: UInt64.self)
    }
  }

  mutating func mxcsr() -> UInt32 {
    let word = UInt32(truncatingIfNeeded: random.next() >> 8)
    var value: UInt32 = 0x1F80 | word & 0x6000
    if word >> 16 & 3 == 0 { value |= word >> 18 & 0x8040 }
    if word >> 19 & 3 == 0 { value |= word & 0x3F }
    // One of invalid operation, denormal and division by zero (see Exclusions for the others).
    if word >> 22 & 15 == 0 { value &= ~(0x80 << ((word >> 26) % 3)) }
    return value
  }

  /// An 80-bit number as significand, and sign with exponent.
  private mutating func extended() -> (UInt64, UInt16) {
    let word = random.next()
    let sign = UInt16(truncatingIfNeeded: word >> 48) & 0x8000
    let significand = random.next() | 1 << 63
    switch word & 15 {
    case 0: return (0, sign)
    case 1: return (1 << 63, sign | 0x7FFF)
    case 2: return (significand | 1 << 62, sign | 0x7FFF)
    case 3: return (significand & ~(1 << 62) | 1, sign | 0x7FFF)
    case 4: return (significand & ~(1 << 63), sign)
    case 5: return (significand & ~(1 << 63), sign | UInt16(truncatingIfNeeded: word >> 8) & 0x7FFF)
    case 6: return (1 << 63, sign | 1)
    case 7: return (.max, sign | 0x7FFE)
    case 8, 9:
      let number = Float80(Int64(bitPattern: word) >> 50)
      return (number.significandBitPattern | (number == 0 ? 0 : 1 << 63), number.signWithExponent)
    case 10: return (significand, sign | UInt16(truncatingIfNeeded: word >> 8) & 0x7FFF)
    default: return (significand, sign | 0x3FF0 &+ UInt16(truncatingIfNeeded: word >> 8 & 31))
    }
  }

  // MARK: Gather and scatter

  private mutating func fillIndexes(
    _ v: UnsafeMutablePointer<VectorState>, _ i: Instruction
  ) {
    let raw = UnsafeMutableRawPointer(v)
    let register = raw + Int(i.index) * 64
    let size = i.indexElementSize
    for n in 0..<(64 / size) {
      var index = Int64(random.below(3000) - 1500) >> Int64(i.scale)
      if random.oneIn(200) { index = Int64(random.below(40000) - 20000) }
      if size == 4 {
        register.storeBytes(of: Int32(index), toByteOffset: n * 4, as: Int32.self)
      } else {
        register.storeBytes(of: index, toByteOffset: n * 8, as: Int64.self)
      }
    }
  }
}

extension Instruction {
  /// Of gather and scatter: bytes of one index.
  var indexElementSize: Int {
    switch mnemonic {
    case .vpgatherqd, .vpgatherqq, .vgatherqps, .vgatherqpd, .vpscatterqd, .vpscatterqq,
      .vscatterqps, .vscatterqpd:
      8
    default: 4
    }
  }

  /// Whether vector, mask or x87 registers matter.
  var usesVectorState: Bool {
    !attributes.isDisjoint(with: [.vector, .x87, .mmx, .floatingPoint])
      || !prefixes.isDisjoint(with: [.vex, .evex]) && feature != .bmi1 && feature != .bmi2
  }
}

extension Float80 {
  fileprivate var signWithExponent: UInt16 {
    UInt16(truncatingIfNeeded: exponentBitPattern) | (sign == .minus ? 0x8000 : 0)
  }
}
