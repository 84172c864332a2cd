// SPDX-License-Identifier: Apache-2.0
//
// Converts VT-x's exit reasons to vendor-neutral exits: one flat table, with a small function per
// reason that decodes the exit information. A function that needs vendor-specific work (a window,
// NMI blocking, a shadow register, INVVPID) does it here.

import X86
import X86CPU

extension VMX {
  typealias Decoder = @Sendable (VMX) -> GuestExit

  /// By basic exit reason.
  private static let decoders: [Decoder] = {
    var table = [Decoder](repeating: unexpected, count: ExitReason.count)
    for (reason, decoder) in entries { table[Int(reason.rawValue)] = decoder }
    return table
  }()

  /// Reasons without further information: a closure for each would count its context's references.
  private static let plainInstructions: [InterceptedInstruction?] = {
    var table = [InterceptedInstruction?](repeating: nil, count: ExitReason.count)
    for (reason, instruction) in instructions { table[Int(reason.rawValue)] = instruction }
    return table
  }()

  private static let entries: [(ExitReason, Decoder)] = [
    (.exceptionOrNMI, exception), (.externalInterrupt, externalInterrupt),
    (.preemptionTimer, externalInterrupt), (.tripleFault, { _ in .tripleFault }),
    (.interruptWindow, interruptWindow), (.nmiWindow, nmiWindow), (.taskSwitch, taskSwitch),
    (.invlpg, invlpg), (.controlRegisterAccess, controlRegister),
    (.debugRegisterAccess, debugRegister), (.ioInstruction, ioInstruction),
    (.invalidGuestState, entryFailed), (.msrLoading, entryFailed),
    (.machineCheckDuringEntry, entryFailed), (.monitorTrapFlag, { _ in .singleStep }),
    (.eptViolation, eptViolation), (.eptMisconfiguration, eptMisconfiguration),
    (.busLock, { _ in .busLock }), (.notify, notify),
  ]

  /// Instructions that their reason fully describes.
  private static let instructions: [(ExitReason, InterceptedInstruction)] = [
    (.cpuid, .cpuid), (.hlt, .hlt), (.rdmsr, .rdmsr), (.wrmsr, .wrmsr), (.xsetbv, .xsetbv),
    (.pause, .pause), (.rdpmc, .rdpmc), (.rdtsc, .rdtsc), (.rdtscp, .rdtscp),
    (.vmcall, .hypercall), (.monitor, .monitorWait), (.mwait, .monitorWait),
    (.invd, .cacheFlush), (.wbinvd, .cacheFlush), (.gdtrOrIDTRAccess, .emulated),
    (.ldtrOrTRAccess, .emulated), (.invpcid, .emulated), (.getsec, .undefined),
    (.rsm, .undefined), (.vmclear, .virtualization), (.vmlaunch, .virtualization),
    (.vmptrld, .virtualization), (.vmptrst, .virtualization), (.vmread, .virtualization),
    (.vmresume, .virtualization), (.vmwrite, .virtualization), (.vmxoff, .virtualization),
    (.vmxon, .virtualization), (.invept, .virtualization), (.invvpid, .virtualization),
    (.vmfunc, .undefined), (.encls, .undefined),
    // They exit only where the guest's CPUID does not have them.
    (.rdrand, .undefined), (.rdseed, .undefined),
  ]

  func takeExit() -> GuestExit {
    if let failure { return Self.refused(failure) }
    let reason = unsafe Int(cpu.vmread(.exitReason) & 0xFFFF)
    guard reason < ExitReason.count else { return Self.unexpected(self) }
    if let instruction = Self.plainInstructions[reason] { return .instruction(instruction) }
    return Self.decoders[reason](self)
  }

  /// VMLAUNCH or VMRESUME failed.
  private static func refused(_ failure: VMXError) -> GuestExit {
    guard case .failValid(let number) = failure else { return .entryFailed(reason: 0) }
    return .entryFailed(reason: UInt64(number.rawValue))
  }

  private var qualification: UInt64 { unsafe cpu.vmread(.exitQualification) }

  // MARK: Events

  /// Keeps NMIs blocked if the IRET that unblocked them did not complete: bit 12 of an EPT
  /// violation's qualification, and of an exception's information (SDM volume 3, "Information for
  /// VM Exits Due to Vectored Events"). During event delivery the bit is undefined; a double fault
  /// is not an IRET's.
  private func blockNMIsAgain() {
    guard unsafe cpu.vmread(.idtVectoringInfo) & UInt64(InterruptionInfo.validBit) == 0 else {
      return
    }
    let state = unsafe cpu.vmread(.guestInterruptibility)
    unsafe cpu.vmwrite(.guestInterruptibility, state | UInt64(Interruptibility.blockingByNMI))
  }

  /// #UD and a debugger's exceptions are intercepted, and the host sends us no NMIs.
  private static let exception: Decoder = { vmx in
    let info = unsafe InterruptionInfo(
      rawValue: UInt32(truncatingIfNeeded: vmx.cpu.vmread(.exitInterruptionInfo)))
    if info.rawValue & InterruptionInfo.nmiUnblockingBit != 0,
      info.vector != ExceptionVector.doubleFault.rawValue
    {
      vmx.blockNMIsAgain()
    }
    let event = unsafe GuestEvent(
      info,
      errorCode: UInt32(truncatingIfNeeded: vmx.cpu.vmread(.exitInterruptionErrorCode)),
      instructionLength: UInt32(truncatingIfNeeded: vmx.instructionLength))
    guard let event else { return unexpected(vmx) }
    return .exception(event, debugCauses: vmx.qualification)
  }

