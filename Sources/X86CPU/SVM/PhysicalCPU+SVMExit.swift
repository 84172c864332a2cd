// SPDX-License-Identifier: Apache-2.0
//
// The end of an exit (APM volume 2, "#VMEXIT"). Converts the `ExitRecord` to EXITCODE, EXITINFO1,
// EXITINFO2, EXITINTINFO and nRIP: a table from causes to codes, and a small function for each
// cause with further information. The guest's state stays in the CPU.

import X86

extension PhysicalCPU {
  /// Completes an exit recorded by guest code.
  func completeExit(_ vmcb: VMCB) -> SVMExitCode {
    let s = cpu.s
    let code = exitCode
    vmcb[.exitCode] = code.rawValue
    let (first, second) = exitInformation
    vmcb[.exitInfo1] = first
    vmcb[.exitInfo2] = second
    vmcb[.exitInterruptInfo] = s.pointee.exit.interrupted.map { SVMEvent($0).rawValue } ?? 0
    vmcb[.nextRIP] = s.pointee.exit.instructionLength == 0 ? 0 : cpu.exitNextRIP
    vmcb[.eventInjection] = 0
    if s.pointee.exit.details.contains(.unblockedNMI) {
      // The IRET has not executed: NMIs stay blocked until it does.
      s.pointee.interruptibility |= Interruptibility.blockingByNMI
    }
    s.pointee.injection = nil
    saveVirtualInterrupt(vmcb)
    return code
  }

  /// VMEXIT_INVALID: the guest executed nothing.
  func failEntry(_ vmcb: VMCB) -> SVMExitCode {
    vmcb[.exitCode] = SVMExitCode.invalid.rawValue
    for field in [VMCBField.exitInfo1, .exitInfo2, .exitInterruptInfo] { vmcb[field] = 0 }
    // Check all of it again.
    vmcb[.cleanBits] = 0
    return .invalid
  }

  /// Saves V_TPR, V_IRQ, V_NMI and V_NMI_MASK.
  func saveVirtualInterrupt(_ vmcb: VMCB) {
    let s = cpu.s
    var word = s.pointee.virtualInterrupt
    word.tpr = UInt8(truncatingIfNeeded: s.pointee.cr8)
    if word.isNMIEnabled {
      let isMasked = s.pointee.interruptibility & Interruptibility.blockingByNMI != 0
      word.rawValue &= ~VirtualInterrupt.nmiMaskedBit
      if isMasked { word.rawValue |= VirtualInterrupt.nmiMaskedBit }
    }
    s.pointee.virtualInterrupt = word
    vmcb[.virtualInterrupt] = word.rawValue
  }

  // MARK: Codes

  private var exitCode: SVMExitCode {
    let exit = cpu.s.pointee.exit
    let isRead = exit.access == .read || exit.access == .smsw
    switch exit.cause {
    case .exception: return .exception(exit.event?.vector ?? 0)
    case .controlRegisterAccess: return isRead ? .readCR(exit.register) : .writeCR(exit.register)
    case .debugRegisterAccess: return isRead ? .readDR(exit.register) : .writeDR(exit.register)
    case .mwait:
      // The conditional intercept has priority.
      let isConditional = cpu.s.pointee.intercepts.set.contains(.armedMWAIT)
      return isConditional && exit.details.contains(.isArmed) ? .armedMWAIT : .mwait
    default: return SVMExitCode.byCause[Int(exit.cause.rawValue)]
    }
  }

  private var exitInformation: (UInt64, UInt64) {
    let exit = cpu.s.pointee.exit
    switch exit.cause {
    case .exception: return exceptionInformation(exit)
    case .controlRegisterAccess, .selectiveCR0Write:
      let isMove = exit.access == .read || exit.access == .write
      return (isMove ? SVMControlRegisterInfo(general: exit.general).rawValue : 0, 0)
    case .debugRegisterAccess: return (UInt64(exit.general), 0)
    case .ioInstruction: return portInformation(exit)
    case .wrmsr: return (1, 0)
    case .invlpg: return (exit.value, 0)
    case .invpcid: return invpcidInformation(exit)
    case .softwareInterrupt: return (UInt64(exit.register), 0)
    case .taskSwitch: return taskInformation(exit)
    case .nestedFault, .nestedMisconfiguration: return (nestedInformation(exit), exit.physical)
    default: return (0, 0)
    }
  }

