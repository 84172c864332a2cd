// SPDX-License-Identifier: Apache-2.0
//
// The basic exit reasons of VT-x and the flags of the exit-reason field.

/// Basic exit reasons (SDM volume 3, appendix "VMX Basic Exit Reasons").
public struct ExitReason: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt16
  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }

  @inlinable public static var exceptionOrNMI: Self { Self(rawValue: 0) }
  @inlinable public static var externalInterrupt: Self { Self(rawValue: 1) }
  @inlinable public static var tripleFault: Self { Self(rawValue: 2) }
  @inlinable public static var initSignal: Self { Self(rawValue: 3) }
  @inlinable public static var startupIPI: Self { Self(rawValue: 4) }
  @inlinable public static var ioSMI: Self { Self(rawValue: 5) }
  @inlinable public static var otherSMI: Self { Self(rawValue: 6) }
  @inlinable public static var interruptWindow: Self { Self(rawValue: 7) }
  @inlinable public static var nmiWindow: Self { Self(rawValue: 8) }
  @inlinable public static var taskSwitch: Self { Self(rawValue: 9) }
  @inlinable public static var cpuid: Self { Self(rawValue: 10) }
  @inlinable public static var getsec: Self { Self(rawValue: 11) }
  @inlinable public static var hlt: Self { Self(rawValue: 12) }
  @inlinable public static var invd: Self { Self(rawValue: 13) }
  @inlinable public static var invlpg: Self { Self(rawValue: 14) }
  @inlinable public static var rdpmc: Self { Self(rawValue: 15) }
  @inlinable public static var rdtsc: Self { Self(rawValue: 16) }
  @inlinable public static var rsm: Self { Self(rawValue: 17) }
  @inlinable public static var vmcall: Self { Self(rawValue: 18) }
  @inlinable public static var vmclear: Self { Self(rawValue: 19) }
  @inlinable public static var vmlaunch: Self { Self(rawValue: 20) }
  @inlinable public static var vmptrld: Self { Self(rawValue: 21) }
  @inlinable public static var vmptrst: Self { Self(rawValue: 22) }
  @inlinable public static var vmread: Self { Self(rawValue: 23) }
  @inlinable public static var vmresume: Self { Self(rawValue: 24) }
  @inlinable public static var vmwrite: Self { Self(rawValue: 25) }
  @inlinable public static var vmxoff: Self { Self(rawValue: 26) }
  @inlinable public static var vmxon: Self { Self(rawValue: 27) }
  @inlinable public static var controlRegisterAccess: Self { Self(rawValue: 28) }
  @inlinable public static var debugRegisterAccess: Self { Self(rawValue: 29) }
  @inlinable public static var ioInstruction: Self { Self(rawValue: 30) }
  @inlinable public static var rdmsr: Self { Self(rawValue: 31) }
  @inlinable public static var wrmsr: Self { Self(rawValue: 32) }
  @inlinable public static var invalidGuestState: Self { Self(rawValue: 33) }
  @inlinable public static var msrLoading: Self { Self(rawValue: 34) }
  @inlinable public static var mwait: Self { Self(rawValue: 36) }
  @inlinable public static var monitorTrapFlag: Self { Self(rawValue: 37) }
  @inlinable public static var monitor: Self { Self(rawValue: 39) }
  @inlinable public static var pause: Self { Self(rawValue: 40) }
  @inlinable public static var machineCheckDuringEntry: Self { Self(rawValue: 41) }
  @inlinable public static var tprBelowThreshold: Self { Self(rawValue: 43) }
  @inlinable public static var apicAccess: Self { Self(rawValue: 44) }
  @inlinable public static var virtualizedEOI: Self { Self(rawValue: 45) }
  @inlinable public static var gdtrOrIDTRAccess: Self { Self(rawValue: 46) }
  @inlinable public static var ldtrOrTRAccess: Self { Self(rawValue: 47) }
  @inlinable public static var eptViolation: Self { Self(rawValue: 48) }
  @inlinable public static var eptMisconfiguration: Self { Self(rawValue: 49) }
  @inlinable public static var invept: Self { Self(rawValue: 50) }
  @inlinable public static var rdtscp: Self { Self(rawValue: 51) }
  @inlinable public static var preemptionTimer: Self { Self(rawValue: 52) }
  @inlinable public static var invvpid: Self { Self(rawValue: 53) }
  @inlinable public static var wbinvd: Self { Self(rawValue: 54) }
  @inlinable public static var xsetbv: Self { Self(rawValue: 55) }
  @inlinable public static var apicWrite: Self { Self(rawValue: 56) }
  @inlinable public static var rdrand: Self { Self(rawValue: 57) }
  @inlinable public static var invpcid: Self { Self(rawValue: 58) }
  @inlinable public static var vmfunc: Self { Self(rawValue: 59) }
  @inlinable public static var encls: Self { Self(rawValue: 60) }
  @inlinable public static var rdseed: Self { Self(rawValue: 61) }
  @inlinable public static var pmlFull: Self { Self(rawValue: 62) }
  @inlinable public static var xsaves: Self { Self(rawValue: 63) }
  @inlinable public static var xrstors: Self { Self(rawValue: 64) }
  @inlinable public static var busLock: Self { Self(rawValue: 74) }
  @inlinable public static var notify: Self { Self(rawValue: 75) }

  /// One more than the highest reason: the size of a table by reason.
  @inlinable public static var count: Int { 76 }
  /// Bit 26 of the exit-reason field: a bus lock was asserted, with bus-lock detection on.
  @inlinable public static var busLockBit: UInt32 { 1 << 26 }
  /// Bit 31 of the exit-reason field: VM entry failed.
  @inlinable public static var entryFailureBit: UInt32 { 1 << 31 }
}
