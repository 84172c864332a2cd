// SPDX-License-Identifier: Apache-2.0
//
// Random states for blocks: what has a role gets a value for it, all else is as for single
// instructions.

import X86
import X86CPU

extension StateGenerator {
  mutating func fill(_ r: inout Registers, for roles: BlockRoles, at address: UInt64) {
    for n in 0..<16 { r.gpr[n] = random.oneIn(5) ? pointer() : value() }
    for base in roles.bases { r.gpr[Int(base)] = pointer() }
    if !random.oneIn(12) { r.gpr[4] = Layout.sandbox &+ 0x400 &+ UInt64(random.below(0x300)) &* 8 }
    r.gpr[Int(roles.index)] = UInt64(bitPattern: Int64(random.below(64) - 16))
    let word = random.next()
    r.flags = word & RFLAGS.arithmetic.rawValue | 0x202
    if word >> 32 & 7 == 0 { r.flags |= RFLAGS.df.rawValue }
    r.rip = address
    r.gsBase = segmentOffset()
    r.fsBase = segmentOffset()
  }

  private mutating func segmentOffset() -> UInt64 {
    switch random.below(8) {
    case 0: 0 &- UInt64(random.below(64)) &* 8
    case 1: UInt64(random.below(512))
    default: UInt64(random.below(16)) &* 64
    }
  }

  /// Into the sandbox: mostly well inside and aligned, sometimes where something ends.
  private mutating func pointer() -> UInt64 {
    let offset: Int
    switch random.below(40) {
    case 0: offset = 0x1000 - random.below(96)
    case 1: offset = Layout.writableSize - random.below(160)
    case 2: offset = Layout.writableSize + random.below(0x1000)
    case 3: offset = Layout.sandboxSize - random.below(160)
    case 4: offset = random.below(64)
    case 5, 6: offset = random.below(Layout.writableSize)
    default: offset = 0x200 + random.below(0x70) * 64
    }
    return Layout.sandbox &+ UInt64(offset)
  }
}
