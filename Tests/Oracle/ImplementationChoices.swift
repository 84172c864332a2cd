// SPDX-License-Identifier: Apache-2.0
//
// Where the manuals leave room, and processors of one vendor or generation differ from others. A pair
// that differs is allowed if one of these rules names it: the instruction, what may differ, and within
// which bounds. Everything else of the state still has to agree. An allowed difference prints nothing;
// the summary counts it by rule.

import Foundation
import X86
import X86CPU
import X86Decoder

package enum ImplementationChoice: String, CaseIterable, Codable, Sendable {
  case orderOfReads = "order of CMPS's reads"
  case flagsOfRepeats = "flags of a repeated comparison that faults"
  case emptyRepeat = "upper halves after a repeat of no whole round with 32-bit addresses"
  case transitionToMMX = "MMX transition of an instruction that faults"
  case statusOfStores = "MXCSR status of a store that faults"
  case unmaskedStores = "x87 store with an unmasked exception to a page that faults"
  case partialGather = "registers of a gather that faults"
  case partialStore = "bytes of an x87 store of 10 that faults at its second page"
  case pushOfCalls = "return address of a call that faults"

  /// Who leaves the room, or how processors differ.
  package var reason: String {
    switch self {
    case .orderOfReads:
      "SDM volume 3, \"Memory Ordering\": the order of one instruction's own reads is not fixed, so "
        + "either operand of CMPS may fault first"
    case .flagsOfRepeats:
      "SDM volume 2, REP: EFLAGS is restored when CMPS or SCAS faults; other processors leave it as "
        + "the last round has"
    case .emptyRepeat:
      "whether ECX, ESI and EDI are written, and so zero-extended, where ECX is 0 from the start or "
        + "the first round faults"
    case .transitionToMMX:
      "SDM volume 1, \"The MMX State and MMX Register Aliasing\" fixes TOP and tags after the "
        + "instruction, not after its fault"
    case .statusOfStores:
      "SDM volume 1, \"SIMD Floating-Point Exception Conditions\": status flags of a conversion may "
        + "be set, and its unmasked exception taken, before its store faults"
    case .unmaskedStores:
      "SDM volume 3, \"Priority Among Concurrent Events\": faults of one instruction's execution "
        + "have no fixed order, and an unmasked exception does away with the store"
    case .partialGather:
      "SDM volume 2, VGATHERDPS: mask elements may be widened and upper bits cleared before a fault"
    case .partialStore:
      "SDM volume 3, \"Guaranteed Atomic Operations\": an operand of 10 bytes is several accesses, of "
        + "which the first may be done"
    case .pushOfCalls:
      "below RSP the return address may be there when the target is not canonical"
    }
  }
}

/// Two executors' results of one instruction, or of a block that one of them left at it.
struct DifferingPair {
  let instruction: Instruction
  /// Registers before; of a block those at its start, which rules of single instructions need not.
  let input: Registers?
  let host: Outcome
  let other: Outcome
  /// Vector state after; nil where it is not compared.
  let vectors: (host: UnsafePointer<VectorState>, other: UnsafePointer<VectorState>)?
  let memory: (host: UnsafeRawPointer, other: UnsafeRawPointer)

  /// Parts of the state.
  struct Parts: OptionSet {
    let rawValue: Int
    static let general = Parts(rawValue: 1)
    static let position = Parts(rawValue: 2)
    static let flags = Parts(rawValue: 4)
    static let vector = Parts(rawValue: 8)
    static let errorCode = Parts(rawValue: 16)
    static let address = Parts(rawValue: 32)
    static let registers = Parts(rawValue: 64)
    static let x87 = Parts(rawValue: 128)
    static let mxcsr = Parts(rawValue: 256)
    static let memory = Parts(rawValue: 512)
    /// What no rule allows to differ.
    static let rest = Parts(rawValue: 1024)
  }

  /// The rule that allows the difference.
  func choice(_ comparison: Comparison) -> ImplementationChoice? {
    var differing = parts(comparison)
    if differing.contains(.general) && differOnlyInUpperHalves {
      differing.remove(.general)
      if differing.isEmpty { return .emptyRepeat }
    }
    return ImplementationChoice.allCases.first { allows($0, differing) }
  }

  private func allows(_ choice: ImplementationChoice, _ d: Parts) -> Bool {
    switch choice {
    case .orderOfReads: allowsOrderOfReads(d)
    case .flagsOfRepeats: isRepeatedComparison && bothFault && d == .flags
    case .emptyRepeat: false
    case .transitionToMMX: allowsTransition(d)
    case .statusOfStores: allowsStatus(d)
    case .unmaskedStores: allowsUnmaskedStore(d)
    case .partialGather: allowsPartialGather(d)
    case .partialStore: allowsPartialStore(d)
    case .pushOfCalls: allowsPush(d)
    }
  }

