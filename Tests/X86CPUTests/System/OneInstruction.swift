// SPDX-License-Identifier: Apache-2.0
//
// Executes one instruction without a run loop, for tests of what a handler throws.

import Support
import Testing
import X86
import X86CPU
import X86Decoder

extension TestMachine {
  /// What one instruction did: how its handler ended, and what it threw.
  struct Outcome: Equatable {
    var step: Int32
    var exception: GuestException?

    static let next = Outcome(step: Step.next)
    static let reload = Outcome(step: Step.reload)
    static func fault(_ exception: GuestException) -> Outcome {
      Outcome(step: Step.fault, exception: exception)
    }
    static let exit = fault(.vmExit)
  }

  /// Executes one instruction, given as bytes, at RIP 0x1000 with no event delivery after it.
  func execute(_ bytes: [UInt8]) throws -> Outcome {
    let mode = try #require(CodeMode(rawValue: cpu.s.pointee.codeMode))
    let instruction = try bytes.withUnsafeBytes { try Decoder.decode($0, mode: mode) }
    #expect(Int(instruction.length) == bytes.count)
    let op = MicroOpPointer.allocate(capacity: 1)
    defer { op.deallocate() }
    cpu.s.pointee.blockRIP = 0x1000
    Lowering.lower(instruction, offset: 0, into: op, for: cpu)
    let step = op.pointee.handler(cpu.raw, UnsafeMutableRawPointer(op))
    let thrown = step == Step.fault
    return Outcome(
      step: step,
      exception: thrown ? GuestException(rawValue: cpu.s.pointee.pendingException) : nil)
  }

  var exitReason: ExitReason {
    ExitReason(rawValue: UInt16(truncatingIfNeeded: cpu.exitFields.reason))
  }

  /// Turns VMX non-root operation on, with the controls that must be there.
  func enterNonRoot(primary: UInt32 = 0, secondary: UInt32 = 0) {
    cpu.vmxControls.pin = 0x16
    cpu.vmxControls.primary |= primary | PrimaryControls.secondaryControls
    cpu.vmxControls.secondary |= secondary
  }
}
