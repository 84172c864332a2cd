// SPDX-License-Identifier: Apache-2.0
//
// Scaling of a guest's time-stamp counter. A rate is checked when it is made, so that scaling never
// traps.

import SystemPackage
import X86CPU

/// The rate of a guest's time-stamp counter: the host's counter times a fixed-point factor, as in
/// the VMCS (SDM volume 3, "Changes to Instruction Behavior in VMX Non-Root Operation").
struct TSCRate: Sendable, Equatable {
  var kilohertz: UInt64
  /// Guest ticks for each host tick, in units of 2^-48.
  var multiplier: UInt64

  static let unscaled: UInt64 = 1 << 48
  /// The host's rate.
  static let host = TSCRate(kilohertz: HostTSC.kilohertz, multiplier: unscaled)

  private init(kilohertz: UInt64, multiplier: UInt64) {
    self.kilohertz = kilohertz
    self.multiplier = multiplier
  }

  /// The argument of KVM_SET_TSC_KHZ: 0, and rates within 250 parts per million of the host's, mean
  /// the host's.
  ///
  /// - Throws: EINVAL if it is faster than any counter.
  init(wanted argument: UInt) throws(Errno) {
    let wanted = UInt64(argument)
    let host = HostTSC.kilohertz
    let tolerance = host / 4000
    guard wanted < UInt64(Int32.max), wanted < host << 15 else { throw .invalidArgument }
    if wanted == 0 || wanted &+ tolerance >= host && wanted <= host &+ tolerance {
      self = .host
      if wanted != 0 { kilohertz = wanted }
    } else {
      let product = wanted.multipliedFullWidth(by: Self.unscaled)
      self.init(kilohertz: wanted, multiplier: host.dividingFullWidth(product).quotient)
    }
  }

  /// Rounds to a processor's multiplier, a multiple of `step`, which is a power of two.
  func rounded(to step: UInt64) -> TSCRate {
    TSCRate(kilohertz: kilohertz, multiplier: multiplier & ~(step &- 1))
  }

  /// Converts a host count to this rate.
  func counts(ofHost counts: UInt64) -> UInt64 {
    if multiplier == Self.unscaled { return counts }
    let product = counts.multipliedFullWidth(by: multiplier)
    return product.high << 16 | product.low >> 48
  }

  /// How long the guest's counter takes for `counts`; saturates.
  func nanoseconds(_ counts: UInt64) -> UInt64 {
    HostTSC.nanoseconds(counts, kilohertz: kilohertz)
  }
}
