// SPDX-License-Identifier: Apache-2.0

/// A generator (SplitMix64) that repeats itself from its seed, so that a failure does too.
package struct SplitMix: RandomNumberGenerator, Sendable {
  private var state: UInt64

  package init(seed: UInt64) { state = seed }

  package mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}

extension SplitMix {
  /// 0 to `count` - 1; `count` is not 0.
  package mutating func below(_ count: Int) -> Int {
    Int(next().multipliedFullWidth(by: UInt64(count)).high)
  }

  package mutating func oneIn(_ count: Int) -> Bool { below(count) == 0 }

  package mutating func byte() -> UInt8 { UInt8(truncatingIfNeeded: next() >> 32) }
}
