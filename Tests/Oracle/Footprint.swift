// SPDX-License-Identifier: Apache-2.0
//
// Which memory an instruction will touch, worked out before it runs: nothing may run on the host
// that could reach anything but the sandbox, or an address where there is certainly nothing.

import X86
import X86Decoder

enum Footprint {
  /// Whether everything that the instruction can access is in the sandbox or faults.
  static func isSafe(_ i: Instruction, _ r: Registers) -> Bool {
    if i.attributes.contains(.string) { return areStringsSafe(i, r) }
    if let operand = i.memoryIndex, i.mnemonic != .lea, i.mnemonic != .nop {
      guard isSafe(address(i, r, operand), 64), !isHalfCanonical(i, r, operand) else {
        return false
      }
    }
    return areImplicitSafe(i, r)
  }

  /// Faults that are the implementation's choice: legacy SHA instructions need alignment by one
  /// vendor's manual only; aligned moves under a mask that is all 0 need it or not; byte-masked
  /// stores fault or not where no byte is selected.
  static func areFaultsAgreed(_ i: Instruction, _ r: Registers) -> Bool {
    switch i.mnemonic {
    case .maskmovq, .maskmovdqu, .vmaskmovdqu:
      let offset = masked(r.gpr[7], i) &+ segmentBase(i, r) &- Layout.sandbox
      return offset <= UInt64(Layout.writableSize - 16)
    case .wrfsbase, .wrgsbase:
      // Canonical by the linear-address width in use, or by the widest there is.
      let high = r.gpr[Int(i.operands[0].number)] >> 56
      return high != 0 && high != 0xFF || i.operandSize != 8
        || StateGenerator.isCanonical(r.gpr[Int(i.operands[0].number)])
    default: break
    }
    let isMasked = i.attributes.contains(.aligned) && i.encoding.evexMask != 0
    guard i.feature == .sha || isMasked, let operand = i.memoryIndex else { return true }
    return address(i, r, operand) & UInt64(max(1, i.operands[operand].size) - 1) == 0
  }

  /// Nothing in the process is at these addresses but the sandbox.
  static func isSafe(_ address: UInt64, _ size: UInt64) -> Bool {
    if address >= Layout.sandbox - Layout.guardSize + 64
      && address < Layout.sandbox + UInt64(Layout.sandboxSize) + Layout.guardSize - 64
    {
      return true
    }
    if address < 0x1_0000 - size { return true }
    let high = address >> 47
    if high == 0 { return false }
    // The kernel's half, but not the page of the old system calls at its end.
    if high == 0x1_FFFF { return address < 0xFFFF_FFFF_0000_0000 }
    return true
  }

  /// Linear address of the explicit memory operand.
  static func address(_ i: Instruction, _ r: Registers, _ operand: Int) -> UInt64 {
    var offset = UInt64(bitPattern: i.displacement)
    if i.base == Instruction.ripRegister {
      offset &+= r.rip &+ UInt64(i.length)
    } else if i.base != Instruction.noRegister {
      offset &+= r.gpr[Int(i.base)]
    }
    if i.index != Instruction.noRegister && !i.attributes.contains(.vsib) {
      offset &+= r.gpr[Int(i.index)] &<< UInt64(i.scale)
    }
    if isBitString(i) { offset &+= bitOffset(i, r) }
    return masked(offset, i) &+ segmentBase(i, r)
  }

  /// With FS or GS an offset that is not canonical may make a linear address that is: only the
  /// latter counts by the manuals, but not on every host.
  private static func isHalfCanonical(_ i: Instruction, _ r: Registers, _ operand: Int) -> Bool {
    isHalfCanonical(address(i, r, operand), segmentBase(i, r))
  }

  private static func isHalfCanonical(_ linear: UInt64, _ base: UInt64) -> Bool {
    base != 0 && StateGenerator.isCanonical(linear) && !StateGenerator.isCanonical(linear &- base)
  }

  static func masked(_ offset: UInt64, _ i: Instruction) -> UInt64 {
    i.addressSize == 4 ? offset & 0xFFFF_FFFF : offset
  }

  static func segmentBase(_ i: Instruction, _ r: Registers) -> UInt64 {
    i.segment == .fs ? r.fsBase : i.segment == .gs ? r.gsBase : 0
  }

  static func isBitString(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .bt, .bts, .btr, .btc: i.operands[0].kind == .memory && i.operands[1].kind == .general
    default: false
    }
  }

  /// The distance in bytes by which a bit string's register moves the operand.
  static func bitOffset(_ i: Instruction, _ r: Registers) -> UInt64 {
    let value = r.gpr[Int(i.operands[1].number)]
    let bits = UInt64(i.operandSize) * 8
    let unused = 64 - bits
    let signed = Int64(bitPattern: value << unused) >> Int64(unused)
    return UInt64(bitPattern: (signed >> Int64(bits.trailingZeroBitCount)) * Int64(i.operandSize))
  }

  private static func areStringsSafe(_ i: Instruction, _ r: Registers) -> Bool {
    for n in 0..<Int(i.operandCount) where i.operands[n].kind == .memory {
      let number = i.operands[n].number
      let base = number == 6 ? segmentBase(i, r) : 0
      let linear = masked(r.gpr[Int(number)], i) &+ base
      if !isSafe(linear, 64) || isHalfCanonical(linear, base) { return false }
    }
    return true
  }

  private static func areImplicitSafe(_ i: Instruction, _ r: Registers) -> Bool {
    switch i.mnemonic {
    case .push, .pushf, .pushSegment, .call, .pop, .popf, .popSegment, .ret:
      return isSafe(r.gpr[4] &- 16, 32)
    case .enter: return isSafe(r.gpr[4] &- 1024, 1024) && isSafe(r.gpr[5] &- 256, 256)
    case .leave: return isSafe(r.gpr[5], 8)
    case .xlat:
      let linear = masked(r.gpr[3] &+ r.gpr[0] & 0xFF, i) &+ segmentBase(i, r)
      return isSafe(linear, 8) && !isHalfCanonical(linear, segmentBase(i, r))
    case .maskmovq, .maskmovdqu, .vmaskmovdqu:
      return isSafe(masked(r.gpr[7], i) &+ segmentBase(i, r), 16)
    case .clzero: return isSafe(masked(r.gpr[0], i) & ~63, 64)
    case .movdir64b: return isSafe(masked(r.gpr[Int(i.operands[0].number)], i), 64)
    default: return true
    }
  }
}

extension Instruction {
  /// Index of the operand that is memory by ModRM or offset.
  var memoryIndex: Int? {
    for n in 0..<Int(operandCount) where operands[n].kind == .memory { return n }
    return nil
  }
}
