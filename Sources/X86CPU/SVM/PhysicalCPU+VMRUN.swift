// SPDX-License-Identifier: Apache-2.0
//
// VMRUN (APM volume 2, "VMRUN"; volume 3, "VMRUN"): checks, guest state, intercepts, event
// injection, then guest code until an exit.
//
// Only parts without a clean bit are loaded and checked again. So an exit and a VMRUN between which
// the hypervisor changed only RIP, RFLAGS and the injected event cost a few loads and compares.

import CHost
import X86

extension PhysicalCPU {
  /// Enters the guest of a VMCB and runs it until it exits.
  ///
  /// - Parameter keepsState: the guest's state stays in the CPU, accessible by `vmcbRead` and
  ///   `vmcbWrite`; else it is in the VMCB's memory after the exit, and before this VMRUN.
  /// - Returns: the exit code, which is also in the VMCB. `invalid`: the VMCB broke a rule, the
  ///   guest executed nothing, and `vmrunFailure` names the rule.
  @discardableResult
  package func vmrun(
    _ address: UInt64, keepsState: Bool = false
  ) throws(SVMError) -> SVMExitCode {
    try requireSVM()
    guard let vmcb = VMCB(address) else { throw .invalidAddress }
    let changed = takeState(vmcb)
    svm.pointee.gif = true
    let code = enter(vmcb, changed)
    svm.pointee.gif = false
    svm.pointee.isWriteBackDue = true
    if !keepsState { vmcbWriteBack() }
    return code
  }

  private func enter(_ vmcb: VMCB, _ changed: VMCBClean) -> SVMExitCode {
    let unit = svm
    if !changed.isEmpty || vmcb[.eventInjection] & SVMEvent.validBit != 0 {
      unit.pointee.entryFailure = nil
      do throws(VMRunFailure) {
        try VMRunChecks(cpu: cpu, vmcb: vmcb).check(changed)
      } catch {
        unit.pointee.entryFailure = error
        unit.pointee.untaken = changed
        return failEntry(vmcb)
      }
    }
    adopt(vmcb, changed)
    unit.pointee.untaken = []
    unit.pointee.entries &+= 1
    cpu.s.pointee.retiredAtEntry = cpu.s.pointee.retired
    cpu.s.pointee.activity = ActivityState.active
    cpu.s.pointee.deadline = .max
    cpu.s.pointee.system.pauseFirst = UInt64(cpu.s.pointee.intercepts.pauseWindow)
    cpu.s.pointee.injection = injection(vmcb)
    runGuarded()
    return completeExit(vmcb)
  }

  // MARK: State

  /// Loads what software may have changed in memory.
  ///
  /// - Returns: the parts without a clean bit.
  private func takeState(_ vmcb: VMCB) -> VMCBClean {
    if svm.pointee.held != vmcb.base {
      hold(vmcb)
      return .all
    }
    let changed = VMCBClean.all.subtracting(
      VMCBClean(rawValue: UInt32(truncatingIfNeeded: vmcb[.cleanBits]))
    ).union(svm.pointee.untaken)
    if !svm.pointee.isWriteBackDue { reload(vmcb, changed) }
    return changed
  }

  /// After a write-back: reloads fields without a clean bit of their own, and those not clean.
  private func reload(_ vmcb: VMCB, _ changed: VMCBClean) {
    let paging = pagingState
    for location in VMCBLayout.runLocations
    where location.clean.isEmpty || !location.clean.isDisjoint(with: changed) {
      cpu.writeLazy(location, vmcb.load(location))
    }
    cpu.s.pointee.pendingDebug = 0
    if changed.contains(.segments) { adoptPrivilege() }
    if pagingState != paging { svm.pointee.mustFlush = true }
    svm.pointee.mustUpdateMode = true
  }

  /// The state that translations depend on.
  private var pagingState: [UInt64] {
    let s = cpu.s
    return [
      s.pointee.cr0 & CR0.paging.rawValue, s.pointee.cr3, s.pointee.cr4 & CR4.paging.rawValue,
      s.pointee.efer, s.pointee.dr7,
    ]
  }

