// SPDX-License-Identifier: Apache-2.0
//
// Guests of random bytes in random states: whatever they do ends in an exit, and nothing traps.

import Foundation
import Support
import Synchronization
import TestRandom
import Testing
import X86
import X86CPU

/// A device behind every address that EPT does not map.
private final class Noise: EmulationContext {
  var generator: SplitMix
  init(seed: UInt64) { generator = SplitMix(seed: seed) }
  func readMMIO(_ address: UInt64, size: Int) -> UInt64? {
    generator.next() & 7 == 0 ? nil : generator.next()
  }
  func writeMMIO(_ address: UInt64, size: Int, value: UInt64) -> Bool { generator.next() & 7 != 0 }
  func readPort(_ port: UInt16, size: Int) -> UInt64? { generator.next() }
  func writePort(_ port: UInt16, size: Int, value: UInt64) -> Bool { true }
}

@Suite struct RandomGuestTests {
  @Test(arguments: 0..<4) func randomGuestsNeverTrapTheProcessor(part: Int) {
    let environment = ProcessInfo.processInfo.environment["MARTLET_GUEST_SEED"].flatMap(UInt64.init)
    let seed = environment ?? UInt64.random(in: 0 ... .max)
    print("random guests: MARTLET_GUEST_SEED=\(seed)")
    var generator = SplitMix(seed: seed &+ UInt64(part))
    let m = TestMachine()
    let kicker = Kicker(m.processor)
    defer { kicker.stop() }
    var exits = 0
    for _ in 0..<150 {
      prepare(m, &generator)
      for _ in 0..<20 {
        m.run(from: UInt64.random(in: 0x1000..<0x3000, using: &generator))
        exits += 1
        if m.cpu.exitFields.reason == UInt32(ExitReason.eptViolation.rawValue)
          || m.cpu.exitFields.reason == UInt32(ExitReason.ioInstruction.rawValue)
        {
          _ = m.processor.emulate(Noise(seed: generator.next()))
        }
        m.cpu.s.pointee.activity = 0
      }
    }
    #expect(exits == 3000)
  }

  private func prepare(_ m: TestMachine, _ generator: inout SplitMix) {
    let cpl: UInt8 = Bool.random(using: &generator) ? 0 : 3
    switch generator.next() & 3 {
    case 0: m.setRealMode()
    case 1: m.setProtectedMode(cpl: cpl)
    default: m.setLongMode(cpl: cpl)
    }
    if generator.next() & 7 == 0 { m.cpu.vmxControls.exceptionBitmap = .max }
    if generator.next() & 7 == 0 { m.cpu.vmxControls.exceptionBitmap = 0 }
    for n in 0..<16 {
      m.cpu.gpr[n] =
        generator.next() & 3 == 0
        ? generator.next() : UInt64.random(in: 0..<UInt64(m.memorySize), using: &generator)
    }
    m.cpu.flags = generator.next() & 0x3F_7FD5 & ~UInt64(1 << 17) | 2
    var code = (0..<0x2000).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
    // Prefixes and two-byte opcodes more often than chance has them.
    for n in stride(from: 0, to: code.count, by: 3) where generator.next() & 3 == 0 {
      code[n] =
        [0x0F, 0x48, 0x66, 0xF3, 0xF2, 0x0F, 0x67, 0xC5, 0x62, 0xF0][Int(generator.next() % 10)]
    }
    m.load(code, at: 0x1000)
    // Descriptor tables of noise, with an IDT that leads to the code now and then.
    for n in 0..<256 {
      m.store(generator.next() & 0xFFFF_EEFF_0018_2FFF | 0x8E00_0000_0000, at: 0x4000 + n * 16)
      m.store(UInt64(0), at: 0x4008 + n * 16)
    }
    for n in 1..<16 { m.store(generator.next() | 0x0000_9000_0000_0000, at: 0x6000 + n * 8) }
    m.cpu.s.pointee.idtr.base = 0x4000
    m.cpu.s.pointee.idtr.limit = 0xFFF
    m.cpu.s.pointee.gdtr.base = 0x6000
    m.cpu.s.pointee.gdtr.limit = 0x7F
    m.cpu.s.pointee.slow = 0
    m.cpu.s.pointee.interruptibility = 0
    m.cpu.updateMode()
  }
}

/// Asks a CPU to leave guest code every two milliseconds.
private final class Kicker: Sendable {
  private let stopped: Stopped
  private final class Stopped: Sendable {
    let value = Atomic<Bool>(false)
    let ended = DispatchSemaphore(value: 0)
  }

  init(_ processor: PhysicalCPU) {
    let stopped = Stopped()
    self.stopped = stopped
    Thread.detachNewThread {
      while !stopped.value.load(ordering: .relaxed) {
        usleep(2000)
        processor.kick()
      }
      stopped.ended.signal()
    }
  }

  func stop() {
    stopped.value.store(true, ordering: .relaxed)
    stopped.ended.wait()
  }
}
