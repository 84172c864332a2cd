// SPDX-License-Identifier: Apache-2.0
//
// Exits of L2: which are L1's (SDM volume 3, "VMX Non-Root Operation"). L1's bitmaps are read when
// an access exits.

import CHost
import Synchronization
import X86
import X86CPU

extension NestedVMX {
  func takeExit(_ vcpu: VirtualCPU) -> Disposition? {
    if vmx.failure != nil {
      if hasEntered { return shutDown(vcpu) }
      refuseControls(vcpu)
      return .resume
    }
    let reason = UInt32(truncatingIfNeeded: vmx.read(.exitReason))
    let basic = ExitReason(rawValue: UInt16(truncatingIfNeeded: reason))
    if reason & ExitReason.entryFailureBit != 0 {
      if hasEntered { return shutDown(vcpu) }
      let qualification = vmx.read(.exitQualification)
      refuse(vcpu, basic, qualification)
      return .resume
    }
    hasEntered = true
    if basic == .eptViolation { return hasEPT ? takeViolation(vcpu) : nil }
    if basic == .exceptionOrNMI { return takeException(vcpu) }
    guard isGuests(basic, vcpu) else { return nil }
    leave(vcpu)
    return .resume
  }

  /// L2 cannot continue with the state that the client has set. As in Linux, L1 gets a triple
  /// fault.
  private func shutDown(_ vcpu: VirtualCPU) -> Disposition {
    vmx.failure = nil
    vcpu.events.interrupted = nil
    leave(vcpu, NestedVMXExit(reason: .tripleFault))
    return .resume
  }

  // MARK: Whose exit it is

  func has(primary control: UInt32) -> Bool { primary & control != 0 }
  func has(secondary control: UInt32) -> Bool { secondary & control != 0 }

  /// Controls that make an instruction exit.
  private static let primaryRows: [ExitReason: UInt32] = [
    .hlt: PrimaryControls.hltExiting, .invlpg: PrimaryControls.invlpgExiting,
    .rdpmc: PrimaryControls.rdpmcExiting, .rdtsc: PrimaryControls.rdtscExiting,
    .rdtscp: PrimaryControls.rdtscExiting, .debugRegisterAccess: PrimaryControls.movDRExiting,
    .mwait: PrimaryControls.mwaitExiting, .monitor: PrimaryControls.monitorExiting,
    .invpcid: PrimaryControls.invlpgExiting,
  ]
  private static let secondaryRows: [ExitReason: UInt32] = [
    .gdtrOrIDTRAccess: SecondaryControls.descriptorTableExiting,
    .ldtrOrTRAccess: SecondaryControls.descriptorTableExiting,
    .wbinvd: SecondaryControls.wbinvdExiting, .rdrand: SecondaryControls.rdrandExiting,
    .rdseed: SecondaryControls.rdseedExiting,
  ]
  /// Exits without a control, or by a control that only L1 sets.
  private static let always: Set<ExitReason> = [
    .tripleFault, .taskSwitch, .cpuid, .getsec, .invd, .vmcall, .vmclear, .vmlaunch, .vmptrld,
    .vmptrst, .vmread, .vmresume, .vmwrite, .vmxoff, .vmxon, .invept, .invvpid, .xsetbv,
    .tprBelowThreshold, .apicAccess, .apicWrite, .virtualizedEOI, .preemptionTimer, .xsaves,
    .xrstors, .vmfunc,
  ]

  /// Whether L1 asked for an exit. Interrupts and NMIs are ours: L1 gets its own by `beforeEntry`.
  private func isGuests(_ reason: ExitReason, _ vcpu: VirtualCPU) -> Bool {
    if let control = Self.primaryRows[reason] { return has(primary: control) }
    if let control = Self.secondaryRows[reason] { return has(secondary: control) }
    switch reason {
    case .interruptWindow:
      return has(primary: PrimaryControls.interruptWindowExiting) && !vmx.isInterruptWindowOpen
    case .nmiWindow:
      return has(primary: PrimaryControls.nmiWindowExiting) && !vmx.isNMIWindowOpen
    case .pause:
      return has(primary: PrimaryControls.pauseExiting)
        || has(secondary: SecondaryControls.pauseLoopExiting)
    case .monitorTrapFlag:
      return has(primary: PrimaryControls.monitorTrapFlag) || !vcpu.debug.isStepping
    case .controlRegisterAccess: return isControlRegisterGuests(vcpu)
    case .ioInstruction: return isPortGuests(vcpu)
    case .rdmsr: return isMSRGuests(vcpu, isWrite: false)
    case .wrmsr: return isMSRGuests(vcpu, isWrite: true)
    default: return Self.always.contains(reason)
    }
  }

