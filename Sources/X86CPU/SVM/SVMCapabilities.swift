// SPDX-License-Identifier: Apache-2.0
//
// This processor's SVM features, as in CPUID leaf 8000_000AH.

import X86

package enum SVMCapabilities {
  /// Address-space identifiers: 0 to this, exclusive.
  package static let asidCount: UInt32 = 0x8000

  package static let features: SVMFeatures = [
    .nestedPaging, .svmLock, .nextRIP, .tscRatio, .cleanBits, .flushByASID, .decodeAssists,
    .pauseFilter, .pauseFilterThreshold, .virtualGIF, .virtualNMI,
  ]

  /// Features of the manual's list that are absent, and why.
  package static let absent: [(feature: SVMFeatures, reason: String)] = [
    (.lastBranchVirtualization, "there are no last-branch records"),
    (.avic, "interrupts are delivered by the hypervisor"),
    (.virtualLoadSave, "it serves nested hypervisors, which there are not yet"),
  ]

  /// Host-physical addresses are addresses in this process: no bits above these are set.
  package static let hostAddressWidth: UInt64 = 47

  /// Valid EFER bits at VMRUN.
  package static let efer: EFER = [.sce, .lme, .lma, .nxe, .svme]

  /// TSC_RATIO of 1: 8 bits of integer, 32 of fraction.
  package static let tscRatioOne: UInt64 = 1 << 32
  package static let tscRatioMask: UInt64 = 0xFF_FFFF_FFFF
}
