// SPDX-License-Identifier: Apache-2.0
//
// Whether two executors agree, and the text of a disagreement.

import Foundation
import X86
import X86CPU
import X86Decoder

/// What one executor made of a state.
struct ExecutorResult {
  let name: String
  let outcome: Outcome
  /// Nil where vector state does not matter.
  let vectors: UnsafePointer<VectorState>?
  let memory: UnsafeRawPointer
}

struct Comparison {
  /// Flags that are compared: IF, DF, ID and the arithmetic ones.
  static let flags =
    RFLAGS.arithmetic.rawValue | RFLAGS.df.rawValue | RFLAGS.id.rawValue
    | RFLAGS.if.rawValue

  /// The one that ran, or of a block the one that faulted.
  let instruction: Instruction?
  /// Flags that are not.
  let ignored: UInt64
  let ignoresDestination: Bool

  init(_ e: Encoding, _ input: Registers) {
    instruction = e.instruction
    ignored = UndefinedResults.flags(e.instruction, input)
    ignoresDestination = UndefinedResults.isDestinationUndefined(e.instruction, input)
  }

  init(block faulting: Instruction?, undefined: UInt64) {
    instruction = faulting
    ignored = undefined
    ignoresDestination = false
  }

  func agree(_ a: Outcome, _ b: Outcome) -> Bool {
    if ignoresDestination { return a.fault.vector == b.fault.vector }
    var difference = (a.registers.flags ^ b.registers.flags) & Self.flags & ~ignored
    for n in 0..<16 { difference |= a.registers.gpr[n] ^ b.registers.gpr[n] }
    difference |= a.registers.rip ^ b.registers.rip
    difference |= a.registers.gsBase ^ b.registers.gsBase
    difference |= a.registers.fsBase ^ b.registers.fsBase
    return difference == 0 && agree(a.fault, b.fault)
  }

  /// Offsets in the FXSAVE image that are compared: FCW, FSW and FTW; MXCSR; ST(0) to ST(7). The
  /// last instruction's pointers are not: a host may keep them after unmasked exceptions only.
  static let x87Parts = [0..<5, mxcsrOffset..<mxcsrOffset + 4, 32..<160]
  static let mxcsrOffset = 24
  /// ZMM0 to ZMM31.
  static let vectorBytes = 2048
  static let fx = MemoryLayout<VectorState>.offset(of: \.fx)!
  static let opmask = MemoryLayout<VectorState>.offset(of: \.opmask)!

  func agree(_ a: Fault, _ b: Fault) -> Bool {
    a.vector == b.vector && a.address == b.address
      && (a.errorCode ^ b.errorCode) & errorMask(a) == 0
  }

  func agree(_ a: UnsafePointer<VectorState>, _ b: UnsafePointer<VectorState>) -> Bool {
    let (a, b) = (UnsafeRawPointer(a), UnsafeRawPointer(b))
    guard memcmp(a, b, Self.vectorBytes) == 0,
      memcmp(a + Self.opmask, b + Self.opmask, 64) == 0
    else { return false }
    return Self.x87Parts.allSatisfy {
      memcmp(a + Self.fx + $0.lowerBound, b + Self.fx + $0.lowerBound, $0.count) == 0
    }
  }

  /// The host's kernel hides from user mode what is mapped in its own half.
  private func errorMask(_ fault: Fault) -> UInt64 {
    fault.vector == 14 && fault.address >> 63 != 0 ? ~1 : .max
  }

  /// Whether all that the sides have agrees.
  func agree(_ a: ExecutorResult, _ b: ExecutorResult) -> Bool {
    guard agree(a.outcome, b.outcome) else { return false }
    if let v = a.vectors, let w = b.vectors, !agree(v, w) { return false }
    return ignoresDestination || memcmp(a.memory, b.memory, Layout.sandboxSize) == 0
  }

  // MARK: Text

  /// What differs; `input` is the vector state before.
  func text(
    _ a: ExecutorResult, _ b: ExecutorResult, _ input: UnsafePointer<VectorState>
  ) -> [String] {
    var lines = ["  \(a.name) | \(b.name)"]
    lines += differences(a.outcome, b.outcome)
    lines += Self.memoryDifferences(a.memory, b.memory)
    if let v = a.vectors, let w = b.vectors { lines += differences(input, v, w) }
    return lines
  }

