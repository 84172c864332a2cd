// SPDX-License-Identifier: Apache-2.0
//
// A vCPU's CPUID as the client set it, and what it determines: allowed bits of CR4 and XCR0,
// counters, vendor. Immutable; KVM_SET_CPUID2 makes a new one.

import CHost
import X86
import X86CPU

/// A vCPU's CPUID: the client's table and values derived from it. It is replaced as a whole, and
/// never after the vCPU has run.
struct GuestCPUID {
  /// Processor state that CPUID reflects.
  struct Dynamic {
    var cr4: UInt64
    var xcr0: UInt64
    var xss: UInt64
    var isAPICEnabled: Bool
    /// IA32_MISC_ENABLE's MWAIT bit, if CPUID follows it.
    var monitorWait: Bool?
  }

  let entries: [kvm_cpuid_entry2]
  /// Positions in `entries` by function and index; by function alone if the index is ignored.
  private let positions: [UInt64: Int]
  /// CR4 bits that the guest may set.
  let allowedCR4: UInt64
  /// XCR0 bits that the guest may set.
  let supportedXCR0: UInt64

  /// The performance counters of leaf 0AH.
  let performance: PerformanceModel
  /// Behaviour specific to its vendor's processors.
  let rules: VendorRules
  /// The features that the guest's MSRs and instructions depend on.
  let features: GuestFeatures
  let isIntel: Bool

  /// Leaf 0x40000001 EAX.
  let paravirtualFeatures: UInt32

  /// MAXPHYADDR, if leaf 0x80000008 EAX has it.
  let physicalAddressBits: UInt64?

  private static let anyIndex: UInt64 = 0xFFFF_FFFF

  init(_ entries: [kvm_cpuid_entry2]) {
    self.entries = entries
    var positions: [UInt64: Int] = [:]
    for (position, entry) in entries.enumerated() {
      let significant = entry.flags & UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0
      let key = UInt64(entry.function) << 32 | (significant ? UInt64(entry.index) : Self.anyIndex)
      if positions[key] == nil { positions[key] = position }
    }
    self.positions = positions
    func find(_ function: UInt32, _ index: UInt32) -> kvm_cpuid_entry2 {
      let key = UInt64(function) << 32
      let position = positions[key | UInt64(index)] ?? positions[key | Self.anyIndex]
      return position.map { entries[$0] } ?? kvm_cpuid_entry2()
    }
    let (one, seven, state) = (find(1, 0), find(7, 0), find(0xD, 0))
    // Before the client sets CPUID, all bits are allowed.
    allowedCR4 =
      entries.isEmpty
      ? Self.offeredCR4
      : Self.allowedCR4(ecx1: one.ecx, ebx7: seven.ebx, ecx7: seven.ecx)
    let offered = UInt64(state.eax) | UInt64(state.edx) << 32
    let counters = find(PerformanceModel.leaf, 0)
    performance = PerformanceModel(
      CPUIDLeaf(eax: counters.eax, ebx: counters.ebx, ecx: counters.ecx, edx: counters.edx),
      vendor: find(0, 0).ebx)
    rules = VendorRules(
      vendor: find(0, 0).ebx, features: find(0x8000_0001, 0).ecx,
      moreFeatures: find(0x8000_0021, 0).eax)
    features = GuestFeatures(find)
    isIntel = find(0, 0).ebx == Self.intelVendor
    paravirtualFeatures = find(0x4000_0001, 0).eax
    let widths = find(0x8000_0008, 0).eax & 0xFF
    physicalAddressBits = widths == 0 ? nil : UInt64(widths)
    supportedXCR0 = offered & ExtendedStateLayout.supported | XCR0.x87.rawValue
  }

  /// The bits that a guest with all of KVM_GET_SUPPORTED_CPUID may set.
  private static let offeredCR4 = GuestCPUID(SupportedCPUID.entries(.intel)).allowedCR4

