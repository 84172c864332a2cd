// SPDX-License-Identifier: Apache-2.0
//
// The bounds of rules about faults, strings, calls and general registers.

import X86
import X86Decoder

extension DifferingPair {
  // MARK: Faults

  /// Of a string instruction those of the round that the registers stand at.
  var accesses: [MemoryAccess] {
    MemoryAccess.all(instruction, isRepeated ? other.registers : before)
  }

  /// Whether the instruction may end in this fault, where other conditions do not come first.
  func permits(_ fault: Fault, onHost: Bool = false) -> Bool {
    if accesses.contains(where: { $0.permits(fault, onHost: onHost) }) { return true }
    guard fault.errorCode == 0,
      let vector = ExceptionVector(rawValue: UInt8(clamping: fault.vector))
    else { return false }
    switch vector {
    case .x87FloatingPoint:
      return hasPendingException && !instruction.attributes.isDisjoint(with: [.x87, .mmx])
        && !instruction.attributes.contains(.nonWaiting)
    case .simdFloatingPoint: return isConversionToMemory && hasUnmaskedSIMD
    case .generalProtection:
      // Ports without permission; a near branch to where no code can be.
      if [.ins, .outs].contains(instruction.mnemonic) { return true }
      return branchTarget.map { !StateGenerator.isCanonical($0) } ?? false
    default: return false
    }
  }

  /// Of an indirect near branch.
  private var branchTarget: UInt64? {
    switch instruction.mnemonic {
    case .ret: return load(before.gpr[4], 8)
    case .call, .jmp:
      switch instruction.operands[0].kind {
      case .general: return before.gpr[Int(instruction.operands[0].number & 15)]
      case .memory: return load(Footprint.address(instruction, before, 0), 8)
      default: return nil
      }
    default: return nil
    }
  }

  /// The host's fault is that of a wider or a separated address, the other's the one without.
  var allowedByAddressSpaces: Parts {
    guard bothFault else { return [] }
    if permits(host.fault, onHost: true) && permits(other.fault) { return .fault }
    guard let target = branchTarget, generalDiffer(onlyIn: [4]) else { return [] }
    let pageFault = UInt64(ExceptionVector.pageFault.rawValue)
    let isWide =
      !StateGenerator.isCanonical(target) && MemoryAccess.isCanonicalInFiveLevels(target)
      && other.registers.rip == before.rip && host.fault.vector == pageFault
      && host.fault.address == target && host.registers.rip == target
    let isSeparated =
      target >> 63 != 0 && other.fault.vector == pageFault && other.fault.address == target
      && host.fault.vector == UInt64(ExceptionVector.generalProtection.rawValue)
    guard isWide || isSeparated, differOnlyInReturnAddress else { return [] }
    return [.fault, .position, .general, .memory]
  }

  var isSplitLock: Bool {
    guard host.fault.vector == UInt64(ExceptionVector.alignmentCheck.rawValue), !isBlock,
      host.registers.rip == before.rip, Self.isLocked(instruction)
    else { return false }
    return accesses.contains { $0.crossesCacheLines }
  }

  static func isLocked(_ i: Instruction) -> Bool {
    i.prefixes.contains(.lock) || i.mnemonic == .xchg && i.memoryIndex != nil
  }

  // MARK: Strings

  /// The host has the flags of the last whole round, the other those from before.
  var hasFlagsOfLastRound: Bool {
    let i = instruction
    guard isRepeated, i.mnemonic == .cmps || i.mnemonic == .scas else { return false }
    let size = UInt64(i.operandSize)
    let back = before.flags & RFLAGS.df.rawValue != 0 ? size : 0 &- size
    let r = other.registers
    let source = Footprint.masked(r.gpr[6] &+ back, i) &+ Footprint.segmentBase(i, r)
    let first = i.mnemonic == .cmps ? load(source, size) : r.gpr[0]
    guard let first, let second = load(Footprint.masked(r.gpr[7] &+ back, i), size) else {
      return false
    }
    let flags = Self.flags(comparing: first, second, bits: size * 8)
    return host.registers.flags & RFLAGS.arithmetic.rawValue == flags
  }

