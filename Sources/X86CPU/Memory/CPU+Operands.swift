// SPDX-License-Identifier: Apache-2.0
//
// A micro-op's operands: effective addresses and register access.

import X86

/// The types of integer operands: 1, 2, 4 and 8 bytes.
package typealias OperandInteger = FixedWidthInteger & UnsignedInteger & Sendable

extension CPU {
  /// The linear address of the memory operand, for an access of `size` bytes.
  @inline(__always) package func linearAddress(
    _ i: MicroOpPointer, size: Int, _ access: AccessKind = .read
  ) throws(GuestException) -> UInt64 {
    let offset =
      i.pointee.base.pointee
      &+ (i.pointee.index.pointee &<< UInt64(i.pointee.scale))
      &+ UInt64(bitPattern: Int64(i.pointee.displacement))
    if i.pointee.addressFlags == 0 {
      return offset &+ raw.load(fromByteOffset: Int(i.pointee.segmentBaseOffset), as: UInt64.self)
    }
    return try linearAddressSlow(i, offset, size, access)
  }

  /// The effective address (offset), masked to the address size: LEA, and operands of bit strings.
  @inline(__always) package func effectiveAddress(_ i: MicroOpPointer) -> UInt64 {
    let offset =
      i.pointee.base.pointee
      &+ (i.pointee.index.pointee &<< UInt64(i.pointee.scale))
      &+ UInt64(bitPattern: Int64(i.pointee.displacement))
    let flags = i.pointee.addressFlags
    if flags & AddressFlags.mask32 != 0 { return offset & 0xFFFF_FFFF }
    if flags & AddressFlags.mask16 != 0 { return offset & 0xFFFF }
    return offset
  }

  @inline(never) func linearAddressSlow(
    _ i: MicroOpPointer, _ offset: UInt64, _ size: Int, _ access: AccessKind
  ) throws(GuestException) -> UInt64 {
    var offset = offset
    let flags = i.pointee.addressFlags
    if flags & AddressFlags.mask32 != 0 { offset &= 0xFFFF_FFFF }
    if flags & AddressFlags.mask16 != 0 { offset &= 0xFFFF }
    let register = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    return try linear(register, offset, size: size, access)
  }

  /// Segment offset to linear address, with the current mode's checks.
  @inline(__always) package func linear(
    _ register: SegmentRegister, _ offset: UInt64, size: Int, _ access: AccessKind
  ) throws(GuestException) -> UInt64 {
    if is64Bit {
      if register == .fs || register == .gs { return offset &+ segment(register).pointee.base }
      return offset
    }
    return try checkedLinear(register, offset & 0xFFFF_FFFF, size: size, access)
  }

  /// Segment checks outside 64-bit mode (SDM volume 3, "Limit Checking" and "Type Checking").
  @inline(never) func checkedLinear(
    _ register: SegmentRegister, _ offset: UInt64, size: Int, _ access: AccessKind
  ) throws(GuestException) -> UInt64 {
    let segment = segment(register)
    let rights = segment.pointee.rights
    let fault: GuestException = register == .ss ? .stackFault : .generalProtection
    if rights.isUnusable || !rights.isPresent { throw fault }
    if isProtected && !isVirtual8086 {
      if rights.isCode {
        if access == .write { throw .generalProtection }
        if access == .read && !rights.isReadableCodeOrWritableData { throw .generalProtection }
      } else if access == .write && !rights.isReadableCodeOrWritableData {
        throw .generalProtection
      }
    }
    let last = offset &+ UInt64(max(size, 1) - 1)
    let limit = UInt64(segment.pointee.limit)
    if !rights.isCode && rights.isConformingOrExpandDown {
      let top: UInt64 = rights.isBig ? 0xFFFF_FFFF : 0xFFFF
      if offset <= limit || last > top { throw fault }
    } else if last > limit {
      throw fault
    }
    return (segment.pointee.base &+ offset) & 0xFFFF_FFFF
  }

  // MARK: Registers

  /// Reads a register or immediate operand.
  @inline(__always) package func read<T: OperandInteger>(
    _ operand: UnsafeMutableRawPointer, as: T.Type = T.self
  ) -> T {
    operand.load(as: T.self)
  }

  /// Writes a register operand: 32-bit results clear the upper half.
  @inline(__always) package func write<T: OperandInteger>(
    _ value: T, to operand: UnsafeMutableRawPointer
  ) {
    if MemoryLayout<T>.size == 4 {
      operand.storeBytes(of: UInt64(truncatingIfNeeded: value), as: UInt64.self)
    } else {
      operand.storeBytes(of: value, as: T.self)
    }
  }

  /// The third register operand (see MicroOp).
  @inline(__always) package func third(_ i: MicroOpPointer) -> UnsafeMutableRawPointer {
    UnsafeMutableRawPointer(bitPattern: UInt(i.pointee.immediate)).unsafelyUnwrapped
  }
}

extension Handlers {
  @inline(__always) static func op(_ raw: UnsafeMutableRawPointer) -> MicroOpPointer {
    raw.assumingMemoryBound(to: MicroOp.self)
  }
}

/// Namespace of shared helpers of handlers.
package enum Handlers {}
