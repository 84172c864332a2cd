// SPDX-License-Identifier: Apache-2.0
//
// KVM_GET_SUPPORTED_CPUID: the processor's CPUID without what this hypervisor does not pass on,
// plus what it adds: the local APIC's features and its own leaves.

import CHost
import X86
import X86CPU

enum SupportedCPUID {
  /// Bits of leaf 1 ECX that differ from the processor's.
  private enum Leaf1ECX {
    /// MWAIT would return at once.
    static let monitor: UInt32 = 1 << 3
    static let x2APIC: UInt32 = 1 << 21
    /// Offered only by KVM_CAP_TSC_DEADLINE_TIMER, because only our local APIC has it: a client
    /// with its own local APIC must not pass it on.
    static let tscDeadline: UInt32 = 1 << 24
    static let hypervisor: UInt32 = 1 << 31
    /// Set while CR4.OSXSAVE is.
    static let osxsave: UInt32 = 1 << 27
    static let removed = monitor | osxsave | tscDeadline
    static let added = x2APIC | hypervisor | performanceCapabilitiesBit
  }

  /// PDCM in leaf 1 ECX.
  static let performanceCapabilitiesBit: UInt32 = 1 << 15
  /// VMX, of leaf 1 ECX.
  static let vmxBit: UInt32 = 1 << 5
  /// SVM, of leaf 8000_0001H ECX.
  static let svmBit: UInt32 = 1 << 2
  private static let apicBit: UInt32 = 1 << 9

  /// Every leaf, by function and index.
  static func entries(_ silicon: SiliconVendor) -> [kvm_cpuid_entry2] {
    silicon == .intel ? intelEntries : amdEntries
  }

  private static let intelEntries = list(.intel)
  private static let amdEntries = list(.amd)

  private static func list(_ silicon: SiliconVendor) -> [kvm_cpuid_entry2] {
    var list: [kvm_cpuid_entry2] = []
    for function in 0...CPUIDModel.lastBasicLeaf(silicon) { add(&list, function, silicon) }
    list += paravirtual
    for function in 0x8000_0000...CPUIDModel.lastExtendedLeaf(silicon) {
      add(&list, function, silicon)
    }
    return list
  }

  private static func add(
    _ list: inout [kvm_cpuid_entry2], _ function: UInt32, _ silicon: SiliconVendor
  ) {
    guard let count = subleaves[function] else {
      return add(&list, function, 0, silicon, significant: false)
    }
    for index in 0..<count { add(&list, function, index, silicon, significant: true) }
  }

  /// The number of subleaves of leaves with an index.
  private static let subleaves: [UInt32: UInt32] = [
    4: 5, 7: 3, 0xB: 2, 0xD: 10, 0x12: 1, 0x14: 1, 0x1F: 2, 0x8000_001D: 5,
  ]

  private static func add(
    _ list: inout [kvm_cpuid_entry2], _ function: UInt32, _ index: UInt32,
    _ silicon: SiliconVendor, significant: Bool
  ) {
    var leaf = CPUIDModel.leaf(function, index, silicon)
    if function == 0x8000_000A { leaf.edx &= NestedSVM.features.rawValue }
    if function == 1 {
      leaf.ecx = leaf.ecx & ~Leaf1ECX.removed | Leaf1ECX.added
      leaf.edx |= apicBit
    }
    // The processor has no counters; `Performance` emulates them.
    if function == PerformanceModel.leaf { leaf = PerformanceModel.offered }
    // OSPKE mirrors CR4.PKE.
    if function == 7, index == 0 { leaf.ecx &= ~(1 << 4) }
    if !hasProtectionKeys { withholdProtectionKeys(&leaf, function, index) }
    if function == 0xD, index > 1, leaf.eax == 0 { return }
    var entry = kvm_cpuid_entry2()
    entry.function = function
    entry.index = index
    entry.flags = significant ? UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX) : 0
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
    list.append(entry)
  }

  /// Clients take places in the XSAVE area from the CPUID instruction of the host (QEMU does),
  /// which knows none for PKRU where the host has no protection keys. A guest that is told of the
  /// keys then looks for PKRU in the wrong place.
  private static let hasProtectionKeys =
    HostCPUID.leaf(0xD).eax & UInt32(XCR0.pkru.rawValue) != 0

  private static func withholdProtectionKeys(
    _ leaf: inout CPUIDLeaf, _ function: UInt32, _ index: UInt32
  ) {
    let mask = ExtendedStateLayout.supported & ~XCR0.pkru.rawValue
    switch (function, index) {
    case (7, 0): leaf.ecx &= ~(1 << 3)
    case (0xD, 0):
      leaf.eax = UInt32(truncatingIfNeeded: mask)
      leaf.ebx = ExtendedStateLayout.standardSize(mask)
      leaf.ecx = leaf.ebx
    case (0xD, 1): leaf.ebx = ExtendedStateLayout.compactedSize(mask)
    case (0xD, 9): leaf = CPUIDLeaf()
    default: break
    }
  }

  /// Linux, "KVM CPUID bits": all that kernel 6.1 offers except asynchronous page faults as VM
  /// exits of a nested hypervisor. MSI_EXT_DEST_ID, HC_MAP_GPA_RANGE and MIGRATION_CONTROL need the
  /// client's support, so the client offers them.
  private static let features: UInt32 =
    ParavirtualFeature.clockSource | ParavirtualFeature.noIODelay
    | ParavirtualFeature.clockSource2 | ParavirtualFeature.stealTime | ParavirtualFeature.unhalt
    | ParavirtualFeature.asyncFault | ParavirtualFeature.asyncFaultInterrupt
    | ParavirtualFeature.endOfInterrupt | ParavirtualFeature.flush
    | ParavirtualFeature.sendInterrupts | ParavirtualFeature.pollControl | ParavirtualFeature.yield
    | ParavirtualFeature.stableClock

  private static var paravirtual: [kvm_cpuid_entry2] {
    var name = kvm_cpuid_entry2()
    name.function = 0x4000_0000
    name.eax = 0x4000_0001
    (name.ebx, name.ecx, name.edx) = (0x4B4D_564B, 0x564B_4D56, 0x4D)  // "KVMKVMKVM"
    var leaf = kvm_cpuid_entry2()
    leaf.function = 0x4000_0001
    leaf.eax = features
    return [name, leaf]
  }
}
