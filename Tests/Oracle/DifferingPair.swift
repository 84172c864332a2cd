// SPDX-License-Identifier: Apache-2.0
//
// Two results of one instruction that are not the same: in which parts they differ, and which rules
// (`ImplementationChoice`) cover these.

import Foundation
import X86
import X86CPU
import X86Decoder

/// The host's and another's results of one instruction, or of a block that the other left at it by
/// a fault.
struct DifferingPair {
  let instruction: Instruction
  /// State before. The software processor changes nothing before a fault, so that of a block it is
  /// the other's state after.
  let before: Registers
  /// Whether the host may have gone on to other instructions.
  let isBlock: Bool
  let host: Outcome
  let other: Outcome
  /// Vector state; nil where it is not compared.
  let vectors: Vectors?
  let memory: (host: UnsafeRawPointer, other: UnsafeRawPointer)

  struct Vectors {
    let before: UnsafePointer<VectorState>
    let host: UnsafePointer<VectorState>
    let other: UnsafePointer<VectorState>
  }

  init(
    _ instruction: Instruction, from before: Registers, _ vectors: UnsafePointer<VectorState>,
    isBlock: Bool, host: ExecutorResult, other: ExecutorResult
  ) {
    self.instruction = instruction
    self.before = before
    self.isBlock = isBlock
    self.host = host.outcome
    self.other = other.outcome
    memory = (host.memory, other.memory)
    if let v = host.vectors, let w = other.vectors {
      self.vectors = Vectors(before: vectors, host: v, other: w)
    } else {
      self.vectors = nil
    }
  }

  /// Parts of the state.
  struct Parts: OptionSet {
    let rawValue: Int
    static let general = Parts(rawValue: 1)
    static let position = Parts(rawValue: 2)
    static let flags = Parts(rawValue: 4)
    static let fault = Parts(rawValue: 8)
    static let registers = Parts(rawValue: 16)
    static let opmask = Parts(rawValue: 32)
    static let x87 = Parts(rawValue: 64)
    static let mxcsr = Parts(rawValue: 128)
    static let memory = Parts(rawValue: 256)
    static let bases = Parts(rawValue: 512)
    static let all = Parts(rawValue: 1023)
  }

  /// The rules that cover all that differs; none where something is left.
  func choices(_ comparison: Comparison) -> [ImplementationChoice] {
    var left = parts(comparison)
    var used: [ImplementationChoice] = []
    for choice in ImplementationChoice.allCases where !left.isDisjoint(with: allowed(choice)) {
      used.append(choice)
      left.subtract(allowed(choice))
    }
    return left.isEmpty ? used : []
  }

  /// The parts that a rule lets differ as they do.
  private func allowed(_ choice: ImplementationChoice) -> Parts {
    switch choice {
    case .orderOfFaults: bothFault && permits(host.fault) && permits(other.fault) ? .fault : []
    case .addressSpaces: allowedByAddressSpaces
    case .splitLocks: isSplitLock ? .all : []
    case .flagsOfRepeats: bothFault && hasFlagsOfLastRound ? .flags : []
    case .emptyRepeat: differOnlyInUpperHalves ? .general : []
    case .transitionToMMX: bothFault && isTransition ? .x87 : []
    case .statusOfStores: bothFault ? allowedStatus : []
    case .unmaskedStores: isUnmaskedStore ? [.position, .fault, .x87] : []
    case .partialGather:
      bothFault && areGathersInOrder ? [.fault, .registers, .opmask, .memory] : []
    case .partialStore: bothFault && differOnlyInWideStore ? .memory : []
    case .partialOperand: isPartialOperand ? .all : []
    case .pushOfCalls: bothFault && differOnlyInReturnAddress ? .memory : []
    case .undefinedDestination: differOnlyInUndefinedDestination ? .general : []
    }
  }

  // MARK: What differs

  private func parts(_ c: Comparison) -> Parts {
    var result: Parts = []
    let (a, b) = (host.registers, other.registers)
    for n in 0..<16 where a.gpr[n] != b.gpr[n] { result.insert(.general) }
    if a.rip != b.rip { result.insert(.position) }
    if (a.flags ^ b.flags) & Comparison.flags & ~c.ignored != 0 { result.insert(.flags) }
    if a.gsBase != b.gsBase || a.fsBase != b.fsBase { result.insert(.bases) }
    if !c.agree(host.fault, other.fault) { result.insert(.fault) }
    if memcmp(memory.host, memory.other, Layout.sandboxSize) != 0 { result.insert(.memory) }
    if let vectors { result.formUnion(Self.vectorParts(vectors.host, vectors.other)) }
    return result
  }

  private static func vectorParts(
    _ a: UnsafePointer<VectorState>, _ b: UnsafePointer<VectorState>
  ) -> Parts {
    var result: Parts = []
    let (x, y) = (UnsafeRawPointer(a), UnsafeRawPointer(b))
    if memcmp(x, y, Comparison.vectorBytes) != 0 { result.insert(.registers) }
    if memcmp(x + Comparison.opmask, y + Comparison.opmask, 64) != 0 { result.insert(.opmask) }
    for part in Comparison.x87Parts {
      let start = Comparison.fx + part.lowerBound
      if memcmp(x + start, y + start, part.count) == 0 { continue }
      result.insert(part.lowerBound == Comparison.mxcsrOffset ? .mxcsr : .x87)
    }
    return result
  }

  var bothFault: Bool { Self.isFault(host.fault) && Self.isFault(other.fault) }

  static func isFault(_ fault: Fault) -> Bool { fault.vector < 32 }

  /// Where the next instruction is.
  var end: UInt64 { before.rip &+ UInt64(instruction.length) }

  var isRepeated: Bool {
    instruction.attributes.contains(.string)
      && !instruction.prefixes.isDisjoint(with: [.rep, .repne])
  }

  /// Only general registers of `numbers` differ.
  func generalDiffer(onlyIn numbers: Set<Int>) -> Bool {
    (0..<16).allSatisfy {
      numbers.contains($0) || host.registers.gpr[$0] == other.registers.gpr[$0]
    }
  }

  /// Bytes of memory that differ have addresses that pass; with the host's byte.
  func memoryDiffers(onlyWhere passes: (UInt64, UInt8) -> Bool) -> Bool {
    (0..<Layout.sandboxSize).allSatisfy { n in
      let a = memory.host.load(fromByteOffset: n, as: UInt8.self)
      let b = memory.other.load(fromByteOffset: n, as: UInt8.self)
      return a == b || passes(Layout.sandbox + UInt64(n), a)
    }
  }

  /// Bytes of the sandbox, as the other has it; nil where they are not all there.
  func load(_ address: UInt64, _ size: UInt64) -> UInt64? {
    let offset = address &- Layout.sandbox
    guard offset <= UInt64(Layout.sandboxSize) - size else { return nil }
    return (0..<Int(size)).reversed().reduce(0) {
      $0 << 8 | UInt64(memory.other.load(fromByteOffset: Int(offset) + $1, as: UInt8.self))
    }
  }
}
