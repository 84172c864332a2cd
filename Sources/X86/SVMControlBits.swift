// SPDX-License-Identifier: Apache-2.0
//
// Bits of a VMCB's control fields, of SVM's MSRs, and of SVM's CPUID leaf (APM volume 2, "Secure
// Virtual Machine"; appendix "VMCB Layout").

/// Instructions and events that exit, by the two intercept words that are not for registers or
/// exceptions: bits 31:0 are vector 3's, 63:32 vector 4's.
public struct SVMIntercepts: OptionSet, Hashable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
  @inlinable init(_ bit: UInt64) { self.init(rawValue: 1 << bit) }

  @inlinable public static var interrupt: Self { Self(0) }
  @inlinable public static var nmi: Self { Self(1) }
  @inlinable public static var smi: Self { Self(2) }
  @inlinable public static var initSignal: Self { Self(3) }
  @inlinable public static var virtualInterrupt: Self { Self(4) }
  /// Writes to CR0 that change more than TS and MP.
  @inlinable public static var selectiveCR0Write: Self { Self(5) }
  @inlinable public static var idtrRead: Self { Self(6) }
  @inlinable public static var gdtrRead: Self { Self(7) }
  @inlinable public static var ldtrRead: Self { Self(8) }
  @inlinable public static var trRead: Self { Self(9) }
  @inlinable public static var idtrWrite: Self { Self(10) }
  @inlinable public static var gdtrWrite: Self { Self(11) }
  @inlinable public static var ldtrWrite: Self { Self(12) }
  @inlinable public static var trWrite: Self { Self(13) }
  @inlinable public static var rdtsc: Self { Self(14) }
  @inlinable public static var rdpmc: Self { Self(15) }
  @inlinable public static var pushf: Self { Self(16) }
  @inlinable public static var popf: Self { Self(17) }
  @inlinable public static var cpuid: Self { Self(18) }
  @inlinable public static var rsm: Self { Self(19) }
  @inlinable public static var iret: Self { Self(20) }
  /// INT n.
  @inlinable public static var softwareInterrupt: Self { Self(21) }
  @inlinable public static var invd: Self { Self(22) }
  @inlinable public static var pause: Self { Self(23) }
  @inlinable public static var hlt: Self { Self(24) }
  @inlinable public static var invlpg: Self { Self(25) }
  @inlinable public static var invlpga: Self { Self(26) }
  /// Ports, by the I/O permission map.
  @inlinable public static var ports: Self { Self(27) }
  /// MSRs, by the MSR permission map.
  @inlinable public static var msrs: Self { Self(28) }
  @inlinable public static var taskSwitch: Self { Self(29) }
  @inlinable public static var ferrFreeze: Self { Self(30) }
  @inlinable public static var shutdown: Self { Self(31) }
  /// Must be 1.
  @inlinable public static var vmrun: Self { Self(32) }
  @inlinable public static var vmmcall: Self { Self(33) }
  @inlinable public static var vmload: Self { Self(34) }
  @inlinable public static var vmsave: Self { Self(35) }
  @inlinable public static var stgi: Self { Self(36) }
  @inlinable public static var clgi: Self { Self(37) }
  @inlinable public static var skinit: Self { Self(38) }
  @inlinable public static var rdtscp: Self { Self(39) }
  /// INT1.
  @inlinable public static var icebp: Self { Self(40) }
  @inlinable public static var wbinvd: Self { Self(41) }
  @inlinable public static var monitor: Self { Self(42) }
  @inlinable public static var mwait: Self { Self(43) }
  /// MWAIT with an armed monitor.
  @inlinable public static var armedMWAIT: Self { Self(44) }
  @inlinable public static var xsetbv: Self { Self(45) }
  @inlinable public static var rdpru: Self { Self(46) }
}

/// Intercept word 5.
public enum SVMIntercept5 {
  @inlinable public static var invlpgb: UInt32 { 1 << 0 }
  @inlinable public static var illegalINVLPGB: UInt32 { 1 << 1 }
  @inlinable public static var invpcid: UInt32 { 1 << 2 }
}

/// TLB_CONTROL.
public enum TLBControl {
  @inlinable public static var nothing: UInt8 { 0 }
  @inlinable public static var flushAll: UInt8 { 1 }
  /// All of the guest's translations.
  @inlinable public static var flushGuest: UInt8 { 3 }
  /// The guest's translations except global pages.
  @inlinable public static var flushGuestNonGlobal: UInt8 { 7 }
}

