// SPDX-License-Identifier: Apache-2.0
//
// PUSH, POP, LEAVE of words: 64 bits, in 32-bit code 32. The stack pointer is R12 of the host.

import X86
import X86CPU
import X86Decoder

extension BlockTranslation {
  private static var sp: HostRegister { RegisterMap.stackPointer }

  /// R13 = host address of the word below the stack pointer.
  func accessPush(_ miss: Label) {
    leaWord(.r13, .memory(Self.sp, Int32(-wordSize)))
    translateStackAddress(size: wordSize, miss)
  }

  func lowerPush(_ n: Int) {
    let operand = instructions[n].operands[0]
    if operand.kind == .memory { return lowerPushMemory(n, operand) }
    let (place, miss) = accessStack(n, -wordSize)
    if operand.kind == .immediate {
      let value = Int32(truncatingIfNeeded: instructions[n].immediate)
      if isWide { a.store(place, immediate: value) } else { a.store32(place, immediate: value) }
    } else if let host = RegisterMap.host(operand.number) {
      storeWord(place, host)
    } else {
      a.load(.r15, RegisterMap.place(operand.number))
      storeWord(place, .r15)
    }
    moveStackPointer(words: -1)
    if let miss { endAccess(n, miss) }
  }

  /// Both accesses are proven before anything is written.
  private func lowerPushMemory(_ n: Int, _ operand: Operand) {
    let miss = missLabel()
    accessOperand(n, operand, miss)
    loadWord(.r15, .memory(.r13))
    a.store(.state(StateOffset.temporary0), .r15)
    accessPush(miss)
    a.load(.r15, .state(StateOffset.temporary0))
    storeWord(.memory(.r13), .r15)
    moveStackPointer(words: -1)
    endAccess(n, miss)
  }

  func lowerPop(_ n: Int) {
    let guest = instructions[n].operands[0].number
    let (place, miss) = accessStack(n, 0)
    // Nothing changes before the access, which may fault.
    if let host = RegisterMap.host(guest) {
      loadWord(host, place)
    } else {
      a.load(.r15, place)
      a.store(RegisterMap.place(guest), .r15)
    }
    // POP RSP: what was loaded is the stack pointer.
    if RegisterMap.host(guest) != Self.sp { moveStackPointer(words: 1) }
    if let miss { endAccess(n, miss) }
  }

  func lowerLeave(_ n: Int) {
    let miss = missLabel()
    clobberFlags(n)
    loadWord(.r13, .register(.rbp))
    translateStackAddress(size: wordSize, miss)
    leaWord(.r15, .memory(.rbp, Int32(wordSize)))
    loadWord(.rbp, .memory(.r13))
    a.move(Self.sp, .r15)
    endAccess(n, miss)
  }
}
