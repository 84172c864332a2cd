// SPDX-License-Identifier: Apache-2.0
//
// Where the manuals leave room, and processors of one vendor or generation differ from others. A
// pair that differs is allowed if these rules cover all that differs: each names the instructions,
// what may differ, and within which bounds. Everything else of the state still has to agree, and
// interpreter and translator with each other in any case. An allowed difference prints nothing; the
// summary counts it by rule.

package enum ImplementationChoice: String, CaseIterable, Codable, Sendable {
  case orderOfFaults = "which of an instruction's faults comes first"
  case addressSpaces = "wider linear addresses, and separated ones"
  case splitLocks = "locked access across two cache lines"
  case flagsOfRepeats = "flags of a repeated comparison that faults"
  case emptyRepeat = "upper halves after a repeat of no whole round with 32-bit addresses"
  case transitionToMMX = "MMX transition of an instruction that faults"
  case statusOfStores = "status flags of a store that faults"
  case unmaskedStores = "x87 store with an unmasked exception to a page that faults"
  case partialGather = "registers of a gather or scatter that faults"
  case partialStore = "first bytes of a wide store that faults at its second page"
  case partialOperand = "part of an operand that the result does not need"
  case pushOfCalls = "return address of a call that faults"
  case undefinedDestination = "destination that is undefined"

  /// Who leaves the room, or how processors differ.
  package var reason: String {
    switch self {
    case .orderOfFaults:
      "SDM volume 3, \"Priority Among Concurrent Events\": faults of one instruction's execution have "
        + "no fixed order, nor have its own reads (\"Memory Ordering\")"
    case .addressSpaces:
      "SDM volume 3, \"Canonical Addressing\" with five levels of page tables; \"Linear-Address Space "
        + "Separation\""
    case .splitLocks: "SDM volume 3, \"Bus Locking\": #AC where the host's kernel asks for it"
    case .flagsOfRepeats:
      "SDM volume 2, REP: EFLAGS is restored when CMPS or SCAS faults; other processors leave it as "
        + "the last round has"
    case .emptyRepeat:
      "SDM volume 1, \"General-Purpose Registers\": a register that is written is zero-extended; "
        + "whether ECX, ESI and EDI are written without a whole round is open"
    case .transitionToMMX:
      "SDM volume 3, \"Effect of MMX Instructions on the x87 FPU\" fixes TOP and tags after the "
        + "instruction, not after its fault"
    case .statusOfStores:
      "SDM volume 1, \"SIMD Floating-Point Exception Conditions\": flags are sticky, and may be set "
        + "before the result's store faults"
    case .unmaskedStores:
      "SDM volume 1, \"Floating-Point Exception Handling\": an unmasked exception does away with the "
        + "store, and so with its fault where that is not looked for first"
    case .partialGather:
      "SDM volume 2, VGATHERDPS: elements above the one that faults may be done, mask elements "
        + "widened, upper bits cleared"
    case .partialStore:
      "SDM volume 3, \"Guaranteed Atomic Operations\": an operand of more than 8 bytes may be several "
        + "accesses, of which some may be done; ENTER is several pushes"
    case .partialOperand:
      "SDM volume 2, BT: 2, 4 or 8 bytes may be read for one; PUNPCKLBW: 64 bits may be fetched of 128; "
        + "APM volume 4, VMASKMOVPS: what is not selected may fault"
    case .pushOfCalls:
      "APM volume 3, CALL pushes before it checks the target, SDM volume 2 after: the return address "
        + "may be there below RSP"
    case .undefinedDestination:
      "SDM volume 2, BSF and BSR of 0 may clear the upper half with 32-bit operands; BSWAP of 16 bits"
    }
  }
}
