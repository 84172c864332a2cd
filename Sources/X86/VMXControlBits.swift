// SPDX-License-Identifier: Apache-2.0
//
// Bits of the VM-execution, VM-exit and VM-entry controls (SDM volume 3, "VM-Execution Control
// Fields", "VM-Exit Control Fields", "VM-Entry Control Fields").

public enum PinControls {
  public static let externalInterruptExiting: UInt32 = 1 << 0
  public static let nmiExiting: UInt32 = 1 << 3
  public static let virtualNMIs: UInt32 = 1 << 5
  public static let preemptionTimer: UInt32 = 1 << 6
  public static let postedInterrupts: UInt32 = 1 << 7
}

public enum PrimaryControls {
  public static let interruptWindowExiting: UInt32 = 1 << 2
  public static let useTSCOffsetting: UInt32 = 1 << 3
  public static let hltExiting: UInt32 = 1 << 7
  public static let invlpgExiting: UInt32 = 1 << 9
  public static let mwaitExiting: UInt32 = 1 << 10
  public static let rdpmcExiting: UInt32 = 1 << 11
  public static let rdtscExiting: UInt32 = 1 << 12
  public static let cr3LoadExiting: UInt32 = 1 << 15
  public static let cr3StoreExiting: UInt32 = 1 << 16
  public static let tertiaryControls: UInt32 = 1 << 17
  public static let cr8LoadExiting: UInt32 = 1 << 19
  public static let cr8StoreExiting: UInt32 = 1 << 20
  public static let useTPRShadow: UInt32 = 1 << 21
  public static let nmiWindowExiting: UInt32 = 1 << 22
  public static let movDRExiting: UInt32 = 1 << 23
  public static let unconditionalIOExiting: UInt32 = 1 << 24
  public static let useIOBitmaps: UInt32 = 1 << 25
  public static let monitorTrapFlag: UInt32 = 1 << 27
  public static let useMSRBitmaps: UInt32 = 1 << 28
  public static let monitorExiting: UInt32 = 1 << 29
  public static let pauseExiting: UInt32 = 1 << 30
  public static let secondaryControls: UInt32 = 1 << 31
}

public enum SecondaryControls {
  public static let virtualizeAPICAccesses: UInt32 = 1 << 0
  public static let enableEPT: UInt32 = 1 << 1
  public static let descriptorTableExiting: UInt32 = 1 << 2
  public static let enableRDTSCP: UInt32 = 1 << 3
  public static let virtualizeX2APIC: UInt32 = 1 << 4
  public static let enableVPID: UInt32 = 1 << 5
  public static let wbinvdExiting: UInt32 = 1 << 6
  public static let unrestrictedGuest: UInt32 = 1 << 7
  public static let apicRegisterVirtualization: UInt32 = 1 << 8
  public static let virtualInterruptDelivery: UInt32 = 1 << 9
  public static let pauseLoopExiting: UInt32 = 1 << 10
  public static let rdrandExiting: UInt32 = 1 << 11
  public static let enableINVPCID: UInt32 = 1 << 12
  public static let enableVMFunctions: UInt32 = 1 << 13
  public static let vmcsShadowing: UInt32 = 1 << 14
  public static let rdseedExiting: UInt32 = 1 << 16
  public static let enablePML: UInt32 = 1 << 17
  public static let eptViolationVE: UInt32 = 1 << 18
  public static let enableXSAVES: UInt32 = 1 << 20
  public static let modeBasedExecute: UInt32 = 1 << 22
  public static let useTSCScaling: UInt32 = 1 << 25
}

public enum ExitControls {
  public static let saveDebugControls: UInt32 = 1 << 2
  public static let hostAddressSpaceSize: UInt32 = 1 << 9
  public static let loadPerfGlobalControl: UInt32 = 1 << 12
  public static let acknowledgeInterrupt: UInt32 = 1 << 15
  public static let savePAT: UInt32 = 1 << 18
  public static let loadPAT: UInt32 = 1 << 19
  public static let saveEFER: UInt32 = 1 << 20
  public static let loadEFER: UInt32 = 1 << 21
  public static let savePreemptionTimer: UInt32 = 1 << 22
}

public enum EntryControls {
  public static let loadDebugControls: UInt32 = 1 << 2
  public static let ia32eModeGuest: UInt32 = 1 << 9
  public static let loadPerfGlobalControl: UInt32 = 1 << 13
  public static let loadPAT: UInt32 = 1 << 14
  public static let loadEFER: UInt32 = 1 << 15
}

/// Guest interruptibility state (SDM volume 3, "Guest Non-Register State").
public enum Interruptibility {
  public static let blockingBySTI: UInt32 = 1 << 0
  public static let blockingByMovSS: UInt32 = 1 << 1
  public static let blockingBySMI: UInt32 = 1 << 2
  public static let blockingByNMI: UInt32 = 1 << 3
}

/// Guest activity state (SDM volume 3, "Guest Non-Register State").
public enum ActivityState {
  public static let active: UInt32 = 0
  public static let hlt: UInt32 = 1
  public static let shutdown: UInt32 = 2
  public static let waitForSIPI: UInt32 = 3
}

/// VM-entry, VM-exit and IDT-vectoring interruption information (SDM volume 3, "VM-Entry Controls
/// for Event Injection"): bits 7:0 vector, 10:8 type, 11 error code valid, 12 NMI unblocking, 31 valid.
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

  public static let validBit: UInt32 = 1 << 31
  public static let nmiUnblockingBit: UInt32 = 1 << 12

  @inlinable public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue) }
  @inlinable public var typeBits: UInt32 { (rawValue >> 8) & 7 }
  @inlinable public var type: EventType? { EventType(rawValue: typeBits) }
  @inlinable public var hasErrorCode: Bool { rawValue & 1 << 11 != 0 }
  @inlinable public var isValid: Bool { rawValue & Self.validBit != 0 }
}
