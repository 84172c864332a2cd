// SPDX-License-Identifier: Apache-2.0
//
// System instructions that kernels execute frequently, inline. The code checks privilege and
// intercepts first, and calls the handler unless they are as usual. So all exits and exceptions are
// the handler's.
//
// STI. Interrupts are taken only where `request` is looked at, so its shadow needs no blocking; but
// the state says that it is there while the next instruction executes, which may exit. That
// instruction is one of the same block that looks at no events (`LoweringKind.isPlain`); without
// one, and where an interrupt window is waited for, STI is left to its handler.

import X86
import X86CPU
import X86Decoder

extension BlockTranslation {
  func lowerSystem(_ n: Int) {
    let miss = missLabel()
    leaveFlags()
    switch instructions[n].mnemonic {
    case .cli: lowerCLI(miss)
    case .sti: lowerSTI(miss)
    case .cld: a.arithmetic(.and, Self.rflags, immediate: ~Int32(RFLAGS.df.rawValue))
    case .std: a.arithmetic(.or, Self.rflags, immediate: Int32(RFLAGS.df.rawValue))
    case .clac: lowerCLAC(miss)
    case .stac: lowerSTAC(miss)
    case .swapgs: lowerSwapGS(miss)
    case .pushf: lowerPushFlags(miss)
    case .popf: lowerPopFlags(miss)
    case .rdpkru: lowerReadKeys(miss)
    case .movControl: lowerReadFaultAddress(n, miss)
    case .rdtscp:
      requireEnabled(.rdtscp, miss)
      lowerReadTSC(n, .rdtscp, miss)
      a.load32(.rcx, .state(StateOffset.tscAux))
    default: lowerReadTSC(n, .rdtsc, miss)
    }
    endAccess(n, miss)
  }

  /// No flag changes, and no register.
  func lowerFence(_ n: Int) {
    switch instructions[n].mnemonic {
    case .lfence: a.loadFence()
    case .sfence: a.storeFence()
    default: a.emit(0x0F, 0xAE, 0xF0)
    }
  }

  private static var rflags: Place { .state(StateOffset.rflags) }

  /// To `miss` unless CPL is 0.
  private func requireSupervisor(_ miss: Label) {
    a.testByte(.state(StateOffset.cpl), 0xFF)
    a.jump(if: Self.notEqual, miss)
  }

  /// To `miss` if any of the bits is 1 in a 32-bit field.
  private func refuse(_ bits: UInt32, _ field: Int, _ miss: Label) {
    a.test32(.state(field), immediate: bits)
    a.jump(if: Self.notEqual, miss)
  }

  /// To `miss` if any of the bits is 0.
  private func require(_ bit: UInt32, _ field: Int, _ miss: Label) {
    a.test32(.state(field), immediate: bit)
    a.jump(if: Self.equal, miss)
  }

  /// To `miss` if an intercept is set, of those in the lowest byte.
  private func refuse(_ intercept: InterceptSet, _ miss: Label) {
    a.testByte(
      .state(StateOffset.interceptSet), UInt8(truncatingIfNeeded: intercept.rawValue))
    a.jump(if: Self.notEqual, miss)
  }

  /// To `miss` if it is not, of those that are no exits.
  private func require(_ bit: InterceptSet, _ miss: Label) {
    a.testByte(.state(StateOffset.interceptSet), UInt8(truncatingIfNeeded: bit.rawValue))
    a.jump(if: Self.equal, miss)
  }

  private func requireEnabled(_ instruction: EnabledInstructions, _ miss: Label) {
    a.testByte(
      .state(StateOffset.enabledInstructions), UInt8(truncatingIfNeeded: instruction.rawValue))
    a.jump(if: Self.equal, miss)
  }

  // MARK: Flags

  private func lowerCLI(_ miss: Label) {
    requireSupervisor(miss)
    a.arithmetic(.and, Self.rflags, immediate: ~Int32(RFLAGS.if.rawValue))
  }

  private func lowerSTI(_ miss: Label) {
    requireSupervisor(miss)
    refuse(.interruptWindow, miss)
    let done = a.label()
    a.test32(Self.rflags, immediate: UInt32(RFLAGS.if.rawValue))
    a.jump(if: Self.notEqual, done)
    a.arithmetic(.or, Self.rflags, immediate: Int32(RFLAGS.if.rawValue))
    a.arithmetic(
      .or, .state(StateOffset.interruptibility), immediate: Int32(Interruptibility.blockingBySTI),
      wide: false)
    a.bind(done)
  }

  /// After the instruction behind STI: no flag changes.
  func endShadow() {
    let shadow = Place.state(StateOffset.interruptibility)
    a.load32(.r14, shadow)
    a.move(.r15, immediate: 1)
    a.shiftWithoutFlags(.right, .r14, by: .r15)
    a.shiftWithoutFlags(.left, .r14, by: .r15)
    a.store32(shadow, .r14)
  }

  private func lowerPushFlags(_ miss: Label) {
    Thunks.loadFlags(&a)
    a.store(.state(StateOffset.temporary0), .r14)
    accessPush(miss)
    a.load(.r15, .state(StateOffset.temporary0))
    storeWord(.memory(.r13), .r15)
    moveStackPointer(words: -1)
  }

