// SPDX-License-Identifier: Apache-2.0
//
// Descriptors: how the processor finds one in the GDT or the LDT, and marks it accessed or busy.
//
// Every look-up says what to throw when the selector is bad, because the same defect is #GP, #TS or
// #NP depending on who loads (SDM volume 3, "Exception and Interrupt Reference").
//
//     let found = try c.readDescriptor(selector, else: .generalProtection)
//     guard found.rights.isPresent else { throw .selector(.segmentNotPresent, selector) }

import Synchronization
import X86

/// A descriptor and where it was found.
package struct FoundDescriptor {
  package var descriptor: SegmentDescriptor
  /// The linear address of its first byte.
  package var address: UInt64
  package var selector: UInt16

  package var rights: SegmentAccessRights { descriptor.accessRights }

  /// The segment register that it makes.
  package func segment(selector: UInt16) -> SegmentState {
    SegmentState(
      base: descriptor.base, limit: descriptor.limit, accessRights: rights.rawValue,
      selector: selector)
  }
}

extension GuestException {
  /// An exception whose error code names a selector. `external`: the EXT bit.
  package static func selector(
    _ vector: ExceptionVector, _ selector: UInt16, external: Bool = false
  ) -> Self {
    Self(vector, code: UInt32(selector & 0xFFFC) | (external ? 1 : 0))
  }
}

package enum Selector {
  package static let rplMask: UInt16 = 3
  /// The table indicator: the LDT.
  package static let local: UInt16 = 4

  @inline(__always) package static func isNull(_ selector: UInt16) -> Bool { selector & ~3 == 0 }
  @inline(__always) package static func rpl(_ selector: UInt16) -> UInt8 { UInt8(selector & 3) }
}

extension CPU {
  /// The descriptor that a selector names, which is not null; a selector beyond its table throws
  /// `vector` with the selector.
  package func readDescriptor(
    _ selector: UInt16, else vector: ExceptionVector, external: Bool = false
  ) throws(GuestException) -> FoundDescriptor {
    guard let address = descriptorAddress(selector, size: 8) else {
      throw .selector(vector, selector, external: external)
    }
    let raw = try loadSystem(address, as: UInt64.self)
    return FoundDescriptor(
      descriptor: SegmentDescriptor(rawValue: raw), address: address, selector: selector)
  }

  /// The linear address of a descriptor of `size` bytes, or nil where it is not inside its table.
  package func descriptorAddress(_ selector: UInt16, size: UInt32) -> UInt64? {
    let offset = UInt32(selector & ~7)
    let base: UInt64
    let limit: UInt32
    if selector & Selector.local != 0 {
      let ldt = segment(.ldtr)
      if ldt.pointee.rights.isUnusable { return nil }
      base = ldt.pointee.base
      limit = ldt.pointee.limit
    } else {
      base = s.pointee.gdtr.base
      limit = s.pointee.gdtr.limit
    }
    if offset &+ size &- 1 > limit { return nil }
    return systemAddress(base &+ UInt64(offset))
  }

  /// A linear address of a system table: 32 bits wide outside IA-32e mode.
  @inline(__always) package func systemAddress(_ linear: UInt64) -> UInt64 {
    isLongMode ? linear : linear & 0xFFFF_FFFF
  }

  /// The second half of a 16-byte descriptor of IA-32e mode: base or offset bits 63:32. Its type
  /// field must be 0.
  package func readUpperHalf(
    _ found: FoundDescriptor, else vector: ExceptionVector, external: Bool = false
  ) throws(GuestException) -> UInt64 {
    guard descriptorAddress(found.selector, size: 16) != nil else {
      throw .selector(vector, found.selector, external: external)
    }
    let high = try loadSystem(found.address &+ 8, as: UInt64.self)
    if (high >> 40) & 0x1F != 0 { throw .selector(vector, found.selector, external: external) }
    return high & 0xFFFF_FFFF
  }

  /// Sets the accessed bit of a code or data descriptor, as a locked update, if it is clear; the
  /// copy in `found` then has it too.
  package func markAccessed(_ found: inout FoundDescriptor) throws(GuestException) {
    if found.descriptor.rawValue & SegmentDescriptor.accessedBit != 0 { return }
    try changeTypeByte(found.address, set: 1)
    found.descriptor.rawValue |= SegmentDescriptor.accessedBit
  }

  /// Sets or clears the busy bit of a TSS descriptor, as a locked update.
  package func setBusy(_ address: UInt64, _ busy: Bool) throws(GuestException) {
    if busy { try changeTypeByte(address, set: 2) } else { try changeTypeByte(address, clear: 2) }
  }

  /// A locked update of the byte that holds a descriptor's type.
  private func changeTypeByte(
    _ address: UInt64, set: UInt8 = 0, clear: UInt8 = 0
  ) throws(GuestException) {
    let linear = systemAddress(address &+ 5)
    let saved = currentBank
    useBank(TLB.supervisor)
    defer { useBank(saved) }
    if let host = try pointerForModify(linear, size: 1) {
      let atomic = host.assumingMemoryBound(to: Atomic<UInt8>.self)
      if set != 0 { atomic.pointee.bitwiseOr(set, ordering: .sequentiallyConsistent) }
      if clear != 0 { atomic.pointee.bitwiseAnd(~clear, ordering: .sequentiallyConsistent) }
    } else {
      let byte = try load(linear, as: UInt8.self)
      try store(byte & ~clear | set, at: linear)
    }
  }

  /// Real mode and virtual-8086 mode: selectors are paragraphs.
  @inline(__always) package var hasRealModeSegments: Bool { !isProtected || isVirtual8086 }

  @inline(__always) package var iopl: UInt8 {
    UInt8(truncatingIfNeeded: s.pointee.rflags >> RFLAGS.ioplShift) & 3
  }
}
