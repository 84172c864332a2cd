// SPDX-License-Identifier: Apache-2.0
//
// Which vector and x87 instructions translated code executes itself, and how much of each vector
// register a block needs in the host register.

import X86
import X86CPU
import X86Decoder

/// What must be usable or loaded before an instruction executes.
struct VectorNeeds: Equatable {
  /// 0 nothing, 1 SSE, 2 AVX, 3 AVX-512.
  var level: UInt8 = 0
  var isArithmetic = false
  var x87 = false

  static let none = VectorNeeds()

  mutating func formUnion(_ other: VectorNeeds) {
    level = max(level, other.level)
    isArithmetic = isArithmetic || other.isArithmetic
    x87 = x87 || other.x87
  }

  /// State that was tested and loaded for these suffices for others.
  func covers(_ other: VectorNeeds) -> Bool {
    level >= other.level && (isArithmetic || !other.isArithmetic) && (x87 || !other.x87)
  }

  init() {}

  init(_ i: Instruction) {
    x87 = i.attributes.contains(.x87) || i.usesMMX || i.mnemonic == .emms
    if i.attributes.contains(.x87) || i.mnemonic == .emms { return }
    isArithmetic = i.attributes.contains(.floatingPoint)
    let operands = i.hostOperands
    if i.prefixes.contains(.evex) || operands.contains(where: { $0.kind == .mask }) {
      level = 3
    } else if i.prefixes.contains(.vex) {
      level = 2
    } else if !i.usesMMX || isArithmetic || operands.contains(where: { $0.kind == .vector }) {
      level = 1
    }
  }

  /// The bit that must be set besides that of x87.
  var levelBit: VectorReadiness {
    let usable: VectorReadiness = level == 3 ? .avx512 : level == 2 ? .avx : .sse
    return isArithmetic
      ? VectorReadiness(rawValue: usable.rawValue << UInt32(VectorReadiness.arithmeticShift))
      : usable
  }

  var usableBit: VectorReadiness { level == 3 ? .avx512 : level == 2 ? .avx : .sse }
}

enum VectorLowering {
  /// Translated code executes the instruction itself. The others change control words, access
  /// memory other than by one operand, or have implicit operands.
  static func isNative(_ i: Instruction, _ host: HostFeatures) -> Bool {
    guard i.attributes.contains(.vector) || i.attributes.contains(.x87), host.has(i),
      i.attributes.isDisjoint(with: [.vsib, .branch, .serializes, .privileged]),
      !i.comparesStrings, !convertsMemoryToVector(i), !excluded.contains(i.mnemonic)
    else { return false }
    if let m = i.memoryOperand {
      guard i.operands[m].size > 0, i.encoding.hasModRM, i.encoding.modRM < 0xC0 else {
        return false
      }
    }
    // The registers are moved by VEX and EVEX forms.
    guard host.hasAVX else { return false }
    return i.mnemonic != .vzeroupper || host.hasAVX512 && i.mode == .bits64
  }

  /// CVTPI2PS of memory may use the x87 unit, which no operand says.
  private static func convertsMemoryToVector(_ i: Instruction) -> Bool {
    i.memoryOperand != nil && (i.mnemonic == .cvtpi2ps || i.mnemonic == .cvtpi2pd)
  }

  private static let excluded: Set<Mnemonic> = [
    .ldmxcsr, .vldmxcsr, .stmxcsr, .vstmxcsr, .vzeroall, .maskmovq, .maskmovdqu, .vmaskmovdqu,
    .fldenv, .fnstenv, .fnsave, .frstor, .fninit, .fneni, .fndisi, .fnsetpm, .vp2intersectd,
    .vp2intersectq,
  ]

