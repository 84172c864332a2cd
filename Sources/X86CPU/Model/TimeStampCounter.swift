// SPDX-License-Identifier: Apache-2.0
//
// The time-stamp counter: the host's, with IA32_TSC_ADJUST, and for a guest scaled and offset by
// its hypervisor (SDM volume 3, "Changes to Instruction Behavior in VMX Non-Root Operation"; APM
// volume 2, "TSC Ratio MSR").

import CHost
import Glibc
import X86

package enum HostTSC {
  /// The host's counter now.
  @inline(__always) package static func read() -> UInt64 { chost_rdtsc() }

  /// The same, ordered after all earlier loads.
  @inline(__always) package static func readInOrder() -> UInt64 { chost_ordered_rdtsc() }

  /// The counter's frequency in kHz: from the host's CPUID if available, else measured once against
  /// CLOCK_MONOTONIC_RAW for 10 milliseconds.
  package static let kilohertz: UInt64 = {
    let crystal = HostCPUID.leaf(0x15)
    if crystal.eax != 0 && crystal.ebx != 0 && crystal.ecx != 0 {
      return UInt64(crystal.ecx) * UInt64(crystal.ebx) / UInt64(crystal.eax) / 1000
    }
    let timing = HostCPUID.hypervisorLeaf(0x4000_0010)
    return timing.eax != 0 ? UInt64(timing.eax) : measure()
  }()

  /// One reading of both clocks; the tightest of several tries.
  private static func sample() -> (tsc: UInt64, nanoseconds: UInt64) {
    var best = (tsc: UInt64(0), nanoseconds: UInt64(0), width: UInt64.max)
    for _ in 0..<8 {
      var time = timespec()
      let before = read()
      clock_gettime(CLOCK_MONOTONIC_RAW, &time)
      let after = read()
      if after &- before < best.width {
        let nanoseconds = UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
        best = (before &+ (after &- before) / 2, nanoseconds, after &- before)
      }
    }
    return (best.tsc, best.nanoseconds)
  }

  private static func measure() -> UInt64 {
    let start = sample()
    var wait = timespec(tv_sec: 0, tv_nsec: 10_000_000)
    nanosleep(&wait, nil)
    let end = sample()
    let elapsed = max(end.nanoseconds &- start.nanoseconds, 1)
    return (end.tsc &- start.tsc) &* 1_000_000 / elapsed
  }
}

extension CPU {
  /// The counter of this physical CPU. Read in order, as RDTSCP requires, and for RDTSC too: guests
  /// that compare their CPUs' counters through memory must not see one go backwards.
  package var physicalTSC: UInt64 { HostTSC.readInOrder() &+ s.pointee.system.tscAdjust }

  /// The counter as currently running code reads it.
  package var guestTSC: UInt64 {
    var value = physicalTSC
    if !intercepts(.offsetTSC) { return value }
    if intercepts(.scaledTSC) {
      let product = value.multipliedFullWidth(by: s.pointee.intercepts.tscMultiplier)
      value = product.high << 16 | product.low >> 48
    }
    return value &+ s.pointee.intercepts.tscOffset
  }
}