  static func hex(_ value: UInt64) -> String { String(value, radix: 16) }

  func differences(_ a: Outcome, _ b: Outcome) -> [String] {
    var lines: [String] = []
    func line(_ name: String, _ x: UInt64, _ y: UInt64) {
      if x != y { lines.append("  \(name): \(Self.hex(x)) | \(Self.hex(y))") }
    }
    for n in 0..<16 { line(Self.names[n], a.registers.gpr[n], b.registers.gpr[n]) }
    line(
      "flags", a.registers.flags & Self.flags & ~ignored, b.registers.flags & Self.flags & ~ignored)
    line("rip", a.registers.rip, b.registers.rip)
    line("gs", a.registers.gsBase, b.registers.gsBase)
    line("fs", a.registers.fsBase, b.registers.fsBase)
    line("vector", a.fault.vector, b.fault.vector)
    line("error", a.fault.errorCode, b.fault.errorCode)
    line("address", a.fault.address, b.fault.address)
    return lines
  }

  func differences(
    _ input: UnsafePointer<VectorState>, _ a: UnsafePointer<VectorState>,
    _ b: UnsafePointer<VectorState>
  ) -> [String] {
    var lines: [String] = []
    let raw = [UnsafeRawPointer(input), UnsafeRawPointer(a), UnsafeRawPointer(b)]
    func bytes(_ p: UnsafeRawPointer, _ offset: Int, _ count: Int) -> String {
      (0..<count).reversed().map { n in
        let byte = p.load(fromByteOffset: offset + n, as: UInt8.self)
        return (byte < 16 ? "0" : "") + String(byte, radix: 16)
      }.joined()
    }
    func line(_ name: String, _ offset: Int, _ count: Int) {
      let texts = raw.map { bytes($0, offset, count) }
      if texts[1] != texts[2] {
        lines.append("  \(name): \(texts[0]) -> \(texts[1]) | \(texts[2])")
      }
    }
    for n in 0..<32 { line("zmm\(n)", n * 64, 64) }
    for n in 0..<8 { line("k\(n)", Self.opmask + n * 8, 8) }
    line("fcw", Self.fx, 2)
    line("fsw", Self.fx + 2, 2)
    line("ftw", Self.fx + 4, 1)
    line("mxcsr", Self.fx + 24, 4)
    for n in 0..<8 { line("st\(n)", Self.fx + 32 + n * 16, 16) }
    let mask = Int(instruction?.encoding.evexMask ?? 0)
    if mask != 0 { lines.append("  from k\(mask) \(bytes(raw[0], Self.opmask + mask * 8, 8))") }
    lines.append(
      "  fcw \(bytes(raw[0], Self.fx, 2)) fsw \(bytes(raw[0], Self.fx + 2, 2))"
        + " ftw \(bytes(raw[0], Self.fx + 4, 1)) mxcsr \(bytes(raw[0], Self.fx + 24, 4))")
    guard let instruction else { return lines }
    for operand in 0..<Int(instruction.operandCount) {
      let register = instruction.operands[operand]
      if register.kind == .vector {
        lines.append("  from zmm\(register.number) \(bytes(raw[0], Int(register.number) * 64, 64))")
      }
    }
    return lines
  }

  /// The first of the words of two sandboxes that differ.
  static func memoryDifferences(_ a: UnsafeRawPointer, _ b: UnsafeRawPointer) -> [String] {
    var lines: [String] = []
    for offset in stride(from: 0, to: Layout.sandboxSize, by: 8) where lines.count < 4 {
      let x = a.load(fromByteOffset: offset, as: UInt64.self)
      let y = b.load(fromByteOffset: offset, as: UInt64.self)
      if x != y {
        lines.append("  [\(hex(Layout.sandbox + UInt64(offset)))]: \(hex(x)) | \(hex(y))")
      }
    }
    return lines
  }

  static let names = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
  ]

  static func text(_ r: Registers) -> String {
    var words = (0..<16).map { "\(names[$0])=\(hex(r.gpr[$0]))" }
    words.append("flags=\(hex(r.flags)) gs=\(hex(r.gsBase)) fs=\(hex(r.fsBase))")
    return words.joined(separator: " ")
  }
}
