// SPDX-License-Identifier: Apache-2.0
//
// SYSCALL and SYSRET: what `FastSystemCalls` does, for guests with nothing else to look at. The
// translation has checked that it may happen; TF and RF are 0 before and after, and both sides are
// 64-bit code, so that of the modes only the privilege changes.

import X86
import X86CPU

extension Thunks {
  private static let rflags = Place.state(StateOffset.rflags)
  private static let hostFlags = Place.state(StateOffset.hostFlags)

  /// R14 = RFLAGS. Clobbers R15 and flags.
  static func loadFlags(_ a: inout Assembler) {
    a.loadWord(.r14, hostFlags)
    a.move(.r15, .r14)
    a.shiftRight(.r14, 8)
    a.arithmetic(.and, .register(.r14), immediate: 0xD5, wide: false)
    a.shiftLeft32(.r15, 11)
    a.arithmetic(.and, .register(.r15), immediate: Int32(RFLAGS.of.rawValue), wide: false)
    a.arithmetic(.or, .r14, .register(.r15))
    a.arithmetic(.or, .r14, rflags)
  }

  /// The arithmetic flags of R15 to the state. Clobbers R14, R15 and flags.
  static func storeArithmeticFlags(_ a: inout Assembler) {
    a.move(.r14, .r15)
    a.arithmetic(.and, .register(.r15), immediate: 0xD5, wide: false)
    a.shiftLeft32(.r15, 8)
    a.shiftRight(.r14, 11)
    a.arithmetic(.and, .register(.r14), immediate: 1, wide: false)
    a.arithmetic(.or, .r14, .register(.r15))
    a.store(hostFlags, .r14)
  }

  static func forgetStack(_ a: inout Assembler) {
    a.store(.state(StateOffset.stackLimit), immediate: 0)
  }

  /// The TLB bank and its context. Clobbers R14.
  static func selectBank(_ a: inout Assembler, _ bank: Int) {
    let size = TLB.entriesPerBank * MemoryLayout<TLBEntry>.stride
    a.load(.r14, .state(StateOffset.tlbBanks))
    if bank != 0 { a.lea(.r14, .memory(.r14, Int32(bank * size))) }
    a.store(.state(StateOffset.tlb), .r14)
    let context =
      bank == TLB.supervisor ? StateOffset.supervisorTLBContext : StateOffset.addressSpace
    a.load(.r14, .state(context))
    a.store(.state(StateOffset.tlbContext), .r14)
  }

  /// A flat segment whose selector is in R14. Clobbers R15.
  private static func loadFlat(
    _ a: inout Assembler, _ register: SegmentRegister, _ rights: UInt32
  ) {
    a.store(.state(SegmentOffset.base(register)), immediate: 0)
    a.move(.r15, immediate: UInt64(rights) << 32 | 0xFFFF_FFFF)
    a.store(.state(SegmentOffset.limitAndRights(register)), .r15)
    a.store16(.state(SegmentOffset.selector(register)), .r14)
  }

  /// What a change of privilege changes besides.
  private static func switchContext(_ a: inout Assembler, _ context: Int, cpl: UInt8) {
    a.store8(.state(StateOffset.cpl), immediate: cpl)
    a.load(.r15, .state(context))
    a.store(.state(StateOffset.blockContext), .r15)
    forgetStack(&a)
  }

  /// R13 is the next RIP, then the kernel's entry.
  static func emitSyscall(_ a: inout Assembler) {
    a.move(.rcx, .r13)
    loadFlags(&a)
    a.move(.r11, .r14)
    a.load(.r15, .state(StateOffset.fmask))
    a.andNot(.r15, .r15, .r14)
    a.move(.r14, .r15)
    a.arithmetic(.and, .register(.r14), immediate: ~Int32(RFLAGS.arithmetic.rawValue))
    a.arithmetic(.or, .register(.r14), immediate: Int32(RFLAGS.fixed.rawValue))
    a.store(rflags, .r14)
    storeArithmeticFlags(&a)
    a.loadWord(.r14, .state(StateOffset.star + 4))
    a.arithmetic(.and, .register(.r14), immediate: 0xFFFC, wide: false)
    loadFlat(&a, .cs, FlatRights.code64)
    a.lea(.r14, .memory(.r14, 8))
    loadFlat(&a, .ss, FlatRights.data)
    let (open, done) = (a.label(), a.label())
    a.test32(.state(StateOffset.cr4), immediate: UInt32(CR4.smap.rawValue))
    a.jump(if: BlockTranslation.equal, open)
    a.test32(rflags, immediate: UInt32(RFLAGS.ac.rawValue))
    a.jump(if: BlockTranslation.notEqual, open)
    selectBank(&a, TLB.supervisor)
    a.jump(done)
    a.bind(open)
    selectBank(&a, TLB.supervisorWithoutSMAP)
    a.bind(done)
    switchContext(&a, StateOffset.supervisorContext, cpl: 0)
    a.load(.r13, .state(StateOffset.lstar))
  }

  /// To RCX, which is canonical, with the flags of R11, in which TF is 0: R13 is RIP.
  static func emitSysret(_ a: inout Assembler) {
    a.move(.r15, .r11)
    a.arithmetic(.and, .register(.r15), immediate: 0x3C_7FD7, wide: false)
    a.move(.r14, .r15)
    a.arithmetic(
      .and, .register(.r14), immediate: ~Int32(RFLAGS.arithmetic.rawValue), wide: false)
    a.arithmetic(.or, .register(.r14), immediate: Int32(RFLAGS.fixed.rawValue), wide: false)
    a.store(rflags, .r14)
    storeArithmeticFlags(&a)
    a.loadWord(.r14, .state(StateOffset.star + 6))
    a.lea(.r14, .memory(.r14, 8))
    a.arithmetic(.or, .register(.r14), immediate: 3, wide: false)
    loadFlat(&a, .ss, FlatRights.data | FlatRights.user)
    a.loadWord(.r14, .state(StateOffset.star + 6))
    a.lea(.r14, .memory(.r14, 16))
    a.arithmetic(.or, .register(.r14), immediate: 3, wide: false)
    loadFlat(&a, .cs, FlatRights.code64 | FlatRights.user)
    selectBank(&a, TLB.user)
    switchContext(&a, StateOffset.userContext, cpl: 3)
    a.move(.r13, .rcx)
  }
}
