// SPDX-License-Identifier: Apache-2.0
//
// What follows each exit reason: one flat table, one small function per reason. The functions
// translate VMX's exit information into what the vCPU is asked to do.

import CHost
import X86
import X86CPU

extension VMX {
  typealias Handler = @Sendable (VMX, VirtualCPU) -> Disposition

  /// By basic exit reason.
  private static let handlers: [Handler] = {
    var table = [Handler](repeating: exitUnexpected, count: ExitReason.count)
    for (reason, handler) in entries { table[Int(reason.rawValue)] = handler }
    return table
  }()

  private static let entries: [(ExitReason, Handler)] = [
    (.exceptionOrNMI, exitExceptionOrNMI), (.externalInterrupt, exitExternalInterrupt),
    (.tripleFault, exitTripleFault), (.interruptWindow, exitInterruptWindow),
    (.nmiWindow, exitNMIWindow), (.taskSwitch, exitTaskSwitch), (.cpuid, exitCPUID),
    (.getsec, exitUndefined), (.hlt, exitHLT), (.invd, exitNothing), (.invlpg, exitINVLPG),
    (.rdpmc, exitRDPMC), (.rdtsc, exitRDTSC), (.rsm, exitUndefined), (.vmcall, exitVMCALL),
    (.vmclear, exitUndefined), (.vmlaunch, exitUndefined), (.vmptrld, exitUndefined),
    (.vmptrst, exitUndefined), (.vmread, exitUndefined), (.vmresume, exitUndefined),
    (.vmwrite, exitUndefined), (.vmxoff, exitUndefined), (.vmxon, exitUndefined),
    (.controlRegisterAccess, exitControlRegister), (.debugRegisterAccess, exitDebugRegister),
    (.ioInstruction, exitIOInstruction), (.rdmsr, exitRDMSR), (.wrmsr, exitWRMSR),
    (.invalidGuestState, exitInvalidGuestState), (.msrLoading, exitInvalidGuestState),
    (.mwait, exitMonitorWait), (.monitorTrapFlag, exitMonitorTrapFlag), (.monitor, exitMonitorWait),
    (.pause, exitPause), (.machineCheckDuringEntry, exitInvalidGuestState),
    (.gdtrOrIDTRAccess, exitEmulated),
    (.ldtrOrTRAccess, exitEmulated), (.eptViolation, exitEPTViolation),
    (.eptMisconfiguration, exitEPTMisconfiguration), (.invept, exitUndefined),
    (.rdtscp, exitRDTSCP), (.preemptionTimer, exitExternalInterrupt),
    (.invvpid, exitUndefined), (.wbinvd, exitNothing), (.xsetbv, exitXSETBV),
    (.invpcid, exitEmulated), (.vmfunc, exitUndefined), (.encls, exitUndefined),
    // They exit only where the guest's CPUID does not have them.
    (.rdrand, exitUndefined), (.rdseed, exitUndefined), (.busLock, exitBusLock),
    (.notify, exitNotify),
  ]

  func handleExit(_ vcpu: VirtualCPU) -> Disposition {
    if let failure { return entryFailed(vcpu, failure) }
    let reason = Int(cpu.vmread(.exitReason) & 0xFFFF)
    guard reason < ExitReason.count else { return Self.exitUnexpected(self, vcpu) }
    vcpu.statistics.exits[reason] &+= 1
    return Self.handlers[reason](self, vcpu)
  }

  /// VMLAUNCH or VMRESUME refused the VMCS.
  private func entryFailed(_ vcpu: VirtualCPU, _ failure: VMXError) -> Disposition {
    guard case .failValid(let number) = failure else { return vcpu.entryFailed(0) }
    return vcpu.entryFailed(UInt64(number.rawValue))
  }

  private var qualification: UInt64 { cpu.vmread(.exitQualification) }

  // MARK: Events

  /// NMIs stay blocked where the IRET that unblocked them did not happen: bit 12 of an EPT
  /// violation's qualification, and of an exception's information (SDM volume 3, "Information for
  /// VM Exits Due to Vectored Events"). While an event was delivered the bit means nothing; a
  /// double fault is no IRET's.
  private func blockNMIsAgain() {
    guard cpu.vmread(.idtVectoringInfo) & UInt64(InterruptionInfo.validBit) == 0 else { return }
    let state = cpu.vmread(.guestInterruptibility)
    cpu.vmwrite(.guestInterruptibility, state | UInt64(Interruptibility.blockingByNMI))
  }

