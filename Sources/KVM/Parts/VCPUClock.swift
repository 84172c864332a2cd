// SPDX-License-Identifier: Apache-2.0
//
// A vCPU's time: its time-stamp counter, the deadline of its local APIC's timer in TSC ticks, its
// kvmclock flags, and its steal time. Only the thread in an ioctl of the vCPU uses it. It reads the
// host's counter; VirtualCPU+ClockMSRs applies changes to the control block, the timer thread and
// the guest's structures.

import X86CPU

struct VCPUClock {
  /// The rate of the guest's counter, and its offset from the host's at that rate.
  var rate: TSCRate
  var offset: UInt64
  /// The local APIC timer's TSC deadline; .max: none.
  var deadline: UInt64 = .max
  /// The flags of the kvmclock structure.
  var flags: UInt8 = ParavirtualClock.tscStable
  var steal = StealTime()

  init(rate: TSCRate, offset: UInt64) {
    self.rate = rate
    self.offset = offset
  }

  /// The guest's current TSC.
  var counter: UInt64 { rate.counts(ofHost: HostTSC.read()) &+ offset }

  /// The offset with which the counter is `value` now.
  func offset(for value: UInt64) -> UInt64 { value &- rate.counts(ofHost: HostTSC.read()) }

  /// The TSC deadline has passed.
  var isDeadlineOver: Bool { deadline != .max && counter >= deadline }
}