  /// The error code; for a page fault the address too. Causes of debug exceptions are in DR6.
  private func exceptionInformation(_ exit: ExitRecord) -> (UInt64, UInt64) {
    let code = UInt64(exit.event?.errorCode ?? 0)
    switch exit.event?.vector {
    case ExceptionVector.pageFault.rawValue: return (code, exit.value)
    case ExceptionVector.debug.rawValue:
      let s = cpu.s
      s.pointee.dr6 =
        s.pointee.dr6 & ~PendingDebug.breakpoints | exit.value & DR6.writable.rawValue
        | DR6.initial.rawValue
      return (0, 0)
    default: return (code, 0)
    }
  }

  /// The descriptor's linear address, and the type.
  private func invpcidInformation(_ exit: ExitRecord) -> (UInt64, UInt64) {
    let mask: UInt64 = cpu.is64Bit ? .max : 0xFFFF_FFFF
    let type = cpu.gpr[Int(truncatingIfNeeded: exit.operands.otherRegister)] & mask
    return (cpu.linearAddress(exit.operands, displacement: exit.value), type)
  }

  private func portInformation(_ exit: ExitRecord) -> (UInt64, UInt64) {
    let info = SVMPortInfo(
      size: Int(exit.size), addressSize: Int(exit.operands.addressSize),
      isInput: exit.access == .read, isString: exit.details.contains(.isString),
      isRepeated: exit.details.contains(.isRepeated),
      segment: SegmentRegister(rawValue: exit.operands.segment) ?? .ds, port: exit.selector)
    return (info.rawValue, cpu.exitNextRIP)
  }

  private func taskInformation(_ exit: ExitRecord) -> (UInt64, UInt64) {
    let info = SVMTaskSwitchInfo(
      exit.taskSource, errorCode: exit.interrupted?.errorCode,
      resumeFlag: cpu.s.pointee.rflags & RFLAGS.rf.rawValue != 0)
    return (UInt64(exit.selector), info.rawValue)
  }

  private func nestedInformation(_ exit: ExitRecord) -> UInt64 {
    var info: NestedFaultInfo = .user
    switch exit.kind {
    case .read: break
    case .write: info.insert(.write)
    case .execute: info.insert(.fetch)
    }
    if exit.value & EPTEntry.rightsMask != 0 { info.insert(.present) }
    if exit.cause == .nestedMisconfiguration { info.formUnion([.present, .reserved]) }
    info.insert(exit.details.contains(.isTranslated) ? .finalAddress : .guestTable)
    return info.rawValue
  }
}

extension SVMExitCode {
  /// The code of each cause; those with a number are computed instead.
  static let byCause: [SVMExitCode] = {
    var table = [SVMExitCode](repeating: .shutdown, count: ExitCause.count)
    for (cause, code) in rows { table[Int(cause.rawValue)] = code }
    return table
  }()

  private static let rows: [(ExitCause, SVMExitCode)] = [
    (.externalInterrupt, .interrupt), (.nmi, .nmi), (.initSignal, .initSignal), (.smi, .smi),
    (.tripleFault, .shutdown), (.interruptWindow, .virtualInterrupt),
    (.ferrFreeze, .ferrFreeze), (.taskSwitch, .taskSwitch), (.nestedFault, .nestedPageFault),
    (.nestedMisconfiguration, .nestedPageFault), (.selectiveCR0Write, .selectiveCR0Write),
    (.ioInstruction, .port), (.rdmsr, .msr), (.wrmsr, .msr), (.cpuid, .cpuid), (.hlt, .hlt),
    (.invd, .invd), (.wbinvd, .wbinvd), (.invlpg, .invlpg), (.invpcid, .invpcid),
    (.rdpmc, .rdpmc), (.rdtsc, .rdtsc), (.rdtscp, .rdtscp), (.rsm, .rsm), (.pause, .pause),
    (.monitor, .monitor), (.xsetbv, .xsetbv), (.sgdt, .gdtrRead), (.sidt, .idtrRead),
    (.sldt, .ldtrRead), (.str, .trRead), (.lgdt, .gdtrWrite), (.lidt, .idtrWrite),
    (.lldt, .ldtrWrite), (.ltr, .trWrite), (.hypercall, .vmmcall), (.iret, .iret),
    (.pushf, .pushf), (.popf, .popf), (.softwareInterrupt, .softwareInterrupt),
    (.icebp, .icebp), (.rdpru, .rdpru), (.vmrun, .vmrun), (.vmload, .vmload),
    (.vmsave, .vmsave), (.stgi, .stgi), (.clgi, .clgi), (.skinit, .skinit),
    (.invlpga, .invlpga),
  ]
}
