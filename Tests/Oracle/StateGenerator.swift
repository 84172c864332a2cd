// SPDX-License-Identifier: Apache-2.0
//
// Random states for a given instruction: registers full of values where instructions have their
// edges, addresses solved so that memory operands land in the sandbox, branch targets on the pads.

import X86
import X86Decoder

struct StateGenerator {
  var random: OracleRandom
  /// Both sandboxes, for values that must stand in memory.
  let sandboxes: [UnsafeMutableRawPointer]

  /// Nil where no try made a state that is safe to run.
  mutating func fill(_ r: inout Registers, for e: Encoding) -> Bool {
    for _ in 0..<24 {
      fillRandomly(&r, e)
      prepare(&r, e)
      if let operand = e.instruction.memoryIndex, !e.instruction.attributes.contains(.string) {
        solve(&r, e, operand)
      }
      guard Footprint.isSafe(e.instruction, r) else { continue }
      guard Footprint.areFaultsAgreed(e.instruction, r) else { continue }
      if e.instruction.attributes.contains(.branch) && !aim(&r, e) { continue }
      return true
    }
    return false
  }

  @inline(__always) mutating func value() -> UInt64 {
    let word = random.next()
    switch word & 15 {
    case 0: return 0
    case 1: return .max
    case 2, 3: return word >> 8 & 0xFF
    case 4: return 1 &<< (word >> 8)
    case 5: return (1 &<< (word >> 8)) &- 1
    case 6: return 0 &- (word >> 8 & 0xFF)
    case 7: return 0x8000_0000 &+ (word >> 8 & 3) &- 1
    case 8: return word >> 32
    default: return random.next()
    }
  }

  private mutating func fillRandomly(_ r: inout Registers, _ e: Encoding) {
    for n in 0..<16 { r.gpr[n] = value() }
    let word = random.next()
    r.flags = word & (RFLAGS.arithmetic.rawValue) | 0x202
    if word >> 32 & 7 == 0 { r.flags |= RFLAGS.df.rawValue }
    if word >> 36 & 3 == 0 { r.flags |= RFLAGS.id.rawValue }
    r.rip = e.address
    r.gsBase = segmentBase(e.instruction)
    r.fsBase = segmentBase(e.instruction)
  }

  /// Canonical; with 32-bit addresses so low that it does not push them out of reach.
  private mutating func segmentBase(_ i: Instruction) -> UInt64 {
    let word = random.next()
    if i.addressSize == 4 { return word & 0xFFF_FFFF }
    return UInt64(bitPattern: Int64(bitPattern: word << 16) >> 16)
  }

  private mutating func stackPointer() -> UInt64 {
    if random.oneIn(100) { return Target.bad(&random) }
    if random.oneIn(24) { return Target.random(&random, size: 8, alignment: 1) }
    return Layout.sandbox &+ 0x600 &+ UInt64(random.below(Layout.writableSize - 0xA00))
  }
}

// MARK: What instructions need

extension StateGenerator {
  private mutating func prepare(_ r: inout Registers, _ e: Encoding) {
    let i = e.instruction
    if i.attributes.contains(.string) { return prepareString(&r, i) }
    switch i.mnemonic {
    case .popf:
      // No single steps, no alignment checks: the flags of the native executor's own code.
      r.gpr[4] = Layout.sandbox &+ UInt64(random.below(Layout.sandboxSize - 8))
      let changeable = RFLAGS.arithmetic.rawValue | RFLAGS.df.rawValue | RFLAGS.id.rawValue
      write(random.next() & (changeable | 0x3200) | 2, at: r.gpr[4])
    case .push, .pushf, .pushSegment, .pop, .call, .ret, .enter, .leave:
      r.gpr[4] = stackPointer()
      r.gpr[5] = stackPointer()
    case .div, .idiv: prepareDivision(&r, i)
    case .cmpxchg where random.oneIn(2):
      if i.operands[0].kind == .general, i.operands[0].number < 16 {
        r.gpr[0] = r.gpr[Int(i.operands[0].number)]
      }
    case .xlat:
      let target = Target.random(&random, size: 1, alignment: 1) &- (r.gpr[0] & 0xFF)
      r.gpr[3] = target &- Footprint.segmentBase(i, r)
    case .loop, .loope, .loopne, .jcxz: if random.oneIn(2) { r.gpr[1] = UInt64(random.below(3)) }
    case .bt, .bts, .btr, .btc:
      if Footprint.isBitString(i) {
        r.gpr[Int(i.operands[1].number)] = UInt64(bitPattern: Int64(random.below(65536) - 32768))
      }
    case .maskmovq, .maskmovdqu, .vmaskmovdqu:
      let target = Target.random(&random, size: 16, alignment: 1)
      r.gpr[7] = target &- Footprint.segmentBase(i, r)
    case .clzero: r.gpr[0] = Target.random(&random, size: 64, alignment: 1)
    case .movdir64b:
      r.gpr[Int(i.operands[0].number)] = Target.random(&random, size: 64, alignment: 64)
    default: break
    }
    if i.operandCount > 0, i.operands[Int(i.operandCount) - 1].kind == .general,
      i.operands[Int(i.operandCount) - 1].size == 1, random.oneIn(2)
    {
      r.gpr[1] = r.gpr[1] & ~0xFF | UInt64(random.below(70))
    }
  }

