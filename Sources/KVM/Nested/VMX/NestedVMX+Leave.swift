// SPDX-License-Identifier: Apache-2.0
//
// VM exits to L1 (SDM volume 3, "VM Exits"): saves L2's state, as the exit controls say, and the
// exit information in vmcs12, and loads L1's host state.

import CHost
import X86
import X86CPU

/// The information of an exit to L1 that is not an exit of the processor.
struct NestedVMXExit {
  var reason: ExitReason
  var qualification: UInt64 = 0
  var info = InterruptionInfo(rawValue: 0)
  var errorCode: UInt32 = 0
  var length: UInt64 = 0
}

extension NestedVMX {
  /// The processor's exit is L1's.
  ///
  /// - Parameter qualification: nil: as the processor has it.
  func leave(_ vcpu: VirtualCPU, qualification: UInt64? = nil) {
    let isNMI = vcpu.events.interrupted?.kind == .nmi
    guard save(vcpu) else { return }
    let vmInstructionError = block.fields[.vmInstructionError]
    block.copy(VMCSPage.exitInformation, from: merged)
    block.fields[.vmInstructionError] = vmInstructionError
    if let qualification { block.fields[.exitQualification] = qualification }
    // Its delivery blocked NMIs.
    if isNMI { block.fields[.guestInterruptibility] |= UInt64(Interruptibility.blockingByNMI) }
    loadHost(vcpu)
  }

  func leave(_ vcpu: VirtualCPU, _ exit: NestedVMXExit) {
    let interrupted = vcpu.events.interrupted
    guard save(vcpu) else { return }
    let fields = block.fields
    fields[.exitReason] = UInt64(exit.reason.rawValue)
    fields[.exitQualification] = exit.qualification
    fields[.exitInterruptionInfo] = UInt64(exit.info.rawValue)
    fields[.exitInterruptionErrorCode] = UInt64(exit.errorCode)
    fields[.exitInstructionLength] = exit.length
    fields[.exitInstructionInfo] = 0
    fields[.idtVectoringInfo] = UInt64(interrupted.map { InterruptionInfo($0).rawValue } ?? 0)
    fields[.idtVectoringErrorCode] = UInt64(interrupted?.errorCode ?? 0)
    loadHost(vcpu, blocksNMIs: exit.info.isValid && exit.info.type == .nmi)
  }

  /// A VM entry that failed while guest state or MSRs were loaded: L2's state, and the event to
  /// inject, stay as they are (SDM volume 3, "VM-Entry Failures During or After Loading Guest
  /// State").
  func refuse(_ vcpu: VirtualCPU, _ reason: ExitReason, _ qualification: UInt64) {
    isLaunched = wasLaunched
    vcpu.events.interrupted = nil
    vcpu.events.dropException()
    if vmx.current !== vmx.own { vmx.run(vmx.own) }
    let bit = UInt64(ExitReason.entryFailureBit)
    block.fields[.exitReason] = UInt64(reason.rawValue) | bit
    block.fields[.exitQualification] = qualification
    loadHost(vcpu)
  }

  /// The processor has rejected the controls of vmcs02, which L1's controls made invalid.
  func refuseControls(_ vcpu: VirtualCPU) {
    isLaunched = wasLaunched
    vcpu.events.interrupted = nil
    isGuest = false
    vmx.run(vmx.own)
    vmx.failure = nil
    setFailure(.invalidControlFields)
    vcpu.stateChanged()
  }

  // MARK: L2's state

  /// Makes vmcs01 the one that runs, and saves L2's state.
  ///
  /// - Returns: false: VMX abort.
  private func save(_ vcpu: VirtualCPU) -> Bool {
    let isHalted = vcpu.runState.isHalted
    let left = timerValue
    let isStored = storeMSRs(vcpu)
    vmx.run(vmx.own)
    guard isStored else {
      abort(vcpu, .savingGuestMSRs)
      return false
    }
    _ = vcpu.events.takeInterrupted()
    vcpu.events.dropException()
    saveState()
    let (own, l2) = (block.fields, merged.fields)
    if isHalted {
      own[.guestActivityState] = UInt64(ActivityState.hlt)
      vcpu.runState.become(KVM_MP_STATE_RUNNABLE)
    }
    if exitControls & ExitControls.savePreemptionTimer != 0 { own[.preemptionTimerValue] = left }
    let longMode = UInt64(EntryControls.ia32eModeGuest)
    own[.entryControls] = own[.entryControls] & ~longMode | l2[.entryControls] & longMode
    own[.entryInterruptionInfo] &= ~UInt64(InterruptionInfo.validBit)
    if primary & PrimaryControls.useTPRShadow != 0 { storeVirtualPriority(vcpu) }
    return true
  }

  private func saveState() {
    let own = block.fields
    let kept = Self.kept.map { own[$0] }
    let switched = Self.switched.map { (exitControls & $0.control, own[$0.field]) }
    block.copy(VMCSPage.guestState, from: merged)
    for (field, value) in zip(Self.kept, kept) { own[field] = value }
    for (row, old) in zip(Self.switched, switched) where old.0 == 0 { own[row.field] = old.1 }
  }

  /// Fields of the guest-state area that an exit does not write.
  private static let kept: [VMCSField] = [
    .vmcsLinkPointer, .guestSMBASE, .preemptionTimerValue, .guestInterruptStatus, .pmlIndex,
  ]
  /// Fields that it writes if a control says so.
  private static let switched: [(field: VMCSField, control: UInt32)] = [
    (.guestDR7, ExitControls.saveDebugControls),
    (.guestDebugControl, ExitControls.saveDebugControls), (.guestPAT, ExitControls.savePAT),
    (.guestEFER, ExitControls.saveEFER),
  ]

