// SPDX-License-Identifier: Apache-2.0
//
// Which accesses of loops remember the page that they were last in. An access that walks through
// memory stays in a page for many rounds: to compare its address with the remembered page costs less
// than a look at the TLB. One whose address comes out of memory goes anywhere and looks at the TLB.
//
// A remembered page is true until the translation is left: only handlers and system instructions change
// the TLB's entries for the worse, and a loop that has any remembers nothing.

import X86
import X86CPU
import X86Decoder

struct LoopAccess: Hashable {
  /// The block, and the instruction in it.
  var code: Int
  var index: Int

  /// Numbers of remembered pages for the accesses of blocks that are translated together.
  static func pages(of codes: [BlockCode]) -> [LoopAccess: Int] {
    if codes.count == 1 && !codes[0].successors.contains(codes[0].pageOffset) { return [:] }
    let inLoop = loops(codes)
    guard !inLoop.isEmpty, codes.allSatisfy(\.keepsTranslations) else { return [:] }
    let loaded = loadedRegisters(inLoop.map { codes[$0] })
    var pages: [LoopAccess: Int] = [:]
    for n in inLoop {
      for look in codes[n].accesses.looks where look.registers & loaded == 0 {
        if pages.count == NativeState.accessPageCount { return pages }
        pages[LoopAccess(code: n, index: look.index)] = pages.count
      }
    }
    return pages
  }

  /// Blocks that lead back to themselves.
  private static func loops(_ codes: [BlockCode]) -> [Int] {
    let next = codes.map { code in
      code.successors.compactMap { offset in codes.firstIndex { $0.pageOffset == offset } }
    }
    return codes.indices.filter { start in
      var seen: Set<Int> = []
      var waiting = next[start]
      while let n = waiting.popLast() {
        if n == start { return true }
        if seen.insert(n).inserted { waiting += next[n] }
      }
      return false
    }
  }

  /// General registers whose values come out of memory or out of vector registers, as bits.
  private static func loadedRegisters(_ codes: [BlockCode]) -> UInt32 {
    var loaded: UInt32 = 0
    var before: UInt32
    repeat {
      before = loaded
      for code in codes {
        for (i, kind) in zip(code.instructions, code.kinds) {
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
  /// Nothing in it makes entries of the TLB untrue.
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
