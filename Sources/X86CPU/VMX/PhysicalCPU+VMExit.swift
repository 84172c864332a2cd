// SPDX-License-Identifier: Apache-2.0
//
// The end of a VM exit (SDM volume 3, "VM Exits"). `ExitFields` derives the VMCS's fields from
// `CPUState.exit`, and the guest's state stays in the CPU. What remains are effects of the exit
// controls: registers that the VMCS keeps in memory, the timer, MSR areas, root operation's MSRs.

import CHost
import X86

extension PhysicalCPU {
  /// Completes an exit recorded by guest code.
  @inline(__always) func completeExit() throws(VMXError) -> ExitReason {
    let s = cpu.s
    let unit = vmx
    let controls = unit.pointee.controls.exit
    unit.pointee.hasExitRecord = true
    let injected = unit.pointee.page(.entryInterruptionInfo)
    if injected & UInt64(InterruptionInfo.validBit) != 0 {
      unit.pointee.setPage(
        .entryInterruptionInfo, injected & ~UInt64(InterruptionInfo.validBit))
    }
    if controls & ExitControls.saveDebugControls != 0 {
      unit.pointee.setPage(.guestDR7, s.pointee.dr7)
      unit.pointee.setPage(.guestDebugControl, s.pointee.debugctl)
    }
    if controls & ExitControls.saveEFER != 0 { unit.pointee.setPage(.guestEFER, s.pointee.efer) }
    if controls & ExitControls.savePAT != 0 { unit.pointee.setPage(.guestPAT, s.pointee.pat) }
    if s.pointee.deadline != .max { stopTimer(controls) }
    keepLongMode()
    s.pointee.slow &= ~SlowReason.monitorTrap
    if unit.pointee.exitMSRCounts != 0 { try storeExitMSRs() }
    loadRootMSRs(controls)
    if unit.pointee.exitMSRCounts != 0 { try loadExitMSRs() }
    return ExitFields(of: cpu).basicReason
  }

  /// Completes an entry-failure exit: the guest's state was not loaded and is not saved; the fields
  /// keep their values and the injection stays valid (SDM volume 3, "VM-Entry Failures During or
  /// After Loading Guest State").
  func completeFailedEntry() throws(VMXError) -> ExitReason {
    loadRootMSRs(vmx.pointee.page32(.exitControls))
    if vmx.pointee.exitMSRCounts != 0 { try loadExitMSRs() }
    return ExitReason(rawValue: UInt16(truncatingIfNeeded: vmx.pointee.page(.exitReason)))
  }

  /// Keeps the entry control "IA-32e mode guest" equal to EFER.LMA (processors with unrestricted
  /// guests).
  @inline(__always) private func keepLongMode() {
    let s = cpu.s
    let unit = vmx
    let bit = EntryControls.ia32eModeGuest
    let wanted = s.pointee.efer & EFER.lma.rawValue != 0 ? bit : 0
    let controls = unit.pointee.controls.entry
    if controls & bit == wanted { return }
    unit.pointee.controls.entry = controls & ~bit | wanted
    unit.pointee.setPage(.entryControls, UInt64(controls & ~bit | wanted))
  }

  private func stopTimer(_ controls: UInt32) {
    let deadline = cpu.s.pointee.deadline
    cpu.s.pointee.deadline = .max
    DeadlineClock.shared.forget(requestLine)
    if controls & ExitControls.savePreemptionTimer == 0 { return }
    let now = HostTSC.read()
    let left = deadline > now ? (deadline &- now) >> VMXCapabilities.preemptionTimerShift : 0
    vmx.pointee.setPage(.preemptionTimerValue, left)
  }

  /// Loads EFER and PAT of root operation. (Its other registers belong to the program.)
  @inline(__always) private func loadRootMSRs(_ controls: UInt32) {
    let s = cpu.s
    let unit = vmx
    if controls & ExitControls.loadEFER != 0 {
      unit.pointee.rootEFER = unit.pointee.page(.hostEFER)
    } else {
      unit.pointee.rootEFER = s.pointee.efer | EFER.lma.rawValue | EFER.lme.rawValue
    }
    unit.pointee.rootPAT =
      controls & ExitControls.loadPAT != 0 ? unit.pointee.page(.hostPAT) : s.pointee.pat
  }

  /// VMX abort: the CPU leaves VMX operation.
  func abort(_ indicator: VMXAbortIndicator) -> VMXError {
    if let current = vmx.pointee.current { VMCSHeader(base: current).abort = indicator.rawValue }
    releaseCurrent()
    vmx.pointee.vmxonRegion = 0
    return .abort(indicator)
  }
}
