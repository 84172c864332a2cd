// SPDX-License-Identifier: Apache-2.0
//
// A micro-op is an instruction prepared for execution: its handler, and its operands as pointers
// into the CPU's state. It fills one cache line; a block is an array of micro-ops.
//
//     add rax, [rbx + rcx*8 + 16]
//     handler add_r64_m, dst -> gpr[0], base -> gpr[3], index -> gpr[1], scale 3, displacement 16
//
// Operand conventions of every lowering:
// - `dst`: register of operand 0; `src`: register of operand 1, or `immediate` itself if operand 1
//   is an immediate (extended to 64 bits), so that register and immediate forms share a handler. If
//   operand 0 is memory, `dst` is unused; if operand 1 is memory, `src` is unused.
// - `immediate`: the immediate, in any operand; for an instruction with a third register operand,
//   that register's pointer (`third`).
// - the memory operand, if any, is base + index << scale + displacement in `segment`.

import X86
import X86Decoder

/// The function that executes an instruction and says how to continue. The pointers are a `CPU` and
/// a `MicroOpPointer` (C's calling convention has only raw pointers); it is a C function so that
/// translated code can call it.
package typealias Handler =
  @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Int32

/// What a handler returns.
@usableFromInline package enum Step {
  /// Continue with the next micro-op of the block.
  @inlinable package static var next: Int32 { 0 }
  /// `rip` is set: exit the block and look up the next one.
  @inlinable package static var branch: Int32 { 1 }
  /// `rip` is set, and modes, mappings or pending events may have changed: check them first.
  @inlinable package static var reload: Int32 { 2 }
  /// An exception or VM exit is in `pendingException`; the instruction had no effect.
  @inlinable package static var fault: Int32 { 3 }
  /// Returned by the run loop's own micro-ops: the block was dropped; its end was reached.
  @inlinable package static var stale: Int32 { 4 }
  @inlinable package static var endOfBlock: Int32 { 5 }
  /// `rip` is set, and a VM exit after the instruction is recorded.
  @inlinable package static var trapExit: Int32 { 6 }
}

package struct MicroOp {
  package var handler: Handler
  package var dst: UnsafeMutableRawPointer
  package var src: UnsafeMutableRawPointer
  package var base: UnsafeMutablePointer<UInt64>
  package var index: UnsafeMutablePointer<UInt64>
  package var immediate: UInt64
  package var displacement: Int32
  /// Offset in `CPUState` of the segment base, or of `zero`.
  package var segmentBaseOffset: UInt16
  /// Offset of the instruction from the block's first byte.
  package var offset: UInt16
  package var length: UInt8
  package var scale: UInt8
  /// Nonzero: the address needs masking or a segment check (`AddressFlags`).
  package var addressFlags: UInt8
  /// SegmentRegister of the memory operand.
  package var segment: UInt8
  package var operandSize: UInt8
  package var addressSize: UInt8
  /// Register numbers of operands 0 and 1 (for segment, control and debug registers).
  package var register0: UInt8
  package var register1: UInt8
}

/// Bits of `MicroOp.addressFlags`.
package enum AddressFlags {
  /// Check segment limit and type: everywhere but in 64-bit mode.
  package static let segmentCheck: UInt8 = 1 << 0
  package static let mask32: UInt8 = 1 << 1
  package static let mask16: UInt8 = 1 << 2
}

package typealias MicroOpPointer = UnsafeMutablePointer<MicroOp>
