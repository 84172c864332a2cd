// SPDX-License-Identifier: Apache-2.0
//
// VMLAUNCH and VMRESUME of a guest (SDM volume 3, "VM Entries"). Controls and host state of vmcs12
// are checked by the processor's own rules, with L1's capabilities; state and controls become those
// of vmcs02. The processor checks the guest's state at the entry. No address in vmcs12 reaches the
// processor: they are L1's, and go through the machine's memory.

import CHost
import X86
import X86CPU

extension NestedVMX {
  // Controls of vmcs12.
  var pin: UInt32 { UInt32(truncatingIfNeeded: block.fields[.pinBasedControls]) }
  var primary: UInt32 { UInt32(truncatingIfNeeded: block.fields[.primaryControls]) }
  var secondary: UInt32 {
    guard primary & PrimaryControls.secondaryControls != 0 else { return 0 }
    return UInt32(truncatingIfNeeded: block.fields[.secondaryControls])
  }
  var exitControls: UInt32 { UInt32(truncatingIfNeeded: block.fields[.exitControls]) }
  var entryControls: UInt32 { UInt32(truncatingIfNeeded: block.fields[.entryControls]) }
  var hasEPT: Bool { secondary & SecondaryControls.enableEPT != 0 }

  func enter(_ vcpu: VirtualCPU, launches: Bool) throws(VMXOutcome) -> VMXOutcome {
    guard currentPointer != nil else { throw .failInvalid }
    guard vmx[.interruptibility] & UInt64(Interruptibility.blockingByMovSS) == 0 else {
      throw .fail(.eventsBlockedByMovSS)
    }
    if launches, isLaunched { throw .fail(.vmlaunchNonClear) }
    if !launches, !isLaunched { throw .fail(.vmresumeNonLaunched) }
    try check(vcpu)
    // As in Linux, an address without memory is an error for the client.
    if has(secondary: SecondaryControls.virtualizeAPICAccesses), accessPage(vcpu) == nil {
      throw .again(vcpu.internalError(KVM_INTERNAL_ERROR_EMULATION))
    }
    vcpu.advance()
    (wasLaunched, isLaunched) = (isLaunched, true)
    hasEntered = false
    begin(vcpu)
    throw .again(.resume)
  }

  // MARK: Checks

  private func check(_ vcpu: VirtualCPU) throws(VMXOutcome) {
    let width = min(vcpu.cpuid.physicalAddressBits ?? 52, CPU.physicalAddressBits)
    var limits = capabilities.limits(
      vmx.features, allowedCR4: vmx.allowedCR4, addressWidth: width)
    limits.isHost64Bit = vmx[.efer] & EFER.lma.rawValue != 0
    do throws(EntryFailure) { try block.fields.checkControls(vcpu.cpu, limits) } catch {
      throw .fail(.invalidControlFields)
    }
    guard isThresholdMet(vcpu) else { throw .fail(.invalidControlFields) }
    do throws(EntryFailure) { try block.fields.checkHostState(vcpu.cpu, limits) } catch {
      throw .fail(.invalidHostState)
    }
  }

  /// The TPR threshold is not above the virtual TPR, which has to be there.
  private func isThresholdMet(_ vcpu: VirtualCPU) -> Bool {
    guard primary & PrimaryControls.useTPRShadow != 0 else { return true }
    guard let priority = virtualPriority(vcpu) else { return false }
    if secondary & SecondaryControls.virtualizeAPICAccesses != 0 { return true }
    return block.fields[.tprThreshold] & 0xF <= UInt64(priority >> 4 & 0xF)
  }

  /// Of the virtual-APIC page, the register that counts.
  static let taskPriority: UInt64 = 0x80

  private func virtualPriority(_ vcpu: VirtualCPU) -> UInt32? {
    vcpu.memory.load(block.fields[.virtualAPICAddress] &+ Self.taskPriority)
  }

