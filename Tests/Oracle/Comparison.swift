// SPDX-License-Identifier: Apache-2.0
//
// Whether two executors agree, and the text of a disagreement.

import Foundation
import X86
import X86CPU
import X86Decoder

struct Comparison {
  /// Flags that are compared: IF, DF, ID and the arithmetic ones.
  static let flags =
    RFLAGS.arithmetic.rawValue | RFLAGS.df.rawValue | RFLAGS.id.rawValue
    | RFLAGS.if.rawValue

  let instruction: Instruction
  /// Flags that are not.
  let ignored: UInt64
  let ignoresDestination: Bool

  init(_ e: Encoding, _ input: Registers) {
    instruction = e.instruction
    ignored = UndefinedResults.flags(e.instruction, input)
    ignoresDestination = UndefinedResults.isDestinationUndefined(e.instruction, input)
  }

  func agree(_ a: Outcome, _ b: Outcome) -> Bool {
    if ignoresDestination { return a.fault.vector == b.fault.vector }
    var difference = (a.registers.flags ^ b.registers.flags) & Self.flags & ~ignored
    for n in 0..<16 { difference |= a.registers.gpr[n] ^ b.registers.gpr[n] }
    difference |= a.registers.rip ^ b.registers.rip
    difference |= a.registers.gsBase ^ b.registers.gsBase
    difference |= a.registers.fsBase ^ b.registers.fsBase
    difference |= a.fault.vector ^ b.fault.vector
    difference |= a.fault.address ^ b.fault.address
    difference |= (a.fault.errorCode ^ b.fault.errorCode) & errorMask(a.fault)
    return difference == 0
  }

  /// The host's kernel hides from user mode what is mapped in its own half.
  private func errorMask(_ fault: Fault) -> UInt64 {
    fault.vector == 14 && fault.address >> 63 != 0 ? ~1 : .max
  }

  // MARK: Text

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
