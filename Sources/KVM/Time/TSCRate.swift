// SPDX-License-Identifier: Apache-2.0
//
// Scaling of a guest's time-stamp counter. A rate is checked when it is made, so that scaling never
// traps.

import SystemPackage
import X86CPU

/// How fast a guest's time-stamp counter runs: the host's counter times a fixed-point factor, as
/// the VMCS has it (SDM volume 3, "Changes to Instruction Behavior in VMX Non-Root Operation").
struct TSCRate: Sendable, Equatable {
  var kilohertz: UInt64
  /// Guest counts for each of the host's, in units of 2^-48.
  var multiplier: UInt64

  static let unscaled: UInt64 = 1 << 48
  /// The host's own.
  static let host = TSCRate(kilohertz: HostTSC.kilohertz, multiplier: unscaled)

  private init(kilohertz: UInt64, multiplier: UInt64) {
    self.kilohertz = kilohertz
    self.multiplier = multiplier
  }

  /// What KVM_SET_TSC_KHZ asks for: 0 for the host's, which also has what is closer to it than 250
  /// parts per million.
  ///
  /// - Throws: EINVAL where it is faster than any counter.
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

  /// The rate that a processor can have whose multiplier is a multiple of `step`, a power of two.
  func rounded(to step: UInt64) -> TSCRate {
    TSCRate(kilohertz: kilohertz, multiplier: multiplier & ~(step &- 1))
  }

  /// What a count of the host's is at this rate.
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
