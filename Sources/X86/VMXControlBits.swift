// SPDX-License-Identifier: Apache-2.0
//
// Bits of the VM-execution, VM-exit and VM-entry controls (SDM volume 3, "VM-Execution Control
// Fields", "VM-Exit Control Fields", "VM-Entry Control Fields").

public enum PinControls {
  @inlinable public static var externalInterruptExiting: UInt32 { 1 << 0 }
  @inlinable public static var nmiExiting: UInt32 { 1 << 3 }
  @inlinable public static var virtualNMIs: UInt32 { 1 << 5 }
  @inlinable public static var preemptionTimer: UInt32 { 1 << 6 }
  @inlinable public static var postedInterrupts: UInt32 { 1 << 7 }
}

public enum PrimaryControls {
  @inlinable public static var interruptWindowExiting: UInt32 { 1 << 2 }
  @inlinable public static var useTSCOffsetting: UInt32 { 1 << 3 }
  @inlinable public static var hltExiting: UInt32 { 1 << 7 }
  @inlinable public static var invlpgExiting: UInt32 { 1 << 9 }
  @inlinable public static var mwaitExiting: UInt32 { 1 << 10 }
  @inlinable public static var rdpmcExiting: UInt32 { 1 << 11 }
  @inlinable public static var rdtscExiting: UInt32 { 1 << 12 }
  @inlinable public static var cr3LoadExiting: UInt32 { 1 << 15 }
  @inlinable public static var cr3StoreExiting: UInt32 { 1 << 16 }
  @inlinable public static var tertiaryControls: UInt32 { 1 << 17 }
  @inlinable public static var cr8LoadExiting: UInt32 { 1 << 19 }
  @inlinable public static var cr8StoreExiting: UInt32 { 1 << 20 }
  @inlinable public static var useTPRShadow: UInt32 { 1 << 21 }
  @inlinable public static var nmiWindowExiting: UInt32 { 1 << 22 }
  @inlinable public static var movDRExiting: UInt32 { 1 << 23 }
  @inlinable public static var unconditionalIOExiting: UInt32 { 1 << 24 }
  @inlinable public static var useIOBitmaps: UInt32 { 1 << 25 }
  @inlinable public static var monitorTrapFlag: UInt32 { 1 << 27 }
  @inlinable public static var useMSRBitmaps: UInt32 { 1 << 28 }
  @inlinable public static var monitorExiting: UInt32 { 1 << 29 }
  @inlinable public static var pauseExiting: UInt32 { 1 << 30 }
  @inlinable public static var secondaryControls: UInt32 { 1 << 31 }
}

public enum SecondaryControls {
  @inlinable public static var virtualizeAPICAccesses: UInt32 { 1 << 0 }
  @inlinable public static var enableEPT: UInt32 { 1 << 1 }
  @inlinable public static var descriptorTableExiting: UInt32 { 1 << 2 }
  @inlinable public static var enableRDTSCP: UInt32 { 1 << 3 }
  @inlinable public static var virtualizeX2APIC: UInt32 { 1 << 4 }
  @inlinable public static var enableVPID: UInt32 { 1 << 5 }
  @inlinable public static var wbinvdExiting: UInt32 { 1 << 6 }
  @inlinable public static var unrestrictedGuest: UInt32 { 1 << 7 }
  @inlinable public static var apicRegisterVirtualization: UInt32 { 1 << 8 }
  @inlinable public static var virtualInterruptDelivery: UInt32 { 1 << 9 }
  @inlinable public static var pauseLoopExiting: UInt32 { 1 << 10 }
  @inlinable public static var rdrandExiting: UInt32 { 1 << 11 }
  @inlinable public static var enableINVPCID: UInt32 { 1 << 12 }
  @inlinable public static var enableVMFunctions: UInt32 { 1 << 13 }
  @inlinable public static var vmcsShadowing: UInt32 { 1 << 14 }
  @inlinable public static var enclsExiting: UInt32 { 1 << 15 }
  @inlinable public static var rdseedExiting: UInt32 { 1 << 16 }
  @inlinable public static var enablePML: UInt32 { 1 << 17 }
  @inlinable public static var eptViolationVE: UInt32 { 1 << 18 }
  @inlinable public static var concealFromPT: UInt32 { 1 << 19 }
  @inlinable public static var enableXSAVES: UInt32 { 1 << 20 }
  @inlinable public static var modeBasedExecute: UInt32 { 1 << 22 }
  @inlinable public static var subPageWrite: UInt32 { 1 << 23 }
  @inlinable public static var usePTGuestPhysical: UInt32 { 1 << 24 }
  @inlinable public static var useTSCScaling: UInt32 { 1 << 25 }
  @inlinable public static var userWaitAndPause: UInt32 { 1 << 26 }
  @inlinable public static var enablePCONFIG: UInt32 { 1 << 27 }
  @inlinable public static var enclvExiting: UInt32 { 1 << 28 }
  @inlinable public static var busLockDetection: UInt32 { 1 << 30 }
  @inlinable public static var notifyExiting: UInt32 { 1 << 31 }
}

