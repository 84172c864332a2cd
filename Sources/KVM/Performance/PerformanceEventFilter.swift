// SPDX-License-Identifier: Apache-2.0
//
// The performance events that a machine lets its guests count, as the client filters them.

import CHost
import SystemPackage
import X86

/// KVM_SET_PMU_EVENT_FILTER: the events that the guest's counters may count.
struct PerformanceEventFilter: Sendable {
  /// As KVM_PMU_EVENT_FILTER_MAX_EVENTS.
  private static let maxEvents: UInt32 = 300

  private var isAllowList: Bool
  private var events: Set<UInt64>
  private var fixedCounters: UInt32

  init(_ argument: Argument) throws(Errno) {
    let header: kvm_pmu_event_filter = try argument.read()
    let actions = [UInt32(KVM_PMU_EVENT_ALLOW), UInt32(KVM_PMU_EVENT_DENY)]
    guard actions.contains(header.action), header.flags == 0 else { throw .invalidArgument }
    guard header.nevents <= Self.maxEvents else { throw .argListTooLong }
    isAllowList = header.action == UInt32(KVM_PMU_EVENT_ALLOW)
    fixedCounters = header.fixed_counter_bitmap
    events = []
    for index in 0..<Int(header.nevents) {
      events.insert(
        try argument.element(index, at: MemoryLayout<kvm_pmu_event_filter>.size, as: UInt64.self))
    }
  }

  /// An event as in a counter's selector: select and unit mask.
  func allows(event: UInt64) -> Bool { events.contains(event) == isAllowList }

  func allows(fixedCounter number: Int) -> Bool {
    (fixedCounters & 1 << UInt32(number) != 0) == isAllowList
  }
}