  /// POPF at CPL 0 that changes arithmetic flags, DF and IF alone.
  private func lowerPopFlags(_ miss: Label) {
    let rare: RFLAGS = [.tf, .iopl, .nt, .ac, .id]
    requireSupervisor(miss)
    loadWord(.r13, .register(RegisterMap.stackPointer))
    translateStackAddress(size: wordSize, miss)
    loadWord(.r15, .memory(.r13))
    a.load(.r14, Self.rflags)
    a.arithmetic(.xor, .r14, .register(.r15))
    a.test32(.register(.r14), immediate: UInt32(truncatingIfNeeded: rare.rawValue))
    a.jump(if: Self.notEqual, miss)
    let same = a.label()
    a.test32(.register(.r14), immediate: UInt32(RFLAGS.if.rawValue))
    a.jump(if: Self.equal, same)
    refuse(.interruptWindow, miss)
    a.bind(same)
    a.arithmetic(
      .and, .register(.r14), immediate: Int32(RFLAGS([.if, .df]).rawValue), wide: false)
    a.exclusiveOr(Self.rflags, .r14)
    Thunks.storeArithmeticFlags(&a)
    flags = .inState
    moveStackPointer(words: 1)
  }

  // MARK: SMAP

  private func lowerCLAC(_ miss: Label) {
    requireSupervisor(miss)
    a.arithmetic(.and, Self.rflags, immediate: ~Int32(RFLAGS.ac.rawValue))
    let done = a.label()
    require(UInt32(CR4.smap.rawValue), StateOffset.cr4, done)
    Thunks.selectBank(&a, TLB.supervisor)
    Thunks.forgetStack(&a)
    a.bind(done)
  }

  /// What the stack's page was found to be stays true.
  private func lowerSTAC(_ miss: Label) {
    requireSupervisor(miss)
    a.arithmetic(.or, Self.rflags, immediate: Int32(RFLAGS.ac.rawValue))
    Thunks.selectBank(&a, TLB.supervisorWithoutSMAP)
  }

  // MARK: Registers

  private func lowerSwapGS(_ miss: Label) {
    requireSupervisor(miss)
    let base = Place.state(SegmentOffset.base(.gs))
    let other = Place.state(StateOffset.kernelGSBase)
    a.load(.r13, base)
    a.load(.r14, other)
    a.store(base, .r14)
    a.store(other, .r13)
  }

  private func lowerReadKeys(_ miss: Label) {
    require(UInt32(CR4.pke.rawValue), StateOffset.cr4, miss)
    a.test32(.rcx)
    a.jump(if: Self.notEqual, miss)
    a.load32(.rax, .state(StateOffset.pkru))
    a.move(.rdx, immediate: 0)
  }

  /// MOV from CR2.
  private func lowerReadFaultAddress(_ n: Int, _ miss: Label) {
    requireSupervisor(miss)
    let number = instructions[n].operands[0].number
    let host = RegisterMap.host(number)
    loadWord(host ?? .r15, .state(StateOffset.cr2))
    if host == nil { a.store(RegisterMap.place(number), .r15) }
  }

  /// RDTSC with an offset and without scaling; RDTSCP waits for what is before it.
  private func lowerReadTSC(_ n: Int, _ intercept: InterceptSet, _ miss: Label) {
    refuse(UInt32(CR4.tsd.rawValue), StateOffset.cr4, miss)
    refuse(intercept, miss)
    require(.offsetTSC, miss)
    refuse(.scaledTSC, miss)
    if instructions[n].mnemonic == .rdtscp { a.loadFence() }
    a.emit(0x0F, 0x31)
    a.shiftLeft(.rdx, 32)
    a.arithmetic(.or, .rax, .register(.rdx))
    a.arithmetic(.add, .rax, .state(StateOffset.tscAdjust))
    a.arithmetic(.add, .rax, .state(StateOffset.tscOffset))
    a.move(.rdx, .rax)
    a.shiftRight(.rdx, 32)
    a.load32(.rax, .register(.rax))
  }

  // MARK: System calls

  func lowerSystemJump(_ n: Int) {
    let miss = missLabel()
    leaveFlags()
    require(UInt32(EFER.sce.rawValue), StateOffset.efer, miss)
    if instructions[n].mnemonic == .syscall {
      a.load(.r13, .state(StateOffset.codePage))
      a.lea(.r13, .memory(.r13, Int32(nextOffset(n))))
      a.jump(to: thunks.syscall)
    } else {
      requireSupervisor(miss)
      refuse(.interruptWindow, miss)
      refuse(UInt32(CR4.la57.rawValue), StateOffset.cr4, miss)
      // With AC, alignment may have to be checked from now on (TLB.checkedContext).
      a.test32(.register(.r11), immediate: UInt32(RFLAGS([.tf, .ac]).rawValue))
      a.jump(if: Self.notEqual, miss)
      a.move(.r14, .rcx)
      a.shiftLeft(.r14, 16)
      a.shiftRightSigned(.r14, 16)
      a.arithmetic(.cmp, .r14, .register(.rcx))
      a.jump(if: Self.notEqual, miss)
      keepStackSegment(miss)
      a.jump(to: thunks.sysret)
    }
    endAccess(n, miss)
  }