public enum ExitControls {
  @inlinable public static var saveDebugControls: UInt32 { 1 << 2 }
  @inlinable public static var hostAddressSpaceSize: UInt32 { 1 << 9 }
  @inlinable public static var loadPerfGlobalControl: UInt32 { 1 << 12 }
  @inlinable public static var acknowledgeInterrupt: UInt32 { 1 << 15 }
  @inlinable public static var savePAT: UInt32 { 1 << 18 }
  @inlinable public static var loadPAT: UInt32 { 1 << 19 }
  @inlinable public static var saveEFER: UInt32 { 1 << 20 }
  @inlinable public static var loadEFER: UInt32 { 1 << 21 }
  @inlinable public static var savePreemptionTimer: UInt32 { 1 << 22 }
}

public enum EntryControls {
  @inlinable public static var loadDebugControls: UInt32 { 1 << 2 }
  @inlinable public static var ia32eModeGuest: UInt32 { 1 << 9 }
  @inlinable public static var loadPerfGlobalControl: UInt32 { 1 << 13 }
  @inlinable public static var loadPAT: UInt32 { 1 << 14 }
  @inlinable public static var loadEFER: UInt32 { 1 << 15 }
}

/// Bits of IA32_VMX_EPT_VPID_CAP (SDM volume 3, appendix "VPID and EPT Capabilities").
public enum EPTCapabilities {
  @inlinable public static var executeOnly: UInt64 { 1 << 0 }
  @inlinable public static var fourLevels: UInt64 { 1 << 6 }
  @inlinable public static var fiveLevels: UInt64 { 1 << 7 }
  @inlinable public static var uncacheable: UInt64 { 1 << 8 }
  @inlinable public static var writeBack: UInt64 { 1 << 14 }
  @inlinable public static var pages2M: UInt64 { 1 << 16 }
  @inlinable public static var pages1G: UInt64 { 1 << 17 }
  @inlinable public static var invept: UInt64 { 1 << 20 }
  @inlinable public static var accessedDirty: UInt64 { 1 << 21 }
  /// EPT violations tell what the guest's tables say.
  @inlinable public static var violationInformation: UInt64 { 1 << 22 }
  /// Single-context and all-context.
  @inlinable public static var inveptTypes: UInt64 { 1 << 25 | 1 << 26 }
  @inlinable public static var invvpid: UInt64 { 1 << 32 }
  /// Individual-address, single-context, all-context, single-context but for global pages.
  @inlinable public static var invvpidTypes: UInt64 { 0xF << 40 }
}

/// Bits of IA32_FEATURE_CONTROL (SDM volume 4).
public enum FeatureControl {
  @inlinable public static var lock: UInt64 { 1 << 0 }
  @inlinable public static var vmxOutsideSMX: UInt64 { 1 << 2 }
}

/// Bits of the VM-function controls: the function of this number may be called.
public enum VMFunctions {
  @inlinable public static var eptpSwitching: UInt64 { 1 << 0 }
}

/// VM-entry, VM-exit and IDT-vectoring interruption information (SDM volume 3, "VM-Entry Controls
/// for Event Injection"): bits 7:0 vector, 10:8 type, 11 error code valid, 12 NMI unblocking, 31
/// valid.
public struct InterruptionInfo: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

  public enum EventType: UInt32, Sendable {
    case externalInterrupt = 0
    case nmi = 2
    case hardwareException = 3
    case softwareInterrupt = 4
    case privilegedSoftwareException = 5
    case softwareException = 6
    case otherEvent = 7
  }

  @inlinable public init(_ type: EventType, vector: UInt8, hasErrorCode: Bool = false) {
    rawValue = UInt32(vector) | type.rawValue << 8 | (hasErrorCode ? 1 << 11 : 0) | Self.validBit
  }

  @inlinable public static var validBit: UInt32 { 1 << 31 }
  @inlinable public static var nmiUnblockingBit: UInt32 { 1 << 12 }

  @inlinable public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue) }
  @inlinable public var typeBits: UInt32 { (rawValue >> 8) & 7 }
  @inlinable public var type: EventType? { EventType(rawValue: typeBits) }
  @inlinable public var hasErrorCode: Bool { rawValue & 1 << 11 != 0 }
  @inlinable public var isValid: Bool { rawValue & Self.validBit != 0 }
}
