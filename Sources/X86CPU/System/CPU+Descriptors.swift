// SPDX-License-Identifier: Apache-2.0
//
// Descriptors: how the processor finds one in the GDT or the LDT, and marks it accessed or busy.
//
// Callers pass the exception to throw for a bad selector, because the same defect is #GP, #TS or
// #NP depending on the instruction (SDM volume 3, "Exception and Interrupt Reference").
//
//     let found = try c.readDescriptor(selector, else: .generalProtection)
//     guard found.rights.isPresent else { throw .selector(.segmentNotPresent, selector) }

import Synchronization
import X86

/// A descriptor and its location.
package struct FoundDescriptor {
  package var descriptor: SegmentDescriptor
  /// The linear address of its first byte.
  package var address: UInt64
  package var selector: UInt16

  package var rights: SegmentAccessRights { descriptor.accessRights }

  /// The segment register's value after a load.
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
  /// The descriptor of a non-null selector; a selector beyond its table throws `vector` with the
  /// selector.
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

  /// The linear address of a descriptor of `size` bytes, or nil if it is outside its table.
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

  /// Sets the accessed bit of a code or data descriptor, as a locked update, if it is clear, and in
  /// the copy in `found`. Leaves a descriptor alone that has been replaced since.
  package func markAccessed(_ found: inout FoundDescriptor) throws(GuestException) {
    if found.descriptor.rawValue & SegmentDescriptor.accessedBit != 0 { return }
    _ = try changeType(of: found, set: 1)
    found.descriptor.rawValue |= SegmentDescriptor.accessedBit
  }

  /// Makes a TSS descriptor busy, as a locked update. False if it is no longer the one that was
  /// found: another CPU has the task, or the table has changed.
  package func setBusy(_ found: FoundDescriptor) throws(GuestException) -> Bool {
    try changeType(of: found, set: 2)
  }

  /// Makes the TSS descriptor at an address available, as a locked update.
  package func clearBusy(_ address: UInt64) throws(GuestException) {
    let linear = systemAddress(address &+ 5)
    let saved = currentBank
    useBank(TLB.supervisor)
    defer { useBank(saved) }
    if let host = try pointerForModify(linear, size: 1) {
      let atomic = host.assumingMemoryBound(to: Atomic<UInt8>.self)
      atomic.pointee.bitwiseAnd(~2, ordering: .sequentiallyConsistent)
    } else {
      try store(try load(linear, as: UInt8.self) & ~2, at: linear)
    }
  }

  /// A locked update of the descriptor's type byte, if it is unchanged since it was found.
  private func changeType(
    of found: FoundDescriptor, set: UInt8
  ) throws(GuestException) -> Bool {
    let byte = UInt8(truncatingIfNeeded: found.descriptor.rawValue >> 40)
    let linear = systemAddress(found.address &+ 5)
    let saved = currentBank
    useBank(TLB.supervisor)
    defer { useBank(saved) }
    if let host = try pointerForModify(linear, size: 1) {
      return UInt8.atomicCompareExchange(host, expected: byte, desired: byte | set).exchanged
    }
    if try load(linear, as: UInt8.self) != byte { return false }
    try store(byte | set, at: linear)
    return true
  }

  /// Real mode and virtual-8086 mode: selectors are paragraphs.
  @inline(__always) package var hasRealModeSegments: Bool { !isProtected || isVirtual8086 }

  @inline(__always) package var iopl: UInt8 {
    UInt8(truncatingIfNeeded: s.pointee.rflags >> RFLAGS.ioplShift) & 3
  }
}
