// SPDX-License-Identifier: Apache-2.0
//
// Runs `objdump` (Debian: binutils) and reads its listing.

import Foundation
import X86
import X86Decoder

/// One line of a listing; only valid while the line is read.
struct ListedInstruction {
  var address: UInt64
  var bytes: [UInt8]
  var line: Slice<UnsafeBufferPointer<UInt8>>

  /// In one-space form, without symbol and comment.
  var text: String {
    var text: [UInt8] = []
    for byte in line {
      if byte == UInt8(ascii: "#") || byte == UInt8(ascii: "<") { break }
      if byte == 32, text.last == 32 { continue }
      text.append(byte)
    }
    while text.last == 32 { text.removeLast() }
    return String(decoding: text, as: UTF8.self)
  }

  var isBad: Bool { text.contains("(bad)") || text.contains("bad}") || text.hasPrefix(".") }
}

struct ToolFailure: Error, CustomStringConvertible {
  var description: String
}

enum Objdump {
  /// Calls `body` with each instruction of the listing that `arguments` make.
  static func list(_ arguments: [String], _ body: (ListedInstruction) -> Void) throws {
    let options = ["-w", "-M", "intel", "--insn-width=16"]
    try run("/usr/bin/objdump", options + arguments) { line in
      if let instruction = parse(line) { body(instruction) }
    }
  }

  /// Calls `body` with each line that a program prints.
  static func run(
    _ program: String, _ arguments: [String], _ body: (UnsafeBufferPointer<UInt8>) -> Void
  ) throws {
    guard FileManager.default.isExecutableFile(atPath: program) else {
      throw ToolFailure(description: "\(program) is missing: apt-get install binutils")
    }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = arguments
    let pipe = Pipe()
    process.standardOutput = pipe
    try process.run()
    var rest: [UInt8] = []
    while true {
      let chunk = pipe.fileHandleForReading.availableData
      if chunk.isEmpty { break }
      rest.append(contentsOf: chunk)
      var start = 0
      rest.withUnsafeBufferPointer { buffer in
        guard let base = buffer.baseAddress else { return }
        while let found = memchr(base + start, 10, buffer.count - start) {
          let end = UnsafeRawPointer(found) - UnsafeRawPointer(base)
          body(UnsafeBufferPointer(rebasing: buffer[start..<end]))
          start = end + 1
        }
      }
      rest.removeFirst(start)
    }
    process.waitUntilExit()
    guard process.terminationStatus == 0 else {
      throw ToolFailure(description: "\(program) \(arguments) failed")
    }
  }

  /// `  401000:\t48 01 d8 \tadd    rax,rbx`
  private static func parse(_ line: UnsafeBufferPointer<UInt8>) -> ListedInstruction? {
    var address: UInt64 = 0
    var position = 0
    while position < line.count, line[position] != 9 {
      if let digit = digit(line[position]) { address = address << 4 | digit }
      position += 1
    }
    guard position > 1, position < line.count, line[position - 1] == UInt8(ascii: ":") else {
      return nil
    }
    position += 1
    var bytes: [UInt8] = []
    while position + 2 < line.count, line[position] != 9, let high = digit(line[position]),
      let low = digit(line[position + 1])
    {
      bytes.append(UInt8(high << 4 | low))
      position += 3
    }
    while position < line.count, line[position] != 9 { position += 1 }
    guard position < line.count, !bytes.isEmpty else { return nil }
    return ListedInstruction(address: address, bytes: bytes, line: line[(position + 1)...])
  }

  private static func digit(_ byte: UInt8) -> UInt64? {
    switch byte {
    case 0x30...0x39: UInt64(byte - 0x30)
    case 0x61...0x66: UInt64(byte - 0x57)
    default: nil
    }
  }
}

/// Spellings of one meaning that differ between the two disassemblers.
enum Spelling {
  /// Prefixes that objdump prints as words where they do nothing.
  private static let idlePrefixes: Set<String> = [
    "cs", "ds", "es", "ss", "fs", "gs", "data16", "data32", "addr16", "addr32", "bnd", "notrack",
    "xacquire", "xrelease", "repz", "repnz", "rep", "lock", "{evex}", "{vex}",
  ]