  /// What the processor cannot check of the guest's state: that CR4 has only bits that L1's CPUID
  /// offers, and the link pointer, which is L1's address.
  private func guestFailure(_ vcpu: VirtualCPU) -> EntryFailure? {
    let fields = block.fields
    if fields[.guestCR4] & ~capabilities.cr4Fixed1(vmx.allowedCR4) != 0 { return .guestCR4 }
    let link = fields[.vmcsLinkPointer]
    if link == .max { return nil }
    guard Self.isPage(link, vcpu), link != currentPointer,
      vcpu.memory.load(link) == NestedVMXCapabilities.revision
    else { return .vmcsLinkPointer }
    return nil
  }

  // MARK: Entry

  private func begin(_ vcpu: VirtualCPU) {
    if let failure = guestFailure(vcpu) {
      return refuse(vcpu, .invalidGuestState, failure.qualification)
    }
    prepareState()
    prepareControls(vcpu)
    vmx.run(merged, vpid: vpid)
    isGuest = true
    merge()
    if !hasEPT { vcpu.loadPDPTRs() }
    if let failure = loadMSRs(vcpu) { return failure }
    startTimer()
    takeInjection(vcpu)
    if mayHalt { halt(vcpu) }
    vcpu.events.mustCheck = true
    vcpu.stateChanged()
  }

  /// The guest-state area, and the registers that an entry loads or leaves by its controls. vmcs01
  /// runs.
  private func prepareState() {
    let (l1, l2) = (block.fields, merged.fields)
    merged.copy(VMCSPage.guestState, from: block)
    merged.clear(VMCSPage.exitInformation)
    l2[.vmcsLinkPointer] = .max
    if entryControls & EntryControls.loadDebugControls == 0 {
      l2[.guestDR7] = vmx.read(.guestDR7)
      l2[.guestDebugControl] = vmx.read(.guestDebugControl)
    }
    if entryControls & EntryControls.loadPAT == 0 { l2[.guestPAT] = vmx.read(.guestPAT) }
    if entryControls & EntryControls.loadEFER == 0 {
      let isLong = entryControls & EntryControls.ia32eModeGuest != 0
      var efer = EFER(rawValue: vmx.read(.guestEFER))
      let mode: EFER = l1[.guestCR0] & CR0.pg.rawValue != 0 ? [.lma, .lme] : .lma
      efer = isLong ? efer.union(mode) : efer.subtracting(mode)
      l2[.guestEFER] = efer.rawValue
    }
  }

  /// Controls that are vmcs12's alone, or ours alone. vmcs01 runs.
  private func prepareControls(_ vcpu: VirtualCPU) {
    let (l1, l2) = (block.fields, merged.fields)
    for field in Self.ownControls { l2[field] = vmx.read(field) }
    for field in Self.guestControls { l2[field] = l1[field] }
    l2[.pinBasedControls] = vmx.read(.pinBasedControls) | UInt64(pin & PinControls.preemptionTimer)
    let longMode = UInt64(entryControls & EntryControls.ia32eModeGuest)
    l2[.entryControls] =
      vmx.read(.entryControls) & ~UInt64(EntryControls.ia32eModeGuest) | longMode
    l2[.vpid] = UInt64(vpid)
    l2[.msrBitmap] = msrBitmap.address
    l2[.virtualAPICAddress] = virtualAPIC.address
    l2[.apicAccessAddress] = accessPage(vcpu) ?? virtualAPIC.address
    if primary & PrimaryControls.useTPRShadow != 0 {
      let priority = virtualPriority(vcpu) ?? 0
      unsafe virtualAPIC.bytes.storeBytes(
        of: priority, toByteOffset: Int(Self.taskPriority), as: UInt32.self)
    }
    mergeMSRBitmap(vcpu)
    if hasEPT { useShadow(vcpu) }
  }

  /// As vmcs01 has them.
  private static let ownControls: [VMCSField] = [
    .exitControls, .hostCR0, .hostCR3, .hostCR4, .hostCSSelector, .hostTRSelector, .hostEFER,
    .hostPAT,
  ]
  private static let guestControls: [VMCSField] = [
    .cr3TargetCount, .cr3Target0, .cr3Target1, .cr3Target2, .cr3Target3, .cr0Mask, .cr0ReadShadow,
    .xssExitingBitmap, .tprThreshold, .entryInterruptionInfo, .entryExceptionErrorCode,
    .entryInstructionLength,
  ]

  // MARK: Controls of both