  /// Applies parts that changed.
  private func adopt(_ vmcb: VMCB, _ changed: VMCBClean) {
    let unit = svm
    let s = cpu.s
    if !changed.isDisjoint(with: VMCBClean.ofIntercepts) { adoptIntercepts(vmcb) }
    if changed.contains(.virtualInterrupt) {
      let word = VirtualInterrupt(rawValue: vmcb[.virtualInterrupt])
      s.pointee.virtualInterrupt = word
      s.pointee.cr8 = UInt64(word.tpr)
      cpu.adoptNMIMask(word)
    }
    if !changed.isDisjoint(with: VMCBClean.ofIntercepts.union(.virtualInterrupt)) {
      cpu.updateVirtualEvents()
    }
    if changed.contains(.controlRegisters) { s.pointee.cr0 |= CR0.et.rawValue }
    if changed.contains(.controlRegisters) { cpu.s.pointee.mustLoadPDPTEs = cpu.usesPDPTEs }
    if changed.contains(.debugRegisters) {
      s.pointee.dr6 = s.pointee.dr6 & DR6.writable.rawValue | DR6.initial.rawValue
      s.pointee.dr7 = s.pointee.dr7 & DR7.writable.rawValue | DR7.initial.rawValue
    }
    let needsMode: VMCBClean = [.controlRegisters, .segments, .debugRegisters, .intercepts]
    if unit.pointee.mustUpdateMode || !changed.isDisjoint(with: needsMode) {
      unit.pointee.mustUpdateMode = false
      cpu.updateMode()
    }
    if currentSpace == nil || !changed.isDisjoint(with: [.asid, .nestedPaging]) {
      adoptTranslations(vmcb)
    }
    let control = UInt8(truncatingIfNeeded: vmcb[.tlbControl])
    if control != TLBControl.nothing || unit.pointee.mustFlush {
      unit.pointee.mustFlush = false
      cpu.flushTLB()
    }
  }

  /// Flushes translations of another ASID or of other nested tables.
  private func adoptTranslations(_ vmcb: VMCB) {
    enterTranslationSpace(
      TranslationSpaceKey(
        guest: UInt32(truncatingIfNeeded: vmcb[.asid]),
        nested: cpu.s.pointee.intercepts.nestedRoot,
        controlBlock: UInt64(UInt(bitPattern: vmcb.base))))
  }

  // MARK: Intercepts

  /// Converts the control area to the form in which instructions read it.
  private func adoptIntercepts(_ vmcb: VMCB) {
    var new = Intercepts()
    let bits = SVMIntercepts(vmcb)
    new.mode = .svm
    new.set = InterceptSet(bits, word5: UInt32(truncatingIfNeeded: vmcb[.intercepts5]))
    new.exceptions = UInt32(truncatingIfNeeded: vmcb[.exceptionIntercepts])
    let control = vmcb[.controlRegisterIntercepts]
    new.crReads = UInt16(truncatingIfNeeded: control)
    new.crWrites = UInt16(truncatingIfNeeded: control >> 16)
    let debug = vmcb[.debugRegisterIntercepts]
    new.drReads = UInt16(truncatingIfNeeded: debug)
    new.drWrites = UInt16(truncatingIfNeeded: debug >> 16)
    if bits.contains(.ports) {
      new.portLayout = .svm
      new.portBitmap = vmcb[.ioPermissionMap] & Page.mask
    }
    if bits.contains(.msrs) {
      new.msrLayout = .svm
      new.msrBitmap = vmcb[.msrPermissionMap] & Page.mask
    }
    if vmcb[.nestedControl] & NestedControl.paging != 0 {
      new.nested = .longMode
      new.nestedRoot = vmcb[.nestedCR3] & Page.mask
    }
    new.tscOffset = vmcb[.tscOffset]
    new.tscMultiplier = svm.pointee.tscRatio << 16
    if svm.pointee.tscRatio != SVMCapabilities.tscRatioOne { new.set.insert(.scaledTSC) }
    if bits.contains(.pause) {
      let count = UInt32(truncatingIfNeeded: vmcb[.pauseFilterCount])
      new.pauseWindow = count
      new.pauseGap = UInt32(truncatingIfNeeded: vmcb[.pauseFilterThreshold])
      new.set.insert(count == 0 ? .pause : .pauseLoop)
    }
    cpu.s.pointee.intercepts = new
  }

