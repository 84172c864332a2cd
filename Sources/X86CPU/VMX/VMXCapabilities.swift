// SPDX-License-Identifier: Apache-2.0
//
// The VMX unit's features, as the VMX capability MSRs report them (SDM volume 3, appendix "VMX
// Capability Reporting Facility"). A control may be 1 only if the processor implements it; VM entry
// checks control fields against the same masks.
//
//     VMXCapabilities.pin.allows(0x1F)            // the default controls plus ...
//     VMXCapabilities.value(ofMSR: MSR.vmxBasic.rawValue)

import X86

/// Bits that a control field must have, and bits that it may have.
package struct ControlCapability: Sendable {
  package let required: UInt32
  package let allowed: UInt32

  package init(required: UInt32, offered: UInt32) {
    self.required = required
    allowed = required | offered
  }

  /// No value is allowed where a bit that is required is not.
  package init(required: UInt32, allowed: UInt32) {
    (self.required, self.allowed) = (required, allowed)
  }

  @inlinable package func allows(_ value: UInt32) -> Bool {
    value & required == required && value & ~allowed == 0
  }

  /// Allowed-0 settings in the low half, allowed-1 settings in the high half.
  package var msr: UInt64 { UInt64(allowed) << 32 | UInt64(required) }
}

package enum VMXCapabilities {
  /// VMCS revision identifier.
  package static let revision = VMCSLayout.revision
  /// Host-physical addresses are addresses in this process: canonical user addresses.
  package static let hostAddressWidth: UInt64 = 47
  /// TSC ticks of a VMX-preemption timer tick, as a power of two.
  package static let preemptionTimerShift: UInt64 = 5
  package static let cr3TargetCount: UInt32 = 4
  /// Maximum of entries in an MSR area.
  package static let msrAreaLimit: UInt64 = 512

  // MARK: Controls

  package static let pin = ControlCapability(
    required: 0x16,
    offered: PinControls.externalInterruptExiting | PinControls.nmiExiting
      | PinControls.virtualNMIs | PinControls.preemptionTimer | PinControls.postedInterrupts)

  /// The "true" settings; the classic MSR also requires CR3-load and CR3-store exiting.
  package static let primary = ControlCapability(required: 0x0400_6172, offered: offeredPrimary)
  private static let classicPrimary = ControlCapability(
    required: 0x0401_E172, offered: offeredPrimary)
  private static let offeredPrimary =
    PrimaryControls.interruptWindowExiting | PrimaryControls.useTSCOffsetting
    | PrimaryControls.hltExiting | PrimaryControls.invlpgExiting | PrimaryControls.mwaitExiting
    | PrimaryControls.rdpmcExiting | PrimaryControls.rdtscExiting
    | PrimaryControls.cr3LoadExiting | PrimaryControls.cr3StoreExiting
    | PrimaryControls.cr8LoadExiting | PrimaryControls.cr8StoreExiting
    | PrimaryControls.useTPRShadow
    | PrimaryControls.nmiWindowExiting | PrimaryControls.movDRExiting
    | PrimaryControls.unconditionalIOExiting | PrimaryControls.useIOBitmaps
    | PrimaryControls.monitorTrapFlag | PrimaryControls.useMSRBitmaps
    | PrimaryControls.monitorExiting | PrimaryControls.pauseExiting
    | PrimaryControls.secondaryControls

  package static let secondary = ControlCapability(
    required: 0,
    offered: SecondaryControls.enableEPT | SecondaryControls.descriptorTableExiting
      | SecondaryControls.enableRDTSCP | SecondaryControls.enableVPID
      | SecondaryControls.wbinvdExiting | SecondaryControls.unrestrictedGuest
      | SecondaryControls.pauseLoopExiting | SecondaryControls.rdrandExiting
      | SecondaryControls.enableINVPCID | SecondaryControls.rdseedExiting
      | SecondaryControls.enableXSAVES | SecondaryControls.useTSCScaling
      | SecondaryControls.busLockDetection | SecondaryControls.notifyExiting
      | SecondaryControls.virtualizeAPICAccesses | SecondaryControls.virtualizeX2APIC
      | SecondaryControls.apicRegisterVirtualization
      | SecondaryControls.virtualInterruptDelivery | SecondaryControls.enableVMFunctions
      | SecondaryControls.vmcsShadowing | SecondaryControls.enablePML
      | SecondaryControls.eptViolationVE | SecondaryControls.modeBasedExecute)

  /// True settings; the classic MSR also requires saving the debug controls.
  package static let exit = ControlCapability(required: 0x0003_6DFB, offered: offeredExit)
  private static let classicExit = ControlCapability(
    required: 0x0003_6DFF, offered: offeredExit)
  private static let offeredExit =
    ExitControls.saveDebugControls | ExitControls.hostAddressSpaceSize | ExitControls.savePAT
    | ExitControls.loadPAT | ExitControls.saveEFER | ExitControls.loadEFER
    | ExitControls.savePreemptionTimer | ExitControls.acknowledgeInterrupt

  /// True settings; the classic MSR also requires loading the debug controls.
  package static let entry = ControlCapability(required: 0x11FB, offered: offeredEntry)
  private static let classicEntry = ControlCapability(required: 0x11FF, offered: offeredEntry)
  private static let offeredEntry =
    EntryControls.loadDebugControls | EntryControls.ia32eModeGuest | EntryControls.loadPAT
    | EntryControls.loadEFER

  // MARK: Control registers

  package static let cr0Fixed0 = CR0.fixedInVMX.rawValue
  package static let cr0Fixed1: UInt64 = 0xFFFF_FFFF
  package static let cr4Fixed0 = CR4.vmxe.rawValue
  package static let cr4Fixed1 = CR4.supported.union(.vmxe).rawValue

  // MARK: EPT and VPID

  /// Execute-only, four and five levels, UC and WB tables, 2 MiB and 1 GiB pages, accessed and
  /// dirty flags, advanced EPT-violation information, INVEPT and INVVPID in all types.
  package static let eptVPID: UInt64 =
    EPTCapabilities.executeOnly | EPTCapabilities.fourLevels | EPTCapabilities.fiveLevels
    | EPTCapabilities.uncacheable | EPTCapabilities.writeBack | EPTCapabilities.pages2M
    | EPTCapabilities.pages1G | EPTCapabilities.invept | EPTCapabilities.accessedDirty
    | EPTCapabilities.violationInformation | EPTCapabilities.inveptTypes
    | EPTCapabilities.invvpid | EPTCapabilities.invvpidTypes

  package static let vmFunctions = VMFunctions.eptpSwitching
  /// Entries in an EPTP list.
  package static let eptpListCount: UInt64 = 512

  /// Whether an EPT pointer is valid for VM entry and INVEPT.
  package static func allows(eptPointer pointer: UInt64) -> Bool {
    let type = pointer & EPTPointer.memoryTypeMask
    return (type == EPTPointer.uncacheable || type == EPTPointer.writeBack)
      && allows(eptLevels: pointer, of: eptVPID)
      && pointer & EPTPointer.reserved == 0
      && EntryChecks.isHostPage(pointer & Page.mask)
  }

  /// - Parameter offered: a value of IA32_VMX_EPT_VPID_CAP.
  static func allows(eptLevels pointer: UInt64, of offered: UInt64) -> Bool {
    switch pointer & EPTPointer.levelsMask {
    case EPTPointer.fourLevels: offered & EPTCapabilities.fourLevels != 0
    case EPTPointer.fiveLevels: offered & EPTCapabilities.fiveLevels != 0
    default: false
    }
  }

  static func allows(eptMemoryType pointer: UInt64, of offered: UInt64) -> Bool {
    switch pointer & EPTPointer.memoryTypeMask {
    case EPTPointer.uncacheable: offered & EPTCapabilities.uncacheable != 0
    case EPTPointer.writeBack: offered & EPTCapabilities.writeBack != 0
    default: false
    }
  }

  static func hasAccessedDirty(_ offered: UInt64) -> Bool {
    offered & EPTCapabilities.accessedDirty != 0
  }

  // MARK: Absent features

  /// Secondary controls of the manual's list that must be 0, and why. (In the other fields: "load
  /// IA32_PERF_GLOBAL_CTRL" and the tertiary controls, as the processor has neither performance
  /// counters nor their features; "entry to SMM" and "deactivate dual-monitor treatment", as it has
  /// no system-management mode: the hypervisor emulates it for its guests.)
  package static let absent: [(control: UInt32, reason: String)] = [
    (SecondaryControls.enclsExiting, "there is no SGX"),
    (SecondaryControls.enclvExiting, "there is no SGX"),
    (SecondaryControls.enablePCONFIG, "there is no PCONFIG: memory is not encrypted"),
    (SecondaryControls.concealFromPT, "there is no Intel PT"),
    (SecondaryControls.usePTGuestPhysical, "there is no Intel PT"),
    (SecondaryControls.subPageWrite, "EPT has no sub-page permissions here"),
    (SecondaryControls.userWaitAndPause, "there are no TPAUSE, UMONITOR and UMWAIT"),
  ]

  /// Timer rate; exits store the "IA-32e mode guest" control; HLT, shutdown and wait-for-SIPI
  /// states; CR3 targets; MSR areas of 512; VMWRITE to all fields; injection with instruction
  /// length 0.
  package static let misc: UInt64 =
    preemptionTimerShift | 1 << 5 | 7 << 6 | UInt64(cr3TargetCount) << 16 | 1 << 29 | 1 << 30

  /// Revision, 4 KiB regions of write-back memory, information for INS and OUTS, true controls.
  package static let basic: UInt64 =
    UInt64(revision) | 4096 << 32 | 6 << 50 | 1 << 54 | 1 << 55

  /// The value of a VMX capability MSR; nil for others and for those of absent features.
  package static func value(ofMSR msr: UInt32) -> UInt64? {
    switch MSR(rawValue: msr) {
    case .vmxBasic: basic
    case .vmxPinControls: pin.msr
    case .vmxPrimaryControls: classicPrimary.msr
    case .vmxExitControls: classicExit.msr
    case .vmxEntryControls: classicEntry.msr
    case .vmxMisc: misc
    case .vmxCR0Fixed0: cr0Fixed0
    case .vmxCR0Fixed1: cr0Fixed1
    case .vmxCR4Fixed0: cr4Fixed0
    case .vmxCR4Fixed1: cr4Fixed1
    case .vmxVMCSEnum: UInt64(VMCSField.highestIndex) << 1
    case .vmxSecondaryControls: secondary.msr
    case .vmxEPTVPIDCap: eptVPID
    case .vmxTruePinControls: pin.msr
    case .vmxTruePrimaryControls: primary.msr
    case .vmxTrueExitControls: exit.msr
    case .vmxTrueEntryControls: entry.msr
    case .vmxVMFunc: vmFunctions
    default: nil
    }
  }
}
