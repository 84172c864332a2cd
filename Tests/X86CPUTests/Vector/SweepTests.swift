// SPDX-License-Identifier: Apache-2.0
//
// Every vector instruction that the decoder knows, in each of its prefixes, lengths and forms,
// through lowering and its handler. What the results are is for the oracle; here nothing may trap
// the program, and the program's own floating-point environment must survive.

import Support
import TestRandom
import Testing
import X86
import X86CPU
import X86Decoder

@Suite struct SweepTests {
  /// With memory aligned, every instruction that host and processor model have executes once at
  /// least; without, none may pass its misalignment on to the host.
  @Test(arguments: [0x4000, 0x4FF1] as [UInt64])
  func everyEncodingRunsOrIsUndefined(address: UInt64) {
    let m = VectorMachine()
    var generator = SplitMix(seed: 0x5EED)
    var executed: Set<Mnemonic> = []
    var present: Set<Mnemonic> = []
    var absent: Set<Mnemonic> = []
    for bytes in encodings() {
      let decoded = bytes.withUnsafeBytes { try? Decoder.decode($0, mode: .bits64) }
      guard let i = decoded, i.attributes.contains(.vector) else { continue }
      if HostFeatures.current.has(i) && CPUIDModel.offers(i.feature) {
        present.insert(i.mnemonic)
      } else {
        absent.insert(i.mnemonic)
      }
      randomize(m, address, &generator)
      let op = MicroOpPointer.allocate(capacity: 1)
      defer { op.deallocate() }
      Lowering.lower(i, offset: 0, into: op, for: m.c)
      let step = op.pointee.handler(m.c.raw, op)
      if step == Step.next { executed.insert(i.mnemonic) }
      m.c.s.pointee.pendingException = 0
    }
    let vector = Mnemonic.allCases.filter { $0.rawValue >= Mnemonic.f2xm1.rawValue }
    let expected = vector.filter { present.contains($0) || !absent.contains($0) }
    let missing = expected.filter { !executed.contains($0) }
    #expect(address != 0x4000 || missing.isEmpty, "never executed: \(missing)")
    var third = 1.0
    third /= 3.0
    #expect(third == 1.0 / 3.0)
  }

  private func randomize(
    _ m: VectorMachine, _ address: UInt64, _ generator: inout SplitMix
  ) {
    m.c.resetVectorState()
    for n in 0..<256 { m.c.vector.pointee.zmm[n] = generator.next() }
    for n in 0..<8 { m.c.vector.pointee.opmask[n] = generator.next() }
    // Small indices for gathers and scatters; memory that LDMXCSR can load.
    for n in 0..<8 { m[zmm: 4, n] = generator.next() & 0xFF }
    for n in 0..<16 { m.c.gpr[n] = address }
    m.machine.memory.storeBytes(of: 0x1F80, toByteOffset: Int(address), as: UInt32.self)
  }

  private func encodings() -> [[UInt8]] {
    var all: [[UInt8]] = []
    let tail: [UInt8] = Array(repeating: 0x11, count: 6)
    for modRM in modRMs {
      for opcode in 0...255 as ClosedRange<UInt8> {
        // Other reg fields than 2 matter where they are part of the opcode.
        if modRM & 0x38 != 0x10 && !groups.contains(opcode) { continue }
        for prefix in [[], [0x66], [0xF3], [0xF2]] as [[UInt8]] {
          for rex in [[], [0x48]] as [[UInt8]] {
            for map in [[0x0F], [0x0F, 0x38], [0x0F, 0x3A]] as [[UInt8]] {
              all.append(prefix + rex + map + [opcode, modRM] + tail)
            }
          }
        }
        appendVEX(opcode, modRM, tail, &all)
        appendEVEX(opcode, modRM, tail, &all)
      }
    }
    for modRM in Array(0xC0...0xFF as ClosedRange<UInt8>) + modRMs {
      for opcode in 0xD8...0xDF as ClosedRange<UInt8> { all.append([opcode, modRM] + tail) }
    }
    all.append([0x9B] + tail)
    return all
  }

  private let groups: Set<UInt8> = [0x71, 0x72, 0x73, 0x78, 0xAE, 0xC7]

  /// Registers 1 and 2, memory at [rsi]; every group member.
  private var modRMs: [UInt8] { (0..<8).flatMap { [0xC2 | $0 << 3, 0x06 | $0 << 3] } }

  private func appendVEX(_ opcode: UInt8, _ modRM: UInt8, _ tail: [UInt8], _ all: inout [[UInt8]]) {
    for map in 1...3 as ClosedRange<UInt8> {
      for w in [0, 0x80] as [UInt8] {
        for low in 0..<8 as Range<UInt8> {
          for v in [0x78, 0x60] as [UInt8] {
            all.append([0xC4, 0xE0 | map, w | v | low, opcode, modRM] + tail)
          }
        }
      }
    }
    // Gathers: [rsi + xmm4].
    if modRM < 0x40 && opcode >= 0x90 && opcode <= 0x93 {
      for w in [0, 0x80] as [UInt8] {
        for l in [0, 4] as [UInt8] {
          all.append([0xC4, 0xE2, w | 0x60 | l | 1, opcode, modRM & 0x38 | 4, 0x26] + tail)
        }
      }
    }
  }

  private func appendEVEX(_ opcode: UInt8, _ modRM: UInt8, _ tail: [UInt8], _ all: inout [[UInt8]])
  {
    for map in 1...3 as ClosedRange<UInt8> {
      for w in [0, 0x80] as [UInt8] {
        for pp in 0..<4 as Range<UInt8> {
          for p2 in [0x08, 0x28, 0x48, 0x18, 0x58, 0x78, 0x0A, 0xCA, 0x4A, 0x5A, 0x1A] as [UInt8] {
            for v in [0x78, 0x68] as [UInt8] {
              all.append([0x62, 0xF0 | map, w | v | 4 | pp, p2, opcode, modRM] + tail)
            }
          }
        }
      }
    }
    if modRM < 0x40 && (opcode >= 0x90 && opcode <= 0x93 || opcode >= 0xA0 && opcode <= 0xA3) {
      for w in [0, 0x80] as [UInt8] {
        all.append([0x62, 0xF2, w | 0x7D, 0x4A, opcode, modRM & 0x38 | 4, 0x26] + tail)
      }
    }
  }
}
