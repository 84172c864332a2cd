// SPDX-License-Identifier: Apache-2.0
//
// What the run loop and a translator of hot blocks agree on. The translator itself is X86JIT; this
// module knows only how its code is entered and left.
//
// - The run loop counts `Block.heat` down and offers the block to `PhysicalCPU.translator`, which sets
//   `Block.native`. Dropping a block clears it.
// - Translated code runs with the host's stack pointer at the CPUState, so that its fields are
//   [rsp + offset]; the stack for helpers is below it (`NativeStack`).
// - It is entered with every register in the state and the arithmetic flags in `hostFlags`, and left
//   the same way with `rip` set. What it returns is a `Step`, with `flagsInImage` where the flags
//   are in `hostFlags` instead of `flagResult` and `flagAux`.
// - It is left in bounded time after `CPUState.request` becomes other than 0, and at once when its
//   own block is dropped. `slow` is 0 whenever it runs.

import Glibc
import X86

/// Translates blocks for one physical CPU.
package protocol BlockTranslator: AnyObject {
  /// Sets `native` of the block, or leaves it alone. Called outside translated code only.
  func translate(_ block: BlockPointer)
}

/// The part of the CPU's state that is translated code's own.
package struct NativeState {
  /// Linear address of the page whose code runs.
  package var codePage: UInt64 = 0
  /// The arithmetic flags as LAHF and SETO give them: OF in bit 0; SF, ZF, AF, PF, CF in bits 15:8.
  package var hostFlags: UInt64 = 0
  /// The host's stack pointer outside.
  package var hostStack: UInt64 = 0
  /// Temporaries of one instruction.
  package var temporary0: UInt64 = 0
  package var temporary1: UInt64 = 0
  /// The micro-op that left with `Step.fault`.
  package var faultingOp: MicroOpPointer?
  /// Enters code: (state, address) -> step.
  package var enter:
    (@convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Int32)?
  /// How often each mnemonic was left to its handler: the translator's array.
  package var handlerCounts: UnsafeMutablePointer<UInt64>?

  /// Bit of what translated code returns.
  package static let flagsInImage: Int32 = 0x100
}

extension CPU {
  /// The arithmetic flags as `hostFlags` has them.
  @inline(__always) package var flagImage: UInt64 {
    get {
      let flags = arithmeticFlags
      return (flags & 0xD5) << 8 | (flags >> 11) & 1
    }
    nonmutating set { arithmeticFlags = (newValue >> 8) & 0xD5 | (newValue & 1) << 11 }
  }

  /// Runs a translated block and those that follow it. False where a VM exit is recorded.
  @inline(never) func runNative(_ block: BlockPointer) -> Bool {
    let state = s
    guard let enter = state.pointee.native.enter,
      let code = UnsafeMutableRawPointer(bitPattern: block.pointee.native)
    else { return true }
    state.pointee.native.codePage = state.pointee.rip & Page.mask
    state.pointee.native.hostFlags = flagImage
    let result = enter(raw, code)
    if result & NativeState.flagsInImage != 0 { flagImage = state.pointee.native.hostFlags }
    let step = result & 0xFF
    if step == Step.branch { return true }
    guard let op = state.pointee.native.faultingOp else { return processEvents() }
    return finish(step, op)
  }
}

/// Memory of a CPUState with room for a stack below it and a guard page below that.
enum NativeStack {
  private static let size = 256 << 10
  private static let guardSize = 4096

  static func allocate(stateSize: Int) -> UnsafeMutableRawPointer {
    let base = UnsafeMutableRawPointer.allocate(
      byteCount: size + (stateSize + 4095) & ~4095, alignment: 4096)
    mprotect(base, guardSize, PROT_NONE)
    let state = base + size
    state.initializeMemory(as: UInt8.self, repeating: 0, count: stateSize)
    return state
  }

  static func deallocate(state: UnsafeMutableRawPointer) {
    let base = state - size
    mprotect(base, guardSize, PROT_READ | PROT_WRITE)
    base.deallocate()
  }
}
