// SPDX-License-Identifier: Apache-2.0
//
// TLB checks that translations share: used out of line, and in translations that are not hot yet,
// where five bytes suffice instead of fifty.
//
//     lookRead, lookWrite   linear address in R13, that of the access's last byte in R15: ZF,
//                           R13 = host address and R14 = the TLB's entry; or no ZF
//     lookStack             the same for writing; the page is remembered as the stack's
//     accessStack           linear address of up to eight bytes in R13: as `lookStack`
//     returnTo              target of RET in R13: goes on there with the stack pointer behind the
//                           return address; comes back where the target is not canonical
//
// All clobber R14, R15 and flags. RSP is 8 below the state in them. If the host mispredicts the end
// of a check, R13 is 0, so the access behind it reaches nothing (docs/security.md).

import X86CPU

/// Addresses of the shared checks.
struct MemoryThunks {
  private(set) var lookRead: UInt = 0
  private(set) var lookWrite: UInt = 0
  private(set) var lookStack: UInt = 0
  private(set) var accessStack: UInt = 0

  var symbols: [(name: String, address: UInt)] {
    [
      ("look-read", lookRead), ("look-write", lookWrite), ("look-stack", lookStack),
      ("access-stack", accessStack),
    ]
  }

  private static func state(_ offset: Int) -> Place { .state(offset + 8) }

  private var guardsSpeculation = true

  /// `here` is the address of what is emitted next.
  mutating func emit(_ a: inout Assembler, guardsSpeculation: Bool) {
    self.guardsSpeculation = guardsSpeculation
    func here(_ a: Assembler) -> UInt { a.origin + UInt(a.position) }
    lookRead = here(a)
    emitLook(&a, StateOffset.readTag)
    lookWrite = here(a)
    emitLook(&a, StateOffset.writeTag)
    accessStack = here(a)
    let slow = a.label()
    // The host's address is compared: see `BlockTranslation.begin`.
    a.arithmetic(.add, .r13, Self.state(StateOffset.stackAddend))
    a.move(.r15, .r13)
    a.arithmetic(.sub, .r15, Self.state(StateOffset.stackPage))
    a.arithmetic(.cmp, .r15, Self.state(StateOffset.stackLimit))
    a.jump(if: BlockTranslation.notBelow, slow)
    poison(&a, if: BlockTranslation.notBelow)
    Self.succeed(&a)
    a.bind(slow)
    a.arithmetic(.sub, .r13, Self.state(StateOffset.stackAddend))
    a.lea(.r15, .memory(.r13, 7))
    lookStack = here(a)
    emitStackLook(&a)
  }

  /// ZF, and back.
  private static func succeed(_ a: inout Assembler) {
    a.arithmetic(.cmp, .r15, .register(.r15))
    a.ret()
  }

  private func emitLook(_ a: inout Assembler, _ tag: Int) {
    let miss = a.label()
    a.lookUpTLB(tag: tag, offset: 8, miss)
    a.load(.r15, .memory(.r14, Int32(StateOffset.addend)))
    addAddend(&a)
    Self.succeed(&a)
    fail(&a, miss)
  }

  /// See `BlockTranslation.poison`.
  private func poison(_ a: inout Assembler, if condition: UInt8) {
    if guardsSpeculation { a.move(if: condition, .r13, Self.state(StateOffset.zero)) }
  }

  /// R13 += R15, or 0 where the compare has failed.
  private func addAddend(_ a: inout Assembler) {
    a.lea(.r13, .memory(.r13, index: .r15))
    poison(&a, if: BlockTranslation.notEqual)
  }

  /// No ZF, and back.
  private func fail(_ a: inout Assembler, _ miss: Label) {
    a.bind(miss)
    if guardsSpeculation { a.move(.r13, immediate: 0) }
    a.ret()
  }

  private func emitStackLook(_ a: inout Assembler) {
    let miss = a.label()
    a.lookUpTLB(tag: StateOffset.writeTag, offset: 8, miss)
    a.load(.r15, .memory(.r14, Int32(StateOffset.addend)))
    a.store(Self.state(StateOffset.stackAddend), .r15)
    addAddend(&a)
    a.move(.r15, .r13)
    a.arithmetic(.and, .register(.r15), immediate: -4096)
    a.store(Self.state(StateOffset.stackPage), .r15)
    a.store(
      Self.state(StateOffset.stackLimit),
      immediate: Int32(truncatingIfNeeded: NativeState.stackLimit))
    Self.succeed(&a)
    fail(&a, miss)
  }
}

extension Assembler {
  /// R14 = the TLB's entry of the linear address in R13, where its tag is that of the last byte,
  /// whose address is in R15, or a jump to `miss`. RSP is `offset` below the state.
  mutating func lookUpTLB(tag: Int, offset: Int = 0, _ miss: Label) {
    rorx(.r14, .r13, 7)  // index * 32 with other bits around
    arithmetic(.and, .register(.r14), immediate: Int32(TLB.indexMask << 5), wide: false)
    arithmetic(.and, .register(.r15), immediate: -4096)
    arithmetic(.add, .r14, .state(StateOffset.tlb + offset))
    arithmetic(.or, .r15, .state(StateOffset.tlbContext + offset))
    arithmetic(.cmp, .r15, .memory(.r14, Int32(tag)))
    jump(if: BlockTranslation.notEqual, miss)
  }
}

extension Thunks {
  func emitReturnTo(_ a: inout Assembler, _ unresolved: Label) {
    let slow = a.label()
    let special = a.label()
    lookUp(&a, slow, offset: 8)
    a.lea(RegisterMap.stackPointer, .memory(RegisterMap.stackPointer, 8))
    a.lea(.rsp, .memory(.rsp, 8))
    enterLookedUp(&a)
    a.bind(slow)
    a.move(.r14, .r13)
    a.shiftLeft(.r14, 16)
    a.shiftRightSigned(.r14, 16)
    a.arithmetic(.cmp, .r14, .register(.r13))
    a.jump(if: BlockTranslation.notEqual, special)
    a.lea(RegisterMap.stackPointer, .memory(RegisterMap.stackPointer, 8))
    a.lea(.rsp, .memory(.rsp, 8))
    a.jump(unresolved)
    a.bind(special)
    a.ret()
  }
}