  private static let externalInterrupt: Decoder = { vmx in
    unsafe vmx.cpu.hasHostFault ? .hostFault : .externalInterrupt
  }

  private static let interruptWindow: Decoder = { vmx in
    vmx.setInterruptWindow(false)
    return .interruptWindow
  }

  private static let nmiWindow: Decoder = { vmx in
    vmx.setNMIWindow(false)
    return .nmiWindow
  }

  private static let taskSwitch: Decoder = { vmx in
    let task = TaskSwitchQualification(rawValue: vmx.qualification)
    return .taskSwitch(selector: task.selector, source: task.source)
  }

  private static let notify: Decoder = { vmx in
    let notify = NotifyQualification(rawValue: vmx.qualification)
    if notify.contains(.nmiUnblocking) { vmx.blockNMIsAgain() }
    return .notify(isContextLost: notify.contains(.contextIsInvalid))
  }

  // MARK: Instructions

  private static let invlpg: Decoder = { vmx in
    do throws(VMXError) {
      try unsafe vmx.cpu.invvpid(0, vpid: vmx.currentVPID, linear: vmx.qualification)
    } catch {
      vmx.failure = error
    }
    return .instruction(.invlpg)
  }

  private static let controlRegister: Decoder = { vmx in
    let access = ControlRegisterQualification(rawValue: vmx.qualification)
    let general = Int(access.general)
    let isWrite = access.access == .movTo
    let value = unsafe vmx.cpu.cpu.gpr[general]
    switch access.register {
    case 0 where isWrite && !vmx.isGuestInVMXOperation:
      // Only NE is not the guest's own. With the shadow as it wants it, the write needs no exit.
      let shadow = unsafe vmx.cpu.vmread(.cr0ReadShadow)
      unsafe vmx.cpu.vmwrite(
        .cr0ReadShadow, shadow & ~CR0.ne.rawValue | value & CR0.ne.rawValue)
      return .handled(.controlRegister)
    case 4 where isWrite && vmx.mayChangeVMXE(value):
      let shadow = unsafe vmx.cpu.vmread(.cr4ReadShadow)
      unsafe vmx.cpu.vmwrite(.cr4ReadShadow, shadow ^ CR4.vmxe.rawValue)
      return .handled(.controlRegister)
    case 0 where isWrite, 4 where isWrite, 8:
      return .controlRegister(number: access.register, general: general, isWrite: isWrite)
    default: return unexpected(vmx)
    }
  }

  /// A value of CR4 that differs from the guest's in VMXE, and has only bits that it may set.
  private func mayChangeVMXE(_ value: UInt64) -> Bool {
    let changes = unsafe (value ^ cpu.vmread(.cr4ReadShadow)) & CR4.vmxe.rawValue != 0
    return current === own && changes && value & ~allowedCR4 == 0 && !isGuestInVMXOperation
  }

  private static let debugRegister: Decoder = { vmx in
    let access = DebugRegisterQualification(rawValue: vmx.qualification)
    return .debugRegister(
      number: Int(access.register), general: Int(access.general), isRead: access.isRead)
  }

  private static let ioInstruction: Decoder = { vmx in
    let access = IOQualification(rawValue: vmx.qualification)
    guard access.isString else {
      return .port(PortExit(number: access.port, size: access.size, isInput: access.isInput))
    }
    // Instruction information: 9:7 address size, as a power of two from 16 bits.
    let addressSize = unsafe (vmx.cpu.vmread(.exitInstructionInfo) >> 7) & 7
    return unsafe .stringPort(
      StringPortExit(
        size: Int(access.size), isInput: access.isInput, isRepeated: access.isRepeated,
        linear: vmx.cpu.vmread(.guestLinearAddress),
        addressMask: [0xFFFF, 0xFFFF_FFFF, .max][Int(min(addressSize, 2))]))
  }

  // MARK: Memory

  private static let eptViolation: Decoder = { vmx in
    let violation = EPTViolationQualification(rawValue: vmx.qualification)
    if violation.contains(.nmiUnblocking) { vmx.blockNMIsAgain() }
    return unsafe .nestedFault(
      NestedFault(
        address: vmx.cpu.vmread(.guestPhysicalAddress),
        linear: vmx.cpu.vmread(.guestLinearAddress), isWrite: violation.contains(.write),
        isFetch: violation.contains(.fetch)))
  }

  private static let eptMisconfiguration: Decoder = { vmx in
    unsafe .unexpected(
      code: UInt64(ExitReason.eptMisconfiguration.rawValue),
      detail: vmx.cpu.vmread(.guestPhysicalAddress))
  }

  // MARK: Failures

  private static let entryFailed: Decoder = { vmx in
    unsafe .entryFailed(reason: vmx.cpu.vmread(.exitReason))
  }

  private static let unexpected: Decoder = { vmx in
    unsafe .unexpected(code: vmx.cpu.vmread(.exitReason), detail: nil)
  }
}