  private static let exitExceptionOrNMI: Handler = { vmx, vcpu in
    let info = vmx.cpu.vmread(.exitInterruptionInfo)
    if info & UInt64(InterruptionInfo.nmiUnblockingBit) != 0,
      info & 0xFF != UInt64(ExceptionVector.doubleFault.rawValue)
    {
      vmx.blockNMIsAgain()
    }
    // #UD and a debugger's exceptions are intercepted, and the host has no NMIs for us.
    return vcpu.exitForException(
      InterruptionInfo(
        rawValue: UInt32(truncatingIfNeeded: info & ~UInt64(InterruptionInfo.nmiUnblockingBit))),
      qualification: vmx.qualification)
  }

  /// Somebody wants the CPU; the run loop looks who.
  private static let exitExternalInterrupt: Handler = { vmx, vcpu in
    vmx.cpu.hasHostFault ? vcpu.memoryVanished() : .resume
  }

  private static let exitTripleFault: Handler = { _, vcpu in vcpu.shutDown() }

  private static let exitInterruptWindow: Handler = { vmx, vcpu in
    vmx.setInterruptWindow(false)
    vcpu.mustCheckEvents = true
    return .resume
  }

  private static let exitNMIWindow: Handler = { vmx, vcpu in
    vmx.setNMIWindow(false)
    vcpu.mustCheckEvents = true
    return .resume
  }

  private static let exitTaskSwitch: Handler = { vmx, vcpu in
    let task = TaskSwitchQualification(rawValue: vmx.qualification)
    return vcpu.switchTask(selector: task.selector, source: task.source)
  }

  private static let exitMonitorTrapFlag: Handler = { _, vcpu in
    vcpu.debug.isStepping ? vcpu.stepExit() : .resume
  }

  private static let exitBusLock: Handler = { _, vcpu in vcpu.exitForBusLock() }

  private static let exitNotify: Handler = { vmx, vcpu in
    let notify = NotifyQualification(rawValue: vmx.qualification)
    if notify.contains(.nmiUnblocking) { vmx.blockNMIsAgain() }
    return vcpu.exitForNotify(isContextLost: notify.contains(.contextIsInvalid))
  }

  // MARK: Instructions

  private static let exitCPUID: Handler = { _, vcpu in vcpu.emulateCPUID() }
  private static let exitHLT: Handler = { _, vcpu in vcpu.emulateHLT() }
  private static let exitRDMSR: Handler = { _, vcpu in vcpu.emulateRDMSR() }
  private static let exitWRMSR: Handler = { _, vcpu in vcpu.emulateWRMSR() }
  private static let exitXSETBV: Handler = { _, vcpu in vcpu.emulateXSETBV() }
  private static let exitPause: Handler = { _, vcpu in vcpu.emulatePause() }
  private static let exitRDPMC: Handler = { _, vcpu in vcpu.emulateRDPMC() }
  private static let exitVMCALL: Handler = { _, vcpu in vcpu.emulateHypercall() }

  private static let exitMonitorWait: Handler = { _, vcpu in vcpu.emulateMonitorWait() }

  /// WBINVD, INVD: caches are coherent.
  private static let exitNothing: Handler = { _, vcpu in
    vcpu.advance()
    return .resume
  }

  /// An instruction that this machine does not have.
  private static let exitUndefined: Handler = { _, vcpu in
    vcpu.raise(.invalidOpcode)
    return .resume
  }

  /// One whose exit is not asked for: the processor itself is the best emulator.
  private static let exitEmulated: Handler = { _, vcpu in vcpu.emulateInstruction() }

  private static let exitINVLPG: Handler = { vmx, vcpu in
    do throws(VMXError) {
      try vmx.cpu.invvpid(0, vpid: vmx.vpidValue, linear: vmx.qualification)
    } catch {
      vmx.failure = error
    }
    vcpu.advance()
    return .resume
  }

  private static let exitRDTSC: Handler = { _, vcpu in
    let value = vcpu.guestTSC
    vcpu.cpu.gpr[0] = value & 0xFFFF_FFFF
    vcpu.cpu.gpr[2] = value >> 32
    vcpu.advance()
    return .resume
  }

