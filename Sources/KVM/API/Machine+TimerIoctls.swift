// SPDX-License-Identifier: Apache-2.0
//
// The ioctls of a machine's 8254 and of its clock, the base of all vCPUs' kvmclocks.

import CHost
import Host
import InterruptChips
import Synchronization
import SystemPackage
import X86CPU

/// The 8254 and kvmclock.
extension Machine {
  static let timerIoctls: [(UInt32, Method)] = [
    (
      CKVM_CREATE_PIT2,
      { (machine, argument) throws(Errno) in
        let configuration: kvm_pit_config = try argument.read()
        return try machine.createPIT(flags: configuration.flags)
      }
    ),
    (
      CKVM_CREATE_PIT,
      { (machine, _) throws(Errno) in
        try machine.createPIT(flags: UInt32(KVM_PIT_SPEAKER_DUMMY))
      }
    ),
    (
      CKVM_GET_PIT,
      { (machine, argument) throws(Errno) in
        try argument.write(kvm_pit_state(channels: machine.getPIT().channels))
        return 0
      }
    ),
    (
      CKVM_SET_PIT,
      { (machine, argument) throws(Errno) in
        let state: kvm_pit_state = try argument.read()
        try machine.setPIT { $0.channels = state.channels }
        return 0
      }
    ),
    (
      CKVM_GET_PIT2,
      { (machine, argument) throws(Errno) in
        try argument.write(machine.getPIT())
        return 0
      }
    ),
    (
      CKVM_SET_PIT2,
      { (machine, argument) throws(Errno) in
        let state: kvm_pit_state2 = try argument.read()
        try machine.setPIT { $0 = state }
        return 0
      }
    ),
    (
      CKVM_REINJECT_CONTROL,
      { (machine, argument) throws(Errno) in
        let control: kvm_reinject_control = try argument.read()
        try machine.requireAllChips().chips.withLock { (chips) throws(Errno) in
          guard chips.pit != nil else { throw .noSuchAddressOrDevice }
          if chips.ticks.isOn != (control.pit_reinject != 0) { chips.ticks.reset() }
          chips.ticks.isOn = control.pit_reinject != 0
        }
        return 0
      }
    ),
    (
      CKVM_GET_TSC_KHZ,
      { (machine, _) throws(Errno) in Int32(clamping: machine.clock.reference.rate.kilohertz) }
    ),
    (
      CKVM_SET_TSC_KHZ,
      { (machine, argument) throws(Errno) in
        machine.clock.set(rate: try TSCRate(wanted: argument.value))
        return 0
      }
    ),
    (
      CKVM_GET_CLOCK,
      { (machine, argument) throws(Errno) in
        try argument.write(machine.readClock())
        return 0
      }
    ),
    (
      CKVM_SET_CLOCK,
      { (machine, argument) throws(Errno) in
        try machine.setClock(argument.read())
        return 0
      }
    ),
  ]

  private func createPIT(flags: UInt32) throws(Errno) -> Int32 {
    // As in Linux: ENOENT without the chips.
    let controller = try requireAllChips(.noSuchFileOrDirectory)
    try controller.chips.withLock { (chips) throws(Errno) in
      guard chips.pit == nil else { throw .fileExists }
      chips.pit = PIT8254()
      chips.hasSpeaker = flags & UInt32(KVM_PIT_SPEAKER_DUMMY) != 0
    }
    return 0
  }

  private func getPIT() throws(Errno) -> kvm_pit_state2 {
    let now = HostClock.monotonic()
    return try requireAllChips().chips.withLock { (chips) throws(Errno) -> kvm_pit_state2 in
      guard let pit = chips.pit else { throw .noSuchAddressOrDevice }
      return ChipState.pit(pit.state(at: now), flags: chips.pitFlags)
    }
  }

  private func setPIT(_ change: (inout kvm_pit_state2) -> Void) throws(Errno) {
    let controller = try requireAllChips()
    let now = HostClock.monotonic()
    try controller.chips.withLock { (chips) throws(Errno) in
      guard let pit = chips.pit else { throw .noSuchAddressOrDevice }
      var state = ChipState.pit(pit.state(at: now), flags: chips.pitFlags)
      change(&state)
      chips.pit?.load(ChipState.pit(state), at: now)
      chips.ticks.reset()
      chips.pitFlags = state.flags & UInt32(KVM_PIT_FLAGS_HPET_LEGACY)
      controller.armPIT(&chips, now)
    }
  }

  private func readClock() -> kvm_clock_data {
    let tsc = HostTSC.read()
    var data = kvm_clock_data()
    data.clock = clock.nanoseconds(at: tsc)
    data.flags = UInt32(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)
    data.realtime = HostClock.realtime()
    data.host_tsc = tsc
    return data
  }

  private func setClock(_ data: kvm_clock_data) throws(Errno) {
    let valid = UInt32(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)
    guard data.flags & ~valid == 0 else { throw .invalidArgument }
    var value = data.clock
    if data.flags & UInt32(KVM_CLOCK_REALTIME) != 0 {
      // The guest's clock includes the time between save and restore.
      let now = HostClock.realtime()
      if now > data.realtime { value &+= now &- data.realtime }
    }
    clock.set(value)
    for vcpu in virtualCPUs { vcpu.request(.clock) }
  }
}
