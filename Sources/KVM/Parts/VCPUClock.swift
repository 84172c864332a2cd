// SPDX-License-Identifier: Apache-2.0
//
// A vCPU's time: its time-stamp counter, the deadline of its local APIC's timer in that counter's
// terms, what its kvmclock says of it, and the time that others stole. Belongs to the thread that
// is in an ioctl of the vCPU. It reads the host's counter; what follows of a change (the control
// block, the timer thread, the guest's structures) is in VirtualCPU+ClockMSRs.

import X86CPU

struct VCPUClock {
  /// How fast the guest's counter runs, and what it is more than the host's at that rate.
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

  /// The guest's counter now.
  var counter: UInt64 { rate.counts(ofHost: HostTSC.read()) &+ offset }

  /// The offset with which the counter is `value` now.
  func offset(for value: UInt64) -> UInt64 { value &- rate.counts(ofHost: HostTSC.read()) }

  /// A TSC deadline has come.
  var isDeadlineOver: Bool { deadline != .max && counter >= deadline }
}
