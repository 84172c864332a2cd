// SPDX-License-Identifier: Apache-2.0
//
// What of SVM this processor has, as CPUID leaf 8000_000AH tells it.

import X86

package enum SVMCapabilities {
  /// Address-space identifiers: 0 to this, exclusive.
  package static let asidCount: UInt32 = 0x8000

  package static let features: SVMFeatures = [
    .nestedPaging, .svmLock, .nextRIP, .tscRatio, .cleanBits, .flushByASID, .decodeAssists,
    .pauseFilter, .pauseFilterThreshold, .virtualGIF, .virtualNMI,
  ]

  /// What is left out of the manual's list, and why.
  package static let absent: [(feature: SVMFeatures, reason: String)] = [
    (.lastBranchVirtualization, "there are no last-branch records"),
    (.avic, "interrupts are delivered by the hypervisor"),
    (.virtualLoadSave, "it serves nested hypervisors, which there are not yet"),
  ]

  /// Host-physical addresses are addresses in this process: no bit above these is 1.
  package static let hostAddressWidth: UInt64 = 47

  /// EFER bits that VMRUN takes.
  package static let efer: EFER = [.sce, .lme, .lma, .nxe, .svme]

  /// TSC_RATIO of 1: 8 bits of integer, 32 of fraction.
  package static let tscRatioOne: UInt64 = 1 << 32
  package static let tscRatioMask: UInt64 = 0xFF_FFFF_FFFF
}
