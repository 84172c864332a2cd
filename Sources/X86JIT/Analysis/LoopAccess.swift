// SPDX-License-Identifier: Apache-2.0
//
// Which accesses of loops cache their last page. An access that walks through memory stays in a
// page for many rounds: comparing its address with the cached page costs less than a TLB check. An
// access whose address is loaded from memory (pointer chasing) checks the TLB.
//
// A cached page is valid until the translation exits: only handlers and system instructions remove
// rights from TLB entries, and a loop that has any caches nothing.

import X86
import X86CPU
import X86Decoder

enum LoopAccess {
  /// Numbers the cached pages of blocks that are translated together.
  ///
  /// - Returns: how many there are.
  static func findPages(_ codes: UnsafeBufferPointer<BlockCode>) -> Int {
    if codes.count == 1 && !codes[0].successors.contains(codes[0].pageOffset) { return 0 }
    let inLoop = loops(codes)
    guard inLoop != 0, codes.allSatisfy(\.keepsTranslations) else { return 0 }
    let loaded = loadedRegisters(codes, inLoop)
    var count = 0
    for n in codes.indices where inLoop >> UInt32(n) & 1 != 0 {
      for look in codes[n].accesses.looks where look.registers & loaded == 0 {
        if count == NativeState.accessPageCount { return count }
        codes[n].loopPages[look.index] = Int8(truncatingIfNeeded: count)
        count += 1
      }
    }
    return count
  }

  /// Blocks that lead back to themselves, as bits.
  private static func loops(_ codes: UnsafeBufferPointer<BlockCode>) -> UInt32 {
    // The successors of each block: direct, then transitive.
    var reached = InlineArray<16, UInt32>(repeating: 0)
    for (n, code) in codes.enumerated() {
      let successors = code.successors
      for (m, other) in codes.enumerated() where successors.contains(other.pageOffset) {
        reached[n] |= 1 << UInt32(m)
      }
    }
    for middle in codes.indices {
      for n in codes.indices where reached[n] >> UInt32(middle) & 1 != 0 {
        reached[n] |= reached[middle]
      }
    }
    var result: UInt32 = 0
    for n in codes.indices where reached[n] >> UInt32(n) & 1 != 0 { result |= 1 << UInt32(n) }
    return result
  }

  /// General registers whose values come from memory or vector registers, as bits.
  private static func loadedRegisters(
    _ codes: UnsafeBufferPointer<BlockCode>, _ inLoop: UInt32
  ) -> UInt32 {
    var loaded: UInt32 = 0
    var before: UInt32
    repeat {
      before = loaded
      for n in codes.indices where inLoop >> UInt32(n) & 1 != 0 {
        for (i, kind) in zip(codes[n].instructions, codes[n].kinds) {
          if kind == .vector || i.readsMemory || i.readRegisters & loaded != 0 {
            loaded |= i.changedRegisters & ~(1 << 4)
          }
        }
      }
    } while loaded != before
    return loaded
  }
}

extension BlockCode {
  /// Nothing in it invalidates TLB entries.
  fileprivate var keepsTranslations: Bool { !kinds.contains(.handler) && !kinds.contains(.system) }
}

extension Instruction {
  fileprivate var readsMemory: Bool {
    if mnemonic == .pop || mnemonic == .leave { return true }
    guard let m = memoryOperand, mnemonic != .lea else { return false }
    return operands[m].access.contains(.read)
  }

  fileprivate var readRegisters: UInt32 {
    var registers: UInt32 = 0
    for n in 0..<Int(operandCount)
    where operands[n].kind == .general && operands[n].access.contains(.read) {
      registers |= 1 << UInt32(operands[n].parent)
    }
    if mnemonic == .lea {
      if base < 16 { registers |= 1 << UInt32(base) }
      if index < 16 { registers |= 1 << UInt32(index) }
    }
    return registers
  }
}
