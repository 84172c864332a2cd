// SPDX-License-Identifier: Apache-2.0
//
// The machine's clocks: kvmclock (nanoseconds that the client can set) and the offset of the
// guest's time-stamp counter. Both derive from the host's counter, so all vCPUs agree on them
// without asking each other: the paravirtual clock's "stable" bit is true.

import Host
import Synchronization
import X86
import X86CPU

final class MachineClock: Sendable {
  struct State: Sendable {
    /// kvmclock read `nanoseconds` when the host's counter read `tsc`.
    var tsc: UInt64
    var nanoseconds: UInt64
    /// Guest counter minus host counter, of vCPUs that did not set their own.
    var tscOffset: UInt64
    /// The last write of a guest's counter by the client, to tell writes that mean "the same".
    var lastWrite: (value: UInt64, hostTSC: UInt64)?
  }

  private let state: Mutex<State>

  init() {
    let tsc = HostTSC.read()
    state = Mutex(State(tsc: tsc, nanoseconds: 0, tscOffset: 0 &- tsc))
  }

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

  /// The counter offset for a vCPU whose client writes `value` to its counter. Writes of the same
  /// value (or 0), or of one that goes on from the last, within a second of each other mean that
  /// the counters are to agree: they get the same offset.
  func offset(forWriting value: UInt64) -> UInt64 {
    let now = HostTSC.read()
    return state.withLock { state in
      if let last = state.lastWrite {
        let second = HostTSC.kilohertz &* 1000
        let continued = last.value &+ (now &- last.hostTSC)
        let distance = min(value &- continued, continued &- value)
        if value == 0 || value == last.value || distance < second, now &- last.hostTSC < second {
          return state.tscOffset
        }
      }
      state.lastWrite = (value, now)
      state.tscOffset = value &- now
      return state.tscOffset
    }
  }
}
