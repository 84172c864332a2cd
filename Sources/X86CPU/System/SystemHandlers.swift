// SPDX-License-Identifier: Apache-2.0
//
// What the system instructions share: the shape of their handlers and the questions that they ask
// of controls and modes. An instruction is a function that throws before it changes anything and
// returns a `Step`:
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
  /// In VMX non-root operation the pin-based controls have their default-1 bits set. They are 0
  /// only where the processor runs without a VMCS, as unit tests do.
  package var isNonRoot: Bool { s.pointee.vmx.pin != 0 }

  /// A primary processor-based control is 1.
  @inline(__always) func primary(_ bit: UInt32) -> Bool { s.pointee.vmx.primary & bit != 0 }

  /// A secondary processor-based control is 1 and secondary controls are in use.
  @inline(__always) func secondary(_ bit: UInt32) -> Bool {
    s.pointee.vmx.secondary & bit != 0 && primary(PrimaryControls.secondaryControls)
  }

  /// Whether a base address fits the widest linear address that the processor offers. Loads of
  /// MSRs, descriptor-table and segment bases check this width whatever CR4.LA57 says (SDM volume
  /// 1, "Canonical Addressing").
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

  /// The linear address of a memory operand that is named but not accessed (INVLPG, CLFLUSH's
  /// page): no segment checks.
  func uncheckedLinearAddress(_ i: MicroOpPointer) -> UInt64 {
    let offset = effectiveAddress(i)
    if i.pointee.addressFlags & AddressFlags.segmentCheck == 0 {
      return offset &+ raw.load(fromByteOffset: Int(i.pointee.segmentBaseOffset), as: UInt64.self)
    }
    let register = SegmentRegister(rawValue: i.pointee.segment) ?? .ds
    return (offset &+ segment(register).pointee.base) & 0xFFFF_FFFF
  }

  /// Records an exit with the instruction information that lowering has put into the micro-op, and
  /// the displacement of the memory operand as qualification (see InstructionInformation).
  package func exitWithInformation(_ reason: ExitReason, _ i: MicroOpPointer) -> GuestException {
    let relative = i.pointee.base == (raw + CPU.blockRIPOffset).assumingMemoryBound(to: UInt64.self)
    let displacement = UInt64(bitPattern: Int64(i.pointee.displacement))
    let exception = exit(
      reason, i, qualification: relative ? displacement &+ s.pointee.blockRIP : displacement)
    s.pointee.exit.instructionInfo = InstructionInformation.value(i)
    return exception
  }
}
