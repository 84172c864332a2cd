// SPDX-License-Identifier: Apache-2.0
//
// kvmclock's two structures in guest memory (Linux, "KVM-specific MSRs"). They hold a time and a
// rate; the guest adds the ticks of its counter since then.
//
//     vcpu time info:  u32 version  u32 -  u64 tsc  u64 nanoseconds  u32 multiplier  s8 shift  u8
//     flags
//     wall clock:      u32 version  u32 seconds  u32 nanoseconds

import Host
import X86CPU

enum ParavirtualClock {
  /// Flag: every vCPU's clock gives the same time.
  static let tscStable: UInt8 = 1 << 0
  /// Flag: the guest was stopped by its host (KVM_KVMCLOCK_CTRL).
  static let guestStopped: UInt8 = 1 << 1
  static let size = 32
  static let wallClockSize = 12

  /// `nanoseconds = ((counts << shift) * multiplier) >> 32` for a counter of `kilohertz`.
  static func scale(kilohertz: UInt64) -> (multiplier: UInt32, shift: Int8) {
    var frequency = max(kilohertz, 1) &* 1000
    var shift: Int8 = 0
    // The multiplier is 10^9 * 2^32 / frequency, normalized by the shift.
    while frequency > 2_000_000_000 {
      frequency >>= 1
      shift -= 1
    }
    while frequency <= 1_000_000_000 {
      frequency <<= 1
      shift += 1
    }
    let multiplier = (1_000_000_000 << 32) / frequency
    return (UInt32(truncatingIfNeeded: multiplier), shift)
  }

  /// Writes the vCPU's time structure with the version protocol: odd while it changes.
  static func write(
    _ place: inout GuestBytes, _ clock: MachineClock, rate: TSCRate, tscOffset: UInt64,
    flags: UInt8
  ) {
    let reference = clock.reference
    let scale = scale(kilohertz: rate.kilohertz)
    let version = place.load(as: UInt32.self) & ~1
    place.storeBytes(of: version &+ 1, as: UInt32.self)
    place.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
    let counts = rate.counts(ofHost: reference.tsc) &+ tscOffset
    place.storeBytes(of: counts, toByteOffset: 8, as: UInt64.self)
    place.storeBytes(of: reference.nanoseconds, toByteOffset: 16, as: UInt64.self)
    place.storeBytes(of: scale.multiplier, toByteOffset: 24, as: UInt32.self)
    place.storeBytes(of: scale.shift, toByteOffset: 28, as: Int8.self)
    place.storeBytes(of: flags, toByteOffset: 29, as: UInt8.self)
    place.storeBytes(of: 0, toByteOffset: 30, as: UInt16.self)
    place.storeBytes(of: version &+ 2, as: UInt32.self)
  }

  /// Writes the wall clock: the time of day at which kvmclock was 0.
  static func writeWallClock(_ place: inout GuestBytes, _ clock: MachineClock) {
    let boot = HostClock.realtime() &- clock.nanoseconds(at: HostTSC.read())
    let version = place.load(as: UInt32.self) & ~1
    place.storeBytes(of: version &+ 1, as: UInt32.self)
    place.storeBytes(
      of: UInt32(truncatingIfNeeded: boot / 1_000_000_000), toByteOffset: 4, as: UInt32.self)
    place.storeBytes(
      of: UInt32(truncatingIfNeeded: boot % 1_000_000_000), toByteOffset: 8, as: UInt32.self)
    place.storeBytes(of: version &+ 2, as: UInt32.self)
  }
}
