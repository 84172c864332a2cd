// SPDX-License-Identifier: Apache-2.0
//
// Every row of the opcode table, with edge immediates and displacements, as the first, the last and
// the only instruction of a block, translated alone and in a region. The translator looks at
// instructions before it knows what they are, so each has to pass through all that looks: nothing
// may trap, and the guest ends. What the instructions do is for other tests.

import Foundation
import Support
import Synchronization
import TestRandom
import Testing
import X86
import X86CPU
import X86Decoder
import X86JIT

@Suite struct EdgeEncodingTests {
  enum Place: CaseIterable { case first, last, only }

  /// Blocks end with the page in front of it; it holds HLT, as all memory does that nothing else is
  /// in.
  private static let pageEnd = 0x4000
  private static let seed: UInt64 = 20_261_130
  /// A debug build takes as long for a few of the rows as a release build for all.
  #if DEBUG
    private static let rows = HostileCode.rows.enumerated().filter { $0.offset % 16 == 0 }.map(
      \.element)
  #else
    private static let rows = HostileCode.rows
  #endif

  private func machine(_ mode: CodeMode) -> TestMachine {
    let m = TestMachine(megabytes: 2, threshold: 1, codeBytes: 1 << 17, hotEntries: 1)
    memset(m.memory, 0xF4, m.memorySize)
    reset(m, mode)
    return m
  }

  private func reset(_ m: TestMachine, _ mode: CodeMode) {
    if mode == .bits64 { m.setLongMode() } else { m.setProtectedMode() }
    m.cpu.vmxControls.exceptionBitmap = .max
    m.cpu.s.pointee.xcr0 = XCR0([.x87, .sse, .avx]).union(.avx512).rawValue
    m.cpu.s.pointee.cr4 |= CR4.osxsave.rawValue | CR4.osfxsr.rawValue
    m.cpu.updateMode()
    for n in 0..<16 { m.cpu.gpr[n] = UInt64(0x8000 + n * 0x100) }
    m.cpu.flags = 2
  }

  /// A jump to the block of the instruction, which the page's end ends.
  private func program(_ bytes: [UInt8], _ place: Place) -> [UInt8] {
    // test al, al
    let other: [UInt8] = [0x84, 0xC0]
    return [0xEB, 0x00] + (place == .last ? other : []) + bytes + (place == .first ? other : [])
  }

  /// Three times: interpreted and translated, and as a region.
  private func run(_ m: TestMachine, _ mode: CodeMode, _ code: [UInt8]) {
    let start = Self.pageEnd - code.count
    m.load(code, at: start)
    for _ in 0..<3 {
      reset(m, mode)
      m.run(from: UInt64(start))
    }
  }

  @Test(arguments: [CodeMode.bits64, .bits32])
  func translatorSurvivesEveryRow(_ mode: CodeMode) throws {
    let m = machine(mode)
    var generator = HostileCode(seed: Self.seed, mode: mode)
    let translator = try #require(m.translator)
    let stopper = Stopper(m.processor)
    defer { stopper.end() }
    var decoded = 0
    for row in Self.rows {
      for place in Place.allCases {
        let bytes = generator.instruction(of: row)
        let isWhole = bytes.withUnsafeBytes {
          (try? Decoder.decode($0, mode: mode))?.length == UInt8(bytes.count)
        }
        if !isWhole { continue }
        decoded += 1
        run(m, mode, program(bytes, place))
      }
    }
    #expect(decoded > Self.rows.count)
    #expect(translator.statistics.blocks > UInt64(decoded))
    #expect(translator.statistics.regions > UInt64(Self.rows.count / 2))
  }

  /// What ended the monitor: no jump, but a number as large as no jump's.
  @Test(arguments: [Int64.max, .min, -1, 0x7FFF_FFFF])
  func aLargeConstantEndsABlock(_ constant: Int64) throws {
    let m = machine(.bits64)
    for opcode in 0xB8...0xBF as ClosedRange<UInt8> {
      for place in Place.allCases {
        var bytes: [UInt8] = [0x48, opcode]
        withUnsafeBytes(of: constant) { bytes += $0 }
        run(m, .bits64, program(bytes, place))
        #expect(m.cpu.gpr[Int(opcode & 7)] == UInt64(bitPattern: constant))
      }
    }
    #expect(try #require(m.translator).statistics.regions > 0)
  }
}

/// Stops guests that do not end, until it is told to end.
private final class Stopper: Sendable {
  private let isOver = Atomic(false)

  init(_ processor: PhysicalCPU) {
    Thread.detachNewThread { [self] in
      while !isOver.load(ordering: .relaxed) {
        usleep(2000)
        processor.kick()
      }
    }
  }

  func end() { isOver.store(true, ordering: .relaxed) }
}
