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
      setTSCOffset(machine.clock.offset(forWriting: value, rate: tscRate))
    } else {
      let offset = value &- tscRate.counts(ofHost: HostTSC.read())
      msrs.tscAdjust &+= offset &- tscOffset
      setTSCOffset(offset)
    }
    return true
  }

  func writeTSCAdjust(_ value: UInt64, byHost: Bool) -> Bool {
    // Without its CPUID bit the guest's write goes nowhere, as in Linux.
    if !byHost, !cpuid.features.contains(.tscAdjust) { return true }
    if !byHost { setTSCOffset(tscOffset &+ value &- msrs.tscAdjust) }
    msrs.tscAdjust = value
    return true
  }

  /// The guest's counter now.
  var guestTSC: UInt64 { tscRate.counts(ofHost: HostTSC.read()) &+ tscOffset }

  /// KVM_SET_TSC_KHZ. A counter that nobody has written goes on as if it had always had this rate,
  /// so that all vCPUs agree; one that was written goes on from where it is.
  func setTSCRate(_ wanted: TSCRate) {
    let rate = wanted.rounded(to: backend.tscMultiplierStep)
    if rate == tscRate { return }
    let isWritten = tscOffset != machine.clock.offset(rate: tscRate)
    let value = guestTSC
    tscRate = rate
    backend.setTSCMultiplier(rate.multiplier)
    setTSCOffset(
      isWritten
        ? value &- rate.counts(ofHost: HostTSC.read()) : machine.clock.offset(rate: rate))
  }

  func setTSCOffset(_ offset: UInt64) {
    tscOffset = offset
    backend.setTSCOffset(offset)
    armTimer()
    writeClock()
  }

  /// Writes the vCPU's kvmclock structure, if the guest has named one.
  func writeClock() {
    let address = msrs.systemTime & ~1
    guard msrs.systemTime & 1 != 0, address & 3 == 0 else { return }
    let done = writeMemory(address, count: ParavirtualClock.size, in: machine.memory) {
      ParavirtualClock.write(
        &$0, machine.clock, rate: tscRate, tscOffset: tscOffset, flags: clockFlags)
    }
    if done { clockFlags &= ~ParavirtualClock.guestStopped }
  }

  /// The wall clock's MSR has no enable bit: 0 is no address. So is what a client writes at each
  /// reset.
  func writeWallClock(_ address: UInt64) {
    guard address != 0, address & 3 == 0 else { return }
    _ = writeMemory(address, count: ParavirtualClock.wallClockSize, in: machine.memory) {
      ParavirtualClock.writeWallClock(&$0, machine.clock)
    }
  }
}
