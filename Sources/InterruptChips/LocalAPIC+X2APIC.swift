// SPDX-License-Identifier: Apache-2.0
//
// Access through MSRs 0x800 to 0x83F. nil and false are the caller's #GP(0).
// SDM volume 3: "x2APIC Register Address Space", "Reserved Bit Checking".

import X86

extension LocalAPIC {
  /// RDMSR of an x2APIC register. nil: not in x2APIC mode, no such register, or write-only.
  package mutating func readMSR(_ number: UInt32, at time: Time) -> UInt64? {
    guard let offset = offset(ofMSR: number), let rule = rule(offset),
      rule.access != .writeOnly
    else { return nil }
    if offset == APICRegister.currentCount { return UInt64(currentCount(at: time)) }
    let low = UInt64(self[offset])
    return offset == APICRegister.icrLow ? UInt64(self[APICRegister.icrHigh]) << 32 | low : low
  }

  /// WRMSR of an x2APIC register. nil: not in x2APIC mode, no such register, read-only, or a
  /// reserved bit set.
  package mutating func writeMSR(_ number: UInt32, _ value: UInt64, at time: Time) -> Effect? {
    guard let offset = offset(ofMSR: number), let rule = rule(offset), rule.access != .readOnly
    else { return nil }
    let low = UInt32(truncatingIfNeeded: value)
    if offset == APICRegister.icrLow {
      guard low & ~(rule.writable | rule.ignored) == 0 else { return nil }
      self[APICRegister.icrHigh] = UInt32(truncatingIfNeeded: value >> 32)
      return store(offset, low, rule, at: time)
    }
    guard value >> 32 == 0, low & ~(rule.writable | rule.ignored) == 0 else { return nil }
    return store(offset, low, rule, at: time)
  }

  private func offset(ofMSR number: UInt32) -> Int? {
    guard mode == .x2APIC, number >= APICRegister.x2APICBase, number <= APICRegister.x2APICLast
    else { return nil }
    return Int(number &- APICRegister.x2APICBase) &<< 4
  }
}