  // MARK: Events

  /// The event of EVENTINJ. A software event returns to nRIP.
  private func injection(_ vmcb: VMCB) -> GuestEvent? {
    let event = SVMEvent(rawValue: vmcb[.eventInjection])
    guard event.isValid else { return nil }
    let length = vmcb[.nextRIP] &- cpu.s.pointee.rip
    return GuestEvent(event, instructionLength: UInt32(truncatingIfNeeded: length))
  }
}

extension VMCBClean {
  /// The parts that `Intercepts` is derived from.
  fileprivate static let ofIntercepts: Self = [.intercepts, .permissionMaps, .nestedPaging]
}

extension InterceptSet {
  /// Bits with an equivalent on both sides; those that need more than a bit are not listed.
  private static let rows: [(SVMIntercepts, InterceptSet)] = [
    (.interrupt, .externalInterrupt), (.nmi, .nmi), (.smi, .smi), (.initSignal, .initSignal),
    (.virtualInterrupt, .virtualInterrupt), (.selectiveCR0Write, .selectiveCR0Write),
    (.idtrRead, .sidt), (.gdtrRead, .sgdt), (.ldtrRead, .sldt), (.trRead, .str),
    (.idtrWrite, .lidt), (.gdtrWrite, .lgdt), (.ldtrWrite, .lldt), (.trWrite, .ltr),
    (.rdtsc, .rdtsc), (.rdpmc, .rdpmc), (.pushf, .pushf), (.popf, .popf), (.cpuid, .cpuid),
    (.rsm, .rsm), (.iret, .iret), (.softwareInterrupt, .softwareInterrupt), (.invd, .invd),
    (.hlt, .hlt), (.invlpg, .invlpg), (.invlpga, .invlpga), (.taskSwitch, .taskSwitch),
    (.ferrFreeze, .ferrFreeze), (.shutdown, .shutdown), (.vmrun, .vmrun), (.vmmcall, .hypercall),
    (.vmload, .vmload), (.vmsave, .vmsave), (.stgi, .stgi), (.clgi, .clgi), (.skinit, .skinit),
    (.rdtscp, .rdtscp), (.icebp, .icebp), (.wbinvd, .wbinvd), (.monitor, .monitor),
    (.mwait, .mwait), (.armedMWAIT, .armedMWAIT), (.xsetbv, .xsetbv), (.rdpru, .rdpru),
  ]

  fileprivate init(_ bits: SVMIntercepts, word5: UInt32) {
    self = [.offsetTSC, .virtualNMIs]
    for (svm, neutral) in Self.rows where bits.contains(svm) { insert(neutral) }
    if word5 & SVMIntercept5.invpcid != 0 { insert(.invpcid) }
  }
}

extension CPU {
  /// PAE paging outside long mode.
  var usesPDPTEs: Bool {
    s.pointee.cr0 & CR0.pg.rawValue != 0 && s.pointee.cr4 & CR4.pae.rawValue != 0 && !isLongMode
  }

  /// - Returns: false on an exit.
  func loadPDPTEsAtEntry() -> Bool {
    s.pointee.mustLoadPDPTEs = false
    do throws(GuestException) {
      try loadPDPTEs(root: s.pointee.cr3)
      return true
    } catch {
      s.pointee.mustLoadPDPTEs = true
      if !error.isVMExit { _ = exit(.tripleFault) }
      return false
    }
  }
}