  /// CR0 and CR3 exit for L1 alone; CR4 also where L2 sets bits that L1 does not have, CR8 also
  /// where it is L1's.
  private func isControlRegisterGuests(_ vcpu: VirtualCPU) -> Bool {
    let access = ControlRegisterQualification(rawValue: vmx.read(.exitQualification))
    let isWrite = access.access == .movTo
    switch access.register {
    case 4:
      let value = unsafe vcpu.cpu.gpr[Int(access.general)]
      return (value ^ block.fields[.cr4ReadShadow]) & block.fields[.cr4Mask] != 0
    case 8:
      return has(
        primary: isWrite ? PrimaryControls.cr8LoadExiting : PrimaryControls.cr8StoreExiting)
    default: return true
    }
  }

  private func isPortGuests(_ vcpu: VirtualCPU) -> Bool {
    guard has(primary: PrimaryControls.useIOBitmaps) else {
      return has(primary: PrimaryControls.unconditionalIOExiting)
    }
    let access = IOQualification(rawValue: vmx.read(.exitQualification))
    let first = UInt64(access.port)
    let end = first &+ UInt64(access.size)
    if end > 0x1_0000 { return true }
    for port in first..<end {
      let base = block.fields[port < 0x8000 ? .ioBitmapA : .ioBitmapB]
      let byte: UInt8? = vcpu.memory.load(base &+ (port & 0x7FFF) >> 3)
      guard let byte, byte &>> UInt8(port & 7) & 1 == 0 else { return true }
    }
    return false
  }

  private func isMSRGuests(_ vcpu: VirtualCPU, isWrite: Bool) -> Bool {
    guard has(primary: PrimaryControls.useMSRBitmaps) else { return true }
    let number = unsafe UInt32(truncatingIfNeeded: vcpu.cpu.gpr[1])
    let isHigh = number >= 0xC000_0000
    let index = isHigh ? number &- 0xC000_0000 : number
    guard index < 0x2000 else { return true }
    let part: UInt64 = (isWrite ? 2048 : 0) &+ (isHigh ? 1024 : 0)
    let place = block.fields[.msrBitmap] &+ part &+ UInt64(index >> 3)
    let byte: UInt8? = vcpu.memory.load(place)
    return byte.map { $0 &>> UInt8(truncatingIfNeeded: index & 7) & 1 != 0 } ?? true
  }

  // MARK: Exceptions

  private func takeException(_ vcpu: VirtualCPU) -> Disposition? {
    let info = InterruptionInfo(
      rawValue: UInt32(truncatingIfNeeded: vmx.read(.exitInterruptionInfo)))
    guard info.isValid, info.type != .nmi else { return nil }
    let vector = UInt32(info.vector & 31)
    let isClients = vcpu.debug.exceptions &>> vector & 1 != 0
    let code = UInt32(truncatingIfNeeded: vmx.read(.exitInterruptionErrorCode))
    if !isClients, isIntercepted(info.vector, code) {
      leave(vcpu)
      return .resume
    }
    // Only L1's hypercalls of the other vendor are replaced.
    if info.vector == ExceptionVector.invalidOpcode.rawValue {
      vcpu.raise(.invalidOpcode)
      return .resume
    }
    return nil
  }

  private func isIntercepted(_ vector: UInt8, _ code: UInt32) -> Bool {
    let isSet = block.fields[.exceptionBitmap] &>> UInt64(vector & 31) & 1 != 0
    guard vector == ExceptionVector.pageFault.rawValue else { return isSet }
    let masked = UInt64(code) & block.fields[.pageFaultErrorCodeMask]
    return isSet == (masked == block.fields[.pageFaultErrorCodeMatch])
  }

