// SPDX-License-Identifier: Apache-2.0
//
// State that only system instructions use, away from what every block touches.

import X86

/// The part of the CPU's state that only system instructions use.
package struct SystemState {
  /// MSRs without a field of their own, by slot (see MSRModel).
  package var msrs: InlineArray<112, UInt64> = MSRModel.initialSlots
  /// Added to the host's time-stamp counter: IA32_TSC_ADJUST.
  package var tscAdjust: UInt64 = 0
  /// TSC of the first and of the latest PAUSE in the current loop (PAUSE-loop exiting). With SVM's
  /// filter the first is the number of PAUSEs that remain.
  package var pauseFirst: UInt64 = 0
  package var pauseLast: UInt64 = 0
  /// MONITOR has armed an address range; MWAIT disarms it.
  package var monitorArmed = false

  package init() {}
}
