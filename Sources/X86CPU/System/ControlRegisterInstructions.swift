// SPDX-License-Identifier: Apache-2.0
//
// MOV to and from control registers, CLTS, LMSW, SMSW, XGETBV, XSETBV, CLAC, STAC, with their
// exits.
//
// With VT-x the hypervisor owns some bits of CR0 and CR4 (SDM volume 3, "Changes to Instruction
// Behavior in VMX Non-Root Operation"). The guest reads those (mask 1) from the read shadow, and a
// write that differs from the shadow exits; it owns all other bits:
//
//     mov cr0, rax    exits if (rax ^ shadow) & mask; else CR0 = CR0 & mask | rax & ~mask
//
// SVM intercepts reads and writes of each whole register, and writes of CR0 that change bits other
// than TS and MP (APM volume 2, "Instruction Intercepts"); its masks are 0.

import X86
import X86Decoder

enum ControlRegisterInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.movControl] = .custom { i, _, _ in
      switch (i.operands[0].kind == .control, i.prefixes.contains(.lock)) {
      case (true, false): { system($0, $1, ControlRegisterInstructions.movTo) }
      case (false, false): { system($0, $1, ControlRegisterInstructions.movFrom) }
      case (true, true): { system($0, $1, ControlRegisterInstructions.lockedMovTo) }
      case (false, true): { system($0, $1, ControlRegisterInstructions.lockedMovFrom) }
      }
    }
    t[.movDebug] = choose(
      { system($0, $1, DebugRegisterInstructions.movTo) },
      { system($0, $1, DebugRegisterInstructions.movFrom) }
    ) { $0.operands[0].kind == .debug }
    t[.clts] = .single({ system($0, $1, ControlRegisterInstructions.clts) })
    t[.lmsw] = choose(
      { system($0, $1, ControlRegisterInstructions.lmswRegister) },
      { system($0, $1, ControlRegisterInstructions.lmswMemory) }
    ) {
      $0.memoryOperand == nil
    }
    t[.smsw] = .forms(
      register: .init(
        nil, { ControlRegisterInstructions.smswRegister(UInt16.self, $0, $1) },
        { ControlRegisterInstructions.smswRegister(UInt32.self, $0, $1) },
        { ControlRegisterInstructions.smswRegister(UInt64.self, $0, $1) }),
      load: .init(),
      store: .init(
        { system($0, $1, ControlRegisterInstructions.smswMemory) },
        { system($0, $1, ControlRegisterInstructions.smswMemory) },
        { system($0, $1, ControlRegisterInstructions.smswMemory) },
        { system($0, $1, ControlRegisterInstructions.smswMemory) }))
    t[.xgetbv] = .single({ system($0, $1, ControlRegisterInstructions.xgetbv) })
    t[.xsetbv] = .single({ system($0, $1, ControlRegisterInstructions.xsetbv) })
    t[.clac] = .single({ system($0, $1, ControlRegisterInstructions.clac) })
    t[.stac] = .single({ system($0, $1, ControlRegisterInstructions.stac) })
  }

  /// The first handler if the condition holds for an instruction, else the second.
  private static func choose(
    _ first: @escaping Handler, _ second: @escaping Handler,
    _ condition: @escaping (Instruction) -> Bool
  ) -> LoweringRule {
    .custom { instruction, _, _ in condition(instruction) ? first : second }
  }

  private static func exit(
    _ c: CPU, _ i: MicroOpPointer, _ access: RegisterAccess, register: UInt8 = 0,
    general: UInt8 = 0, cause: ExitCause = .controlRegisterAccess
  ) -> GuestException {
    let exception = c.exit(cause, i)
    c.s.pointee.exit.access = access
    c.s.pointee.exit.register = register
    c.s.pointee.exit.general = general
    return exception
  }

  /// Whether all reads, or writes, of a control register exit.
  @inline(__always) private static func exits(_ registers: UInt16, _ number: UInt8) -> Bool {
    registers >> UInt16(number & 15) & 1 != 0
  }

  private static func writesExit(_ c: CPU, _ number: UInt8) -> Bool {
    exits(c.s.pointee.intercepts.crWrites, number)
  }

  private static func readsExit(_ c: CPU, _ number: UInt8) -> Bool {
    exits(c.s.pointee.intercepts.crReads, number)
  }

  // MARK: MOV

  static func movTo(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let number = i.pointee.register0
    guard [0, 2, 3, 4, 8].contains(number) else { throw .invalidOpcode }
    try c.requirePrivilege()
    let source = c.read(i.pointee.src, as: UInt64.self)
    let value = c.is64Bit ? source : source & 0xFFFF_FFFF
    switch number {
    case 0: try movToCR0(c, i, value)
    case 2:
      if writesExit(c, 2) { throw writeExit(c, i) }
      c.s.pointee.cr2 = value
    case 3: try movToCR3(c, i, value)
    case 4: try movToCR4(c, i, value)
    default:
      try c.exitOrCheck(writesExit(c, 8), writeExit(c, i)) { () throws(GuestException) in
        try c.checkCR8(value)
      }
      if c.virtualizesTPR { return c.writeVirtualCR8(value, i) }
      c.s.pointee.cr8 = value
      if c.s.pointee.intercepts.mode == .svm { c.updateVirtualEvents() }
    }
    return c.reload(i)
  }

  private static func writeExit(
    _ c: CPU, _ i: MicroOpPointer, cause: ExitCause = .controlRegisterAccess
  ) -> GuestException {
    exit(
      c, i, .write, register: i.pointee.register0, general: i.pointee.register1, cause: cause)
  }

  /// Whether a CR0 value exits by SVM's selective intercept: it changes more than TS and MP.
  private static func isSelected(_ c: CPU, _ new: UInt64) -> Bool {
    let free = CR0([.ts, .mp]).rawValue
    return c.intercepts(.selectiveCR0Write) && (new ^ c.s.pointee.cr0) & ~free != 0
  }

  private static func movToCR0(
    _ c: CPU, _ i: MicroOpPointer, _ value: UInt64
  ) throws(GuestException) {
    let mask = c.s.pointee.intercepts.cr0Mask
    let new = value & ~mask | c.s.pointee.cr0 & mask
    let exits = (value ^ c.s.pointee.intercepts.cr0Shadow) & mask != 0 || writesExit(c, 0)
    let isSelected = !exits && isSelected(c, new)
    let cause: ExitCause = isSelected ? .selectiveCR0Write : .controlRegisterAccess
    if exits || isSelected {
      try c.exitOrCheck(true, writeExit(c, i, cause: cause)) { () throws(GuestException) in
        try c.checkCR0(new)
      }
    }
    try c.writeCR0(new)
  }

  private static func movToCR4(
    _ c: CPU, _ i: MicroOpPointer, _ value: UInt64
  ) throws(GuestException) {
    let mask = c.s.pointee.intercepts.cr4Mask
    let new = value & ~mask | c.s.pointee.cr4 & mask
    let exits = (value ^ c.s.pointee.intercepts.cr4Shadow) & mask != 0 || writesExit(c, 4)
    if exits {
      try c.exitOrCheck(true, writeExit(c, i)) { () throws(GuestException) in
        try c.checkCR4(new)
      }
    }
    try c.writeCR4(new)
  }

  private static func movToCR3(
    _ c: CPU, _ i: MicroOpPointer, _ value: UInt64
  ) throws(GuestException) {
    if writesExit(c, 3) {
      var isTarget = false
      for n in 0..<min(4, Int(c.s.pointee.intercepts.cr3TargetCount)) {
        isTarget = isTarget || c.s.pointee.intercepts.cr3Targets[n] == value
      }
      if !isTarget {
        try c.exitOrCheck(true, writeExit(c, i)) { () throws(GuestException) in
          try c.checkCR3(value)
        }
      }
    }
    try c.writeCR3(value)
  }

  static func movFrom(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let number = i.pointee.register1
    guard [0, 2, 3, 4, 8].contains(number) else { throw .invalidOpcode }
    try c.requirePrivilege()
    if readsExit(c, number) {
      throw exit(c, i, .read, register: number, general: i.pointee.register0)
    }
    let value: UInt64
    switch number {
    case 0: value = c.visibleCR0
    case 2: value = c.s.pointee.cr2
    case 3: value = c.s.pointee.cr3
    case 4: value = c.visibleCR4
    default: value = c.virtualizesTPR ? UInt64(c.virtualTPR >> 4) : c.s.pointee.cr8
    }
    if c.is64Bit {
      c.write(value, to: i.pointee.dst)
    } else {
      c.write(UInt32(truncatingIfNeeded: value), to: i.pointee.dst)
    }
    return Step.next
  }

  /// LOCK MOV CR0 is CR8 in every mode, or #UD.
  private static func requireLockedCR8(_ c: CPU) throws(GuestException) {
    if !c.follows(.lockedCR8) { throw .invalidOpcode }
  }

  static func lockedMovTo(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireLockedCR8(c)
    return try movTo(c, i)
  }

  static func lockedMovFrom(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try requireLockedCR8(c)
    return try movFrom(c, i)
  }

  // MARK: CLTS, LMSW, SMSW

  static func clts(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    let ts = CR0.ts.rawValue
    if writesExit(c, 0) { throw exit(c, i, .clts) }
    if c.s.pointee.intercepts.cr0Mask & ts != 0 {
      if c.s.pointee.intercepts.cr0Shadow & ts != 0 { throw exit(c, i, .clts) }
      return Step.next
    }
    c.s.pointee.cr0 &= ~ts
    return c.reload(i)
  }

  /// SVM: LMSW exits before it reads memory, also by the selective intercept, whatever it writes
  /// (APM volume 2, "Instruction Intercepts").
  private static func exitBeforeLMSW(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) {
    if writesExit(c, 0) { throw exit(c, i, .lmsw) }
    if c.intercepts(.selectiveCR0Write) { throw exit(c, i, .lmsw, cause: .selectiveCR0Write) }
  }

  static func lmswRegister(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    try exitBeforeLMSW(c, i)
    let value = UInt64(c.read(i.pointee.dst, as: UInt16.self))
    return try lmsw(c, i, value, memory: nil)
  }

  static func lmswMemory(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    try exitBeforeLMSW(c, i)
    let address = try c.linearAddress(i, size: 2)
    return try lmsw(c, i, UInt64(try c.load(address, as: UInt16.self)), memory: address)
  }

  private static func lmsw(
    _ c: CPU, _ i: MicroOpPointer, _ source: UInt64, memory: UInt64?
  ) throws(GuestException) -> Int32 {
    let mask = c.s.pointee.intercepts.cr0Mask
    let shadow = c.s.pointee.intercepts.cr0Shadow
    let old = c.s.pointee.cr0
    // LMSW sets PE but cannot clear it.
    let new = (old & ~0xE | source & 0xF) & ~mask | old & mask
    let setsPE = mask & source & ~shadow & CR0.pe.rawValue != 0
    if setsPE || (source ^ shadow) & mask & 0xE != 0 {
      let exception = exit(c, i, .lmsw)
      c.s.pointee.exit.value = source
      c.s.pointee.exit.linear = memory ?? 0
      if memory != nil { c.s.pointee.exit.details = .isFromMemory }
      throw exception
    }
    try c.writeCR0(new)
    return c.reload(i)
  }

  /// SMSW reads CR0 like MOV; UMIP denies it to user code.
  private static func machineStatus(
    _ c: CPU, _ i: MicroOpPointer
  ) throws(GuestException) -> UInt64 {
    if c.cpl != 0 && c.s.pointee.cr4 & CR4.umip.rawValue != 0 { throw .generalProtection }
    if readsExit(c, 0) { throw exit(c, i, .smsw) }
    return c.visibleCR0
  }

  @inline(__always) static func smswRegister<T: OperandInteger>(
    _: T.Type, _ c: RawPointer, _ i: RawPointer
  ) -> Int32 {
    system(c, i) { (c, i) throws(GuestException) in
      c.write(T(truncatingIfNeeded: try machineStatus(c, i)), to: i.pointee.dst)
      return Step.next
    }
  }

  static func smswMemory(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    let value = try machineStatus(c, i)
    let address = try c.linearAddress(i, size: 2, .write)
    try c.store(UInt16(truncatingIfNeeded: value), at: address)
    return Step.next
  }

  // MARK: XGETBV, XSETBV

  static func xgetbv(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.s.pointee.cr4 & CR4.osxsave.rawValue == 0 { throw .invalidOpcode }
    let index = UInt32(truncatingIfNeeded: c.gpr[1])
    // Index 1 is XCR0 & XINUSE: all enabled components count as in use.
    guard index == 0 || (index == 1 && CPUIDModel.hasXGETBV1) else { throw .generalProtection }
    let value = c.s.pointee.xcr0
    c.gpr[0] = value & 0xFFFF_FFFF
    c.gpr[2] = value >> 32
    return Step.next
  }

  static func xsetbv(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.s.pointee.cr4 & CR4.osxsave.rawValue == 0 { throw .invalidOpcode }
    // VT-x exits after the privilege check, SVM before every #GP.
    let exits = c.intercepts(.xsetbv)
    if exits && c.s.pointee.intercepts.mode == .svm { throw c.exit(.xsetbv, i) }
    try c.requirePrivilege()
    if exits { throw c.exit(.xsetbv, i) }
    let value = c.gpr[2] << 32 | c.gpr[0] & 0xFFFF_FFFF
    if UInt32(truncatingIfNeeded: c.gpr[1]) != 0 { throw .generalProtection }
    try c.checkXCR0(value)
    c.s.pointee.xcr0 = value
    return c.reload(i)
  }

  // MARK: CLAC, STAC

  static func clac(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.cpl != 0 { throw .invalidOpcode }
    c.s.pointee.rflags &= ~RFLAGS.ac.rawValue
    c.selectTLBBank()
    return Step.next
  }

  static func stac(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.cpl != 0 { throw .invalidOpcode }
    c.s.pointee.rflags |= RFLAGS.ac.rawValue
    c.selectTLBBank()
    return Step.next
  }
}

extension CPU {
  /// CR0 as the guest reads it.
  package var visibleCR0: UInt64 {
    let mask = s.pointee.intercepts.cr0Mask
    return s.pointee.cr0 & ~mask | s.pointee.intercepts.cr0Shadow & mask
  }

  /// CR4 as the guest reads it.
  package var visibleCR4: UInt64 {
    let mask = s.pointee.intercepts.cr4Mask
    return s.pointee.cr4 & ~mask | s.pointee.intercepts.cr4Shadow & mask
  }
}