  /// An exception that we raise in L2.
  private func leave(_ vcpu: VirtualCPU, for exception: GuestException) {
    let isSoftware = GuestEvent.isSoftware(exception.vector)
    var exit = NestedVMXExit(reason: .exceptionOrNMI)
    exit.info = InterruptionInfo(
      isSoftware ? .softwareException : .hardwareException, vector: exception.vector,
      hasErrorCode: exception.hasErrorCode)
    // The upper half is 0, whatever the client has queued.
    exit.errorCode = exception.hasErrorCode ? exception.errorCode & 0xFFFF : 0
    if isSoftware { exit.length = UInt64(vcpu.events.instructionLength) }
    switch ExceptionVector(rawValue: exception.vector) {
    case .pageFault:
      exit.qualification = unsafe vcpu.events.payload ?? vcpu.cpu.s.pointee.cr2
    case .debug:
      exit.qualification = vcpu.events.payload ?? UInt64(exception.errorCode)
    default: break
    }
    leave(vcpu, exit)
  }

  // MARK: Events

  var exitsOnInterrupt: Bool { isGuest && pin & PinControls.externalInterruptExiting != 0 }

  var allowsInterrupts: Bool? {
    guard isGuest else { return nil }
    if exitsOnInterrupt { return true }
    let shadows = Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS
    return vmx[.rflags] & RFLAGS.if.rawValue != 0 && vmx[.interruptibility] & UInt64(shadows) == 0
  }

  var exitsOnNMI: Bool { isGuest && pin & PinControls.nmiExiting != 0 }

  /// NMIs for L1 make L2 exit now.
  private var takesNMIs: Bool {
    guard exitsOnNMI else { return false }
    return pin & PinControls.virtualNMIs != 0
      || vmx[.interruptibility] & UInt64(Interruptibility.blockingByNMI) == 0
  }

  private func isExitDue(_ vcpu: VirtualCPU) -> Bool {
    vcpu.mailbox.hasNMI && takesNMIs
      || exitsOnInterrupt && !vcpu.debug.blocksInterrupts && vcpu.hasPendingInterrupt
  }

  func beforeEntry(_ vcpu: VirtualCPU) {
    if vmx.mustMerge { merge() }
    if timerDeadline != .max { vmx.write(.preemptionTimerValue, timerValue) }
    // An instruction that is executed in steps comes first.
    if vcpu.runState.completion == .emulation { return }
    let injected = InterruptionInfo(
      rawValue: UInt32(truncatingIfNeeded: vmx.read(.entryInterruptionInfo)))
    if vcpu.events.interrupted != nil || injected.isValid {
      // It is delivered, and the exit follows before the first instruction of its handler.
      if isExitDue(vcpu) { vcpu.slot?.cpu.kick() }
      return
    }
    if let exception = vcpu.events.exception {
      let code = exception.hasErrorCode ? exception.errorCode : 0
      if isIntercepted(exception.vector, code) { leave(vcpu, for: exception) }
      return
    }
    guard isExitDue(vcpu) else { return }
    if vcpu.mailbox.hasNMI, takesNMIs {
      vcpu.mailbox.takeNMI()
      return leave(
        vcpu,
        NestedVMXExit(
          reason: .exceptionOrNMI,
          info: InterruptionInfo(.nmi, vector: ExceptionVector.nmi.rawValue)))
    }
    leaveForInterrupt(vcpu)
  }

  private func leaveForInterrupt(_ vcpu: VirtualCPU) {
    var exit = NestedVMXExit(reason: .externalInterrupt)
    if exitControls & ExitControls.acknowledgeInterrupt != 0 {
      guard let vector = vcpu.takeInterrupt() else { return }
      exit.info = InterruptionInfo(.externalInterrupt, vector: vector)
    }
    leave(vcpu, exit)
  }

  func takeTripleFault(_ vcpu: VirtualCPU) -> Bool {
    guard isGuest else { return false }
    leave(vcpu, NestedVMXExit(reason: .tripleFault))
    return true
  }

  /// L2 waits for an interrupt.
  func halt(_ vcpu: VirtualCPU) {
    vmx.write(.guestActivityState, UInt64(ActivityState.active))
    vcpu.runState.become(KVM_MP_STATE_HALTED)
  }
}
