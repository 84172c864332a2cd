// SPDX-License-Identifier: Apache-2.0
//
// VM entry (SDM volume 3, "VM Entries"): checks, guest state, MSRs, event injection, then guest
// code until a VM exit.
//
// Only groups of fields that changed since the last entry are checked again (`VMXUnit.dirty`): the
// guest's own instructions keep its state valid. So an exit and re-entry between which the
// hypervisor changed only RIP, RFLAGS and the injection fields costs a few loads and compares.

import CHost
import X86

extension PhysicalCPU {
  /// Enters the guest of a "clear" VMCS, which is then "launched", and runs it until it exits.
  ///
  /// - Returns: the basic exit reason. 33 and 34 are entry failures: the guest executed nothing.
  /// - Throws: `failInvalid` without a current VMCS; error 4 (not clear), 7 (controls), 8 (host
  ///   state), for which `vmxEntryFailure` names the rule; `abort`.
  @discardableResult
  package func vmlaunch() throws(VMXError) -> ExitReason {
    try requireVMXOperation()
    try requireEnterable()
    if vmx.pointee.launched { throw fail(.vmlaunchNonClear) }
    return try enter()
  }

  /// Enters the guest of a "launched" VMCS again; error 5 if it is not. See `vmlaunch`.
  @discardableResult
  package func vmresume() throws(VMXError) -> ExitReason {
    try requireVMXOperation()
    try requireEnterable()
    if !vmx.pointee.launched { throw fail(.vmresumeNonLaunched) }
    return try enter()
  }

  /// The rule that the last failed VM entry broke.
  package var vmxEntryFailure: EntryFailure? { vmx.pointee.entryFailure }

  /// Requires a current VMCS that is not a shadow VMCS.
  private func requireEnterable() throws(VMXError) {
    guard let current = vmx.pointee.current, !VMCSHeader(base: current).isShadow else {
      throw .failInvalid
    }
  }

  private func enter() throws(VMXError) -> ExitReason {
    let unit = vmx
    if !unit.pointee.dirty.isEmpty {
      if try !prepare() { return try completeFailedEntry() }
    }
    loadSwitchedState()
    if unit.pointee.entryMSRCount != 0, !loadEntryMSRs() { return try completeFailedEntry() }
    unit.pointee.launched = true
    unit.pointee.entries &+= 1
    startTimer()
    if loadInjection() { runGuarded() }
    return try completeExit()
  }

  /// Checks and loads changed groups.
  ///
  /// - Returns: false on an entry-failure exit, which is then recorded.
  private func prepare() throws(VMXError) -> Bool {
    let unit = vmx
    if unit.pointee.dirty.contains(.controls) {
      // `adoptTranslations` compares what translations depend on.
      unit.pointee.dirty.formUnion(VMCSGroups.all.subtracting(.paging))
    }
    let dirty = unit.pointee.dirty
    unit.pointee.entryFailure = nil
    let checks = EntryChecks(cpu: cpu, unit: unit)
    do throws(EntryFailure) {
      if !dirty.isDisjoint(with: [.controls, .injection, .registers]) {
        try checks.checkControls(dirty)
      }
    } catch {
      unit.pointee.entryFailure = error
      throw fail(.invalidControlFields)
    }
    do throws(EntryFailure) {
      if dirty.contains(.host) { try checks.checkHostState() }
    } catch {
      unit.pointee.entryFailure = error
      throw fail(.invalidHostState)
    }
    if !dirty.isDisjoint(with: [.controls, .values]) { loadControls() }
    do throws(EntryFailure) {
      try checks.checkGuestState(dirty)
    } catch {
      unit.pointee.entryFailure = error
      recordEntryFailure(.invalidGuestState, qualification: error.qualification)
      return false
    }
    loadGuestState(dirty)
    unit.pointee.dirty = []
    return true
  }

  func recordEntryFailure(_ reason: ExitReason, qualification: UInt64) {
    // The other fields keep their values.
    keepExitFields()
    vmx.pointee.setPage(
      .exitReason, UInt64(UInt32(reason.rawValue) | ExitReason.entryFailureBit))
    vmx.pointee.setPage(.exitQualification, qualification)
  }

  // MARK: Loading

  /// Converts the controls to the form in which instructions read them.
  private func loadControls() {
    let unit = vmx.pointee
    var controls = VMXControls()
    controls.pin = unit.page32(.pinBasedControls)
    controls.primary = unit.page32(.primaryControls)
    controls.secondary = unit.page32(.secondaryControls)
    controls.exit = unit.page32(.exitControls)
    controls.entry = unit.page32(.entryControls)
    controls.exceptionBitmap = unit.page32(.exceptionBitmap)
    controls.pageFaultMask = unit.page32(.pageFaultErrorCodeMask)
    controls.pageFaultMatch = unit.page32(.pageFaultErrorCodeMatch)
    controls.cr0Mask = unit.page(.cr0Mask)
    controls.cr0Shadow = unit.page(.cr0ReadShadow)
    controls.cr4Mask = unit.page(.cr4Mask)
    controls.cr4Shadow = unit.page(.cr4ReadShadow)
    controls.cr3TargetCount = unit.page32(.cr3TargetCount)
    controls.cr3Targets[0] = unit.page(.cr3Target0)
    controls.cr3Targets[1] = unit.page(.cr3Target1)
    controls.cr3Targets[2] = unit.page(.cr3Target2)
    controls.cr3Targets[3] = unit.page(.cr3Target3)
    controls.tscOffset = unit.page(.tscOffset)
    controls.tscMultiplier = unit.page(.tscMultiplier)
    controls.msrBitmap = unit.page(.msrBitmap)
    controls.ioBitmapA = unit.page(.ioBitmapA)
    controls.ioBitmapB = unit.page(.ioBitmapB)
    controls.eptPointer = unit.page(.eptPointer)
    controls.vpid = UInt16(truncatingIfNeeded: unit.page(.vpid))
    controls.pleGap = unit.page32(.pleGap)
    controls.pleWindow = unit.page32(.pleWindow)
    controls.notifyWindow = unit.page32(.notifyWindow)
    controls.xssExitingBitmap = unit.page(.xssExitingBitmap)
    if controls.needsVirtualization {
      controls.virtualization = VirtualizationControls(unit, controls)
    }
    adopt(controls)
    vmx.pointee.entryMSRCount = unit.page32(.entryMSRLoadCount)
    vmx.pointee.exitMSRCounts =
      unit.page(.exitMSRStoreCount) | unit.page(.exitMSRLoadCount)
  }

