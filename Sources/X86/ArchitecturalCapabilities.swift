// SPDX-License-Identifier: Apache-2.0
//
// The bits of IA32_ARCH_CAPABILITIES. A bit says that a processor lacks a vulnerability, unless
// stated otherwise.

/// IA32_ARCH_CAPABILITIES: vulnerabilities of speculative execution that a processor lacks, and two
/// further properties (SDM volume 4, "IA-32 Architectural MSRs").
public struct ArchitecturalCapabilities: OptionSet, Sendable, Hashable {
  public var rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// Rogue data cache load: Meltdown, and the L1 terminal fault.
  @inlinable public static var noRogueDataCacheLoad: Self { Self(rawValue: 1 << 0) }
  /// RSBA: returns may be predicted by the branch target buffer.
  @inlinable public static var alternateReturnPredictors: Self { Self(rawValue: 1 << 2) }
  /// A hypervisor need not flush the L1 data cache before an entry.
  @inlinable public static var skipCacheFlush: Self { Self(rawValue: 1 << 3) }
  @inlinable public static var noStoreBypass: Self { Self(rawValue: 1 << 4) }
  /// Microarchitectural data sampling.
  @inlinable public static var noDataSampling: Self { Self(rawValue: 1 << 5) }
  /// Machine checks of page size changes.
  @inlinable public static var noPageSizeMachineCheck: Self { Self(rawValue: 1 << 6) }
  /// TSX asynchronous abort.
  @inlinable public static var noTransactionAbort: Self { Self(rawValue: 1 << 8) }
  /// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO: stale data of memory-mapped I/O.
  @inlinable public static var noStaleData: Self { Self(rawValue: 7 << 13) }
  /// Gather data sampling.
  @inlinable public static var noGatherSampling: Self { Self(rawValue: 1 << 26) }
  /// Register file data sampling.
  @inlinable public static var noRegisterFileSampling: Self { Self(rawValue: 1 << 27) }
  /// Indirect target selection.
  @inlinable public static var noTargetSelection: Self { Self(rawValue: 1 << 62) }
}