  /// To `miss` where SYSRET would load another SS than the vendor's processors have behind it: one
  /// that SYSCALL has loaded is the same to both.
  private func keepStackSegment(_ miss: Label) {
    let same = a.label()
    a.move(.r14, immediate: UInt64(FlatRights.data) << 32 | 0xFFFF_FFFF)
    a.arithmetic(.cmp, .r14, .state(SegmentOffset.limitAndRights(.ss)))
    a.jump(if: Self.equal, same)
    refuse(
      VendorRules.sysretKeepsStackSegment.rawValue, StateOffset.vendorRules, miss)
    a.bind(same)
  }

  // MARK: Division

  /// DIV and IDIV of 32 and 64 bits where the quotient fits for certain; the handler looks closer.
  /// As in the interpreter, flags stay.
  func lowerDivide(_ n: Int) {
    let i = instructions[n]
    let wide = i.operandSize == 8
    let miss = missLabel()
    clobberFlags(n)
    if let m = i.memoryOperand {
      accessOperand(n, i.operands[m], miss)
      if wide { a.load(.r15, .memory(.r13)) } else { a.load32(.r15, .memory(.r13)) }
    } else {
      let number = i.operands[0].number
      let place = RegisterMap.host(number).map { Place.register($0) } ?? RegisterMap.place(number)
      if wide { a.load(.r15, place) } else { a.load32(.r15, place) }
    }
    if i.mnemonic == .div {
      a.emit(Form(0x3B, wide: wide), reg: HostRegister.rdx.rawValue, rm: .register(.r15))
      a.jump(if: Self.aboveOrEqual, miss)
    } else {
      requireSignedQuotient(wide, miss)
    }
    a.emit(Form(0xF7, wide: wide), reg: i.mnemonic == .div ? 6 : 7, rm: .register(.r15))
    endAccess(n, miss)
  }

  private static let aboveOrEqual: UInt8 = 3

  /// The dividend is rAX with its sign, the divisor in R15 neither 0 nor -1.
  private func requireSignedQuotient(_ wide: Bool, _ miss: Label) {
    a.move(.r14, .rax)
    a.emit(Form(0xC1, wide: wide), reg: 7, rm: .register(.r14))
    a.byte(wide ? 63 : 31)
    a.emit(Form(0x3B, wide: wide), reg: HostRegister.r14.rawValue, rm: .register(.rdx))
    a.jump(if: Self.notEqual, miss)
    a.lea(.r14, .memory(.r15, 1))
    a.arithmetic(.cmp, .register(.r14), immediate: 1, wide: wide)
    a.jump(if: 6, miss)
  }

  // MARK: CMPXCHG16B

  func lowerCompareExchange(_ n: Int) {
    let i = instructions[n]
    let wide = i.mnemonic == .cmpxchg16b
    let miss = missLabel()
    accessOperand(n, i.operands[0], miss)
    if wide {
      a.testByte(.register(.r13), 15)
      a.jump(if: Self.notEqual, miss)
    }
    needFlags(n)
    var form = Form(0xC7, map: .two, wide: wide)
    form.lock = i.prefixes.contains(.lock)
    a.emit(form, reg: 1, rm: .memory(.r13))
    noteFlags(n)
    endAccess(n, miss)
  }

  // MARK: Bit strings

  /// BT and its kin of memory with the bit's number in a register: the number's upper part
  /// addresses.
  func lowerBitString(_ n: Int) {
    let i = instructions[n]
    let wide = i.operandSize == 8
    let miss = missLabel()
    clobberFlags(n)
    linearAddress(n)
    loadBitNumber(.r14, i, wide)
    if !wide { a.emit(Form(0x63, wide: true), reg: 14, rm: .register(.r14)) }
    a.shiftRightSigned(.r14, wide ? 6 : 5)
    leaWord(.r13, .memory(.r13, index: .r14, scale: wide ? 3 : 2))
    translateAddress(
      size: Int(i.operandSize), write: i.operands[0].access.contains(.write), miss)
    needFlags(n)
    loadBitNumber(.r15, i, wide)
    a.move(.r14, immediate: wide ? 63 : 31)
    a.extractBits(.r15, .r14)
    var form = Form(i.encoding.opcode, map: .two, wide: wide)
    form.lock = i.prefixes.contains(.lock)
    a.emit(form, reg: HostRegister.r15.rawValue, rm: .memory(.r13))
    noteFlags(n)
    endAccess(n, miss)
  }

  private func loadBitNumber(_ to: HostRegister, _ i: Instruction, _ wide: Bool) {
    let number = i.operands[1].number
    let place = RegisterMap.host(number).map { Place.register($0) } ?? RegisterMap.place(number)
    if wide { a.load(to, place) } else { a.load32(to, place) }
  }
}
