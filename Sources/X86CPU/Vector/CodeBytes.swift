// SPDX-License-Identifier: Apache-2.0
//
// The key for looking up a vector instruction's generated stub.

/// Up to 16 bytes of one instruction, as a dictionary key.
struct CodeBytes: Hashable, Sendable {
  private var low: UInt64 = 0
  private var high: UInt64 = 0
  private(set) var count: UInt8 = 0

  mutating func append(_ byte: UInt8) {
    if count < 8 {
      low |= UInt64(byte) &<< (UInt64(count) &* 8)
    } else if count < 16 {
      high |= UInt64(byte) &<< (UInt64(count &- 8) &* 8)
    }
    count &+= 1
  }

  subscript(index: UInt8) -> UInt8 {
    let word = index < 8 ? low : high
    return UInt8(truncatingIfNeeded: word &>> (UInt64(index & 7) &* 8))
  }
}
