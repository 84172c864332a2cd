// SPDX-License-Identifier: Apache-2.0
//
// The CPUID of each virtual CPU: the hypervisor's supported entries, with the topology leaves
// rewritten. The machine has one package with one thread per core, and a CPU's APIC identifier is
// its number.

import CHost

/// Makes the CPUID entries of a virtual CPU.
struct CPUIDPolicy {
  private enum Leaf {
    static let features: UInt32 = 1
    static let structuredFeatures: UInt32 = 7
    static let deterministicCache: UInt32 = 4
    static let extendedTopology: UInt32 = 0xB
    static let extendedTopology2: UInt32 = 0x1F
    static let addressSizes: UInt32 = 0x8000_0008
    static let cacheTopology: UInt32 = 0x8000_001D
    static let processorTopology: UInt32 = 0x8000_001E
  }
  private static let hypervisorBit: UInt32 = 1 << 31
  private static let deadlineTimerBit: UInt32 = 1 << 24
  private static let hyperThreadingBit: UInt32 = 1 << 28
  private static let la57Bit: UInt32 = 1 << 16
  private static let threadLevel: UInt32 = 1
  private static let coreLevel: UInt32 = 2

  let supported: [kvm_cpuid_entry2]
  let processors: Int
  /// Whether the hypervisor's local APICs have the TSC-deadline timer.
  let hasDeadlineTimer: Bool
  /// MAXPHYADDR for guests with UEFI, which builds page tables of 2 MiB pages for all addresses:
  /// with more bits they would take all of a small machine's memory.
  static let firmwareAddressBits: UInt32 = 41
  /// Limit of physical-address bits; nil: the processor's.
  var addressBitsLimit: UInt32?

  /// Bits of an APIC identifier that number the cores of the package.
  private var coreBits: UInt32 {
    UInt32(Int.bitWidth - (processors - 1).leadingZeroBitCount)
  }

  /// The entries of one CPU.
  func entries(for processor: UInt32) -> [kvm_cpuid_entry2] {
    var entries = supported.filter {
      $0.function != Leaf.extendedTopology && $0.function != Leaf.extendedTopology2
    }
    for index in entries.indices { place(&entries[index], processor) }
    for leaf in [Leaf.extendedTopology, Leaf.extendedTopology2] {
      guard supported.contains(where: { $0.function == leaf }) else { continue }
      entries += topology(leaf, processor)
    }
    return entries
  }

  private func place(_ entry: inout kvm_cpuid_entry2, _ processor: UInt32) {
    let count = UInt32(processors)
    switch entry.function {
    case Leaf.features:
      entry.ebx = entry.ebx & 0xFFFF | min(count, 255) << 16 | processor << 24
      entry.ecx |= Self.hypervisorBit
      if hasDeadlineTimer { entry.ecx |= Self.deadlineTimerBit }
      if count > 1 {
        entry.edx |= Self.hyperThreadingBit
      } else {
        entry.edx &= ~Self.hyperThreadingBit
      }
    // A guest with LA57 walks five levels of page tables; our machines never need 57 bits.
    case Leaf.structuredFeatures where entry.index == 0: entry.ecx &= ~Self.la57Bit
    case Leaf.deterministicCache where entry.eax & 0x1F != 0:
      // Caches of levels 1 and 2 belong to a core, others to the package.
      let level = (entry.eax >> 5) & 7
      let sharing = level >= 3 ? count - 1 : 0
      entry.eax = entry.eax & 0x3FFF | sharing << 14 | (count - 1) << 26
    case Leaf.cacheTopology where entry.eax & 0x1F != 0:
      let level = (entry.eax >> 5) & 7
      entry.eax = entry.eax & ~0x03FF_C000 | (level >= 3 ? count - 1 : 0) << 14
    case Leaf.addressSizes:
      entry.ecx = coreBits << 12 | (count - 1)
      if let limit = addressBitsLimit {
        entry.eax = entry.eax & ~0xFF | min(entry.eax & 0xFF, limit)
      }
    case Leaf.processorTopology: (entry.eax, entry.ebx, entry.ecx) = (processor, processor, 0)
    default: break
    }
  }

  /// The levels of an extended topology leaf: one thread per core, all cores, the end.
  private func topology(_ leaf: UInt32, _ processor: UInt32) -> [kvm_cpuid_entry2] {
    let levels: [(shift: UInt32, count: UInt32, kind: UInt32)] = [
      (0, 1, Self.threadLevel), (coreBits, UInt32(processors), Self.coreLevel), (0, 0, 0),
    ]
    return levels.enumerated().map { number, level in
      var entry = kvm_cpuid_entry2()
      entry.function = leaf
      entry.index = UInt32(number)
      entry.flags = UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
      entry.eax = level.shift
      entry.ebx = level.count
      entry.ecx = level.kind << 8 | UInt32(number)
      entry.edx = processor
      return entry
    }
  }
}
