// SPDX-License-Identifier: Apache-2.0
//
// The machine's clocks: kvmclock (nanoseconds that the client can set) and the offset of the
// guest's time-stamp counter. Both derive from the host's counter, so all vCPUs agree on them
// without communication: the paravirtual clock's "stable" bit is true.

import Host
import Synchronization
import X86
import X86CPU

final class MachineClock: Sendable {
  struct State: Sendable {
    /// kvmclock read `nanoseconds` when the host's counter read `tsc`.
    var tsc: UInt64
    var nanoseconds: UInt64
    /// The rate of new vCPUs' counters.
    var rate = TSCRate.host
    /// Guest counter minus host counter at that rate, for vCPUs that did not set their own.
    var tscOffset: UInt64
    /// The client's last write of a guest's counter, to detect writes that mean "the same".
    var lastWrite: LastWrite?
  }

  struct LastWrite: Sendable {
    var value: UInt64
    /// The host's counter at that time, at the vCPU's rate.
    var time: UInt64
    var rate: TSCRate
    var offset: UInt64
  }

  private let state: Mutex<State>
  /// The host's counter when the machine was created.
  private let start: UInt64

  init() {
    let tsc = HostTSC.read()
    start = tsc
    state = Mutex(State(tsc: tsc, nanoseconds: 0, tscOffset: 0 &- tsc))
  }

  /// KVM_SET_TSC_KHZ for future vCPUs.
  func set(rate: TSCRate) {
    state.withLock {
      $0.rate = rate
      $0.tscOffset = offset(rate: rate)
    }
  }

  /// The offset for a counter of `rate` that starts at 0 when the machine is created.
  func offset(rate: TSCRate) -> UInt64 { 0 &- rate.counts(ofHost: start) }

  var reference: State { state.withLock { $0 } }

  /// kvmclock at a value of the host's counter.
  func nanoseconds(at tsc: UInt64) -> UInt64 {
    let state = reference
    return state.nanoseconds &+ HostTSC.nanoseconds(tsc &- state.tsc)
  }

  /// KVM_SET_CLOCK.
  func set(_ nanoseconds: UInt64) {
    let now = HostTSC.read()
    state.withLock {
      $0.tsc = now
      $0.nanoseconds = nanoseconds
    }
  }

  /// The counter offset for a vCPU whose client writes `value` to its counter. Writes within a
  /// second of the same value (or 0), or of one that continues the last, mean that the counters
  /// must agree: they get the same offset.
  func offset(forWriting value: UInt64, rate: TSCRate) -> UInt64 {
    let now = rate.counts(ofHost: HostTSC.read())
    return state.withLock { state in
      if let last = state.lastWrite, last.rate == rate {
        let second = rate.kilohertz &* 1000
        let continued = last.value &+ (now &- last.time)
        let distance = min(value &- continued, continued &- value)
        let means = value == 0 || value == last.value || distance < second
        if means, now &- last.time < second { return last.offset }
      }
      let offset = value &- now
      state.lastWrite = LastWrite(value: value, time: now, rate: rate, offset: offset)
      if rate == state.rate { state.tscOffset = offset }
      return offset
    }
  }
}