  /// Sets the controls of vmcs02 that depend on both sides. vmcs02 runs.
  func merge() {
    vmx.mustMerge = false
    let (own, l2) = (vmx.own.fields, block.fields)
    let windows = PrimaryControls.interruptWindowExiting | PrimaryControls.nmiWindowExiting
    vmx.guestPrimary = primary & windows
    let counter = mergedCounter
    let fixed = vmx.allowedCR4 | CR4.vmxe.rawValue
    let mask = l2[.cr4Mask]
    let pageFault = own[.exceptionBitmap] & 1 << UInt64(ExceptionVector.pageFault.rawValue) != 0
    let pauses = secondary & SecondaryControls.pauseLoopExiting != 0 ? l2 : own
    let fields: [(VMCSField, UInt64)] = [
      (.primaryControls, UInt64(mergedPrimary)), (.secondaryControls, UInt64(mergedSecondary)),
      (.exceptionBitmap, own[.exceptionBitmap] | l2[.exceptionBitmap]),
      (.pageFaultErrorCodeMask, pageFault ? 0 : l2[.pageFaultErrorCodeMask]),
      (.pageFaultErrorCodeMatch, pageFault ? 0 : l2[.pageFaultErrorCodeMatch]),
      (.cr4Mask, mask | ~fixed),
      (.cr4ReadShadow, l2[.cr4ReadShadow] & mask | vmx.read(.guestCR4) & ~mask),
      (.tscOffset, counter.offset), (.tscMultiplier, counter.multiplier),
      (.notifyWindow, own[.notifyWindow]), (.pleGap, pauses[.pleGap]),
      (.pleWindow, pauses[.pleWindow]), (.eptPointer, mergedEPTPointer),
    ]
    for (field, value) in fields { vmx.write(field, value) }
  }

  private var mergedPrimary: UInt32 {
    var own = UInt32(truncatingIfNeeded: vmx.own.fields[.primaryControls])
    own &= ~(PrimaryControls.interruptWindowExiting | PrimaryControls.nmiWindowExiting)
    // With the TPR shadow, CR8 is L2's own.
    let cr8 = PrimaryControls.cr8LoadExiting | PrimaryControls.cr8StoreExiting
    if primary & PrimaryControls.useTPRShadow != 0 { own &= ~cr8 }
    var windows: UInt32 = vmx.isInterruptWindowOpen ? PrimaryControls.interruptWindowExiting : 0
    windows |= vmx.isNMIWindowOpen ? PrimaryControls.nmiWindowExiting : 0
    return own | windows | primary & ~PrimaryControls.useIOBitmaps
      | PrimaryControls.unconditionalIOExiting | PrimaryControls.secondaryControls
  }

  /// Instructions are there if L1 has them and lets L2 have them.
  private var mergedSecondary: UInt32 {
    let own = UInt32(truncatingIfNeeded: vmx.own.fields[.secondaryControls])
    let guests =
      SecondaryControls.enableRDTSCP | SecondaryControls.enableINVPCID
      | SecondaryControls.enableXSAVES | SecondaryControls.unrestrictedGuest
      | SecondaryControls.vmcsShadowing
    return own & ~guests | secondary | SecondaryControls.enableEPT | SecondaryControls.enableVPID
  }

  private var mergedEPTPointer: UInt64 {
    guard hasEPT, let shadow = shadows.current else { return vmx.own.fields[.eptPointer] }
    return shadow.root | EPTPointer.writeBack | EPTPointer.fourLevels
      | block.fields[.eptPointer] & EPTPointer.accessedDirty
  }

