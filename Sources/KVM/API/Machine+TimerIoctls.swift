// SPDX-License-Identifier: Apache-2.0

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
      CKVM_GET_PIT2,
      { (machine, argument) throws(Errno) in
        let now = HostClock.monotonic()
        let state = try machine.requireAllChips().chips.withLock {
          (chips) throws(Errno) -> kvm_pit_state2 in
          guard let pit = chips.pit else { throw .noSuchAddressOrDevice }
          return ChipState.pit(pit.state(at: now), flags: chips.pitFlags)
        }
        try argument.write(state)
        return 0
      }
    ),
    (
      CKVM_SET_PIT2,
      { (machine, argument) throws(Errno) in
        let state: kvm_pit_state2 = try argument.read()
        let controller = try machine.requireAllChips()
        let now = HostClock.monotonic()
        try controller.chips.withLock { (chips) throws(Errno) in
          guard chips.pit != nil else { throw .noSuchAddressOrDevice }
          chips.pit?.load(ChipState.pit(state), at: now)
          chips.pitFlags = state.flags & UInt32(KVM_PIT_FLAGS_HPET_LEGACY)
          controller.armPIT(&chips, now)
        }
        return 0
      }
    ),
    (
      CKVM_REINJECT_CONTROL,
      { (machine, argument) throws(Errno) in
        // Edges missed are one interrupt, whatever is asked for.
        let control: kvm_reinject_control = try argument.read()
        _ = try machine.requireAllChips()
        guard control.pit_reinject <= 1 else { throw .invalidArgument }
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
    // Linux: ENOENT without the chips.
    let controller = try requireAllChips(.noSuchFileOrDirectory)
    try controller.chips.withLock { (chips) throws(Errno) in
      guard chips.pit == nil else { throw .fileExists }
      chips.pit = PIT8254()
      chips.hasSpeaker = flags & UInt32(KVM_PIT_SPEAKER_DUMMY) != 0
    }
    return 0
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
      // The time between saving and restoring passed for the guest too.
      let now = HostClock.realtime()
      if now > data.realtime { value &+= now &- data.realtime }
    }
    clock.set(value)
    for vcpu in virtualCPUs { vcpu.request(.clock) }
  }
}
