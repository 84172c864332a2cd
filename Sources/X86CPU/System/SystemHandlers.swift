// SPDX-License-Identifier: Apache-2.0
//
// Common parts of the system instructions: the form of their handlers, and checks of controls and
// modes. An instruction is a function that throws before it changes anything and returns a `Step`:
//
//     static func clts(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32
//     t[.clts] = .single({ system($0, $1, clts) })

import X86
import X86Decoder

typealias SystemInstruction = (CPU, MicroOpPointer) throws(GuestException) -> Int32

/// Runs a system instruction as a handler.
@inline(__always) func system(
  _ c: RawPointer, _ i: RawPointer, _ body: SystemInstruction
) -> Int32 {
  let c = CPU(c)
  do {
    return try body(c, Handlers.op(i))
  } catch {
    return c.raise(error)
  }
}

extension CPU {
  /// Whether a base address is canonical for the processor's widest linear addresses. Loads of
  /// MSRs, descriptor-table and segment bases check this width at any CR4.LA57 (SDM volume 1,
  /// "Canonical Addressing").
  func isCanonicalBase(_ linear: UInt64) -> Bool {
    let shift = Int64(64 - CPUIDModel.linearAddressBits)
    return Int64(bitPattern: linear << UInt64(shift)) >> shift == Int64(bitPattern: linear)
  }

  /// #GP(0) unless `linear` is canonical in the current paging mode.
  func requireCanonical(_ linear: UInt64) throws(GuestException) {
    let shift: Int64 = s.pointee.cr4 & CR4.la57.rawValue != 0 ? 7 : 16
    if Int64(bitPattern: linear << UInt64(shift)) >> shift != Int64(bitPattern: linear) {
      throw .generalProtection
    }
  }

  /// The linear address of a memory operand that is not accessed (INVLPG, CLFLUSH's page): no
  /// segment checks.
  func uncheckedLinearAddress(_ i: MicroOpPointer) -> UInt64 {
    let offset = effectiveAddress(i)
    if i.pointee.addressFlags & AddressFlags.segmentCheck == 0 {
      return offset &+ raw.load(fromByteOffset: Int(i.pointee.segmentBaseOffset), as: UInt64.self)
    }
    let register = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    return (offset &+ segment(register).pointee.base) & 0xFFFF_FFFF
  }
}
