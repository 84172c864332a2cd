// SPDX-License-Identifier: Apache-2.0
//
// VM entry (SDM volume 3, "VM Entries"): checks, guest state, MSRs, event injection, then guest
// code until a VM exit.
//
// Only groups of fields that changed since the last entry are looked at again (`VMXUnit.dirty`):
// the guest's own instructions keep its state valid, so an exit and re-entry in which the
// hypervisor touched nothing but RIP, RFLAGS and the injection fields costs a few loads and
// compares.

import CHost
import X86

extension PhysicalCPU {
  /// Enters the guest of a "clear" VMCS, which is "launched" afterwards, and runs it until it
  /// exits.
  ///
  /// - Returns: the basic exit reason. 33 and 34 are entry failures: nothing was executed.
  /// - Throws: `failInvalid` without a current VMCS; error 4 (not clear), 7 (controls), 8 (host
  ///   state), of which `vmxEntryFailure` names the rule; `abort`.
  @discardableResult
  package func vmlaunch() throws(VMXError) -> ExitReason {
    try requireVMXOperation()
    if vmx.pointee.current == nil { throw .failInvalid }
    if vmx.pointee.launched { throw fail(.vmlaunchNonClear) }
    return try enter()
  }

  /// Enters the guest of a "launched" VMCS again; error 5 where it is not. See `vmlaunch`.
  @discardableResult
  package func vmresume() throws(VMXError) -> ExitReason {
    try requireVMXOperation()
    if vmx.pointee.current == nil { throw .failInvalid }
    if !vmx.pointee.launched { throw fail(.vmresumeNonLaunched) }
    return try enter()
  }

  /// The rule that the last failed VM entry broke.
  package var vmxEntryFailure: EntryFailure? { vmx.pointee.entryFailure }

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
    runGuarded()
    return try completeExit()
  }

  /// Checks and loads what changed.
  ///
  /// - Returns: false where it ended in an entry-failure exit, which is then recorded.
  private func prepare() throws(VMXError) -> Bool {
    let unit = vmx
    if unit.pointee.dirty.contains(.controls) {
      // What translations depend on is compared by itself (`adoptTranslations`).
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
    cpu.s.pointee.exit.reason = UInt32(reason.rawValue) | ExitReason.entryFailureBit
    cpu.s.pointee.exit.qualification = qualification
  }

  // MARK: Loading

  /// The controls in the form in which instructions consult them.
  private func loadControls() {
    let unit = vmx.pointee
    let s = cpu.s
    s.pointee.vmx.pin = unit.page32(.pinBasedControls)
    s.pointee.vmx.primary = unit.page32(.primaryControls)
    let usesSecondary = s.pointee.vmx.primary & PrimaryControls.secondaryControls != 0
    s.pointee.vmx.secondary = usesSecondary ? unit.page32(.secondaryControls) : 0
    s.pointee.vmx.exit = unit.page32(.exitControls)
    s.pointee.vmx.entry = unit.page32(.entryControls)
    s.pointee.vmx.exceptionBitmap = unit.page32(.exceptionBitmap)
    s.pointee.vmx.pageFaultMask = unit.page32(.pageFaultErrorCodeMask)
    s.pointee.vmx.pageFaultMatch = unit.page32(.pageFaultErrorCodeMatch)
    s.pointee.vmx.cr0Mask = unit.page(.cr0Mask)
    s.pointee.vmx.cr0Shadow = unit.page(.cr0ReadShadow)
    s.pointee.vmx.cr4Mask = unit.page(.cr4Mask)
    s.pointee.vmx.cr4Shadow = unit.page(.cr4ReadShadow)
    s.pointee.vmx.cr3TargetCount = unit.page32(.cr3TargetCount)
    s.pointee.vmx.cr3Targets[0] = unit.page(.cr3Target0)
    s.pointee.vmx.cr3Targets[1] = unit.page(.cr3Target1)
    s.pointee.vmx.cr3Targets[2] = unit.page(.cr3Target2)
    s.pointee.vmx.cr3Targets[3] = unit.page(.cr3Target3)
    s.pointee.vmx.tscOffset = unit.page(.tscOffset)
    s.pointee.vmx.tscMultiplier = unit.page(.tscMultiplier)
    s.pointee.vmx.msrBitmap = unit.page(.msrBitmap)
    s.pointee.vmx.ioBitmapA = unit.page(.ioBitmapA)
    s.pointee.vmx.ioBitmapB = unit.page(.ioBitmapB)
    s.pointee.vmx.eptPointer = unit.page(.eptPointer)
    s.pointee.vmx.vpid = UInt16(truncatingIfNeeded: unit.page(.vpid))
    s.pointee.vmx.pleGap = unit.page32(.pleGap)
    s.pointee.vmx.pleWindow = unit.page32(.pleWindow)
    s.pointee.vmx.notifyWindow = unit.page32(.notifyWindow)
    s.pointee.vmx.xssExitingBitmap = unit.page(.xssExitingBitmap)
    vmx.pointee.entryMSRCount = unit.page32(.entryMSRLoadCount)
    vmx.pointee.exitMSRCounts =
      unit.page(.exitMSRStoreCount) | unit.page(.exitMSRLoadCount)
  }

  /// What follows from guest fields that changed.
  private func loadGuestState(_ dirty: VMCSGroups) {
    let s = cpu.s
    s.pointee.rflags = s.pointee.rflags & RFLAGS.all.rawValue | RFLAGS.fixed.rawValue
    if dirty.contains(.registers) { s.pointee.cr0 |= CR0.et.rawValue }
    if dirty.contains(.controls) { adoptTranslations() }
    if !dirty.isDisjoint(with: [.registers, .segments, .rflags]) { cpu.updateMode() }
    if dirty.contains(.paging) { cpu.flushTLB() }
  }

  /// Translations of another VPID or EPT pointer are not this guest's.
  private func adoptTranslations() {
    let s = cpu.s
    let ept = s.pointee.vmx.secondary & SecondaryControls.enableEPT != 0
    let vpid = s.pointee.vmx.secondary & SecondaryControls.enableVPID != 0
    let eptPointer = ept ? s.pointee.vmx.eptPointer : 0
    let tag = vpid ? s.pointee.vmx.vpid : 0
    vmx.pointee.flushesOnEntry = !vpid
    if vmx.pointee.tlbEPT == eptPointer && vmx.pointee.tlbVPID == tag { return }
    vmx.pointee.tlbEPT = eptPointer
    vmx.pointee.tlbVPID = tag
    cpu.flushTLB()
  }

  /// The registers that entry loads or leaves by its controls; VM exits may have saved them, and
  /// guests changed them since. (SDM volume 3, "Loading Guest Control Registers, Debug Registers,
  /// and MSRs".)
  @inline(__always) private func loadSwitchedState() {
    let s = cpu.s
    let unit = vmx
    let controls = s.pointee.vmx.entry
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
    let unit = vmx
    unit.pointee.retiredAtEntry = cpu.s.pointee.retired
    if cpu.s.pointee.vmx.pin & PinControls.preemptionTimer == 0 {
      unit.pointee.timerDeadline = .max
      return
    }
    let ticks = unit.pointee.page(.preemptionTimerValue) << VMXCapabilities.preemptionTimerShift
    unit.pointee.timerDeadline = HostTSC.read() &+ ticks
  }
}