  /// Merges the MSR bitmaps: an MSR exits if ours or L1's says so. L1's is read only where ours has
  /// a bit that is 0.
  private func mergeMSRBitmap(_ vcpu: VirtualCPU) {
    let own = vmx.ownMSRBitmap
    let isAll = primary & PrimaryControls.useMSRBitmaps == 0
    let base = block.fields[.msrBitmap]
    unsafe msrBitmap.bytes.initializeMemory(as: UInt8.self, repeating: 0xFF, count: 4096)
    for offset in own.openBytes {
      let address = base &+ UInt64(truncatingIfNeeded: offset)
      let wanted: UInt8 = isAll ? 0xFF : vcpu.memory.load(address) ?? 0xFF
      unsafe msrBitmap.bytes.storeBytes(
        of: own.byte(offset) | wanted, toByteOffset: offset, as: UInt8.self)
    }
    guard !isAll, has(secondary: SecondaryControls.virtualizeX2APIC) else { return }
    // IA32_X2APIC_TPR is L2's own: its reads, and its writes.
    for offset in [0x101, 0x101 + 2048] {
      let wanted: UInt8 = vcpu.memory.load(base &+ UInt64(offset)) ?? 0xFF
      unsafe msrBitmap.bytes.storeBytes(of: wanted | 0xFE, toByteOffset: offset, as: UInt8.self)
    }
  }

  /// The page of this process at L2's APIC-access address; nil if there is none. The processor only
  /// compares addresses with it.
  private func accessPage(_ vcpu: VirtualCPU) -> UInt64? {
    let address = block.fields[.apicAccessAddress]
    guard has(secondary: SecondaryControls.virtualizeAPICAccesses),
      case .at(let place) = vcpu.memory.place(address, count: 4096)
    else { return nil }
    return UInt64(UInt(bitPattern: place))
  }

  /// TSC offset and multiplier of L2: L1's counter, scaled and offset once more (SDM volume 3,
  /// "Changes to Instruction Behavior in VMX Non-Root Operation", of RDTSC).
  private var mergedCounter: (offset: UInt64, multiplier: UInt64) {
    let (own, l2) = (vmx.own.fields, block.fields)
    let (offset, multiplier) = (own[.tscOffset], own[.tscMultiplier])
    guard has(primary: PrimaryControls.useTSCOffsetting) else { return (offset, multiplier) }
    guard has(secondary: SecondaryControls.useTSCScaling) else {
      return (offset &+ l2[.tscOffset], multiplier)
    }
    let scale = l2[.tscMultiplier]
    let isNegative = offset >> 63 != 0
    let magnitude = Self.scaled(isNegative ? 0 &- offset : offset, scale)
    let scaled = isNegative ? 0 &- magnitude : magnitude
    return (scaled &+ l2[.tscOffset], max(1, Self.scaled(multiplier, scale)))
  }

  /// Multipliers have 48 bits of fraction.
  private static func scaled(_ value: UInt64, _ multiplier: UInt64) -> UInt64 {
    let product = value.multipliedFullWidth(by: multiplier)
    return product.high &<< 16 | product.low &>> 48
  }

  // MARK: Special features of VM entry

  /// The event to inject becomes ours to inject. A pending monitor trap flag is left where it is.
  private func takeInjection(_ vcpu: VirtualCPU) {
    let info = InterruptionInfo(
      rawValue: UInt32(truncatingIfNeeded: block.fields[.entryInterruptionInfo]))
    let event = GuestEvent(
      info,
      errorCode: UInt32(truncatingIfNeeded: block.fields[.entryExceptionErrorCode]),
      instructionLength: UInt32(truncatingIfNeeded: block.fields[.entryInstructionLength]))
    guard let event else { return }
    vmx.write(.entryInterruptionInfo, 0)
    vcpu.events.interrupted = event
  }

  /// L2 is entered halted, and nothing but an interrupt for L1 ends that.
  private var mayHalt: Bool {
    let info = InterruptionInfo(
      rawValue: UInt32(truncatingIfNeeded: block.fields[.entryInterruptionInfo]))
    return block.fields[.guestActivityState] == UInt64(ActivityState.hlt) && !info.isValid
      && vmx.guestPrimary == 0 && pin & PinControls.preemptionTimer == 0
  }

  private func startTimer() {
    timerDeadline = .max
    guard pin & PinControls.preemptionTimer != 0 else { return }
    let ticks = block.fields[.preemptionTimerValue] << VMXCapabilities.preemptionTimerShift
    timerDeadline = HostTSC.read() &+ ticks
  }

  /// Ticks until the preemption timer is over.
  var timerValue: UInt64 {
    let now = HostTSC.read()
    let left = timerDeadline > now ? timerDeadline &- now : 0
    return min(left >> VMXCapabilities.preemptionTimerShift, UInt64(UInt32.max))
  }
}
