// SPDX-License-Identifier: Apache-2.0
//
// The exit-information fields of the VMCS (SDM volume 3, "VM-Exit Information Fields"), derived
// from the processor's record of the exit when they are read.
//
//     ExitFields(of: cpu).reason          // from a table by ExitCause
//     ExitFields(of: cpu).qualification   // by the types of X86/ExitQualifications.swift

import X86

extension ExitReason {
  /// The basic exit reason of a cause; 0xFFFF if VT-x has none.
  init(_ cause: ExitCause) {
    self =
      switch cause {
      case .exception, .nmi: .exceptionOrNMI
      case .externalInterrupt: .externalInterrupt
      case .initSignal: .initSignal
      case .startupIPI: .startupIPI
      case .smi: .otherSMI
      case .tripleFault: .tripleFault
      case .interruptWindow: .interruptWindow
      case .nmiWindow: .nmiWindow
      case .preemptionTimer: .preemptionTimer
      case .monitorTrap: .monitorTrapFlag
      case .busLock: .busLock
      case .notify: .notify
      case .taskSwitch: .taskSwitch
      case .tprBelowThreshold: .tprBelowThreshold
      case .apicAccess: .apicAccess
      case .apicWrite: .apicWrite
      case .virtualizedEOI: .virtualizedEOI
      case .pageLogFull: .pmlFull
      case .nestedFault: .eptViolation
      case .nestedMisconfiguration: .eptMisconfiguration
      case .controlRegisterAccess: .controlRegisterAccess
      case .debugRegisterAccess: .debugRegisterAccess
      case .ioInstruction: .ioInstruction
      case .rdmsr: .rdmsr
      case .wrmsr: .wrmsr
      case .cpuid: .cpuid
      case .hlt: .hlt
      case .invd: .invd
      case .wbinvd: .wbinvd
      case .invlpg: .invlpg
      case .invpcid: .invpcid
      case .rdpmc: .rdpmc
      case .rdtsc: .rdtsc
      case .rdtscp: .rdtscp
      case .rsm: .rsm
      case .pause: .pause
      case .monitor: .monitor
      case .mwait: .mwait
      case .xsetbv: .xsetbv
      case .xsaves: .xsaves
      case .xrstors: .xrstors
      case .rdrand: .rdrand
      case .rdseed: .rdseed
      case .sgdt, .sidt, .lgdt, .lidt: .gdtrOrIDTRAccess
      case .sldt, .str, .lldt, .ltr: .ldtrOrTRAccess
      case .hypercall: .vmcall
      case .vmclear: .vmclear
      case .vmlaunch: .vmlaunch
      case .vmptrld: .vmptrld
      case .vmptrst: .vmptrst
      case .vmread: .vmread
      case .vmresume: .vmresume
      case .vmwrite: .vmwrite
      case .vmxoff: .vmxoff
      case .vmxon: .vmxon
      case .invept: .invept
      case .invvpid: .invvpid
      case .vmfunc: .vmfunc
      case .none, .ferrFreeze, .selectiveCR0Write, .iret, .pushf, .popf, .softwareInterrupt,
        .icebp, .rdpru, .vmrun, .vmload, .vmsave, .stgi, .clgi, .skinit, .invlpga:
        ExitReason(rawValue: 0xFFFF)
      }
  }
}

