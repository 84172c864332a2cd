// SPDX-License-Identifier: Apache-2.0
//
// PUSH, POP, LEAVE with 64-bit operands. The stack pointer is R12 of the host.

import X86
import X86CPU
import X86Decoder

extension BlockTranslation {
  private static var sp: HostRegister { RegisterMap.stackPointer }

  /// R13 = host address of the eight bytes below the stack pointer.
  mutating func accessPush(_ miss: Label) {
    a.lea(.r13, .memory(Self.sp, -8))
    translateStackAddress(size: 8, miss)
  }

  mutating func lowerPush(_ n: Int) {
    let operand = instructions[n].operands[0]
    if operand.kind == .memory { return lowerPushMemory(n, operand) }
    let (place, miss) = accessStack(n, -8)
    if operand.kind == .immediate {
      a.store(place, immediate: Int32(truncatingIfNeeded: instructions[n].immediate))
    } else if let host = RegisterMap.host(operand.number) {
      a.store(place, host)
    } else {
      a.load(.r15, RegisterMap.place(operand.number))
      a.store(place, .r15)
    }
    a.lea(Self.sp, .memory(Self.sp, -8))
    if let miss { endAccess(n, miss) }
  }

  /// Both accesses are proven before anything is written.
  private mutating func lowerPushMemory(_ n: Int, _ operand: Operand) {
    let miss = missLabel()
    accessOperand(n, operand, miss)
    a.load(.r15, .memory(.r13))
    a.store(.state(StateOffset.temporary0), .r15)
    accessPush(miss)
    a.load(.r15, .state(StateOffset.temporary0))
    a.store(.memory(.r13), .r15)
    a.lea(Self.sp, .memory(Self.sp, -8))
    endAccess(n, miss)
  }

  mutating func lowerPop(_ n: Int) {
    let guest = instructions[n].operands[0].number
    let (place, miss) = accessStack(n, 0)
    a.lea(Self.sp, .memory(Self.sp, 8))
    if let host = RegisterMap.host(guest) {
      a.load(host, place)
    } else {
      a.load(.r15, place)
      a.store(RegisterMap.place(guest), .r15)
    }
    if let miss { endAccess(n, miss) }
  }

  mutating func lowerLeave(_ n: Int) {
    let miss = missLabel()
    clobberFlags(n)
    a.move(.r13, .rbp)
    translateStackAddress(size: 8, miss)
    a.lea(Self.sp, .memory(.rbp, 8))
    a.load(.rbp, .memory(.r13))
    endAccess(n, miss)
  }
}
