// SPDX-License-Identifier: Apache-2.0
//
// Listings and perf's map of translated code: they show the guest's instructions, the host's,
// and counts that the guest's loop fixes.

import Foundation
import Support
import Testing
import X86
import X86CPU
import X86JIT

@Suite struct TranslationLogTests {
  /// A file whose text can be read back.
  private final class Output {
    private let file = tmpfile()!
    var descriptor: Int32 { fileno(file) }
    var text: String {
      rewind(file)
      var bytes: [UInt8] = []
      while case let byte = fgetc(file), byte != EOF { bytes.append(UInt8(byte)) }
      return String(decoding: bytes, as: UTF8.self)
    }
    deinit { fclose(file) }
  }

  /// add rax, [rbx] ; dec ecx ; jnz -7 ; hlt, run 10 times
  private func runLoop(_ log: TranslationLog) throws -> TestMachine {
    let m = TestMachine(threshold: 0)
    _ = try Translator.install(on: m.processor, threshold: 1, codeBytes: 1 << 20, log: log)
    m.setLongMode()
    m.load([0x48, 0x03, 0x03, 0xFF, 0xC9, 0x75, 0xF9, 0xF4], at: 0x1000)
    m.cpu.gpr[1] = 10
    m.cpu.gpr[3] = 0x2000
    m.cpu.gpr[4] = 0x8000
    #expect(m.run(from: 0x1000) == .hlt)
    return m
  }

  @Test func listingShowsGuestAndHostCode() throws {
    let output = Output()
    let log = TranslationLog(listing: output.descriptor, perfMap: nil)
    let m = try runLoop(log)
    log.finish()
    let lines = output.text.split(separator: "\n").map(String.init)
    let start = "guest:0x1000: 3 instructions, 7 bytes"
    let head = try #require(lines.firstIndex { $0.hasPrefix(start) })
    #expect(lines[head].hasSuffix("CPU \(m.processor.number)"))
    let block = lines[head...]
    let guest = try #require(block.firstIndex { $0.hasPrefix("1000  48 03 03") })
    #expect(lines[guest].hasSuffix("add rax,QWORD PTR [rbx]"))
    let next = try #require(block.firstIndex { $0.hasPrefix("1003  ff c9") })
    #expect(lines[next].hasSuffix("dec ecx"))
    // The host's instruction stands between the two, after the look at its page.
    #expect(lines[guest..<next].contains { $0.hasSuffix("add rax,QWORD PTR [r13+0x0]") })
    #expect(lines[guest..<next].contains { $0.hasSuffix("; page 0") })
    #expect(block.contains { $0.hasSuffix("call handler") })
    #expect(!block.contains { $0.contains("not decoded") })
    // 10 rounds of 3 instructions.
    #expect(lines.contains { $0.contains(" 30 = 3 x 10, ") && $0.hasSuffix("guest:0x1000") })
  }

  /// call 0x2000 ; dec ecx ; jnz -9 ; hlt  |  0x2000: add eax, 3 ; ret
  @Test func entriesAreCountedByTheirWay() throws {
    for measures in [true, false] {
      let m = TestMachine(threshold: 0)
      _ = try Translator.install(
        on: m.processor, threshold: 1, codeBytes: 1 << 20, measures: measures)
      m.setLongMode()
      m.load([0xE8, 0xFB, 0x0F, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xF4], at: 0x1000)
      m.load([0x83, 0xC0, 0x03, 0xC3], at: 0x2000)
      m.cpu.gpr[1] = 1000
      m.cpu.gpr[4] = 0x8000
      #expect(m.run(from: 0x1000) == .hlt)
      let counts = m.cpu.s.pointee.native.counts
      #expect(counts.entries > 0 && counts.entries + counts.searches < 30)
      if measures {
        // Three blocks a round: the call and the return look up, the jump is direct.
        #expect(counts.translations >= 2990 && counts.translations <= 3002)
        #expect(counts.lookups >= 1990 && counts.lookups <= 2000)
        let direct = counts.translations - counts.lookups - counts.entries - counts.searches
        #expect(direct >= 980 && direct <= 1000)
        #expect(counts.translatedTicks > 0 && counts.translatorTicks > 0)
        #expect(counts.guestTicks >= counts.translatedTicks + counts.translatorTicks)
      } else {
        #expect(counts.translations == 0 && counts.lookups == 0 && counts.guestTicks == 0)
      }
    }
  }

  @Test func mapNamesTranslationsAndSharedCode() throws {
    let output = Output()
    let m = try runLoop(TranslationLog(listing: nil, perfMap: output.descriptor))
    let lines = output.text.split(separator: "\n").map { $0.split(separator: " ") }
    #expect(lines.allSatisfy { $0.count == 3 && UInt($0[1], radix: 16) ?? 0 > 0 })
    let host = UInt64(UInt(bitPattern: m.memory)) + 0x1000
    let blocks = (0..<UInt16.max).compactMap { m.processor.blocks.find(host: host, modeKey: $0) }
    let native = try #require(blocks.first?.pointee.nativeEntry)
    let line = try #require(lines.first { $0[2] == "guest:0x1000" })
    #expect(line[0] == String(native, radix: 16))
    for name in ["enter", "exit", "dispatch", "handler", "interpret"] {
      #expect(lines.contains { $0[2] == "martlet:\(name)" })
    }
    // No two ranges overlap.
    let ranges = lines.map { (UInt($0[0], radix: 16) ?? 0, UInt($0[1], radix: 16) ?? 0) }
      .sorted { $0.0 < $1.0 }
    for (a, b) in zip(ranges, ranges.dropFirst()) { #expect(a.0 + a.1 <= b.0) }
  }
}
