// SPDX-License-Identifier: Apache-2.0
//
// Handlers of the operations in Arithmetic.swift, by form and width. Generic code cannot make C
// function pointers, so each handler is named; the names are generated from the opcode table's rows
// (`make golden`, HandlerFamilies.swift).

import X86
import X86Decoder

enum Arithmetic {
  static func register(_ t: inout LoweringTable) {
    registerBinary(&t)
    registerCompare(&t)
  }

  /// Selects among register, load, store and locked store forms.
  private static func rule(
    register: WidthHandlers, load: WidthHandlers, store: WidthHandlers, locked: WidthHandlers
  ) -> LoweringRule {
    .custom { i, _, _ in
      let size = i.operandSize
      switch i.memoryOperand {
      case 0: return i.prefixes.contains(.lock) ? locked[size] : store[size]
      case nil: return register[size]
      default: return load[size]
      }
    }
  }

  private static func registerBinary(_ t: inout LoweringTable) {
    // Rows: binary
    t[.add] = rule(
      register: .init(
        { binaryR(Add.self, UInt8.self, $0, $1) },
        { binaryR(Add.self, UInt16.self, $0, $1) },
        { binaryR(Add.self, UInt32.self, $0, $1) },
        { binaryR(Add.self, UInt64.self, $0, $1) }),
      load: .init(
        { binaryL(Add.self, UInt8.self, $0, $1) },
        { binaryL(Add.self, UInt16.self, $0, $1) },
        { binaryL(Add.self, UInt32.self, $0, $1) },
        { binaryL(Add.self, UInt64.self, $0, $1) }),
      store: .init(
        { binaryS(Add.self, UInt8.self, $0, $1) },
        { binaryS(Add.self, UInt16.self, $0, $1) },
        { binaryS(Add.self, UInt32.self, $0, $1) },
        { binaryS(Add.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(Add.self, UInt8.self, $0, $1) },
        { binaryLocked(Add.self, UInt16.self, $0, $1) },
        { binaryLocked(Add.self, UInt32.self, $0, $1) },
        { binaryLocked(Add.self, UInt64.self, $0, $1) }))
    t[.or] = rule(
      register: .init(
        { binaryR(Or.self, UInt8.self, $0, $1) },
        { binaryR(Or.self, UInt16.self, $0, $1) },
        { binaryR(Or.self, UInt32.self, $0, $1) },
        { binaryR(Or.self, UInt64.self, $0, $1) }),
      load: .init(
        { binaryL(Or.self, UInt8.self, $0, $1) },
        { binaryL(Or.self, UInt16.self, $0, $1) },
        { binaryL(Or.self, UInt32.self, $0, $1) },
        { binaryL(Or.self, UInt64.self, $0, $1) }),
      store: .init(
        { binaryS(Or.self, UInt8.self, $0, $1) },
        { binaryS(Or.self, UInt16.self, $0, $1) },
        { binaryS(Or.self, UInt32.self, $0, $1) },
        { binaryS(Or.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(Or.self, UInt8.self, $0, $1) },
        { binaryLocked(Or.self, UInt16.self, $0, $1) },
        { binaryLocked(Or.self, UInt32.self, $0, $1) },
        { binaryLocked(Or.self, UInt64.self, $0, $1) }))
    t[.adc] = rule(
      register: .init(
        { binaryR(AddWithCarry.self, UInt8.self, $0, $1) },
        { binaryR(AddWithCarry.self, UInt16.self, $0, $1) },
        { binaryR(AddWithCarry.self, UInt32.self, $0, $1) },
        { binaryR(AddWithCarry.self, UInt64.self, $0, $1) }),
      load: .init(
        { binaryL(AddWithCarry.self, UInt8.self, $0, $1) },
        { binaryL(AddWithCarry.self, UInt16.self, $0, $1) },
        { binaryL(AddWithCarry.self, UInt32.self, $0, $1) },
        { binaryL(AddWithCarry.self, UInt64.self, $0, $1) }),
      store: .init(
        { binaryS(AddWithCarry.self, UInt8.self, $0, $1) },
        { binaryS(AddWithCarry.self, UInt16.self, $0, $1) },
        { binaryS(AddWithCarry.self, UInt32.self, $0, $1) },
        { binaryS(AddWithCarry.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(AddWithCarry.self, UInt8.self, $0, $1) },
        { binaryLocked(AddWithCarry.self, UInt16.self, $0, $1) },
        { binaryLocked(AddWithCarry.self, UInt32.self, $0, $1) },
        { binaryLocked(AddWithCarry.self, UInt64.self, $0, $1) }))
    t[.sbb] = rule(
      register: .init(
        { binaryR(SubtractWithBorrow.self, UInt8.self, $0, $1) },
        { binaryR(SubtractWithBorrow.self, UInt16.self, $0, $1) },
        { binaryR(SubtractWithBorrow.self, UInt32.self, $0, $1) },
        { binaryR(SubtractWithBorrow.self, UInt64.self, $0, $1) }),
      load: .init(
        { binaryL(SubtractWithBorrow.self, UInt8.self, $0, $1) },
        { binaryL(SubtractWithBorrow.self, UInt16.self, $0, $1) },
        { binaryL(SubtractWithBorrow.self, UInt32.self, $0, $1) },
        { binaryL(SubtractWithBorrow.self, UInt64.self, $0, $1) }),
      store: .init(
        { binaryS(SubtractWithBorrow.self, UInt8.self, $0, $1) },
        { binaryS(SubtractWithBorrow.self, UInt16.self, $0, $1) },
        { binaryS(SubtractWithBorrow.self, UInt32.self, $0, $1) },
        { binaryS(SubtractWithBorrow.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(SubtractWithBorrow.self, UInt8.self, $0, $1) },
        { binaryLocked(SubtractWithBorrow.self, UInt16.self, $0, $1) },
        { binaryLocked(SubtractWithBorrow.self, UInt32.self, $0, $1) },
        { binaryLocked(SubtractWithBorrow.self, UInt64.self, $0, $1) }))
    t[.and] = rule(
      register: .init(
        { binaryR(And.self, UInt8.self, $0, $1) },
        { binaryR(And.self, UInt16.self, $0, $1) },
        { binaryR(And.self, UInt32.self, $0, $1) },
        { binaryR(And.self, UInt64.self, $0, $1) }),
      load: .init(
        { binaryL(And.self, UInt8.self, $0, $1) },
        { binaryL(And.self, UInt16.self, $0, $1) },
        { binaryL(And.self, UInt32.self, $0, $1) },
        { binaryL(And.self, UInt64.self, $0, $1) }),
      store: .init(
        { binaryS(And.self, UInt8.self, $0, $1) },
        { binaryS(And.self, UInt16.self, $0, $1) },
        { binaryS(And.self, UInt32.self, $0, $1) },
        { binaryS(And.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(And.self, UInt8.self, $0, $1) },
        { binaryLocked(And.self, UInt16.self, $0, $1) },
        { binaryLocked(And.self, UInt32.self, $0, $1) },
        { binaryLocked(And.self, UInt64.self, $0, $1) }))
    t[.sub] = rule(
      register: .init(
        { binaryR(Subtract.self, UInt8.self, $0, $1) },
        { binaryR(Subtract.self, UInt16.self, $0, $1) },
        { binaryR(Subtract.self, UInt32.self, $0, $1) },
        { binaryR(Subtract.self, UInt64.self, $0, $1) }),
      load: .init(
        { binaryL(Subtract.self, UInt8.self, $0, $1) },
        { binaryL(Subtract.self, UInt16.self, $0, $1) },
        { binaryL(Subtract.self, UInt32.self, $0, $1) },
        { binaryL(Subtract.self, UInt64.self, $0, $1) }),
      store: .init(
        { binaryS(Subtract.self, UInt8.self, $0, $1) },
        { binaryS(Subtract.self, UInt16.self, $0, $1) },
        { binaryS(Subtract.self, UInt32.self, $0, $1) },
        { binaryS(Subtract.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(Subtract.self, UInt8.self, $0, $1) },
        { binaryLocked(Subtract.self, UInt16.self, $0, $1) },
        { binaryLocked(Subtract.self, UInt32.self, $0, $1) },
        { binaryLocked(Subtract.self, UInt64.self, $0, $1) }))
    t[.xor] = rule(
      register: .init(
        { binaryR(Xor.self, UInt8.self, $0, $1) },
        { binaryR(Xor.self, UInt16.self, $0, $1) },
        { binaryR(Xor.self, UInt32.self, $0, $1) },
        { binaryR(Xor.self, UInt64.self, $0, $1) }),
      load: .init(
        { binaryL(Xor.self, UInt8.self, $0, $1) },
        { binaryL(Xor.self, UInt16.self, $0, $1) },
        { binaryL(Xor.self, UInt32.self, $0, $1) },
        { binaryL(Xor.self, UInt64.self, $0, $1) }),
      store: .init(
        { binaryS(Xor.self, UInt8.self, $0, $1) },
        { binaryS(Xor.self, UInt16.self, $0, $1) },
        { binaryS(Xor.self, UInt32.self, $0, $1) },
        { binaryS(Xor.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(Xor.self, UInt8.self, $0, $1) },
        { binaryLocked(Xor.self, UInt16.self, $0, $1) },
        { binaryLocked(Xor.self, UInt32.self, $0, $1) },
        { binaryLocked(Xor.self, UInt64.self, $0, $1) }))
    t[.inc] = rule(
      register: .init(
        { binaryR(Increment.self, UInt8.self, $0, $1) },
        { binaryR(Increment.self, UInt16.self, $0, $1) },
        { binaryR(Increment.self, UInt32.self, $0, $1) },
        { binaryR(Increment.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(Increment.self, UInt8.self, $0, $1) },
        { binaryS(Increment.self, UInt16.self, $0, $1) },
        { binaryS(Increment.self, UInt32.self, $0, $1) },
        { binaryS(Increment.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(Increment.self, UInt8.self, $0, $1) },
        { binaryLocked(Increment.self, UInt16.self, $0, $1) },
        { binaryLocked(Increment.self, UInt32.self, $0, $1) },
        { binaryLocked(Increment.self, UInt64.self, $0, $1) }))
    t[.dec] = rule(
      register: .init(
        { binaryR(Decrement.self, UInt8.self, $0, $1) },
        { binaryR(Decrement.self, UInt16.self, $0, $1) },
        { binaryR(Decrement.self, UInt32.self, $0, $1) },
        { binaryR(Decrement.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(Decrement.self, UInt8.self, $0, $1) },
        { binaryS(Decrement.self, UInt16.self, $0, $1) },
        { binaryS(Decrement.self, UInt32.self, $0, $1) },
        { binaryS(Decrement.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(Decrement.self, UInt8.self, $0, $1) },
        { binaryLocked(Decrement.self, UInt16.self, $0, $1) },
        { binaryLocked(Decrement.self, UInt32.self, $0, $1) },
        { binaryLocked(Decrement.self, UInt64.self, $0, $1) }))
    t[.neg] = rule(
      register: .init(
        { binaryR(Negate.self, UInt8.self, $0, $1) },
        { binaryR(Negate.self, UInt16.self, $0, $1) },
        { binaryR(Negate.self, UInt32.self, $0, $1) },
        { binaryR(Negate.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(Negate.self, UInt8.self, $0, $1) },
        { binaryS(Negate.self, UInt16.self, $0, $1) },
        { binaryS(Negate.self, UInt32.self, $0, $1) },
        { binaryS(Negate.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(Negate.self, UInt8.self, $0, $1) },
        { binaryLocked(Negate.self, UInt16.self, $0, $1) },
        { binaryLocked(Negate.self, UInt32.self, $0, $1) },
        { binaryLocked(Negate.self, UInt64.self, $0, $1) }))
    t[.not] = rule(
      register: .init(
        { binaryR(Not.self, UInt8.self, $0, $1) },
        { binaryR(Not.self, UInt16.self, $0, $1) },
        { binaryR(Not.self, UInt32.self, $0, $1) },
        { binaryR(Not.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { binaryS(Not.self, UInt8.self, $0, $1) },
        { binaryS(Not.self, UInt16.self, $0, $1) },
        { binaryS(Not.self, UInt32.self, $0, $1) },
        { binaryS(Not.self, UInt64.self, $0, $1) }),
      locked: .init(
        { binaryLocked(Not.self, UInt8.self, $0, $1) },
        { binaryLocked(Not.self, UInt16.self, $0, $1) },
        { binaryLocked(Not.self, UInt32.self, $0, $1) },
        { binaryLocked(Not.self, UInt64.self, $0, $1) }))
    // End of rows
  }

  private static func registerCompare(_ t: inout LoweringTable) {
    // Rows: compare
    t[.cmp] = .forms(
      register: .init(
        { compareR(Compare.self, UInt8.self, $0, $1) },
        { compareR(Compare.self, UInt16.self, $0, $1) },
        { compareR(Compare.self, UInt32.self, $0, $1) },
        { compareR(Compare.self, UInt64.self, $0, $1) }),
      load: .init(
        { compareL(Compare.self, UInt8.self, $0, $1) },
        { compareL(Compare.self, UInt16.self, $0, $1) },
        { compareL(Compare.self, UInt32.self, $0, $1) },
        { compareL(Compare.self, UInt64.self, $0, $1) }),
      store: .init(
        { compareS(Compare.self, UInt8.self, $0, $1) },
        { compareS(Compare.self, UInt16.self, $0, $1) },
        { compareS(Compare.self, UInt32.self, $0, $1) },
        { compareS(Compare.self, UInt64.self, $0, $1) }))
    t[.test] = .forms(
      register: .init(
        { compareR(And.self, UInt8.self, $0, $1) },
        { compareR(And.self, UInt16.self, $0, $1) },
        { compareR(And.self, UInt32.self, $0, $1) },
        { compareR(And.self, UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { compareS(And.self, UInt8.self, $0, $1) },
        { compareS(And.self, UInt16.self, $0, $1) },
        { compareS(And.self, UInt32.self, $0, $1) },
        { compareS(And.self, UInt64.self, $0, $1) }))
    // End of rows
  }
}
