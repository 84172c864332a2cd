// SPDX-License-Identifier: Apache-2.0
//
// The accesses to memory that an instruction makes, and the faults that each of them can have.

import X86
import X86Decoder

struct MemoryAccess {
  var address: UInt64
  var size: UInt64
  var writes: Bool
  /// Whether an address that is not canonical is #SS, #GP, or either: in 64-bit mode a segment
  /// prefix of CS, DS, ES or SS is ignored, and processors differ in what it does to the kind of
  /// fault.
  var vectors: Set<UInt64>
  /// What the address must be a multiple of.
  var alignment: UInt64 = 1
  /// The access may be made in parts of any order: it is wider than 8 bytes, or has elements.
  var hasParts = false

  private var last: UInt64 { address &+ size &- 1 }
  var crossesPages: Bool { (address ^ last) >> 12 != 0 }
  var crossesCacheLines: Bool { (address ^ last) >> 6 != 0 }

  func contains(_ linear: UInt64) -> Bool { linear &- address < size }

  /// Whether this access, by itself, may end in the fault.
  func permits(_ fault: Fault, onHost: Bool) -> Bool {
    switch fault.vector {
    case UInt64(ExceptionVector.pageFault.rawValue): return permitsPageFault(fault, onHost)
    case UInt64(ExceptionVector.generalProtection.rawValue):
      if address & (alignment &- 1) != 0 && fault.errorCode == 0 { return true }
      fallthrough
    case UInt64(ExceptionVector.stackFault.rawValue):
      guard vectors.contains(fault.vector), fault.errorCode == 0 else { return false }
      return [address, last].contains {
        // Linear-address space separation: user code may not even name the kernel's half.
        !StateGenerator.isCanonical($0) || onHost && $0 >> 63 != 0
      }
    default: return false
    }
  }

  /// Whether nothing faults at it.
  var isOpen: Bool {
    address & (alignment &- 1) == 0
      && pages(wide: false).allSatisfy { $0 == .writable || $0 == .readOnly && !writes }
  }

  private func permitsPageFault(_ fault: Fault, _ onHost: Bool) -> Bool {
    let code = PageFaultCode(rawValue: UInt32(truncatingIfNeeded: fault.errorCode))
    var kind: PageFaultCode = [.user]
    if writes { kind.insert(.write) }
    guard code.subtracting(.present) == kind, contains(fault.address) else { return false }
    // The first byte of the access or of its second page; of one in parts, of any part.
    if !hasParts && fault.address != address && fault.address != last & ~0xFFF { return false }
    return pages(wide: onHost).contains { page in
      switch page {
      case .absent: !code.contains(.present)
      case .readOnly: writes && code.contains(.present)
      case .kernel: true
      case .writable, .notCanonical: false
      }
    }
  }

  // MARK: Pages

  private enum PageState {
    case absent, readOnly, writable, notCanonical
    /// The host's kernel hides what is there.
    case kernel
  }

  private func pages(wide: Bool) -> [PageState] {
    (crossesPages ? [address, last] : [address]).map { Self.state($0, wide: wide) }
  }

  private static func state(_ address: UInt64, wide: Bool) -> PageState {
    if address &- Layout.sandbox < UInt64(Layout.writableSize) { return .writable }
    if address &- Layout.sandbox < UInt64(Layout.sandboxSize) { return .readOnly }
    if address &- Layout.slots < UInt64(Layout.slotBytes) { return .readOnly }
    if !StateGenerator.isCanonical(address) && !(wide && isCanonicalInFiveLevels(address)) {
      return .notCanonical
    }
    return address >> 63 != 0 ? .kernel : .absent
  }

  /// With five levels of page tables addresses have 57 bits.
  static func isCanonicalInFiveLevels(_ address: UInt64) -> Bool {
    let high = address >> 56
    return high == 0 || high == 0xFF
  }
}

// MARK: Of an instruction

extension MemoryAccess {
  /// All that the instruction makes, in no order. Of a string instruction: of the iteration that
  /// the registers stand at. Not those of gathers and scatters.
  static func all(_ i: Instruction, _ r: Registers) -> [MemoryAccess] {
    if i.attributes.contains(.string) { return strings(i, r) }
    var result = implicit(i, r)
    guard let n = i.memoryIndex, i.mnemonic != .lea, i.mnemonic != .nop,
      !i.attributes.contains(.vsib)
    else { return result }
    var registers = r
    // POP computes its operand's address with the new RSP.
    if i.mnemonic == .pop { registers.gpr[4] &+= UInt64(i.operandSize) }
    let operand = i.operands[n]
    let size = UInt64(max(1, operand.size))
    result.append(
      MemoryAccess(
        address: Footprint.address(i, registers, n), size: size,
        writes: operand.access.contains(.write), vectors: vectors(i),
        alignment: UInt64(i.alignment), hasParts: size > 8 || isMasked(i)))
    return result
  }

