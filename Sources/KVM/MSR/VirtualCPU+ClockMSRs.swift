// SPDX-License-Identifier: Apache-2.0
//
// The MSRs of clocks: the time-stamp counter and KVM's own.

import CHost
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  func writeTSC(_ value: UInt64, byHost: Bool) -> Bool {
    if byHost {
      unsafe setTSCOffset(machine.clock.offset(forWriting: value, rate: clock.rate))
    } else {
      let offset = clock.offset(for: value)
      msrs.tscAdjust &+= offset &- clock.offset
      setTSCOffset(offset)
    }
    return true
  }

  func writeTSCAdjust(_ value: UInt64, byHost: Bool) -> Bool {
    // Without its CPUID bit the guest's write is ignored, as in Linux.
    if !byHost, !cpuid.features.contains(.tscAdjust) { return true }
    if !byHost { setTSCOffset(clock.offset &+ value &- msrs.tscAdjust) }
    msrs.tscAdjust = value
    return true
  }

  /// The guest's current TSC.
  var guestTSC: UInt64 { clock.counter }

  /// KVM_SET_TSC_KHZ. A counter never written gets the value as if it had always run at this rate,
  /// so that all vCPUs agree; one that was written continues from its value.
  func setTSCRate(_ wanted: TSCRate) {
    let rate = wanted.rounded(to: backend.tscMultiplierStep)
    if rate == clock.rate { return }
    let isWritten = unsafe clock.offset != machine.clock.offset(rate: clock.rate)
    let value = guestTSC
    clock.rate = rate
    backend.setTSCMultiplier(rate.multiplier)
    unsafe setTSCOffset(isWritten ? clock.offset(for: value) : machine.clock.offset(rate: rate))
  }

  func setTSCOffset(_ offset: UInt64) {
    clock.offset = offset
    backend.setTSCOffset(offset)
    armTimer()
    writeClock()
  }

  /// Writes the vCPU's kvmclock structure, if the guest has set its address.
  func writeClock() {
    let address = msrs.systemTime & ~1
    guard msrs.systemTime & 1 != 0, address & 3 == 0 else { return }
    let done = unsafe writeMemory(address, count: ParavirtualClock.size, in: machine.memory) {
      unsafe ParavirtualClock.write(
        &$0, machine.clock, rate: clock.rate, tscOffset: clock.offset, flags: clock.flags)
    }
    if done { clock.flags &= ~ParavirtualClock.guestStopped }
  }

  /// The wall clock's MSR has no enable bit: 0 means no address. Clients write 0 at each reset.
  func writeWallClock(_ address: UInt64) {
    guard address != 0, address & 3 == 0 else { return }
    _ = unsafe writeMemory(address, count: ParavirtualClock.wallClockSize, in: machine.memory) {
      unsafe ParavirtualClock.writeWallClock(&$0, machine.clock)
    }
  }
}