  // MARK: What differs

  private func parts(_ c: Comparison) -> Parts {
    var result: Parts = []
    let (a, b) = (host.registers, other.registers)
    for n in 0..<16 where a.gpr[n] != b.gpr[n] { result.insert(.general) }
    if a.rip != b.rip { result.insert(.position) }
    if (a.flags ^ b.flags) & Comparison.flags & ~c.ignored != 0 { result.insert(.flags) }
    if a.gsBase != b.gsBase || a.fsBase != b.fsBase { result.insert(.rest) }
    if host.fault.vector != other.fault.vector { result.insert(.vector) }
    if c.addressDifference(host.fault.address, other.fault.address) != 0 { result.insert(.address) }
    if (host.fault.errorCode ^ other.fault.errorCode) & c.errorMask(host.fault) != 0 {
      result.insert(.errorCode)
    }
    if memcmp(memory.host, memory.other, Layout.sandboxSize) != 0 { result.insert(.memory) }
    if let vectors { result.formUnion(Self.vectorParts(vectors.host, vectors.other)) }
    return result
  }

  private static func vectorParts(
    _ a: UnsafePointer<VectorState>, _ b: UnsafePointer<VectorState>
  ) -> Parts {
    var result: Parts = []
    let (x, y) = (UnsafeRawPointer(a), UnsafeRawPointer(b))
    if memcmp(x, y, 2048) != 0 { result.insert(.registers) }
    if memcmp(x + Comparison.opmask, y + Comparison.opmask, 64) != 0 { result.insert(.rest) }
    for part in Comparison.x87Parts {
      let start = Comparison.fx + part.lowerBound
      if memcmp(x + start, y + start, part.count) == 0 { continue }
      result.insert(part.lowerBound == Comparison.mxcsrOffset ? .mxcsr : .x87)
    }
    return result
  }

  private var bothFault: Bool {
    host.fault.vector != Fault.none && other.fault.vector != Fault.none
  }

  private static func isMemoryFault(_ fault: Fault) -> Bool {
    // #SS, #GP, #PF, #AC
    [12, 13, 14, 17].contains(fault.vector)
  }

  // MARK: Strings

  private var isRepeated: Bool { !instruction.prefixes.isDisjoint(with: [.rep, .repne]) }

  private var isRepeatedComparison: Bool {
    isRepeated && (instruction.mnemonic == .cmps || instruction.mnemonic == .scas)
  }

  /// Each faults at one of the operands.
  private func allowsOrderOfReads(_ d: Parts) -> Bool {
    var allowed: Parts = [.vector, .errorCode, .address]
    if isRepeated { allowed.insert(.flags) }
    guard instruction.mnemonic == .cmps, d.isSubset(of: allowed) else { return false }
    return [host.fault, other.fault].allSatisfy { fault in
      fault.vector == 13 || fault.vector == 14 && [6, 7].contains { isOperand(fault.address, $0) }
    }
  }

  private func isOperand(_ address: UInt64, _ register: Int) -> Bool {
    let base = register == 6 ? Footprint.segmentBase(instruction, other.registers) : 0
    let first = Footprint.masked(other.registers.gpr[register], instruction) &+ base
    return address &- first < UInt64(instruction.operands[0].size)
  }

  /// Of a repeat whose count is that from before.
  private var differOnlyInUpperHalves: Bool {
    let (a, b) = (host.registers, other.registers)
    guard let input, instruction.attributes.contains(.string), isRepeated,
      instruction.addressSize == 4, (input.gpr[1] ^ b.gpr[1]) & 0xFFFF_FFFF == 0
    else { return false }
    return (0..<16).allSatisfy { n in
      let mask: UInt64 = [1, 6, 7].contains(n) ? 0xFFFF_FFFF : .max
      return (a.gpr[n] ^ b.gpr[n]) & mask == 0
    }
  }

  // MARK: x87 and MMX

  /// The same physical registers; TOP 0 and all tags valid where the transition has been made.
  private func allowsTransition(_ d: Parts) -> Bool {
    guard instruction.attributes.contains(.mmx), bothFault, d == .x87, let vectors else {
      return false
    }
    let (a, b) = (X87Image(vectors.host), X87Image(vectors.other))
    guard a.control == b.control, a.statusWithoutTop == b.statusWithoutTop else { return false }
    for image in [a, b] where image.top == 0 && image.tags == 0xFF {
      return (0..<8).allSatisfy { memcmp(a.physical($0), b.physical($0), 10) == 0 }
    }
    return a.tags == b.tags
      && (0..<8).allSatisfy { memcmp(a.physical($0), b.physical($0), 10) == 0 }
  }

