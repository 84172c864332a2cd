// SPDX-License-Identifier: Apache-2.0
//
// Runs `objdump` (Debian: binutils) and reads its listing.

import Foundation
import X86
import X86Decoder

/// One line of a listing.
struct ListedInstruction {
  var address: UInt64
  var bytes: [UInt8]
  /// In one-space form, without symbol and comment.
  var text: String
  var isBad: Bool { text.contains("(bad)") || text.hasPrefix(".") }
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
    let parts = line.split(separator: 9, maxSplits: 2, omittingEmptySubsequences: false)
    guard parts.count == 3, parts[0].last == UInt8(ascii: ":") else { return nil }
    var address: UInt64 = 0
    for byte in parts[0] { if let digit = digit(byte) { address = address << 4 | digit } }
    var bytes: [UInt8] = []
    var pending: UInt64?
    for byte in parts[1] {
      guard let value = digit(byte) else { continue }
      if let high = pending {
        bytes.append(UInt8(high << 4 | value))
        pending = nil
      } else {
        pending = value
      }
    }
    return ListedInstruction(address: address, bytes: bytes, text: clean(parts[2]))
  }

  private static func digit(_ byte: UInt8) -> UInt64? {
    switch byte {
    case 0x30...0x39: UInt64(byte - 0x30)
    case 0x61...0x66: UInt64(byte - 0x57)
    default: nil
    }
  }

  private static func clean(_ bytes: Slice<UnsafeBufferPointer<UInt8>>) -> String {
    var text: [UInt8] = []
    for byte in bytes {
      if byte == UInt8(ascii: "#") || byte == UInt8(ascii: "<") { break }
      if byte == 32, text.last == 32 { continue }
      text.append(byte)
    }
    while text.last == 32 { text.removeLast() }
    return String(decoding: text, as: UTF8.self)
  }
}

/// Spellings of one meaning that differ between the two disassemblers.
enum Spelling {
  /// Prefixes that objdump prints as words where they do nothing.
  private static let idlePrefixes: Set<String> = [
    "cs", "ds", "es", "ss", "fs", "gs", "data16", "data32", "addr16", "addr32", "rex", "rex.W",
    "rex.R", "rex.X", "rex.B", "rex.WR", "rex.WX", "rex.WB", "rex.RX", "rex.RB", "rex.XB",
    "rex.WRX", "rex.WRB", "rex.WXB", "rex.RXB", "rex.WRXB", "bnd", "notrack", "xacquire",
    "xrelease", "repz", "repnz", "rep", "lock",
  ]

  private static let aliases = [
    "xchg": "nop", "fwait": "wait", "xlatb": "xlat", "movabs": "mov", "sal": "shl", "retw": "ret",
    "iretw": "iret", "pushw": "push", "popw": "pop", "iretd": "iret",
  ]

  /// Whether the line is one instruction as we count: objdump prints a REX byte that does nothing
  /// on a line of its own, and FWAIT together with the x87 instruction after it.
  static func isComparable(_ listed: ListedInstruction) -> Bool {
    !mnemonic(listed.text).isEmpty && !(listed.bytes.contains(0x9B) && mnemonic(listed.text) != "wait")
  }

  /// The mnemonic of a line, without prefixes and in one spelling.
  static func mnemonic(_ text: String) -> String {
    for word in text.split(separator: " ") where !idlePrefixes.contains(String(word)) {
      return aliases[String(word)] ?? String(word)
    }
    return ""
  }
}