  private mutating func prepareString(_ r: inout Registers, _ i: Instruction) {
    if random.oneIn(3) { r.flags ^= RFLAGS.df.rawValue }
    let upper = i.addressSize == 4 ? random.next() << 32 : 0
    for n in 0..<Int(i.operandCount) where i.operands[n].kind == .memory {
      let number = Int(i.operands[n].number)
      let base = number == 6 ? Footprint.segmentBase(i, r) : 0
      let target =
        random.oneIn(60)
        ? Target.bad(&random)
        : Target.random(&random, size: Int(i.operandSize), alignment: 1)
      r.gpr[number] = (i.addressSize == 4 ? (target &- base) & 0xFFFF_FFFF : target &- base) | upper
    }
    let count = UInt64(random.oneIn(12) ? random.below(6000) : random.below(20))
    r.gpr[1] = i.addressSize == 4 ? count | random.next() << 32 : count
  }

  /// Dividends that mostly fit.
  private mutating func prepareDivision(_ r: inout Registers, _ i: Instruction) {
    if random.oneIn(4) { return }
    let bits = UInt64(i.operandSize) * 8
    if bits == 8 {
      r.gpr[0] = r.gpr[0] & ~0xFFFF | UInt64(random.below(i.mnemonic == .div ? 4096 : 512))
      return
    }
    let sign = UInt64(bitPattern: Int64(bitPattern: r.gpr[0] << (64 - bits)) >> 63)
    r.gpr[2] = i.mnemonic == .idiv ? sign : UInt64(random.below(8))
  }

  /// Makes the memory operand's address a chosen one.
  private mutating func solve(_ r: inout Registers, _ e: Encoding, _ operand: Int) {
    let i = e.instruction
    let target =
      random.oneIn(60)
      ? Target.bad(&random)
      : Target.random(&random, size: Int(i.operands[operand].size), alignment: i.alignment)
    var offset = target &- Footprint.segmentBase(i, r)
    if Footprint.isBitString(i) { offset &-= Footprint.bitOffset(i, r) }
    let rest = Footprint.masked(offset, i) &- UInt64(bitPattern: i.displacement)
    let upper = i.addressSize == 4 ? random.next() << 32 : 0
    let hasIndex = i.index != Instruction.noRegister && !i.attributes.contains(.vsib)
    if i.base < 16 {
      if hasIndex && i.base == i.index {
        let factor = 1 + Int64(1) << Int64(i.scale)
        r.gpr[Int(i.base)] = UInt64(bitPattern: Int64(bitPattern: rest) / factor)
      } else {
        let index = hasIndex ? r.gpr[Int(i.index)] &<< UInt64(i.scale) : 0
        r.gpr[Int(i.base)] = (rest &- index) & (i.addressSize == 4 ? 0xFFFF_FFFF : .max) | upper
      }
    } else if hasIndex && i.base == Instruction.noRegister {
      r.gpr[Int(i.index)] = UInt64(bitPattern: Int64(bitPattern: rest) >> Int64(i.scale))
    } else if i.segment == .gs || i.segment == .fs {
      // Neither base nor index: the segment's base makes the address.
      let offset = Footprint.masked(
        UInt64(bitPattern: i.displacement)
          &+ (i.base == Instruction.ripRegister ? e.end : 0), i)
      if i.segment == .gs { r.gsBase = target &- offset } else { r.fsBase = target &- offset }
      if !Self.isCanonical(r.gsBase) { r.gsBase = 0 }
      if !Self.isCanonical(r.fsBase) { r.fsBase = 0 }
    }
    if i.mnemonic == .ldmxcsr || i.mnemonic == .vldmxcsr {
      // Bits above 15 are reserved, but one of them not on every host.
      let value = mxcsr() | (random.oneIn(20) ? 0x10_0000 << UInt32(random.below(12)) : 0)
      write32(value, at: Footprint.address(i, r, operand))
    }
    if i.mnemonic == .cmpxchg || i.mnemonic == .cmpxchg8b || i.mnemonic == .cmpxchg16b {
      prepareCompare(&r, i, operand)
    }
  }

