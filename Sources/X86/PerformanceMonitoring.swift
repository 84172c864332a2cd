// SPDX-License-Identifier: Apache-2.0
//
// Architectural performance monitoring, version 2 (SDM volume 3, "Performance Monitoring").

/// The first MSR of each bank of counters, and the controls.
extension MSR {
  /// IA32_PMC0; the others follow.
  @inlinable public static var performanceCounter0: Self { Self(rawValue: 0xC1) }
  /// IA32_PERFEVTSEL0; the others follow.
  @inlinable public static var performanceEventSelect0: Self { Self(rawValue: 0x186) }
  /// IA32_FIXED_CTR0; the others follow.
  @inlinable public static var fixedCounter0: Self { Self(rawValue: 0x309) }
  @inlinable public static var fixedCounterControl: Self { Self(rawValue: 0x38D) }
  @inlinable public static var performanceGlobalStatus: Self { Self(rawValue: 0x38E) }
  @inlinable public static var performanceGlobalControl: Self { Self(rawValue: 0x38F) }
  @inlinable public static var performanceGlobalOverflowControl: Self { Self(rawValue: 0x390) }
  /// IA32_A_PMC0, an alias for full-width writes of IA32_PMC0; the others follow.
  @inlinable public static var fullWidthCounter0: Self { Self(rawValue: 0x4C1) }
  /// PerfEvtSel0 and PerfCtr0 of AMD's processors (APM volume 2, "Performance-Monitoring
  /// Counters"); three more of each follow.
  @inlinable public static var amdEventSelect0: Self { Self(rawValue: 0xC001_0000) }
  @inlinable public static var amdCounter0: Self { Self(rawValue: 0xC001_0004) }
}

/// IA32_PERFEVTSELx ("Architectural Performance Monitoring Version 1 Facilities").
public struct PerformanceEventSelect: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public static var user: UInt64 { 1 << 16 }
  @inlinable public static var operatingSystem: UInt64 { 1 << 17 }
  @inlinable public static var edge: UInt64 { 1 << 18 }
  @inlinable public static var interrupt: UInt64 { 1 << 20 }
  /// Reserved without hyper-threading's "any thread".
  @inlinable public static var anyThread: UInt64 { 1 << 21 }
  @inlinable public static var enable: UInt64 { 1 << 22 }
  @inlinable public static var invert: UInt64 { 1 << 23 }
  @inlinable public static var counterMask: UInt64 { 0xFF << 24 }
  @inlinable public static var reserved: UInt64 { 0xFFFF_FFFF_0000_0000 | anyThread }

  /// On AMD's processors bits 11:8 of the event select are in bits 35:32, and reserved bits read as
  /// 0.
  @inlinable public static var amdReserved: UInt64 { 0xFFFF_FFF0_0028_0000 }

  /// Event select in bits 7:0 (for AMD also 35:32), unit mask in bits 15:8.
  @inlinable public var event: UInt64 { rawValue & 0xF_0000_FFFF }
  @inlinable public func contains(_ bits: UInt64) -> Bool { rawValue & bits != 0 }
}

/// The pre-defined events, by their bit in CPUID leaf 0AH EBX.
public enum ArchitecturalEvent: UInt8, Sendable, CaseIterable {
  case coreCycles, instructionsRetired, referenceCycles, lastLevelCacheReferences
  case lastLevelCacheMisses, branchesRetired, branchMisses

  /// Event select in bits 7:0, unit mask in bits 15:8.
  @inlinable public var encoding: UInt64 {
    switch self {
    case .coreCycles: 0x003C
    case .instructionsRetired: 0x00C0
    case .referenceCycles: 0x013C
    case .lastLevelCacheReferences: 0x4F2E
    case .lastLevelCacheMisses: 0x412E
    case .branchesRetired: 0x00C4
    case .branchMisses: 0x00C5
    }
  }

  /// The same for AMD's processors, for those events that count (PPR of family 17h, "Core
  /// Performance Monitor Counters").
  @inlinable public var amdEncoding: UInt64? {
    switch self {
    case .coreCycles: 0x0076
    case .instructionsRetired: 0x00C0
    case .branchesRetired: 0x00C2
    case .referenceCycles: 0x0120
    default: nil
    }
  }

  /// The events of IA32_FIXED_CTR0, 1 and 2.
  @inlinable public static var fixed: [Self] {
    [.instructionsRetired, .coreCycles, .referenceCycles]
  }
}

/// A counter's four bits of IA32_FIXED_CTR_CTRL.
public enum FixedCounterControl {
  @inlinable public static var operatingSystem: UInt64 { 1 << 0 }
  @inlinable public static var user: UInt64 { 1 << 1 }
  @inlinable public static var interrupt: UInt64 { 1 << 3 }
  @inlinable public static var all: UInt64 { operatingSystem | user | interrupt }
}

/// Bits of IA32_PERF_GLOBAL_STATUS and IA32_PERF_GLOBAL_OVF_CTRL other than those of counters.
public enum PerformanceGlobalStatus {
  /// Of the first fixed counter; as in IA32_PERF_GLOBAL_CTRL.
  @inlinable public static var fixedShift: UInt64 { 32 }
  @inlinable public static var bufferOverflow: UInt64 { 1 << 62 }
  @inlinable public static var conditionChanged: UInt64 { 1 << 63 }
}

/// IA32_PERF_CAPABILITIES.
public enum PerformanceCapabilities {
  /// IA32_A_PMCx exist.
  @inlinable public static var fullWidthWrites: UInt64 { 1 << 13 }
}