/// The virtual interrupt field:
///
///     7:0 V_TPR   8 V_IRQ   9 VGIF   11 V_NMI   12 V_NMI_MASK   19:16 V_INTR_PRIO   20 V_IGN_TPR
///     24 V_INTR_MASKING   25 VGIF is enabled   26 V_NMI is enabled   39:32 V_INTR_VECTOR
public struct VirtualInterrupt: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var pendingBit: UInt64 { 1 << 8 }
  @inlinable public static var gifBit: UInt64 { 1 << 9 }
  @inlinable public static var nmiPendingBit: UInt64 { 1 << 11 }
  @inlinable public static var nmiMaskedBit: UInt64 { 1 << 12 }
  @inlinable public static var ignoresTPRBit: UInt64 { 1 << 20 }
  @inlinable public static var maskingBit: UInt64 { 1 << 24 }
  /// V_IRQ, V_INTR_PRIO, V_IGN_TPR and V_INTR_VECTOR: what is requested.
  @inlinable public static var requestMask: UInt64 {
    pendingBit | 0xF << 16 | ignoresTPRBit | 0xFF << 32
  }
  @inlinable public static var gifEnabledBit: UInt64 { 1 << 25 }
  @inlinable public static var nmiEnabledBit: UInt64 { 1 << 26 }

  /// CR8's four bits; the field's others are 0.
  @inlinable public var tpr: UInt8 {
    get { UInt8(truncatingIfNeeded: rawValue & 0xF) }
    set { rawValue = rawValue & ~0xFF | UInt64(newValue & 0xF) }
  }
  @inlinable public var isPending: Bool { rawValue & Self.pendingBit != 0 }
  @inlinable public var isNMIPending: Bool { rawValue & Self.nmiPendingBit != 0 }
  @inlinable public var isNMIEnabled: Bool { rawValue & Self.nmiEnabledBit != 0 }
  @inlinable public var priority: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 16 & 0xF) }
  @inlinable public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 32) }
  @inlinable public var masksInterrupts: Bool { rawValue & Self.maskingBit != 0 }
  /// The guest's global interrupt flag, if it has one, allows interrupts.
  @inlinable public var isGIFOpen: Bool {
    rawValue & Self.gifEnabledBit == 0 || rawValue & Self.gifBit != 0
  }

  /// A pending virtual interrupt of sufficient priority for the virtual TPR.
  @inlinable public var isDeliverable: Bool {
    isPending && isGIFOpen && (rawValue & Self.ignoresTPRBit != 0 || priority > tpr)
  }
}

/// The interrupt-shadow field.
public enum InterruptShadow {
  /// The next instruction is in the shadow of STI, MOV SS or POP SS.
  @inlinable public static var active: UInt64 { 1 << 0 }
  /// RFLAGS.IF of a guest whose interrupts are masked by V_INTR_MASKING.
  @inlinable public static var guestInterruptFlag: UInt64 { 1 << 1 }
}

/// The nested-control field.
public enum NestedControl {
  @inlinable public static var paging: UInt64 { 1 << 0 }
}

/// The virtualization-control field.
public enum VirtualizationControl {
  @inlinable public static var lastBranch: UInt64 { 1 << 0 }
  @inlinable public static var virtualLoadSave: UInt64 { 1 << 1 }
}

/// EXITINFO1 of a nested page fault (APM volume 2, "Nested versus Guest Page Faults, Fault
/// Ordering"): the bits of a page fault's error code, and where in the translation it happened.
public struct NestedFaultInfo: OptionSet, Hashable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var present: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var write: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var user: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var reserved: Self { Self(rawValue: 1 << 3) }
  @inlinable public static var fetch: Self { Self(rawValue: 1 << 4) }
  /// The guest-physical address is the access's own.
  @inlinable public static var finalAddress: Self { Self(rawValue: 1 << 32) }
  /// It is that of one of the guest's page tables.
  @inlinable public static var guestTable: Self { Self(rawValue: 1 << 33) }
}

/// VM_CR.
public enum VMCRBits {
  /// Writes to LOCK and SVMDIS are ignored.
  @inlinable public static var lock: UInt64 { 1 << 3 }
  @inlinable public static var svmDisable: UInt64 { 1 << 4 }
}

/// CPUID leaf 8000_000AH, EDX.
public struct SVMFeatures: OptionSet, Hashable, Sendable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

  @inlinable public static var nestedPaging: Self { Self(rawValue: 1 << 0) }
  @inlinable public static var lastBranchVirtualization: Self { Self(rawValue: 1 << 1) }
  @inlinable public static var svmLock: Self { Self(rawValue: 1 << 2) }
  @inlinable public static var nextRIP: Self { Self(rawValue: 1 << 3) }
  @inlinable public static var tscRatio: Self { Self(rawValue: 1 << 4) }
  @inlinable public static var cleanBits: Self { Self(rawValue: 1 << 5) }
  @inlinable public static var flushByASID: Self { Self(rawValue: 1 << 6) }
  @inlinable public static var decodeAssists: Self { Self(rawValue: 1 << 7) }
  @inlinable public static var pauseFilter: Self { Self(rawValue: 1 << 10) }
  @inlinable public static var pauseFilterThreshold: Self { Self(rawValue: 1 << 12) }
  @inlinable public static var avic: Self { Self(rawValue: 1 << 13) }
  @inlinable public static var virtualLoadSave: Self { Self(rawValue: 1 << 15) }
  @inlinable public static var virtualGIF: Self { Self(rawValue: 1 << 16) }
  @inlinable public static var virtualNMI: Self { Self(rawValue: 1 << 25) }
}
