// SPDX-License-Identifier: Apache-2.0
//
// REP STOS and REP MOVS of 64-bit code that stay in one page on each side: emitted as the host's
// instruction, with host addresses in RDI and RSI. Guests mostly clear and copy small pieces, for
// which a handler call costs more than the work. The handler executes all other cases (DF set, a
// count of 0, a page's end, MMIO, code) from the start.

import X86
import X86CPU
import X86Decoder

extension BlockTranslation {
  func lowerRepeatedString(_ n: Int) {
    let i = instructions[n]
    let miss = missLabel()
    clobberFlags(n)
    a.test32(.state(StateOffset.rflags), immediate: UInt32(RFLAGS.df.rawValue))
    a.jump(if: Self.notEqual, miss)
    let size = Int32(i.operandSize)
    // At least one, and at most a page of them: so the number of bytes does not overflow.
    a.lea(.r14, .memory(.rcx, -1))
    a.arithmetic(.cmp, .register(.r14), immediate: 4096 / size)
    a.jump(if: Self.notBelow, miss)
    if i.mnemonic == .movs {
      findString(.rsi, size, write: false, miss)
      a.store(.state(StateOffset.temporary0), .r13)
    }
    findString(.rdi, size, write: true, miss)
    runString(i, miss)
    endAccess(n, miss)
  }

  /// R13 = host address of the RCX elements at a pointer, all in one page.
  private func findString(
    _ pointer: HostRegister, _ size: Int32, write: Bool, _ miss: Label
  ) {
    a.move(.r13, pointer)
    a.lea(.r15, .memory(pointer, index: .rcx, scale: UInt8(size.trailingZeroBitCount), -1))
    lookUpPage(write: write, miss)
  }

  /// Advances the guest's pointers by as much as the host's. If memory vanishes, a fault ends the
  /// host's instruction early, and the handler does the rest: a repeated instruction may stop
  /// anywhere.
  private func runString(_ i: Instruction, _ miss: Label) {
    let copies = i.mnemonic == .movs
    let end = a.label()
    a.move(.r14, .rdi)
    if copies {
      a.move(.r15, .rsi)
      a.load(.rsi, .state(StateOffset.temporary0))
    }
    a.move(.rdi, .r13)
    noteFaults(end)
    a.byte(0xF3)
    if i.operandSize == 2 { a.byte(0x66) }
    if i.operandSize == 8 { a.byte(0x48) }
    a.byte(i.encoding.opcode)
    a.bind(end)
    a.arithmetic(.sub, .rdi, .register(.r13))
    a.arithmetic(.add, .rdi, .register(.r14))
    if copies {
      a.arithmetic(.sub, .rsi, .state(StateOffset.temporary0))
      a.arithmetic(.add, .rsi, .register(.r15))
    }
    if guardsAccesses { a.jump(ifCountIsZero: false, short: false, miss) }
  }
}
