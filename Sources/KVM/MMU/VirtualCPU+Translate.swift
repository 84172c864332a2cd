// SPDX-License-Identifier: Apache-2.0
//
// KVM_TRANSLATE: a walk of the guest's page tables without side effects.

import X86
import X86CPU

extension VirtualCPU {
  /// The guest-physical address of a linear one; nil if it is not mapped.
  func translate(_ linear: UInt64) -> UInt64? {
    if backend[.cr0] & CR0.pg.rawValue == 0 { return linear }
    let cr4 = CR4(rawValue: backend[.cr4])
    let root = backend[.cr3]
    if !cr4.contains(.pae) { return walk32(linear, root & 0xFFFF_F000, cr4.contains(.pse)) }
    if backend[.efer] & EFER.lma.rawValue == 0 {
      return walk(linear & 0xFFFF_FFFF, root & 0xFFFF_FFE0, levels: 3)
    }
    return walk(
      linear, root & PageTableEntry.addressMask, levels: cr4.contains(.la57) ? 5 : 4)
  }

  private func walk(_ linear: UInt64, _ root: UInt64, levels: Int) -> UInt64? {
    var table = root
    for level in stride(from: levels - 1, through: 0, by: -1) {
      let shift = UInt64(12 + 9 * level)
      let index = (linear >> shift) & 511
      guard let entry = memory.load(table &+ index * 8, as: UInt64.self),
        entry & PageTableEntry.present != 0
      else { return nil }
      let isLarge = level > 0 && level < 3 && entry & PageTableEntry.pageSize != 0
      if level == 0 || isLarge {
        let mask: UInt64 = 1 &<< shift &- 1
        return entry & PageTableEntry.addressMask & ~mask | linear & mask
      }
      table = entry & PageTableEntry.addressMask
    }
    return nil
  }

  private func walk32(_ linear: UInt64, _ root: UInt64, _ largePages: Bool) -> UInt64? {
    let directory = root &+ (linear >> 22 & 1023) * 4
    guard let entry = memory.load(directory, as: UInt32.self), entry & 1 != 0 else {
      return nil
    }
    if largePages, entry & 0x80 != 0 {
      let high = UInt64(entry >> 13 & 0xFF) << 32
      return high | UInt64(entry & 0xFFC0_0000) | linear & 0x3F_FFFF
    }
    let place = UInt64(entry & 0xFFFF_F000) &+ (linear >> 12 & 1023) * 4
    guard let leaf = memory.load(place, as: UInt32.self), leaf & 1 != 0 else { return nil }
    return UInt64(leaf & 0xFFFF_F000) | linear & 0xFFF
  }
}
