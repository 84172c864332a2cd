// SPDX-License-Identifier: Apache-2.0
//
// The VMX capability MSRs of a guest that is a hypervisor, L1 (SDM volume 3, appendix "VMX
// Capability Reporting Facility"): the processor's, without what is not supported for L1. A client
// may remove more by KVM_SET_MSRS, but not add.

import X86
import X86CPU

struct NestedVMXCapabilities {
  /// Not the processor's own: L1's VMCSs are in no format of the processor's.
  static let revision: UInt32 = 0x4D56_5432

  var pin = ControlCapability(
    required: VMXCapabilities.pin.required,
    offered: VMXCapabilities.pin.allowed & ~PinControls.postedInterrupts)
  var primary = VMXCapabilities.primary
  var secondary = ControlCapability(
    required: 0, offered: VMXCapabilities.secondary.allowed & Self.offeredSecondary)
  var exit = VMXCapabilities.exit
  var entry = VMXCapabilities.entry
  var basic = VMXCapabilities.basic & ~0x7FFF_FFFF | UInt64(Self.revision)
  var misc = VMXCapabilities.misc & ~Misc.shutdown & ~Misc.waitForSIPI
  var cr0Fixed0 = VMXCapabilities.cr0Fixed0
  var cr4Fixed0 = VMXCapabilities.cr4Fixed0
  var vmcsEnum = UInt64(VMCSField.highestIndex) << 1
  var eptVPID = VMXCapabilities.eptVPID & ~EPTCapabilities.fiveLevels

  private static let offeredSecondary =
    SecondaryControls.enableEPT | SecondaryControls.descriptorTableExiting
    | SecondaryControls.enableRDTSCP | SecondaryControls.enableVPID
    | SecondaryControls.wbinvdExiting | SecondaryControls.unrestrictedGuest
    | SecondaryControls.pauseLoopExiting | SecondaryControls.rdrandExiting
    | SecondaryControls.enableINVPCID | SecondaryControls.rdseedExiting
    | SecondaryControls.enableXSAVES | SecondaryControls.virtualizeAPICAccesses
    | SecondaryControls.virtualizeX2APIC | SecondaryControls.useTSCScaling

  /// Bits of IA32_VMX_BASIC that may be taken away: information for INS and OUTS, "true" MSRs.
  private static let basicFeatures: UInt64 = 1 << 54 | 1 << 55

  /// Bits of IA32_VMX_MISC.
  private enum Misc {
    static let shutdown: UInt64 = 1 << 7
    static let waitForSIPI: UInt64 = 1 << 8
    /// What may be taken away: LMA kept by exits, activity states, VMWRITE to all fields, injection
    /// with length 0.
    static let features: UInt64 = 1 << 5 | 7 << 6 | 1 << 29 | 1 << 30
    /// The preemption timer's rate, and the MSEG revision.
    static let fixed: UInt64 = 0xFFFF_FFFF_0000_001F
    /// Numbers of which a client may give less: CR3-target values, entries of an MSR area.
    static let cr3TargetCount: UInt64 = 0x1FF << 16
    private static let counts: [UInt64] = [cr3TargetCount, 7 << 25]

    /// Whether a client may give a value where another is offered.
    static func allows(_ value: UInt64, _ offered: UInt64) -> Bool {
      let known = counts.reduce(fixed | features, |)
      return value & ~known == 0 && (value ^ offered) & fixed == 0
        && value & ~offered & features == 0
        && counts.allSatisfy { value & $0 <= offered & $0 }
    }
  }

  /// What the classic MSRs require more than the "true" ones.
  private enum Classic {
    static let pin: UInt64 = 0x16
    static let primary: UInt64 = 0x0401_E172
    static let exit: UInt64 = 0x0003_6DFF
    static let entry: UInt64 = 0x11FF
  }

  // MARK: By the guest's CPUID

  /// Controls of instructions that the guest does not have are not there either.
  func secondary(_ features: GuestFeatures) -> ControlCapability {
    let rows: [(GuestFeatures, UInt32)] = [
      ([.rdtscp, .rdpid], SecondaryControls.enableRDTSCP),
      (.invpcid, SecondaryControls.enableINVPCID), (.xsaves, SecondaryControls.enableXSAVES),
      (.rdrand, SecondaryControls.rdrandExiting), (.rdseed, SecondaryControls.rdseedExiting),
    ]
    var allowed = secondary.allowed
    for (feature, control) in rows where features.isDisjoint(with: feature) { allowed &= ~control }
    return ControlCapability(required: secondary.required, allowed: allowed)
  }