  private static func allowedCR4(ecx1: UInt32, ebx7: UInt32, ecx7: UInt32) -> UInt64 {
    var allowed: CR4 = [
      .vme, .pvi, .tsd, .de, .pse, .pae, .mce, .pge, .pce, .osfxsr, .osxmmexcpt,
    ]
    let conditions: [(CR4, UInt32, UInt32)] = [
      (.pcide, ecx1, 17), (.osxsave, ecx1, 26), (.fsgsbase, ebx7, 0), (.smep, ebx7, 7),
      (.smap, ebx7, 20), (.umip, ecx7, 2), (.pke, ecx7, 3), (.la57, ecx7, 16), (.vmxe, ecx1, 5),
    ]
    for (bit, word, position) in conditions where word & 1 << position != 0 {
      allowed.insert(bit)
    }
    return allowed.intersection(.supported).rawValue
  }

  private func entry(_ function: UInt32, _ index: UInt32) -> kvm_cpuid_entry2? {
    let key = UInt64(function) << 32
    return (positions[key | UInt64(index)] ?? positions[key | Self.anyIndex]).map { entries[$0] }
  }

  /// The result of the CPUID instruction. For functions above the maximum, Intel's processors
  /// return the last basic leaf, AMD's return 0.
  func lookUp(_ function: UInt32, _ index: UInt32, _ state: Dynamic) -> CPUIDLeaf {
    var function = function
    if entry(function, index) == nil, isBeyondLast(function), let last = entry(0, 0)?.eax {
      if rules.contains(.noLeafBeyondLast) { return CPUIDLeaf() }
      function = last
    }
    guard let found = entry(function, index) else {
      // Topology leaves return the index and the APIC identifier for every index.
      guard function == 0xB || function == 0x1F, let first = entry(function, 0) else {
        return CPUIDLeaf()
      }
      return CPUIDLeaf(ecx: index & 0xFF, edx: first.edx)
    }
    var leaf = CPUIDLeaf(eax: found.eax, ebx: found.ebx, ecx: found.ecx, edx: found.edx)
    reflect(&leaf, function, index, state)
    return leaf
  }

  /// The table with the bits that reflect the processor's current state.
  func entries(_ state: Dynamic) -> [kvm_cpuid_entry2] {
    entries.map { entry in
      var (entry, leaf) = (
        entry, CPUIDLeaf(eax: entry.eax, ebx: entry.ebx, ecx: entry.ecx, edx: entry.edx)
      )
      reflect(&leaf, entry.function, entry.index, state)
      (entry.eax, entry.ebx, entry.ecx, entry.edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
      return entry
    }
  }

  private func isBeyondLast(_ function: UInt32) -> Bool {
    let base: UInt32
    if function & 0x8000_0000 != 0 {
      base = 0x8000_0000
    } else {
      // Hypervisor leaves come in blocks of 256.
      base = function & 0xF000_0000 == 0x4000_0000 ? function & 0xFFFF_FF00 : 0
    }
    guard let last = entry(base, 0)?.eax else { return true }
    return function > last
  }

  private func reflect(
    _ leaf: inout CPUIDLeaf, _ function: UInt32, _ index: UInt32, _ state: Dynamic
  ) {
    func set(_ word: inout UInt32, _ bit: UInt32, _ on: Bool) {
      word = on ? word | 1 << bit : word & ~(1 << bit)
    }
    switch (function, index) {
    case (1, _):
      set(&leaf.ecx, 27, state.cr4 & CR4.osxsave.rawValue != 0)
      if let monitorWait = state.monitorWait { set(&leaf.ecx, 3, monitorWait) }
      if !state.isAPICEnabled { set(&leaf.edx, 9, false) }
    case (7, 0): set(&leaf.ecx, 4, state.cr4 & CR4.pke.rawValue != 0)
    case (0xD, 0): leaf.ebx = ExtendedStateLayout.standardSize(state.xcr0)
    case (0xD, 1) where leaf.eax & 0xA != 0:
      leaf.ebx = ExtendedStateLayout.compactedSize(state.xcr0 | state.xss)
    default: break
    }
  }
}