  static func isCanonical(_ address: UInt64) -> Bool {
    let high = address >> 47
    return high == 0 || high == 0x1_FFFF
  }

  /// Half of the compares are to succeed.
  private mutating func prepareCompare(_ r: inout Registers, _ i: Instruction, _ operand: Int) {
    guard random.oneIn(2) else { return }
    let address = Footprint.address(i, r, operand)
    guard let low = read(address) else { return }
    switch i.mnemonic {
    case .cmpxchg: if i.base != 0 && i.index != 0 { r.gpr[0] = low }
    case .cmpxchg8b:
      if i.base == 0 || i.index == 0 || i.base == 2 || i.index == 2 { return }
      r.gpr[0] = low & 0xFFFF_FFFF | random.next() << 32
      r.gpr[2] = low >> 32 | random.next() << 32
    default:
      if i.base == 0 || i.index == 0 || i.base == 2 || i.index == 2 { return }
      r.gpr[0] = low
      r.gpr[2] = read(address &+ 8) ?? 0
    }
  }

  private func read(_ address: UInt64) -> UInt64? {
    let offset = address &- Layout.sandbox
    guard offset <= UInt64(Layout.sandboxSize - 8) else { return nil }
    return sandboxes[0].loadUnaligned(fromByteOffset: Int(offset), as: UInt64.self)
  }

  func write32(_ value: UInt32, at address: UInt64) {
    let offset = address &- Layout.sandbox
    guard offset <= UInt64(Layout.sandboxSize - 4) else { return }
    for sandbox in sandboxes {
      sandbox.storeBytes(of: value, toByteOffset: Int(offset), as: UInt32.self)
    }
  }

  private func write(_ value: UInt64, at address: UInt64) {
    let offset = address &- Layout.sandbox
    guard offset <= UInt64(Layout.sandboxSize - 8) else { return }
    for sandbox in sandboxes {
      sandbox.storeBytes(of: value, toByteOffset: Int(offset), as: UInt64.self)
    }
  }
}

// MARK: Branch targets

extension StateGenerator {
  private mutating func branchTarget(_ e: Encoding) -> UInt64 {
    switch random.below(40) {
    case 0: return Target.bad(&random)
    case 1: return Layout.sandbox &+ UInt64(random.below(Layout.sandboxSize))
    default:
      let pads = e.pads
      return pads[random.below(pads.count)]
    }
  }

  /// Points an indirect branch at a pad, or at nothing. False where it would go elsewhere.
  private mutating func aim(_ r: inout Registers, _ e: Encoding) -> Bool {
    let i = e.instruction
    switch i.mnemonic {
    case .ret: write(branchTarget(e), at: r.gpr[4])
    case .call, .jmp:
      if i.operands[0].kind == .general {
        if i.operands[0].number == 4 && i.mnemonic == .call { return false }
        r.gpr[Int(i.operands[0].number)] = branchTarget(e)
      } else if i.operands[0].kind == .memory {
        write(branchTarget(e), at: Footprint.address(i, r, 0))
      }
    default: return true
    }
    guard let target = target(r, e) else { return true }
    return e.pads.contains(target) || Footprint.isSafe(target, 64)
  }

  /// Where it will go; nil where it will fault instead, or is relative.
  private func target(_ r: Registers, _ e: Encoding) -> UInt64? {
    let i = e.instruction
    if i.mnemonic == .ret { return read(r.gpr[4]) }
    switch i.operands[0].kind {
    case .general: return r.gpr[Int(i.operands[0].number)]
    case .memory: return read(Footprint.address(i, r, 0))
    default: return nil
    }
  }
}