  static func flags(comparing a: UInt64, _ b: UInt64, bits: UInt64) -> UInt64 {
    let mask = UInt64.max >> (64 - bits)
    let (x, y) = (a & mask, b & mask)
    let result = (x &- y) & mask
    var flags: RFLAGS = []
    if x < y { flags.insert(.cf) }
    if UInt8(truncatingIfNeeded: result).nonzeroBitCount & 1 == 0 { flags.insert(.pf) }
    if x & 15 < y & 15 { flags.insert(.af) }
    if result == 0 { flags.insert(.zf) }
    if result >> (bits - 1) != 0 { flags.insert(.sf) }
    if ((x ^ y) & (x ^ result)) >> (bits - 1) != 0 { flags.insert(.of) }
    return flags.rawValue
  }

  /// A repeat whose count is the one from before: each of its registers as it was, or
  /// zero-extended.
  var differOnlyInUpperHalves: Bool {
    let low: UInt64 = 0xFFFF_FFFF
    guard isRepeated, instruction.addressSize == 4, !isBlock,
      (before.gpr[1] ^ other.registers.gpr[1]) & low == 0
    else { return false }
    var numbers: Set = [1]
    for n in 0..<Int(instruction.operandCount) where instruction.operands[n].kind == .memory {
      numbers.insert(Int(instruction.operands[n].number))
    }
    return generalDiffer(onlyIn: numbers)
      && numbers.allSatisfy {
        host.registers.gpr[$0] == before.gpr[$0] || host.registers.gpr[$0] == before.gpr[$0] & low
      }
  }

  // MARK: Memory

  /// What is there of the store is the stored value's, where that is in a register.
  var differOnlyInWideStore: Bool {
    let stores = accesses.filter {
      $0.writes && ($0.size > 8 || instruction.mnemonic == .enter)
    }
    guard let first = stores.first else { return false }
    let value = instruction.mnemonic == .fstp ? vectors.map { X87Image($0.before).valueOfTop } : nil
    return memoryDiffers { address, byte in
      guard stores.contains(where: { $0.contains(address) }) else { return false }
      guard let value else { return true }
      return value[Int(address &- first.address)] == byte
    }
  }

  var differOnlyInReturnAddress: Bool {
    let place = before.gpr[4] &- 8
    return memoryDiffers { address, byte in
      instruction.mnemonic == .call && address &- place < 8
        && UInt8(truncatingIfNeeded: end >> ((address &- place) * 8)) == byte
    }
  }

  /// One of them faults at bytes that the result does not need.
  var isPartialOperand: Bool {
    guard !isBlock, let operand = accesses.last, let needed = neededBytes(of: operand) else {
      return false
    }
    let faults = [host.fault, other.fault].filter { Self.isFault($0) }
    guard faults.count == 1, faults.allSatisfy({ permits($0, onHost: true) }) else { return false }
    return needed.allSatisfy { $0.isOpen }
  }

  private func neededBytes(of operand: MemoryAccess) -> [MemoryAccess]? {
    func part(_ offset: UInt64, _ size: UInt64) -> MemoryAccess {
      var part = operand
      part.address &+= offset
      part.size = size
      return part
    }
    switch MemoryAccess.partialKind(instruction) {
    case .bit:
      let source = instruction.operands[1]
      let value =
        source.kind == .general
        ? before.gpr[Int(source.number & 15)] : UInt64(bitPattern: instruction.immediate)
      return [part(value & (operand.size * 8 - 1) / 8, 1)]
    case .lowHalves, .highHalves:
      let offset: UInt64 = MemoryAccess.partialKind(instruction) == .lowHalves ? 0 : 8
      return stride(from: 0, to: operand.size, by: 16).map { part($0 + offset, 8) }
    case .selected: return []
    case nil: return nil
    }
  }

  // MARK: General registers

  var differOnlyInUndefinedDestination: Bool {
    let number = Int(instruction.operands[0].number & 15)
    guard !isBlock, instruction.operands[0].kind == .general, generalDiffer(onlyIn: [number]) else {
      return false
    }
    let (value, old) = (host.registers.gpr[number], before.gpr[number])
    switch instruction.mnemonic {
    case .bsf, .bsr:
      return host.registers.flags & RFLAGS.zf.rawValue != 0 && instruction.operandSize == 4
        && (value == old || value == old & 0xFFFF_FFFF)
    case .bswap: return instruction.operandSize == 2 && (value ^ old) & ~0xFFFF == 0
    default: return false
    }
  }
}
