// SPDX-License-Identifier: Apache-2.0
//
// The rules of VM entry, one case each, in the manual's order: tests can ask which one an entry
// broke.

/// The rule that a VM entry broke, in the manual's order (SDM volume 3, "Checks on VMX Controls and
/// Host-State Area" and "Checking and Loading Guest State").
package enum EntryFailure: String, Error, Sendable, Hashable, CaseIterable {
  // MARK: Controls
  case pinControls = "reserved bits in the pin-based VM-execution controls"
  case primaryControls = "reserved bits in the primary processor-based VM-execution controls"
  case secondaryControls = "reserved bits in the secondary processor-based VM-execution controls"
  case cr3TargetCount = "the CR3-target count must not be greater than 4"
  case ioBitmapAddress =
    "I/O-bitmap addresses must be aligned to 4 KiB and within the physical-address width"
  case msrBitmapAddress =
    "the MSR-bitmap address must be aligned to 4 KiB and within the physical-address width"
  case virtualAPICAddress =
    "the virtual-APIC address must be aligned to 4 KiB and within the physical-address width"
  case tprThresholdReserved =
    "without virtual-interrupt delivery, bits 31:4 of the TPR threshold must be 0"
  case tprThresholdAboveTPR =
    "the TPR threshold must not be above bits 7:4 of the virtual TPR"
  case virtualNMIsWithoutNMIExiting = "if NMI exiting is 0, virtual NMIs must be 0"
  case nmiWindowWithoutVirtualNMIs = "if virtual NMIs is 0, NMI-window exiting must be 0"
  case apicAccessAddress =
    "the APIC-access address must be aligned to 4 KiB and within the physical-address width"
  case x2APICWithAPICAccesses =
    "if virtualize x2APIC mode is 1, virtualize APIC accesses must be 0"
  case apicFeaturesWithoutTPRShadow =
    "if use TPR shadow is 0, the other features of the virtual APIC must be 0"
  case deliveryWithoutInterruptExiting =
    "if virtual-interrupt delivery is 1, external-interrupt exiting must be 1"
  case postedWithoutDelivery =
    "if process posted interrupts is 1, virtual-interrupt delivery must be 1"
  case postedWithoutAcknowledge =
    "if process posted interrupts is 1, acknowledge interrupt on exit must be 1"
  case postedInterruptVector = "bits 15:8 of the posted-interrupt notification vector must be 0"
  case postedInterruptDescriptor =
    "the posted-interrupt descriptor must be aligned to 64 bytes and within the address width"
  case zeroVPID = "if enable VPID is 1, the VPID must not be 0"
  case eptMemoryType = "the EPT memory type must be one that is supported"
  case eptWalkLength = "the EPT page-walk length must be one that is supported"
  case eptPointerReserved = "reserved bits in the EPT pointer"
  case pmlWithoutEPT = "if enable PML is 1, enable EPT must be 1"
  case pmlAddress =
    "the PML address must be aligned to 4 KiB and within the physical-address width"
  case unrestrictedGuestWithoutEPT = "if unrestricted guest is 1, enable EPT must be 1"
  case modeBasedExecuteWithoutEPT =
    "if mode-based execute control for EPT is 1, enable EPT must be 1"
  case vmFunctionControls = "reserved bits in the VM-function controls"
  case eptpSwitchingWithoutEPT = "if EPTP switching is 1, enable EPT must be 1"
  case eptpListAddress =
    "the EPTP-list address must be aligned to 4 KiB and within the physical-address width"
  case vmreadBitmapAddress =
    "the VMREAD-bitmap address must be aligned to 4 KiB and within the physical-address width"
  case vmwriteBitmapAddress =
    "the VMWRITE-bitmap address must be aligned to 4 KiB and within the physical-address width"
  case virtualizationExceptionAddress =
    "the virtualization-exception area must be aligned to 4 KiB and within the address width"
  case zeroTSCMultiplier = "if use TSC scaling is 1, the TSC multiplier must not be 0"
  case exitControls = "reserved bits in the VM-exit controls"
  case saveTimerWithoutTimer =
    "if activate VMX-preemption timer is 0, save VMX-preemption timer value must be 0"
  case exitMSRStoreAddress =
    "the VM-exit MSR-store area must be aligned to 16 bytes and within the physical-address width"
  case exitMSRLoadAddress =
    "the VM-exit MSR-load area must be aligned to 16 bytes and within the physical-address width"
  case entryControls = "reserved bits in the VM-entry controls"
  case injectionType = "the injected event's type must not be reserved"
  case injectionVector = "the injected event's vector must suit its type"
  case injectionErrorCodeValid =
    "deliver error code must be 1 for the exceptions that have one, and for no other event"
  case injectionReserved = "reserved bits in the VM-entry interruption-information field"
  case injectionErrorCode = "bits 31:16 of the VM-entry exception error code must be 0"
  case injectionLength = "the VM-entry instruction length must be 0 to 15"
  case entryMSRLoadAddress =
    "the VM-entry MSR-load area must be aligned to 16 bytes and within the physical-address width"

  // MARK: Host state
  case hostCR0 = "host CR0 must not set a bit that VMX operation fixes to another value"
  case hostCR4 = "host CR4 must not set a bit that VMX operation fixes to another value"
  case hostCR3 = "host CR3 must be within the physical-address width"
  case hostSysenter = "host SYSENTER ESP and EIP must be canonical"
  case hostPAT = "every byte of the host PAT must be a memory type"
  case hostEFERReserved = "reserved bits in the host EFER"
  case hostEFERMode = "LMA and LME of the host EFER must equal host address-space size"
  case hostSelector = "RPL and TI of host selectors must be 0"
  case hostNullSelector = "host CS and TR (and SS of a 32-bit host) must not be null"
  case hostBase = "host bases must be canonical"
  case hostAddressSpaceSize =
    "host address-space size must be 1, as VM entry is made from 64-bit mode"
  case hostPAE = "host CR4.PAE must be 1 for a 64-bit host"
  case hostRIP = "host RIP must be canonical"

  // MARK: Guest registers
  case guestCR0 = "guest CR0 must not set a bit that VMX operation fixes to another value"
  case guestPagingWithoutProtection = "if guest CR0.PG is 1, CR0.PE must be 1"
  case guestCR4 = "guest CR4 must not set a bit that VMX operation fixes to another value"
  case guestDebugControl = "reserved bits in the guest DEBUGCTL"
  case guestLongModeWithoutPaging = "if IA-32e mode guest is 1, guest CR0.PG and CR4.PAE must be 1"
  case guestPCIDEOutsideLongMode = "if IA-32e mode guest is 0, guest CR4.PCIDE must be 0"
  case guestCR3 = "guest CR3 must be within the physical-address width"
  case guestDR7 = "bits 63:32 of guest DR7 must be 0"
  case guestSysenter = "guest SYSENTER ESP and EIP must be canonical"
  case guestPAT = "every byte of the guest PAT must be a memory type"
  case guestEFERReserved = "reserved bits in the guest EFER"
  case guestEFERMode = "LMA of the guest EFER must equal IA-32e mode guest, and LME with paging"

  // MARK: Guest segments
  case guestSelectorTI = "TI of the guest TR and LDTR selectors must be 0"
  case guestSSRPL = "RPL of guest SS must equal that of CS"
  case guestSegmentBase =
    "guest segment bases must be canonical or 32 bits wide; in virtual-8086 mode 16 * selector"
  case guestVirtual8086Limit = "segment limits in virtual-8086 mode must be 0xFFFF"
  case guestVirtual8086Rights = "access rights in virtual-8086 mode must be 0xF3"
  case guestSegmentType = "the type of a guest segment must suit its register"
  case guestSegmentS = "the S bit of a guest segment must suit its register"
  case guestSegmentDPL = "the DPL of a guest segment must suit its register, CS and SS"
  case guestSegmentNotPresent = "usable guest segments must be present"
  case guestSegmentReserved = "reserved bits in a guest segment's access rights"
  case guestCSLongAndBig = "guest CS must not have both L and D in IA-32e mode"
  case guestSegmentGranularity = "a guest segment's G bit must suit its limit"
  case guestTRUnusable = "guest TR must be usable"
  case guestDescriptorTableBase = "guest GDTR and IDTR bases must be canonical"
  case guestDescriptorTableLimit = "guest GDTR and IDTR limits must fit 16 bits"

  // MARK: Guest RIP, RFLAGS and non-register state
  case guestRIP = "guest RIP must be canonical, and 32 bits wide outside 64-bit mode"
  case guestRFLAGSReserved = "reserved bits in guest RFLAGS"
  case guestRFLAGSVM = "guest RFLAGS.VM must be 0 in IA-32e mode and in real mode"
  case guestRFLAGSIF = "guest RFLAGS.IF must be 1 if an external interrupt is injected"
  case activityState = "the activity state must be one that is supported"
  case haltAboveRing0 = "the activity state must not be HLT unless SS's DPL is 0"
  case inactiveWithBlocking = "the activity state must be active under blocking by STI or MOV SS"
  case injectionWhileInactive =
    "the injected event must be one that the activity state does not block"
  case interruptibilityReserved = "reserved bits in the interruptibility state"
  case blockingBySTIAndMovSS = "blocking by STI and by MOV SS exclude each other"
  case blockingBySTIWithoutIF = "blocking by STI needs RFLAGS.IF"
  case injectionUnderBlocking = "an interrupt must not be injected under blocking by STI or MOV SS"
  case blockingBySMI = "blocking by SMI must be 0 outside system-management mode"
  case nmiUnderBlocking = "a virtual NMI must not be injected under blocking by NMI"
  case pendingDebugReserved = "reserved bits in the pending debug exceptions"
  case pendingDebugSingleStep =
    "pending BS must follow RFLAGS.TF and DEBUGCTL.BTF under blocking or in HLT"
  case vmcsLinkPointer = "the VMCS link pointer must be all ones or a VMCS's address"
  case vmcsLinkIsCurrent = "the VMCS link pointer must not be that of the current VMCS"
  case vmcsLinkShadow =
    "the VMCS link pointer's VMCS must be a shadow VMCS if and only if VMCS shadowing is 1"
  case guestPDPTE = "reserved bits in a guest PDPTE"

  // MARK: MSR areas
  case msrLoading = "an entry of the VM-entry MSR-load area cannot be loaded"

  /// The exit qualification of the entry-failure exit.
  package var qualification: UInt64 {
    switch self {
    case .guestPDPTE: 2
    case .vmcsLinkPointer, .vmcsLinkIsCurrent, .vmcsLinkShadow: 4
    default: 0
    }
  }
}
