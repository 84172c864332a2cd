// SPDX-License-Identifier: Apache-2.0
//
// Conversions between the host's time-stamp counter and nanoseconds. They saturate.

import X86CPU

/// The host's time-stamp counter in nanoseconds and back; both saturate.
extension HostTSC {
  /// Nanoseconds that `counts` take.
  static func nanoseconds(_ counts: UInt64) -> UInt64 {
    nanoseconds(counts, kilohertz: kilohertz)
  }

  /// The same for a counter of `kilohertz`.
  static func nanoseconds(_ counts: UInt64, kilohertz: UInt64) -> UInt64 {
    scaled(counts, 1_000_000, max(kilohertz, 1))
  }

  /// Counts in `nanoseconds`.
  static func counts(_ nanoseconds: UInt64) -> UInt64 { scaled(nanoseconds, kilohertz, 1_000_000) }

  private static func scaled(_ value: UInt64, _ multiplier: UInt64, _ divisor: UInt64) -> UInt64 {
    let product = value.multipliedFullWidth(by: multiplier)
    guard product.high < divisor else { return .max }
    return divisor.dividingFullWidth(product).quotient
  }
}
