// SPDX-License-Identifier: Apache-2.0
//
// What a guest has arranged with its hypervisor: the end of interrupts without an exit, page faults
// that arrive later, and whether its CPUID limits what it may arrange. Belongs to the thread that
// is in an ioctl of the vCPU, except `faults.arrivals`, a queue that other threads fill. It reaches
// nothing else; `ParavirtualEOI.swift` and `AsyncFaults` have what the vCPU does with it.

struct ParavirtualState {
  var eoi = ParavirtualEOI()
  var faults = AsyncPageFaults()
  /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
  var enforcesCPUID = false

  /// Whether the guest may use a feature, given those that its CPUID offers.
  func allows(_ feature: UInt32, offered: UInt32) -> Bool {
    !enforcesCPUID || offered & feature != 0
  }

  /// INIT: what was arranged is over.
  mutating func reset() {
    eoi = ParavirtualEOI()
    faults.clear()
    faults = AsyncPageFaults()
  }
}