  private static let exitRDTSCP: Handler = { vmx, vcpu in
    vcpu.cpu.gpr[1] = vcpu.cpu.s.pointee.tscAux & 0xFFFF_FFFF
    return exitRDTSC(vmx, vcpu)
  }

  private static let exitControlRegister: Handler = { vmx, vcpu in
    let access = ControlRegisterQualification(rawValue: vmx.qualification)
    let general = Int(access.general)
    let isWrite = access.access == .movTo
    switch access.register {
    case 0 where isWrite:
      // Only NE is not the guest's own. With the shadow as it wants it, the write needs no exit.
      let value = vcpu.cpu.gpr[general]
      let shadow = vmx.cpu.vmread(.cr0ReadShadow)
      vmx.cpu.vmwrite(
        .cr0ReadShadow, shadow & ~CR0.ne.rawValue | value & CR0.ne.rawValue)
    case 4 where isWrite:
      // A bit that its CPUID does not offer.
      vcpu.raise(.generalProtection)
    case 8: return vcpu.accessCR8(general, isWrite: isWrite)
    default: return exitUnexpected(vmx, vcpu)
    }
    return .resume
  }

  private static let exitDebugRegister: Handler = { vmx, vcpu in
    let access = DebugRegisterQualification(rawValue: vmx.qualification)
    return vcpu.accessDebugRegister(
      Int(access.register), general: Int(access.general), isRead: access.isRead)
  }

  private static let exitIOInstruction: Handler = { vmx, vcpu in
    let access = IOQualification(rawValue: vmx.qualification)
    if access.isString {
      // Instruction information: 9:7 address size, as a power of two from 16 bits.
      let addressSize = (vmx.cpu.vmread(.exitInstructionInfo) >> 7) & 7
      return vcpu.emulateStringIO(
        size: Int(access.size), isInput: access.isInput, isRepeated: access.isRepeated,
        linear: vmx.cpu.vmread(.guestLinearAddress),
        addressMask: [0xFFFF, 0xFFFF_FFFF, .max][Int(min(addressSize, 2))])
    }
    return vcpu.accessPort(access.port, size: access.size, isInput: access.isInput)
  }

  // MARK: Memory

  private static let exitEPTViolation: Handler = { vmx, vcpu in
    let violation = EPTViolationQualification(rawValue: vmx.qualification)
    if violation.contains(.nmiUnblocking) { vmx.blockNMIsAgain() }
    let address = vmx.cpu.vmread(.guestPhysicalAddress)
    let isWrite = violation.contains(.write)
    if vcpu.isBeyondWidth(address), vcpu.interruptedEvent == nil {
      return vcpu.accessBeyondWidth(
        linear: vmx.cpu.vmread(.guestLinearAddress), isWrite: isWrite,
        isFetch: violation.contains(.fetch))
    }
    switch vcpu.mapTouched(address, writing: isWrite) {
    case .mapped, .waits: return .resume
    case .fault: return vcpu.hostFault()
    case .dirtied(let slot, let page): return vcpu.noteDirty(slot: slot, page: page)
    case .none: break
    }
    if vcpu.interruptedEvent != nil {
      // An event cannot be delivered through a device.
      return vcpu.internalError(
        KVM_INTERNAL_ERROR_DELIVERY_EV,
        data: [UInt64(vcpu.interruptedEvent?.info.rawValue ?? 0), address])
    }
    return vcpu.emulateInstruction()
  }

  private static let exitEPTMisconfiguration: Handler = { vmx, vcpu in
    vcpu.internalError(
      KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
      data: [
        UInt64(ExitReason.eptMisconfiguration.rawValue), vmx.cpu.vmread(.guestPhysicalAddress),
      ])
  }

  // MARK: Failures

  private static let exitInvalidGuestState: Handler = { vmx, vcpu in
    vcpu.entryFailed(vmx.cpu.vmread(.exitReason))
  }

  private static let exitUnexpected: Handler = { vmx, vcpu in
    vcpu.internalError(
      KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
      data: [vmx.cpu.vmread(.exitReason), UInt64(vcpu.slot?.index ?? 0)])
  }
}
