// SPDX-License-Identifier: Apache-2.0
//
// A micro-op is an instruction made ready to run: the function that is its meaning, and its
// operands as pointers into the CPU's state. One cache line each; a block is an array of them.
//
//     add rax, [rbx + rcx*8 + 16]
//     handler add_r64_m, dst -> gpr[0], base -> gpr[3], index -> gpr[1], scale 3, displacement 16
//
// Operand conventions that every lowering keeps:
// - `dst`: register of operand 0; `src`: register of operand 1, or `immediate` itself when operand
//   1 is an immediate (extended to 64 bits), so that register and immediate forms share a handler.
//   Where operand 0 is memory, `dst` is unused; where operand 1 is memory, `src` is unused.
// - `immediate`: the immediate, wherever it stands; of an instruction with a third register
//   operand, that register's pointer (`third`).
// - the memory operand, if there is one, is base + index << scale + displacement in `segment`.

import X86
import X86Decoder

/// An instruction's meaning: executes it and says how to go on. The pointers are a `CPU` and a
/// `MicroOpPointer` (C's calling convention knows only raw pointers); C's convention so that
/// translated code can call it.
package typealias Handler =
  @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Int32

/// What a handler returns.
@usableFromInline package enum Step {
  /// Go on with the next micro-op of the block.
  @inlinable package static var next: Int32 { 0 }
  /// `rip` is set: leave the block and look the next one up.
  @inlinable package static var branch: Int32 { 1 }
  /// `rip` is set, and modes, mappings or pending events may have changed: look at them first.
  @inlinable package static var reload: Int32 { 2 }
  /// An exception or VM exit is in `pendingException`; the instruction did not happen.
  @inlinable package static var fault: Int32 { 3 }
  /// Of the run loop's own micro-ops: the block was dropped; its end was reached.
  @inlinable package static var stale: Int32 { 4 }
  @inlinable package static var endOfBlock: Int32 { 5 }
  /// `rip` is set, and a VM exit that comes behind the instruction is recorded.
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
  /// Offset in `CPUState` of the base that is added: a segment's, or `zero`.
  package var segmentBaseOffset: UInt16
  /// Offset of the instruction from the block's first byte.
  package var offset: UInt16
  package var length: UInt8
  package var scale: UInt8
  /// Not 0: the address needs masking or a segment check (`AddressFlags`).
  package var addressFlags: UInt8
  /// SegmentRegister of the memory operand.
  package var segment: UInt8
  package var operandSize: UInt8
  package var addressSize: UInt8
  /// Number of the register of operand 0 and 1 (segment, control, debug registers need it).
  package var register0: UInt8
  package var register1: UInt8
}

/// Bits of `MicroOp.addressFlags`.
package enum AddressFlags {
  /// Segment limit and type are checked: everywhere but in 64-bit mode.
  package static let segmentCheck: UInt8 = 1 << 0
  package static let mask32: UInt8 = 1 << 1
  package static let mask16: UInt8 = 1 << 2
}

package typealias MicroOpPointer = UnsafeMutablePointer<MicroOp>