  /// A legacy instruction overwrites all 16 bytes of its destination.
  static func writesWhole(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .movups, .movaps, .movupd, .movapd, .movdqa, .movdqu, .lddqu, .movd, .movq, .pshufd: true
    case .movss, .movsd: i.memoryOperand == 1
    default: false
    }
  }

  /// XOR of a register with itself.
  static func isZeroing(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .pxor, .xorps, .xorpd, .vpxor, .vxorps, .vxorpd: break
    default: return false
    }
    if i.encoding.evexMask != 0 { return false }
    let first = i.operands[0]
    for n in 1..<Int(i.operandCount)
    where i.operands[n].kind != first.kind || i.operands[n].number != first.number { return false }
    return first.kind == .vector
  }
}

/// The vector registers of a block.
struct VectorPlan {
  /// Bytes of each register that the block needs in the host's: 16, 32 or 64.
  var width = InlineArray<32, UInt8>(repeating: 16)
  /// Registers of instructions of more than 16 bytes, and of legacy instructions.
  private var wide: UInt32 = 0
  private var legacy: UInt32 = 0
  var used: UInt32 = 0
  var written: UInt32 = 0
  var masksUsed: UInt8 = 0
  var masksWritten: UInt8 = 0

  init() {}

  init(_ codes: UnsafeBufferPointer<BlockCode>, host: HostFeatures) {
    for code in codes {
      for n in code.kinds.indices where code.kinds[n] == .vector {
        note(code.instructions[n], host)
      }
    }
  }

  /// Bytes of a register to load: not the upper part if nothing reads it, because the load zeroes
  /// it, as every VEX instruction that writes to the register does.
  func loadWidth(_ number: UInt8) -> UInt8 {
    let keepsUpper = (wide | legacy) >> UInt32(number & 31) & 1 != 0
    return keepsUpper ? width[Int(number & 31)] : 16
  }

  /// The first vector instructions after those left to handlers: they test the state that they need
  /// and exit if it is missing. As bits: a block has less than 64 instructions.
  static func tests(_ kinds: UnsafeBufferPointer<LoweringKind>) -> UInt64 {
    var result: UInt64 = 0
    var isKnown = true
    for (n, kind) in kinds.enumerated() {
      if kind == .handler { isKnown = false }
      if kind == .vector && !isKnown {
        result |= 1 &<< UInt64(n)
        isKnown = true
      }
    }
    return result
  }

  private mutating func note(_ i: Instruction, _ host: HostFeatures) {
    let isLegacy = i.prefixes.isDisjoint(with: [.vex, .evex])
    let full: UInt8 = host.hasAVX512 ? 64 : 32
    for operand in i.hostOperands {
      let number = Int(operand.number & 31)
      let writes = operand.access.contains(.write)
      if operand.kind == .mask {
        masksUsed |= 1 << operand.number
        if writes { masksWritten |= 1 << operand.number }
      }
      guard operand.kind == .vector else { continue }
      used |= 1 << UInt32(number)
      if !isLegacy && i.encoding.vectorLength > 16 { wide |= 1 << UInt32(number) }
      if isLegacy { legacy |= 1 << UInt32(number) }
      if writes { written |= 1 << UInt32(number) }
      if number >= 16 || !isLegacy && (writes || operand.size > 32) {
        width[number] = full
      } else if !isLegacy && operand.size > 16 {
        width[number] = max(width[number], 32)
      }
    }
  }
}

/// The contents of host vector registers at a point of the code.
struct VectorCache: Equatable {
  var held: UInt32 = 0
  /// Of those: the dirty ones.
  var dirty: UInt32 = 0
  var masksHeld: UInt8 = 0
  var masksDirty: UInt8 = 0
  /// The last x87 instruction whose address and opcode are not recorded yet.
  var x87Instruction: Int?
  /// The upper parts of host registers 0 to 15 may be in use.
  var usesUpper = false
  /// The state that has been tested and loaded.
  var ready = VectorNeeds.none

  /// A handler may unload state.
  var needsReload: Bool { held != 0 || masksHeld != 0 || ready.x87 || ready.isArithmetic }
}