  func cr4Fixed1(_ allowedCR4: UInt64) -> UInt64 { allowedCR4 | CR4.vmxe.rawValue }

  // MARK: MSRs

  func value(_ msr: MSR, _ features: GuestFeatures, allowedCR4: UInt64) -> UInt64? {
    switch msr {
    case .vmxBasic: basic
    case .vmxPinControls: pin.msr | Classic.pin
    case .vmxPrimaryControls: primary.msr | Classic.primary
    case .vmxExitControls: exit.msr | Classic.exit
    case .vmxEntryControls: entry.msr | Classic.entry
    case .vmxMisc: misc
    case .vmxCR0Fixed0: cr0Fixed0
    case .vmxCR0Fixed1: VMXCapabilities.cr0Fixed1
    case .vmxCR4Fixed0: cr4Fixed0
    case .vmxCR4Fixed1: cr4Fixed1(allowedCR4)
    case .vmxVMCSEnum: vmcsEnum
    case .vmxSecondaryControls: secondary(features).msr
    case .vmxEPTVPIDCap: eptVPID
    case .vmxTruePinControls: pin.msr
    case .vmxTruePrimaryControls: primary.msr
    case .vmxTrueExitControls: exit.msr
    case .vmxTrueEntryControls: entry.msr
    case .vmxVMFunc: 0
    default: nil
    }
  }

  /// KVM_SET_MSRS.
  ///
  /// - Returns: nil for another register; false where the value has what is not offered. The
  ///   classic MSRs of controls follow from the "true" ones, the fixed-1 MSRs from CPUID.
  mutating func set(_ msr: MSR, _ value: UInt64) -> Bool? {
    let offered = Self()
    switch msr {
    case .vmxBasic:
      guard (value ^ offered.basic) & ~Self.basicFeatures == 0, value & ~offered.basic == 0 else {
        return false
      }
      basic = value
    case .vmxTruePinControls: return Self.set(&pin, value, offered.pin)
    case .vmxTruePrimaryControls: return Self.set(&primary, value, offered.primary)
    case .vmxTrueExitControls: return Self.set(&exit, value, offered.exit)
    case .vmxTrueEntryControls: return Self.set(&entry, value, offered.entry)
    case .vmxSecondaryControls: return Self.set(&secondary, value, offered.secondary)
    case .vmxMisc:
      guard Misc.allows(value, offered.misc) else { return false }
      misc = value
    case .vmxCR0Fixed0: return Self.set(&cr0Fixed0, value, atLeast: offered.cr0Fixed0)
    case .vmxCR4Fixed0: return Self.set(&cr4Fixed0, value, atLeast: offered.cr4Fixed0)
    case .vmxVMCSEnum: vmcsEnum = value
    case .vmxEPTVPIDCap:
      guard value & ~offered.eptVPID == 0 else { return false }
      eptVPID = value
    case .vmxVMFunc: return value == 0
    case .vmxPinControls, .vmxPrimaryControls, .vmxExitControls, .vmxEntryControls,
      .vmxCR0Fixed1, .vmxCR4Fixed1:
      return false
    default: return nil
    }
    return true
  }

  private static func set(_ register: inout UInt64, _ value: UInt64, atLeast: UInt64) -> Bool {
    guard value & atLeast == atLeast else { return false }
    register = value
    return true
  }

  /// Bits that must be 1 may be added, bits that may be 1 taken away.
  private static func set(
    _ capability: inout ControlCapability, _ value: UInt64, _ offered: ControlCapability
  ) -> Bool {
    let required = UInt32(truncatingIfNeeded: value)
    let allowed = UInt32(truncatingIfNeeded: value >> 32)
    guard required & offered.required == offered.required, allowed & ~offered.allowed == 0 else {
      return false
    }
    capability = ControlCapability(required: required, allowed: allowed)
    return true
  }

  // MARK: Checks

  /// The limits for the checks of L1's VM entries.
  func limits(
    _ features: GuestFeatures, allowedCR4: UInt64, addressWidth: UInt64
  ) -> EntryLimits {
    var limits = EntryLimits(addressWidth: addressWidth)
    limits.pin = pin
    limits.primary = primary
    limits.secondary = secondary(features)
    limits.exit = exit
    limits.entry = entry
    limits.cr3TargetCount = (misc & Misc.cr3TargetCount) >> 16
    limits.cr0Fixed.ones = cr0Fixed0
    limits.cr4Fixed = (cr4Fixed0, cr4Fixed1(allowedCR4))
    limits.eptVPID = eptVPID
    return limits
  }
}
