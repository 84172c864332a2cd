// SPDX-License-Identifier: Apache-2.0
//
// Host instructions that the translator makes of a fixed set of snippets, against those in
// Golden/translations.txt, so that a change of the translator shows there what it costs or gains.
// `make golden` (MARTLET_GOLDEN=write) writes the file anew from its own snippets.
//
//     register loop: 3 -> 10, 8 out of line
//       (entry) | 1
//       48 01 d8 | 1 | add rax,rbx
//
// A new snippet is its name and lines of bytes; the rest is filled in.

import Foundation
import Support
import Testing
import X86
import X86CPU
import X86Decoder
import X86JIT

private struct Snippet {
  var name: String
  /// Bytes of each instruction.
  var instructions: [[UInt8]]

  static let path = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .appendingPathComponent("Golden/translations.txt")

  static let heading = """
    # Host instructions that the translator makes of guest instructions: NAME: GUEST -> HOST IN LINE, then
    # each instruction's bytes, its host instructions in line (both ways of a branch among them) and text.
    # Written by `make golden` on a host with AVX-512. See GoldenCountTests.swift.


    """

  static func parse(_ text: String) -> [Snippet] {
    var snippets: [Snippet] = []
    for line in text.split(separator: "\n") where !line.hasPrefix("#") {
      if !line.hasPrefix("  ") {
        snippets.append(Snippet(name: String(line.prefix { $0 != ":" }), instructions: []))
      } else if !line.hasPrefix("  ("), !snippets.isEmpty {
        let bytes = line.prefix { $0 != "|" }.split(separator: " ")
        snippets[snippets.count - 1].instructions.append(bytes.compactMap { UInt8($0, radix: 16) })
      }
    }
    return snippets
  }

  // MARK: Running

  private static let start: UInt64 = 0x1000
  /// Where indirect jumps lead: HLT.
  private static let target: UInt64 = 0x1100

  /// The translation of the snippet after some rounds.
  private func translation() throws -> TranslationSummary {
    let m = TestMachine(threshold: 0)
    let log = TranslationLog(keepsSummaries: true)
    _ = try Translator.install(
      on: m.processor, threshold: 1, codeBytes: 1 << 20, countsInstructions: false, log: log)
    m.setLongMode()
    let s = m.cpu.s
    s.pointee.cr4 |= CR4.osxsave.rawValue
    s.pointee.xcr0 = HostFeatures.current.xcr0 & XCR0([.x87, .sse, .avx, .avx512]).rawValue | 1
    m.cpu.updateMode()
    m.load(instructions.flatMap { $0 } + [0xF4], at: Int(Self.start))
    m.load([0xF4], at: Int(Self.target))
    for address in stride(from: 0x3000, to: 0x9000, by: 8) { m.store(Self.target, at: address) }
    for _ in 0..<3 {
      for number in 0..<16 { m.cpu.gpr[number] = 0x3000 }
      m.cpu.gpr[Int(GeneralRegister.rcx.rawValue)] = 3
      m.cpu.gpr[Int(GeneralRegister.rdx.rawValue)] = Self.target
      m.cpu.gpr[Int(GeneralRegister.rsp.rawValue)] = 0x8000
      m.cpu.segment(.gs).pointee.base = 0x3000
      #expect(m.run(from: Self.start) == .hlt, "\(name)")
    }
    return try #require(log.summaries.last { $0.linear == Self.start }, "\(name)")
  }

  /// The snippet's part of the file.
  func text() throws -> String {
    let translation = try translation()
    var lines: [String] = []
    var inLine = 0
    var all = 0
    func add(_ label: String, _ count: Int, _ text: String? = nil) {
      inLine += count
      if text != nil || count > 0 { lines.append("  \(label) | \(count)" + (text ?? "")) }
    }
    for part in translation.parts { all += part.hostInstructions }
    func count(_ wanted: CodeMark.Part) -> Int {
      translation.parts.reduce(0) { $0 + ($1.part == wanted ? $1.hostInstructions : 0) }
    }
    add("(entry)", count(.entry))
    var offset = Int(Self.start & Page.offsetMask)
    for bytes in instructions {
      let instruction = try bytes.withUnsafeBytes { try Decoder.decode($0, mode: .bits64) }
      let address = Self.start & Page.mask | UInt64(offset)
      let hex = bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
      let part = CodeMark.Part.instruction(offset)
      let isTranslated = translation.parts.contains { $0.part == part }
      let text = " | " + Disassembler.text(instruction, at: address)
      add(hex.joined(separator: " "), count(part), text + (isTranslated ? "" : " (not in it)"))
      offset += bytes.count
    }
    add("(end)", count(.end))
    let head = "\(name): \(instructions.count) -> \(inLine), \(all - inLine) out of line"
    return ([head] + lines).joined(separator: "\n") + "\n"
  }
}

@Suite struct GoldenCountTests {
  /// What is emitted for vectors depends on the host's registers.
  @Test(.enabled(if: HostFeatures.current.hasAVX512, "the file is that of a host with AVX-512"))
  func countsAreThoseOfTheFile() throws {
    let file = try String(contentsOf: Snippet.path, encoding: .utf8)
    let snippets = Snippet.parse(file)
    #expect(snippets.count >= 40)
    let text = try Snippet.heading + snippets.map { try $0.text() }.joined(separator: "\n")
    if ProcessInfo.processInfo.environment["MARTLET_GOLDEN"] == "write" {
      try text.write(to: Snippet.path, atomically: true, encoding: .utf8)
      return
    }
    if text == file { return }
    // Line by line, for whoever reads the failure.
    let lines = Set(file.split(separator: "\n"))
    for line in text.split(separator: "\n") where !lines.contains(line) {
      Issue.record("not in the file: \(line); `make golden` takes it over")
    }
    #expect(text == file)
  }
}
