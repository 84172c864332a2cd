// SPDX-License-Identifier: Apache-2.0
//
// What a guest has agreed with its hypervisor: EOI without an exit, asynchronous page faults, and
// whether its CPUID limits these. Only the thread in an ioctl of the vCPU uses it, except for
// `faults.arrivals`, a queue that other threads fill. `ParavirtualEOI.swift` and `AsyncFaults`
// contain the vCPU's side.

struct ParavirtualState {
  var eoi = ParavirtualEOI()
  var faults = AsyncPageFaults()
  /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
  var enforcesCPUID = false

  /// Whether the guest may use a feature, given the features in its CPUID.
  func allows(_ feature: UInt32, offered: UInt32) -> Bool {
    !enforcesCPUID || offered & feature != 0
  }

  /// INIT: ends all agreements.
  mutating func reset() {
    eoi = ParavirtualEOI()
    faults.clear()
    faults = AsyncPageFaults()
  }
}
