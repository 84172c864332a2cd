// SPDX-License-Identifier: Apache-2.0
//
// A stack for pushes or pops before anything is committed: the current one, or the target of a
// privilege change. Only `commit` changes RSP.
//
//     var stack = StackFrame(c)
//     try stack.push(selector, size: 4)
//     try stack.push(offset, size: 4)
//     stack.commit()

import X86

package struct StackFrame {
  let c: CPU
  package var segment: SegmentState
  /// The stack pointer; `width` determines the valid part.
  package private(set) var pointer: UInt64
  /// The initial pointer, whose upper part a 16-bit stack keeps.
  private let initial: UInt64
  /// As `CPUState.stackMode`: 16, 32, 64 bits.
  let width: UInt8
  /// The privilege of the accesses.
  let privilege: UInt8
  /// The exception for a push or pop outside the segment.
  let fault: GuestException

  /// The current stack.
  package init(_ c: CPU, external: Bool = false) {
    self.init(
      c, segment: c.segment(.ss).pointee, pointer: c.gpr[4], width: c.s.pointee.stackMode,
      privilege: c.cpl, fault: GuestException(.stackFault, code: external ? 1 : 0))
  }

  /// Another stack, for a segment that will be loaded into SS.
  package init(
    _ c: CPU, segment: SegmentState, pointer: UInt64, width: UInt8, privilege: UInt8,
    fault: GuestException
  ) {
    self.c = c
    self.segment = segment
    self.pointer = pointer
    initial = pointer
    self.width = width
    self.privilege = privilege
    self.fault = fault
  }

  private var mask: UInt64 { width == 2 ? .max : width == 1 ? 0xFFFF_FFFF : 0xFFFF }

  /// Advances the pointer by `bytes` (RET's immediate).
  package mutating func release(_ bytes: UInt64) { pointer = pointer &+ bytes }

  package mutating func push(_ value: UInt64, size: UInt8) throws(GuestException) {
    let next = (pointer &- UInt64(size)) & mask
    let address = try linear(next, size: size, .write)
    if (privilege == 3) == (c.cpl == 3) {
      try write(value, address, size)
    } else {
      try c.withPrivilege(privilege) { () throws(GuestException) in
        try write(value, address, size)
      }
    }
    pointer = next
  }

  /// Pops with the current privilege.
  package mutating func pop(size: UInt8) throws(GuestException) -> UInt64 {
    let address = try linear(pointer & mask, size: size, .read)
    let value: UInt64
    switch size {
    case 2: value = UInt64(try c.load(address, as: UInt16.self))
    case 4: value = UInt64(try c.load(address, as: UInt32.self))
    default: value = try c.load(address, as: UInt64.self)
    }
    pointer = (pointer & mask) &+ UInt64(size)
    return value
  }

  private func write(_ value: UInt64, _ address: UInt64, _ size: UInt8) throws(GuestException) {
    switch size {
    case 2: try c.store(UInt16(truncatingIfNeeded: value), at: address)
    case 4: try c.store(UInt32(truncatingIfNeeded: value), at: address)
    default: try c.store(value, at: address)
    }
  }

  private func linear(
    _ offset: UInt64, size: UInt8, _ access: AccessKind
  ) throws(GuestException) -> UInt64 {
    if width == 2 {
      guard c.isCanonical(offset), c.isCanonical(offset &+ UInt64(size &- 1)) else { throw fault }
      return offset
    }
    let rights = segment.rights
    if rights.isUnusable || !rights.isPresent { throw fault }
    if access == .write && !c.hasRealModeSegments && !rights.isReadableCodeOrWritableData {
      throw fault
    }
    let last = offset &+ UInt64(size &- 1)
    if !rights.isCode && rights.isConformingOrExpandDown {
      if offset <= segment.limit || last > (rights.isBig ? 0xFFFF_FFFF : 0xFFFF) { throw fault }
    } else if last > segment.limit {
      throw fault
    }
    return (segment.base &+ offset) & 0xFFFF_FFFF
  }

  /// RSP after the pushes and pops: the part outside the stack's width stays.
  package func committed() -> UInt64 {
    switch width {
    case 2: pointer
    case 1: pointer & 0xFFFF_FFFF
    default: initial & ~0xFFFF | pointer & 0xFFFF
    }
  }

  /// Updates RSP.
  package func commit() { c.gpr[4] = committed() }
}
