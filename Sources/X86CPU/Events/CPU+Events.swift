// SPDX-License-Identifier: Apache-2.0
//
// What the run loop asks of event delivery.

import X86

extension CPU {
  /// Takes the exception in `pendingException` (raised by the instruction at `rip`): intercepts,
  /// double faults and delivery through the IDT.
  ///
  /// - Returns: false where it ended in a VM exit, which is then in `exit`.
  package func handleFault() -> Bool { false }

  /// Delivers an event through the guest's IDT: an injected or virtual interrupt, an exception, a
  /// software interrupt. Nested faults are handled as the architecture says.
  ///
  /// - Parameter returnRIP: RIP to push.
  /// - Returns: false where it ended in a VM exit, which is then in `exit`.
  package func deliver(
    _ event: InterruptionInfo, errorCode: UInt32, returnRIP: UInt64
  ) -> Bool { false }

  /// After an instruction executed while `slow` was set: interrupt shadow, RF, single-step and data
  /// breakpoint traps. `before` is the value of `slow` before the instruction.
  ///
  /// - Returns: false where it ended in a VM exit.
  package func afterSlowInstruction(before: UInt32) -> Bool { true }

  /// Before an instruction is executed while `slow` has `breakpoints`: instruction breakpoints.
  ///
  /// - Returns: false where it ended in a VM exit. May have changed `rip`.
  package func beforeSlowInstruction() -> Bool { true }
}
