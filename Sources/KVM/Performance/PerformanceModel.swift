// SPDX-License-Identifier: Apache-2.0
//
// A vCPU's performance counters by its CPUID, and the MSR of each.

import CHost
import X86
import X86CPU

/// The performance counters that a CPUID table gives a vCPU (leaf 0AH, "Architectural Performance
/// Monitoring"): at most those that are offered.
///
/// If the vendor is AMD, the vCPU has AMD's four counters instead, which such guests use. So do
/// guests of clients that take the vendor from their host.
struct PerformanceModel: Sendable, Equatable {
  /// 0 without counters.
  var version: UInt8 = 0
  var isAMD = false
  var generalCount = 0
  var fixedCount = 0
  /// The width of counters, as masks.
  var generalMask: UInt64 = 0
  var fixedMask: UInt64 = 0
  /// Events that can be counted, by their bit.
  var events: UInt32 = 0

  static let none = PerformanceModel()
  static let leaf: UInt32 = 0xA

  private static let offeredVersion: UInt32 = 2
  static let maxGeneral = 8
  static let maxFixed = 3
  static let amdCount = 4
  /// EBX of leaf 0 of AMD's and Hygon's processors: "Auth" and "Hygo".
  private static let amdVendors: [UInt32] = [0x6874_7541, 0x6F67_7948]
  private static let width: UInt32 = 48
  private static let eventCount = UInt32(ArchitecturalEvent.allCases.count)
  /// The processor has no caches and no branch predictor to miss.
  private static let absent: [ArchitecturalEvent] = [
    .lastLevelCacheReferences, .lastLevelCacheMisses, .branchMisses,
  ]

  /// Leaf 0AH as offered. EDX bit 15: "any thread" is deprecated.
  static let offered = CPUIDLeaf(
    eax: offeredVersion | UInt32(maxGeneral) << 8 | width << 16 | eventCount << 24,
    ebx: absent.reduce(0) { $0 | 1 << UInt32($1.rawValue) },
    edx: UInt32(maxFixed) | width << 5 | 1 << 15)

  private init() {}

  /// - Parameters:
  ///   - leaf: the client's leaf 0AH.
  ///   - vendor: EBX of leaf 0.
  init(_ leaf: CPUIDLeaf, vendor: UInt32) {
    version = UInt8(truncatingIfNeeded: leaf.eax)
    guard version != 0 else { return }
    if Self.amdVendors.contains(vendor) {
      (version, isAMD, generalCount, generalMask) = (1, true, Self.amdCount, Self.mask(Self.width))
      return
    }
    generalCount = min(Int(leaf.eax >> 8 & 0xFF), Self.maxGeneral)
    generalMask = Self.mask(leaf.eax >> 16 & 0xFF)
    let length = min(leaf.eax >> 24, Self.eventCount)
    events = ~(leaf.ebx | Self.offered.ebx) & ((1 << length) - 1)
    guard version > 1 else { return }
    fixedCount = min(Int(leaf.edx & 31), Self.maxFixed)
    fixedMask = Self.mask(leaf.edx >> 5 & 0xFF)
  }

  private static func mask(_ wanted: UInt32) -> UInt64 { 1 << UInt64(min(wanted, width)) - 1 }

  /// IA32_PERF_GLOBAL_CTRL's bits.
  var counterBits: UInt64 {
    (1 << UInt64(generalCount) - 1)
      | (1 << UInt64(fixedCount) - 1) << PerformanceGlobalStatus.fixedShift
  }

  /// IA32_FIXED_CTR_CTRL's bits.
  var fixedControlBits: UInt64 {
    (0..<fixedCount).reduce(0) { $0 | FixedCounterControl.all << UInt64($1 * 4) }
  }

  /// The event that a general counter with this selector counts, if enabled.
  func event(_ select: PerformanceEventSelect) -> ArchitecturalEvent? {
    let all = ArchitecturalEvent.allCases
    if isAMD { return all.first { $0.amdEncoding == select.event } }
    return all.first { $0.encoding == select.event && has($0) }
  }

  func has(_ event: ArchitecturalEvent) -> Bool { events & 1 << UInt32(event.rawValue) != 0 }
}

/// A register of the counters, by its MSR.
enum PerformanceRegister: Equatable {
  case eventSelect(Int)
  case counter(Int)
  /// Like `counter`, but all its bits are writable.
  case fullWidthCounter(Int)
  case fixedCounter(Int)
  case fixedControl
  case globalStatus
  case globalControl
  case globalOverflowControl
  case amdEventSelect(Int)
  case amdCounter(Int)

  init?(_ number: UInt32) {
    func place(_ first: MSR, _ count: Int) -> Int? {
      let index = Int(number) - Int(first.rawValue)
      return (0..<count).contains(index) ? index : nil
    }
    if let index = place(.performanceCounter0, PerformanceModel.maxGeneral) {
      self = .counter(index)
    } else if let index = place(.performanceEventSelect0, PerformanceModel.maxGeneral) {
      self = .eventSelect(index)
    } else if let index = place(.fullWidthCounter0, PerformanceModel.maxGeneral) {
      self = .fullWidthCounter(index)
    } else if let index = place(.fixedCounter0, PerformanceModel.maxFixed) {
      self = .fixedCounter(index)
    } else if let index = place(.amdEventSelect0, PerformanceModel.amdCount) {
      self = .amdEventSelect(index)
    } else if let index = place(.amdCounter0, PerformanceModel.amdCount) {
      self = .amdCounter(index)
    } else {
      switch MSR(rawValue: number) {
      case .fixedCounterControl: self = .fixedControl
      case .performanceGlobalStatus: self = .globalStatus
      case .performanceGlobalControl: self = .globalControl
      case .performanceGlobalOverflowControl: self = .globalOverflowControl
      default: return nil
      }
    }
  }

  /// The MSRs that the client saves and restores.
  static let saved: [UInt32] = {
    let banks: [(MSR, Int)] = [
      (.performanceCounter0, PerformanceModel.maxGeneral),
      (.performanceEventSelect0, PerformanceModel.maxGeneral),
      (.fixedCounter0, PerformanceModel.maxFixed), (.fixedCounterControl, 4),
      (.amdEventSelect0, PerformanceModel.amdCount), (.amdCounter0, PerformanceModel.amdCount),
    ]
    return banks.flatMap { first, count in (0..<UInt32(count)).map { first.rawValue + $0 } }
  }()
}
