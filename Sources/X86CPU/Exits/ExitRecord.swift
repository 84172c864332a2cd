// SPDX-License-Identifier: Apache-2.0
//
// The processor's vendor-neutral record of an exit. VMREAD of VT-x's exit-information fields
// derives them from it (`VMX/ExitFields.swift`), and SVM's unit derives EXITCODE, EXITINFO1,
// EXITINFO2, EXITINTINFO and nRIP (`CPU.exitNextRIP`).

import X86

/// The kind of access to a control or debug register, or to a port.
package enum RegisterAccess: UInt8, Sendable {
  /// MOV from a register; IN, INS.
  case read
  /// MOV to a register; OUT, OUTS.
  case write
  case clts
  case lmsw
  /// SVM only.
  case smsw
}

/// Further information on an exit, as bits.
package struct ExitDetails: OptionSet, Sendable, Hashable {
  package var rawValue: UInt16
  package init(rawValue: UInt16) { self.rawValue = rawValue }

  /// INS, OUTS.
  package static let isString = Self(rawValue: 1 << 0)
  /// With REP.
  package static let isRepeated = Self(rawValue: 1 << 1)
  /// The port is an immediate.
  package static let isImmediate = Self(rawValue: 1 << 2)
  /// LMSW's operand is in memory, at `linear`.
  package static let isFromMemory = Self(rawValue: 1 << 3)
  /// MWAIT: an address is armed.
  package static let isArmed = Self(rawValue: 1 << 4)
  /// A nested fault: the linear address is valid.
  package static let linearIsValid = Self(rawValue: 1 << 5)
  /// A nested fault: it is of the translated address, not of a paging structure.
  package static let isTranslated = Self(rawValue: 1 << 6)
  /// The interrupted IRET had unblocked NMIs.
  package static let unblockedNMI = Self(rawValue: 1 << 7)
  /// A nested fault: by a walk of the guest's tables, which reads and writes.
  package static let alsoReads = Self(rawValue: 1 << 8)
  /// A nested fault of a translated address: the page's rights in the guest's tables.
  package static let isUserPage = Self(rawValue: 1 << 9)
  package static let isWritablePage = Self(rawValue: 1 << 10)
  package static let isNotExecutablePage = Self(rawValue: 1 << 11)
}

/// How the APIC's page was accessed.
package enum APICAccessKind: UInt8, Sendable {
  case read, write, fetch
  /// During event delivery.
  case delivery
  /// By a guest-physical address: a paging structure.
  case physical, physicalDelivery
}

/// The cause determines which fields are valid; all others are 0.
package struct ExitRecord: Sendable {
  package var cause = ExitCause.none
  /// Of the instruction that exited or raised the software event; 0 if there is none.
  package var instructionLength: UInt8 = 0
  /// Control or debug register; INT n: the vector.
  package var register: UInt8 = 0
  /// General register of MOV to or from a control or debug register.
  package var general: UInt8 = 0
  package var access = RegisterAccess.read
  /// Of a nested fault.
  package var kind = AccessKind.read
  package var details: ExitDetails = []
  /// A port's number; a task switch: the TSS; an access to the APIC: its offset.
  package var selector: UInt16 = 0
  /// Bytes of one port access. An access to the APIC: `APICAccessKind`.
  package var size: UInt8 = 0
  package var taskSource = TaskSwitchSource.call
  /// Memory and register operands of instructions whose exits report them.
  package var operands = OperandSummary()
  /// - #PF: the address. #DB: causes, as DR6 has them.
  /// - LMSW: the source. INVLPG: the address.
  /// - a nested fault: the rights that the tables give (`EPTEntry.read`, `write`, `execute`).
  /// - instructions with `operands`: the displacement, added to the next RIP where it is relative
  ///   to that.
  package var value: UInt64 = 0
  /// Of the memory operand of LMSW, INS and OUTS; of a nested fault.
  package var linear: UInt64 = 0
  /// Guest-physical, of a nested fault.
  package var physical: UInt64 = 0
  /// The exception that exits.
  package var event: GuestEvent?
  /// The event whose delivery the exit interrupted (also a task gate's).
  package var interrupted: GuestEvent?

  package init() {}

  @inline(__always) package init(_ cause: ExitCause, length: UInt8 = 0, value: UInt64 = 0) {
    self.cause = cause
    instructionLength = length
    self.value = value
  }
}