package struct ExitFields {
  /// The last exit's record, in the CPU's state.
  let record: UnsafePointer<ExitRecord>

  @inline(__always) package init(of cpu: CPU) {
    record = withUnsafePointer(to: &cpu.s.pointee.exit) { $0 }
  }

  package var basicReason: ExitReason { ExitReason(record.pointee.cause) }

  package var reason: UInt32 {
    UInt32(basicReason.rawValue) | (record.pointee.cause == .busLock ? ExitReason.busLockBit : 0)
  }

  package var qualification: UInt64 {
    let exit = record.pointee
    switch exit.cause {
    case .controlRegisterAccess: return controlRegister(exit)
    case .debugRegisterAccess:
      return DebugRegisterQualification(
        register: exit.register, isRead: exit.access == .read, general: exit.general
      ).rawValue
    case .ioInstruction:
      return IOQualification(
        size: Int(exit.size), isInput: exit.access == .read,
        isString: exit.details.contains(.isString),
        isRepeated: exit.details.contains(.isRepeated),
        isImmediate: exit.details.contains(.isImmediate), port: exit.selector
      ).rawValue
    case .taskSwitch:
      return TaskSwitchQualification(selector: exit.selector, source: exit.taskSource).rawValue
    case .nestedFault: return violation(exit)
    case .apicAccess: return APICAccessQualification(exit).rawValue
    case .pageLogFull:
      return exit.details.contains(.unblockedNMI)
        ? EPTViolationQualification.nmiUnblocking.rawValue : 0
    case .mwait: return exit.details.contains(.isArmed) ? 1 : 0
    default: return exit.value
    }
  }

  private func controlRegister(_ exit: ExitRecord) -> UInt64 {
    switch exit.access {
    case .read, .write:
      ControlRegisterQualification(
        exit.access == .read ? .movFrom : .movTo, register: exit.register, general: exit.general
      ).rawValue
    case .clts: ControlRegisterQualification(.clts).rawValue
    case .lmsw, .smsw:
      ControlRegisterQualification(
        lmsw: UInt16(truncatingIfNeeded: exit.value),
        fromMemory: exit.details.contains(.isFromMemory)
      ).rawValue
    }
  }

  private func violation(_ exit: ExitRecord) -> UInt64 {
    var result = EPTViolationQualification.rights(exit.value)
    switch exit.kind {
    case .read: result.insert(.read)
    case .write: result.insert(.write)
    case .execute: result.insert(.fetch)
    }
    if exit.details.contains(.linearIsValid) { result.insert(.linearIsValid) }
    if exit.details.contains(.isTranslated) { result.insert(.isTranslated) }
    if exit.details.contains(.unblockedNMI) { result.insert(.nmiUnblocking) }
    if exit.details.contains(.alsoReads) { result.insert(.read) }
    if exit.details.contains(.isUserPage) { result.insert(.isUserPage) }
    if exit.details.contains(.isWritablePage) { result.insert(.isWritablePage) }
    if exit.details.contains(.isNotExecutablePage) { result.insert(.isNotExecutablePage) }
    if exit.value & EPTEntry.userExecute != 0 { result.insert(.userExecute) }
    return result.rawValue
  }

  package var guestLinear: UInt64 { record.pointee.linear }
  package var guestPhysical: UInt64 { record.pointee.physical }

  package var interruptionInfo: UInt32 {
    guard let event = record.pointee.event else { return 0 }
    let unblocked = record.pointee.details.contains(.unblockedNMI)
    return InterruptionInfo(event).rawValue | (unblocked ? InterruptionInfo.nmiUnblockingBit : 0)
  }

  package var interruptionErrorCode: UInt32 { record.pointee.event?.errorCode ?? 0 }

  package var idtVectoringInfo: UInt32 {
    record.pointee.interrupted.map { InterruptionInfo($0).rawValue } ?? 0
  }

  package var idtVectoringErrorCode: UInt32 { record.pointee.interrupted?.errorCode ?? 0 }
  package var instructionLength: UInt32 { UInt32(record.pointee.instructionLength) }

  package var instructionInfo: UInt32 {
    InstructionInformation.of(record.pointee.operands, record.pointee.cause)
  }
}

extension APICAccessQualification {
  fileprivate init(_ exit: ExitRecord) {
    let kind: Kind =
      switch APICAccessKind(rawValue: exit.size) ?? .read {
      case .read: .read
      case .write: .write
      case .fetch: .fetch
      case .delivery: .delivery
      case .physical: .physical
      case .physicalDelivery: .physicalDelivery
      }
    self.init(kind, offset: exit.selector)
  }
}

/// The fields, by the number in their row of the VMCS's layout.
enum ExitField: UInt16 {
  case reason, qualification, guestLinear, guestPhysical, interruptionInfo, interruptionErrorCode
  case idtVectoringInfo, idtVectoringErrorCode, instructionLength, instructionInfo
  /// I/O RCX, RSI, RDI, RIP: only for SMIs, which do not occur.
  case io
}

extension ExitFields {
  func value(_ number: UInt16) -> UInt64 {
    switch ExitField(rawValue: number) {
    case .reason: UInt64(reason)
    case .qualification: qualification
    case .guestLinear: guestLinear
    case .guestPhysical: guestPhysical
    case .interruptionInfo: UInt64(interruptionInfo)
    case .interruptionErrorCode: UInt64(interruptionErrorCode)
    case .idtVectoringInfo: UInt64(idtVectoringInfo)
    case .idtVectoringErrorCode: UInt64(idtVectoringErrorCode)
    case .instructionLength: UInt64(instructionLength)
    case .instructionInfo: UInt64(instructionInfo)
    case .io, nil: 0
    }
  }
}