  /// One notes the exception, the other the fault; a block goes on then in one of them.
  private func allowsUnmaskedStore(_ d: Parts) -> Bool {
    guard instruction.attributes.contains(.x87), instruction.operandCount > 0,
      instruction.operands[0].kind == .memory, instruction.operands[0].access.contains(.write),
      Self.isMemoryFault(other.fault), let vectors,
      host.fault.vector == 16 || host.registers.rip != other.registers.rip
    else { return false }
    return X87Image(vectors.other).control & 0x3F != 0x3F
      && (input == nil || d.isDisjoint(with: .rest))
  }

  // MARK: SSE and AVX

  private func allowsStatus(_ d: Parts) -> Bool {
    var allowed: Parts = .mxcsr
    // #XM, or the fault of the store.
    if host.fault.vector == 19 { allowed.formUnion([.vector, .errorCode, .address]) }
    guard bothFault, d.isSubset(of: allowed), instruction.operands[0].kind == .memory,
      Self.isMemoryFault(other.fault), let vectors
    else { return false }
    let (a, b) = (X87Image(vectors.host).mxcsr, X87Image(vectors.other).mxcsr)
    return (a ^ b) & ~0x3F == 0
  }

  /// Mask elements count by their highest bit; bits above the vector may be 0.
  private func allowsPartialGather(_ d: Parts) -> Bool {
    guard bothFault, d == .registers, instruction.attributes.contains(.vsib),
      instruction.encoding.evexMask == 0, instruction.operandCount == 3, let vectors
    else { return false }
    let destination = instruction.operands[0]
    let mask = instruction.operands[2]
    let (a, b) = (UnsafeRawPointer(vectors.host), UnsafeRawPointer(vectors.other))
    let width = max(Int(destination.size), Int(mask.size))
    let element = Int(instruction.operands[1].size)
    return (0..<32).allSatisfy { n in
      let (x, y) = (a + n * 64, b + n * 64)
      if n != Int(destination.number) && n != Int(mask.number) { return memcmp(x, y, 64) == 0 }
      let isMask = n == Int(mask.number)
      return (0..<64).allSatisfy { byte in
        let (p, q) = (
          x.load(fromByteOffset: byte, as: UInt8.self),
          y.load(fromByteOffset: byte, as: UInt8.self)
        )
        if p == q { return true }
        if byte >= width && (p == 0 || q == 0) { return true }
        guard isMask else { return false }
        return byte % element != element - 1 || (p ^ q) & 0x80 == 0
      }
    }
  }

  private func allowsPartialStore(_ d: Parts) -> Bool {
    guard instruction.attributes.contains(.x87), bothFault, d == .memory,
      instruction.operands[0].kind == .memory, instruction.operands[0].size == 10
    else { return false }
    let start = Footprint.address(instruction, other.registers, 0) &- Layout.sandbox
    return memoryDiffers(onlyAt: start, count: 10)
  }

  private func memoryDiffers(onlyAt start: UInt64, count: UInt64) -> Bool {
    (0..<Layout.sandboxSize).allSatisfy { n in
      let a = memory.host.load(fromByteOffset: n, as: UInt8.self)
      let b = memory.other.load(fromByteOffset: n, as: UInt8.self)
      return a == b || UInt64(n) &- start < count
    }
  }

  // MARK: Calls

  private func allowsPush(_ d: Parts) -> Bool {
    guard instruction.mnemonic == .call, bothFault, d == .memory else { return false }
    return memoryDiffers(onlyAt: other.registers.gpr[4] &- 8 &- Layout.sandbox, count: 8)
  }
}

/// The FXSAVE image's fields.
private struct X87Image {
  private let image: UnsafeRawPointer

  init(_ state: UnsafePointer<VectorState>) { image = UnsafeRawPointer(state) + Comparison.fx }

  var control: UInt16 { image.load(as: UInt16.self) }
  private var status: UInt16 { image.load(fromByteOffset: 2, as: UInt16.self) }
  var statusWithoutTop: UInt16 { status & ~0x3800 }
  var top: Int { Int(status >> 11 & 7) }
  /// One bit for each register that is not empty.
  var tags: UInt8 { image.load(fromByteOffset: 4, as: UInt8.self) }
  var mxcsr: UInt32 { image.load(fromByteOffset: Comparison.mxcsrOffset, as: UInt32.self) }

  /// The image has them by their place on the stack.
  func physical(_ number: Int) -> UnsafeRawPointer { image + 32 + ((number - top) & 7) * 16 }
}
