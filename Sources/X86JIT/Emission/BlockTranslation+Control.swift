// SPDX-License-Identifier: Apache-2.0
//
// Ends of blocks. Code jumps directly to a successor in the same page: whatever else changes, both
// have the same host page and linear page, and their translations are dropped together. It looks
// every other successor up in the jump cache, which knows the address space.
//
// Every loop polls `request`: at backward jumps and at look-ups.

import X86
import X86CPU
import X86Decoder

/// An indirect transfer whose target misses the jump cache.
struct UnresolvedWay {
  enum End {
    case jump
    case call(returnOffset: Int)
    case `return`(released: Int32)
  }
  var start: Label
  var miss: Label
  var end: End
}

extension BlockTranslation {
  // MARK: Edges

  /// After an instruction that may have changed modes, mappings or events: tests `slow` and looks
  /// the next block up.
  func edgeAfterSystemInstruction(to offset: Int) {
    a.arithmetic(.cmp, .state(StateOffset.slow), immediate: 0, wide: false)
    a.jump(if: Self.notEqual, exitLabel(offset))
    dispatch(to: offset)
  }

  /// Continues at an offset of the page, by the jump cache.
  func dispatch(to offset: Int) {
    jump(to: offset, isWide ? thunks.dispatchRelative : thunks.dispatch)
  }

  /// Jumps to a thunk that takes an offset of the page; in 32-bit code, one that takes RIP.
  func jump(to offset: Int, _ thunk: UInt) {
    if isWide {
      a.move(.r13, immediate: UInt64(UInt32(truncatingIfNeeded: offset)))
    } else {
      pageRelative(.r13, offset)
    }
    a.jump(to: thunk)
  }

  /// Returns to the run loop with RIP at an offset of the page.
  func exitLabel(_ offset: Int) -> Label {
    if let known = exits.first(where: { $0.offset == offset }) { return known.label }
    let label = a.label()
    exits.append((label, offset))
    return label
  }

  /// register = RIP of an offset of the page.
  func pageRelative(_ register: HostRegister, _ offset: Int) {
    a.load(register, .state(StateOffset.codePage))
    leaWord(register, .memory(register, Int32(truncatingIfNeeded: offset)))
  }

  // MARK: Look-ups

  /// R15 = entry of the translation of the block at R13, or a jump to `miss`. Clobbers R14.
  private func lookUp(_ miss: Label) {
    thunks.lookUp(&a, miss)
  }

  /// Jumps to the code in R15, which knows its linear page.
  private func enterLookedUp() {
    thunks.enterLookedUp(&a)
  }

  /// The end of an indirect call: its target is in `temporary0`, the host address of its push in
  /// `temporary1`. R13 = target.
  private func pushReturn(to offset: Int) {
    a.load(.r13, .state(StateOffset.temporary1))
    pageRelative(.r14, offset)
    storeWord(.memory(.r13), .r14)
    moveStackPointer(words: -1)
    a.load(.r13, .state(StateOffset.temporary0))
  }

  /// Where a failed look-up of the target in R13 continues. If the transfer may still fault, the
  /// handler at `miss` executes it.
  private func unresolvedWay(_ miss: Label, _ end: UnresolvedWay.End) -> Label {
    let way = UnresolvedWay(start: a.label(), miss: miss, end: end)
    unresolved.append(way)
    return way.start
  }

  /// Out of line: the rest of the instruction, with a look-up in Swift.
  func emitUnresolved() {
    for way in unresolved {
      a.bind(way.start)
      noteFaults(way.miss)
      if isWide { requireCanonical(way.miss) }
      switch way.end {
      case .jump: break
      case .call(let offset): pushReturn(to: offset)
      case .return(let released): moveStackPointer(words: 1, bytes: released)
      }
      a.jump(to: thunks.resolve)
    }
  }

  /// Jumps to `miss` if the address in R13 is not canonical. Clobbers R14.
  private func requireCanonical(_ miss: Label) {
    a.move(.r14, .r13)
    a.shiftLeft(.r14, 16)
    a.shiftRightSigned(.r14, 16)
    a.arithmetic(.cmp, .r14, .register(.r13))
    a.jump(if: Self.notEqual, miss)
  }

  // MARK: Instructions

  func lowerJump(_ n: Int) {
    if instructions[n].operands[0].kind == .relative {
      edge(to: target(n), from: n)
      return
    }
    let miss = missLabel()
    leaveFlags()
    loadTarget(n, miss)
    lookUp(unresolvedWay(miss, .jump))
    enterLookedUp()
    endAccess(n, miss)
  }

  /// R13 = operand of an indirect jump or call.
  private func loadTarget(_ n: Int, _ miss: Label) {
    let i = instructions[n]
    if let m = i.memoryOperand {
      accessOperand(n, i.operands[m], miss)
      loadWord(.r13, .memory(.r13))
    } else if let host = RegisterMap.host(i.operands[0].number) {
      loadWord(.r13, .register(host))
    } else {
      a.load(.r13, RegisterMap.place(i.operands[0].number))
    }
  }

  func lowerCall(_ n: Int) {
    let miss = missLabel()
    leaveFlags()
    if instructions[n].operands[0].kind == .relative {
      accessPush(miss)
      pageRelative(.r15, nextOffset(n))
      storeWord(.memory(.r13), .r15)
      moveStackPointer(words: -1)
      edge(to: target(n), from: n)
      endAccess(n, miss)
      return
    }
    loadTarget(n, miss)
    a.store(.state(StateOffset.temporary0), .r13)
    accessPush(miss)
    a.store(.state(StateOffset.temporary1), .r13)
    a.load(.r13, .state(StateOffset.temporary0))
    lookUp(unresolvedWay(miss, .call(returnOffset: nextOffset(n))))
    pushReturn(to: nextOffset(n))
    enterLookedUp()
    endAccess(n, miss)
  }

  func lowerReturn(_ n: Int) {
    let miss = missLabel()
    leaveFlags()
    loadWord(.r13, .register(RegisterMap.stackPointer))
    translateStackAddress(size: wordSize, miss)
    loadWord(.r13, .memory(.r13))
    let i = instructions[n]
    let released = i.operandCount > 0 ? Int32(UInt16(truncatingIfNeeded: i.immediate)) : 0
    if isCompact && isWide && released == 0 {
      a.call(thunks.returnTo)
      a.jump(miss)
      return endAccess(n, miss)
    }
    lookUp(unresolvedWay(miss, .return(released: released)))
    moveStackPointer(words: 1, bytes: released)
    enterLookedUp()
    endAccess(n, miss)
  }
}