  private func storeVirtualPriority(_ vcpu: VirtualCPU) {
    let offset = Int(Self.taskPriority)
    let value = unsafe virtualAPIC.bytes.load(fromByteOffset: offset, as: UInt32.self)
    let address = block.fields[.virtualAPICAddress] &+ Self.taskPriority
    _ = vcpu.writeMemory(address, count: 4) { $0.storeBytes(of: value, as: UInt32.self) }
  }

  /// VMX abort: a processor shuts down.
  private func abort(_ vcpu: VirtualCPU, _ indicator: VMXAbortIndicator) {
    isGuest = false
    if let address = currentPointer {
      _ = vcpu.writeMemory(address &+ UInt64(VMCSPage.abortIndicator), count: 4) {
        $0.storeBytes(of: indicator.rawValue, as: UInt32.self)
      }
    }
    vcpu.events.interrupted = nil
    vcpu.events.dropException()
    vcpu.events.isTripleFault = true
    vcpu.stateChanged()
  }

  // MARK: L1's state

  /// Loads the host state of vmcs12 (SDM volume 3, "Loading Host State"). vmcs01 runs, and vmcs02
  /// is in memory.
  private func loadHost(_ vcpu: VirtualCPU, blocksNMIs: Bool = false) {
    let l2 = merged.fields
    let wasGuest = isGuest
    isGuest = false
    loadHostRegisters(wasGuest ? l2 : vmx.own.fields)
    loadHostSegments()
    let nmi = UInt64(Interruptibility.blockingByNMI)
    var blocking = vmx[.interruptibility] & nmi
    if wasGuest, pin & PinControls.virtualNMIs == 0 { blocking = l2[.guestInterruptibility] & nmi }
    vmx[.interruptibility] = blocksNMIs ? nmi : blocking
    vmx[.pendingDebug] = 0
    vcpu.loadPDPTRs()
    if !loadHostMSRs(vcpu) { return abort(vcpu, .loadingHostMSRs) }
    vcpu.events.mustCheck = true
    vcpu.stateChanged()
  }

  /// - Parameter last: source of PAT and EFER if the host state has none.
  private func loadHostRegisters(_ last: VMCSPage) {
    let host = block.fields
    let is64Bit = exitControls & ExitControls.hostAddressSpaceSize != 0
    let mode = EFER([.lma, .lme]).rawValue
    var efer = exitControls & ExitControls.loadEFER != 0 ? host[.hostEFER] : last[.guestEFER]
    efer = is64Bit ? efer | mode : efer & ~mode
    let pat = exitControls & ExitControls.loadPAT != 0 ? host[.hostPAT] : last[.guestPAT]
    var cr4 = host[.hostCR4]
    if is64Bit { cr4 |= CR4.pae.rawValue } else { cr4 &= ~CR4.pcide.rawValue }
    let values: [(ControlBlockRegister, UInt64)] = [
      (.cr0, host[.hostCR0]), (.cr3, host[.hostCR3]), (.cr4, cr4), (.efer, efer), (.pat, pat),
      (.rsp, host[.hostRSP]), (.rip, host[.hostRIP]), (.rflags, RFLAGS.fixed.rawValue),
      (.dr7, DR7.initial.rawValue), (.debugctl, 0), (.sysenterCS, host[.hostSysenterCS]),
      (.sysenterESP, host[.hostSysenterESP]), (.sysenterEIP, host[.hostSysenterEIP]),
      (.gdtrBase, host[.hostGDTRBase]), (.gdtrLimit, 0xFFFF),
      (.idtrBase, host[.hostIDTRBase]), (.idtrLimit, 0xFFFF),
    ]
    for (register, value) in values { vmx[register] = value }
    vmx.write(.guestActivityState, UInt64(ActivityState.active))
  }

  private func loadHostSegments() {
    let host = block.fields
    let is64Bit = exitControls & ExitControls.hostAddressSpaceSize != 0
    let code: UInt32 = is64Bit ? 0xA09B : 0xC09B
    let data: UInt32 = 0xC093
    let rows: [(SegmentRegister, VMCSField, UInt64, UInt32)] = [
      (.cs, .hostCSSelector, 0, code), (.ss, .hostSSSelector, 0, data),
      (.ds, .hostDSSelector, 0, data), (.es, .hostESSelector, 0, data),
      (.fs, .hostFSSelector, host[.hostFSBase], data),
      (.gs, .hostGSSelector, host[.hostGSBase], data),
    ]
    for (register, field, base, rights) in rows {
      let selector = UInt16(truncatingIfNeeded: host[field])
      let isUnusable = selector == 0
      vmx.setSegment(
        register,
        SegmentState(
          base: base, limit: .max,
          accessRights: isUnusable ? rights | SegmentAccessRights.unusableBit : rights,
          selector: selector))
    }
    vmx.setSegment(
      .tr,
      SegmentState(
        base: host[.hostTRBase], limit: 0x67, accessRights: 0x8B,
        selector: UInt16(truncatingIfNeeded: host[.hostTRSelector])))
    vmx.setSegment(
      .ldtr,
      SegmentState(
        base: 0, limit: 0, accessRights: SegmentAccessRights.unusableBit, selector: 0))
  }
}