  private static func isMasked(_ i: Instruction) -> Bool {
    if i.encoding.evexMask != 0 { return true }
    switch i.mnemonic {
    case .vmaskmovps, .vmaskmovpd, .vpmaskmovd, .vpmaskmovq: return true
    default: return false
    }
  }

  static func vectors(_ i: Instruction) -> Set<UInt64> {
    if i.prefixes.contains(.segmentOverride), i.segment != .fs, i.segment != .gs {
      return protection.union(stackFault)
    }
    return i.segment == .ss ? stackFault : protection
  }

  private static let protection: Set = [UInt64(ExceptionVector.generalProtection.rawValue)]
  private static let stackFault: Set = [UInt64(ExceptionVector.stackFault.rawValue)]

  /// How an instruction may do with less of its operand.
  enum PartialKind {
    case bit, lowHalves, highHalves, selected
  }

  static func partialKind(_ i: Instruction) -> PartialKind? {
    guard let n = i.memoryIndex else { return nil }
    switch i.mnemonic {
    case .bt, .bts, .btr, .btc: return .bit
    case .vmaskmovps, .vmaskmovpd, .vpmaskmovd, .vpmaskmovq: return .selected
    default: break
    }
    guard i.operands[n].size >= 16 else { return nil }
    switch i.mnemonic {
    case .punpcklbw, .punpcklwd, .punpckldq, .punpcklqdq, .unpcklps, .unpcklpd, .vpunpcklbw,
      .vpunpcklwd, .vpunpckldq, .vpunpcklqdq, .vunpcklps, .vunpcklpd:
      return .lowHalves
    case .punpckhbw, .punpckhwd, .punpckhdq, .punpckhqdq, .unpckhps, .unpckhpd, .vpunpckhbw,
      .vpunpckhwd, .vpunpckhdq, .vpunpckhqdq, .vunpckhps, .vunpckhpd:
      return .highHalves
    default: return nil
    }
  }

  private static func strings(_ i: Instruction, _ r: Registers) -> [MemoryAccess] {
    (0..<Int(i.operandCount)).filter { i.operands[$0].kind == .memory }.map { n in
      let operand = i.operands[n]
      let offset = Footprint.masked(r.gpr[Int(operand.number)], i)
      let base = operand.number == 6 ? Footprint.segmentBase(i, r) : 0
      return MemoryAccess(
        address: offset &+ base, size: UInt64(max(1, operand.size)),
        writes: operand.access.contains(.write), vectors: protection.union(stackFault))
    }
  }

  private static func implicit(_ i: Instruction, _ r: Registers) -> [MemoryAccess] {
    let size = i.mnemonic == .call || i.mnemonic == .ret ? 8 : UInt64(i.operandSize)
    func stack(_ address: UInt64, writes: Bool) -> MemoryAccess {
      MemoryAccess(address: address, size: size, writes: writes, vectors: stackFault)
    }
    switch i.mnemonic {
    case .push, .pushf, .pushSegment, .call: return [stack(r.gpr[4] &- size, writes: true)]
    case .pop, .popf, .popSegment, .ret: return [stack(r.gpr[4], writes: false)]
    case .leave: return [stack(r.gpr[5], writes: false)]
    case .enter:
      let level = UInt64(i.immediate2 & 31)
      let pushes = (1...level + 1).map { stack(r.gpr[4] &- $0 &* size, writes: true) }
      let reads = level < 2 ? [] : (1..<level).map { stack(r.gpr[5] &- $0 &* size, writes: false) }
      let end = r.gpr[4] &- (level + 1) &* size &- UInt64(i.immediate & 0xFFFF)
      return pushes + reads + [stack(end, writes: true)]
    case .xlat:
      let offset = Footprint.masked(r.gpr[3] &+ r.gpr[0] & 0xFF, i)
      return [
        MemoryAccess(
          address: offset &+ Footprint.segmentBase(i, r), size: 1, writes: false,
          vectors: vectors(i))
      ]
    default: return []
    }
  }
}