  /// Where objdump puts the operand size into the name.
  private static let sized: Set<String> = [
    "push", "pop", "ret", "retf", "iret", "iretw", "enter", "leave", "pusha", "popa", "pushf",
    "popf", "call", "jmp", "fldenv", "fnstenv", "fnsave", "frstor",
  ]

  /// Instructions of SEV, AMX and 3DNow! that the opcode table leaves out on purpose, so that
  /// their opcodes are #UD or mean what they mean without the prefix.
  static let absent: Set<String> = [
    "vmgexit", "pvalidate", "psmash", "rmpadjust", "rmpupdate", "femms", "tilerelease",
  ]

  /// One instruction under two names, or operands that objdump spells by other rules (a different
  /// width, a left-out or an added operand, a comparison as part of the name).
  private static let unlike: Set<String> = [
    "nop", "xchg", "xlat", "lar", "lsl", "lss", "lfs", "lgs", "lgdt", "lidt", "sgdt", "sidt",
    "invlpg", "lddqu", "vlddqu", "invept", "invvpid", "invpcid", "movdir64b", "fxch", "fcom",
    "fcomp",
    "fucom", "fucomp", "fneni", "fndisi", "fnsetpm", "sysretd", "sysexitd", "cldemote", "fwait",
    "vmovss", "vmovsd", "monitor", "mwait", "monitorx", "mwaitx", "ud0", "prefetch", "ud1",
    "vmrun", "vmload", "vmsave", "invlpga", "skinit", "clzero", "maskmovq", "umonitor",
    "movmskps", "movmskpd", "pmovmskb", "vmovmskps", "vmovmskpd", "vpmovmskb",
  ]

  /// Whether the line is one instruction as we count: objdump prints a REX byte that does nothing
  /// on a line of its own, and FWAIT together with the x87 instruction after it.
  static func isComparable(_ listed: ListedInstruction) -> Bool {
    let name = mnemonic(listed.text)
    return !name.isEmpty && !(listed.bytes.contains(0x9B) && name != "fwait")
  }

  /// The mnemonic of a line, without prefixes.
  static func mnemonic(_ text: String) -> String {
    String(words(text).first ?? "")
  }

  private static func words(_ text: String) -> [Substring] {
    let all = text.split(separator: " ")
    return Array(all.drop { idlePrefixes.contains(String($0)) || $0.hasPrefix("rex") })
  }

  /// Whether two texts mean the same, as far as their spellings can be compared.
  static func agree(_ mine: Instruction, at address: UInt64, with theirs: String) -> Bool {
    let name = Disassembler.name(mine)
    if unlike.contains(name) || mine.mnemonic == .movSegment { return true }
    // LOCK MOV CR0 is MOV CR8 (APM volume 3, "MOV CRn"); objdump says so without other prefixes
    // only.
    if mine.mnemonic == .movControl && mine.prefixes.contains(.lock) { return true }
    if name.contains("cmp") || name.contains("pclmul") { return true }
    let other = mnemonic(theirs)
    let bare = name == "iretw" ? "iret" : name
    guard
      other == name || other == bare
        || (sized.contains(name) && ["w", "d", "q"].contains { other == bare + $0 })
    else { return false }
    if mine.operandCount == 1, mine.operands[0].kind == .relative { return true }
    return operands(Disassembler.text(mine, at: address)) == operands(theirs)
  }

  /// Operands without what only objdump prints: idle segments, an index of zero.
  private static func operands(_ text: String) -> String {
    var result = words(text).dropFirst().joined(separator: " ")
    for segment in ["ds:", "cs:", "ss:", "es:"] {
      result = result.replacingOccurrences(of: segment, with: "")
    }
    for register in ["eiz", "riz"] {
      for scale in ["1", "2", "4", "8"] {
        result = result.replacingOccurrences(of: "+\(register)*\(scale)", with: "")
        result = result.replacingOccurrences(of: "[\(register)*\(scale)+", with: "[")
      }
    }
    for elements in [2, 4, 8, 16] {
      result = result.replacingOccurrences(of: "{1to\(elements)}", with: "")
    }
    // An absolute address with an index of zero has brackets only there.
    return result.replacingOccurrences(of: "[0x", with: "0x").replacingOccurrences(
      of: "]", with: "")
  }
}