  /// Applies changed guest fields.
  private func loadGuestState(_ dirty: VMCSGroups) {
    let s = cpu.s
    s.pointee.rflags = s.pointee.rflags & RFLAGS.all.rawValue | RFLAGS.fixed.rawValue
    if dirty.contains(.registers) { s.pointee.cr0 |= CR0.et.rawValue }
    if dirty.contains(.controls) { adoptTranslations() }
    if !dirty.isDisjoint(with: [.registers, .segments, .rflags]) { cpu.updateMode() }
    if dirty.contains(.paging) { cpu.flushTLB() }
  }

  /// Flushes translations of another VPID or EPT pointer.
  private func adoptTranslations() {
    let s = cpu.s
    let controls = vmx.pointee.controls
    let vpid = controls.activeSecondary & SecondaryControls.enableVPID != 0
    let eptPointer = s.pointee.intercepts.nested == .ept ? controls.eptPointer : 0
    let tag = vpid ? controls.vpid : 0
    vmx.pointee.flushesOnEntry = !vpid
    if vmx.pointee.tlbEPT == eptPointer && vmx.pointee.tlbVPID == tag { return }
    vmx.pointee.tlbEPT = eptPointer
    vmx.pointee.tlbVPID = tag
    cpu.flushTLB()
  }

  /// Loads the registers that the entry controls select; VM exits may have saved them, and guests
  /// changed them since. (SDM volume 3, "Loading Guest Control Registers, Debug Registers, and
  /// MSRs".)
  @inline(__always) private func loadSwitchedState() {
    let s = cpu.s
    let unit = vmx
    let controls = unit.pointee.controls.entry
    let loadsDebug = controls & EntryControls.loadDebugControls != 0
    var dr7 = loadsDebug ? unit.pointee.page(.guestDR7) : DR7.initial.rawValue
    dr7 = dr7 & 0xFFFF_2FFF | DR7.initial.rawValue
    s.pointee.debugctl = loadsDebug ? unit.pointee.page(.guestDebugControl) : 0
    if dr7 != s.pointee.dr7 {
      s.pointee.dr7 = dr7
      cpu.updateSlow()
      cpu.flushTLB()
    }
    s.pointee.pat =
      controls & EntryControls.loadPAT != 0 ? unit.pointee.page(.guestPAT) : unit.pointee.rootPAT
    let efer = entryEFER(controls)
    if efer != s.pointee.efer {
      let changed = efer ^ s.pointee.efer
      s.pointee.efer = efer
      cpu.updateMode()
      if changed & (EFER.lma.rawValue | EFER.nxe.rawValue) != 0 { cpu.flushTLB() }
    }
    if unit.pointee.flushesOnEntry { cpu.flushTLB() }
  }

  private func entryEFER(_ controls: UInt32) -> UInt64 {
    if controls & EntryControls.loadEFER != 0 { return vmx.pointee.page(.guestEFER) }
    var efer = vmx.pointee.rootEFER
    let longMode = controls & EntryControls.ia32eModeGuest != 0
    efer = longMode ? efer | EFER.lma.rawValue : efer & ~EFER.lma.rawValue
    if cpu.s.pointee.cr0 & CR0.pg.rawValue != 0 {
      efer = longMode ? efer | EFER.lme.rawValue : efer & ~EFER.lme.rawValue
    }
    return efer
  }

  private func startTimer() {
    let s = cpu.s
    s.pointee.retiredAtEntry = s.pointee.retired
    if !cpu.intercepts(.deadline) {
      s.pointee.deadline = .max
      return
    }
    let ticks = vmx.pointee.page(.preemptionTimerValue) << VMXCapabilities.preemptionTimerShift
    let deadline = HostTSC.read() &+ ticks
    s.pointee.deadline = deadline
    if ticks != 0 { DeadlineClock.shared.note(deadline, requestLine) }
  }

  /// Loads the event to inject, if any.
  ///
  /// - Returns: false if it is an exit (a pending monitor trap flag), which is then recorded.
  @inline(__always) private func loadInjection() -> Bool {
    let info = InterruptionInfo(rawValue: vmx.pointee.page32(.entryInterruptionInfo))
    return info.isValid ? loadInjection(info) : true
  }

  private func loadInjection(_ info: InterruptionInfo) -> Bool {
    let s = cpu.s
    let unit = vmx
    s.pointee.injection = GuestEvent(
      info, errorCode: unit.pointee.page32(.entryExceptionErrorCode),
      instructionLength: unit.pointee.page32(.entryInstructionLength))
    if s.pointee.injection != nil { return true }
    // Entry checks allow nothing else.
    s.pointee.activity = ActivityState.active
    _ = cpu.exit(.monitorTrap)
    return false
  }
}
