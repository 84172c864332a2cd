// SPDX-License-Identifier: Apache-2.0
//
// This processor's CPUID as a table. CPUIDFeatureBits has the feature words; this file has the
// leaves around them. Vector features are exactly the host's, because the host executes the
// instructions.
//
//     CPUIDModel.leaf(7, 0).ebx            // what the processor offers
//     CPUIDModel.offers(.avx512vbmi)       // whether to lower an instruction or to make it #UD
//     CPUIDModel.leaf(1, 0, .amd)          // the same for AMD's processor; default: Intel's
//
// A guest's CPUID exits: the hypervisor decides what the guest sees, and this table is the maximum
// that it may offer.

import X86
import X86Decoder

package enum CPUIDModel {
  package static let brand = "Martlet Software Processor"
  /// MAXPHYADDR: the width of guest-physical addresses.
  package static let physicalAddressBits = UInt8(CPU.physicalAddressBits)
  package static let linearAddressBits: UInt8 = 57
  /// The frequency of the local APIC's timer, which leaf 0x15 calls the crystal.
  package static let crystalHertz: UInt32 = 1_000_000_000

  /// Server processors with this feature set: Sapphire Rapids, stepping 8; Genoa, family 19H, model
  /// 11H.
  package static func signature(_ vendor: SiliconVendor = .intel) -> UInt32 {
    vendor == .intel ? 0x000806F8 : 0x00A10F11
  }

  package static func lastBasicLeaf(_ vendor: SiliconVendor = .intel) -> UInt32 {
    vendor == .intel ? 0x1F : 0x10
  }

  package static func lastExtendedLeaf(_ vendor: SiliconVendor = .intel) -> UInt32 {
    vendor == .intel ? 0x8000_0008 : 0x8000_0021
  }

  // MARK: Features

  /// The feature words of each vendor's processor, host-dependent bits resolved.
  private static let intelWords = resolve(.intel)
  private static let amdWords = resolve(.amd)

  package static func words(_ vendor: SiliconVendor) -> [UInt32] {
    vendor == .intel ? intelWords : amdWords
  }

  private static func resolve(_ vendor: SiliconVendor) -> [UInt32] {
    let host = hostWords
    var words = [UInt32](repeating: 0, count: FeatureWord.allCases.count)
    for row in FeatureBit.table where row.vendor == nil || row.vendor == vendor {
      let mask = UInt32(1) << row.bit
      switch row.policy {
      case .offered: words[row.word.rawValue] |= mask
      case .hostWith(let components):
        if XCR0(rawValue: HostFeatures.current.xcr0).isSuperset(of: components) {
          words[row.word.rawValue] |= host[row.word.rawValue] & mask
        }
      case .dynamic, .excluded: break
      }
    }
    return words
  }

  private static var hostWords: [UInt32] {
    let (one, seven, sevenOne) = (HostCPUID.leaf(1), HostCPUID.leaf(7), HostCPUID.leaf(7, 1))
    let (extended1, extended7) = (HostCPUID.leaf(0x8000_0001), HostCPUID.leaf(0x8000_0007))
    return [
      one.ecx, one.edx, seven.ebx, seven.ecx, seven.edx, sevenOne.eax, HostCPUID.leaf(0xD, 1).eax,
      extended1.ecx, extended1.edx, extended7.edx, HostCPUID.leaf(0x8000_0008).ebx,
      0, 0,
    ]
  }

  package static func word(_ word: FeatureWord, _ vendor: SiliconVendor = .intel) -> UInt32 {
    words(vendor)[word.rawValue]
  }

  /// Whether the feature of this name (see FeatureBit's table) is offered.
  package static func offers(named name: String, _ vendor: SiliconVendor = .intel) -> Bool {
    FeatureBit.table.contains { $0.name == name && word($0.word, vendor) & 1 << $0.bit != 0 }
  }

  /// Whether a feature's instructions exist on this processor.
  package static func offers(_ feature: Feature, _ vendor: SiliconVendor = .intel) -> Bool {
    (vendor == .intel ? intelOffers : amdOffers)[Int(feature.rawValue)]
  }

  private static let intelOffers = offered(.intel)
  private static let amdOffers = offered(.amd)

  private static func offered(_ vendor: SiliconVendor) -> [Bool] {
    Feature.allCases.map { feature in
      switch feature {
      case .base, .sysenter, .prefetchwt1: true
      case .sse41: offers(named: "sse4.1", vendor)
      case .sse42: offers(named: "sse4.2", vendor)
      case .avxvnni: offers(named: "avx-vnni", vendor)
      case .avx512vnni: offers(named: "avx512vnni", vendor)
      default: offers(named: "\(feature)", vendor)
      }
    }
  }

  package static let hasXGETBV1 = offers(named: "xgetbv1")

  // MARK: Leaves

  /// A leaf as the processor offers it, without running state (OSXSAVE, OSPKE, APIC identifiers,
  /// the current size of the XSAVE area): for that see `CPU.cpuid`.
  package static func leaf(
    _ leaf: UInt32, _ subleaf: UInt32 = 0, _ vendor: SiliconVendor = .intel
  ) -> CPUIDLeaf {
    switch leaf {
    case 0: text(vendor.name, eax: lastBasicLeaf(vendor))
    case 1:
      CPUIDLeaf(
        eax: signature(vendor), ebx: 8 << 8 | 1 << 16, ecx: word(.leaf1ECX, vendor),
        edx: word(.leaf1EDX, vendor))
    // MONITOR's line is 64 bytes; MWAIT has extensions and wakes on masked interrupts; C1 only.
    case 5: CPUIDLeaf(eax: 64, ebx: 64, ecx: 3, edx: 1 << 4)
    // The APIC timer always runs.
    case 6: CPUIDLeaf(eax: 1 << 2)
    case 7: features(subleaf, vendor)
    // Performance monitoring, Processor Trace, and the other leaves up to 0x1F: absent.
    case 0xB: topology(subleaf)
    case 0xD: ExtendedStateLayout.leaf(subleaf)
    case 0x8000_0000...lastExtendedLeaf(vendor): extended(leaf, subleaf, vendor)
    default: vendor == .intel ? intelLeaf(leaf, subleaf) : CPUIDLeaf()
    }
  }

  /// Leaves that only Intel's processors have.
  private static func intelLeaf(_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDLeaf {
    switch leaf {
    // Caches and TLBs are described by leaves 4 and 0x18.
    case 2: CPUIDLeaf(eax: 0x00FE_FF01)
    case 4: cache(subleaf)
    case 0x15:
      CPUIDLeaf(
        eax: crystalHertz / 1000, ebx: UInt32(clamping: HostTSC.kilohertz), ecx: crystalHertz)
    case 0x16: frequency
    case 0x1F: topology(subleaf)
    default: CPUIDLeaf()
    }
  }

  private static func features(_ subleaf: UInt32, _ vendor: SiliconVendor) -> CPUIDLeaf {
    switch subleaf {
    case 0:
      CPUIDLeaf(
        eax: vendor == .intel ? 2 : 1, ebx: word(.leaf7EBX, vendor), ecx: word(.leaf7ECX, vendor),
        edx: word(.leaf7EDX, vendor))
    case 1: CPUIDLeaf(eax: word(.leaf7_1EAX, vendor))
    case 2: CPUIDLeaf(edx: word(.leaf7_2EDX, vendor))
    default: CPUIDLeaf()
    }
  }

  /// Base and maximum frequency in MHz: the TSC's; bus 100 MHz.
  private static var frequency: CPUIDLeaf {
    let megahertz = UInt32(clamping: HostTSC.kilohertz / 1000) & 0xFFFF
    return CPUIDLeaf(eax: megahertz, ebx: megahertz, ecx: 100)
  }

  private static func extended(
    _ leaf: UInt32, _ subleaf: UInt32, _ vendor: SiliconVendor
  ) -> CPUIDLeaf {
    switch leaf {
    case 0x8000_0000: return extendedStart(vendor)
    case 0x8000_0001: return extendedFeatures(vendor)
    case 0x8000_0002...0x8000_0004: return brandPart(Int(leaf - 0x8000_0002))
    // L2: 64-byte lines, 16-way, 2 MiB.
    case 0x8000_0006: return CPUIDLeaf(ecx: 64 | 8 << 12 | 2048 << 16)
    case 0x8000_0007: return CPUIDLeaf(edx: word(.extended7EDX, vendor))
    case 0x8000_0008:
      let widths = UInt32(physicalAddressBits) | UInt32(linearAddressBits) << 8
      return CPUIDLeaf(eax: widths, ebx: word(.extended8EBX, vendor))
    default: return vendor == .amd ? amdLeaf(leaf, subleaf) : CPUIDLeaf()
    }
  }

  /// AMD's processors have their name here, too.
  private static func extendedStart(_ vendor: SiliconVendor) -> CPUIDLeaf {
    vendor == .amd
      ? text(vendor.name, eax: lastExtendedLeaf(vendor)) : CPUIDLeaf(eax: lastExtendedLeaf(vendor))
  }

  /// Bits of leaf 1 EDX that AMD's processors repeat: FPU to APIC, MTRR to PSE36, MMX, FXSR.
  private static let repeatedBits: UInt32 = 0x0183_F3FF

  private static func extendedFeatures(_ vendor: SiliconVendor) -> CPUIDLeaf {
    var leaf = CPUIDLeaf(ecx: word(.extended1ECX, vendor), edx: word(.extended1EDX, vendor))
    if vendor == .amd {
      leaf.eax = signature(vendor)
      leaf.edx |= word(.leaf1EDX, vendor) & repeatedBits
    }
    return leaf
  }

  private static func amdLeaf(_ leaf: UInt32, _ subleaf: UInt32) -> CPUIDLeaf {
    switch leaf {
    // L1 data and instructions: 32 KiB, 8-way, 64-byte lines.
    case 0x8000_0005:
      CPUIDLeaf(ecx: 32 << 24 | 8 << 16 | 1 << 8 | 64, edx: 32 << 24 | 8 << 16 | 1 << 8 | 64)
    case 0x8000_000A:
      CPUIDLeaf(eax: 1, ebx: SVMCapabilities.asidCount, edx: SVMCapabilities.features.rawValue)
    // L1 and L2 TLBs of 1 GiB pages: 64 entries, fully associative.
    case 0x8000_0019: CPUIDLeaf(eax: 0xF040_F040, ebx: 0xF040_0000)
    // 256-bit wide execution, fast unaligned moves.
    case 0x8000_001A: CPUIDLeaf(eax: 0x6)
    case 0x8000_001D: cache(subleaf)
    case 0x8000_0021:
      CPUIDLeaf(
        eax: word(.extended21EAX, .amd) | HostVulnerabilities.leaf21.eax,
        ecx: HostVulnerabilities.leaf21.ecx)
    default: CPUIDLeaf()
    }
  }

  /// One thread in one core; the hypervisor describes its virtual machine instead.
  private static func topology(_ subleaf: UInt32) -> CPUIDLeaf {
    switch subleaf {
    case 0: CPUIDLeaf(eax: 0, ebx: 1, ecx: 1 << 8)
    case 1: CPUIDLeaf(eax: 0, ebx: 1, ecx: 2 << 8 | 1)
    default: CPUIDLeaf(ecx: subleaf & 0xFF)
    }
  }

  /// Deterministic cache parameters: type and level, ways, sets; 64-byte lines.
  private static func cache(_ subleaf: UInt32) -> CPUIDLeaf {
    let (type, level, ways, sets): (UInt32, UInt32, UInt32, UInt32)
    switch subleaf {
    case 0: (type, level, ways, sets) = (1, 1, 12, 64)  // data, 48 KiB
    case 1: (type, level, ways, sets) = (2, 1, 8, 64)  // instructions, 32 KiB
    case 2: (type, level, ways, sets) = (3, 2, 16, 2048)  // unified, 2 MiB
    case 3: (type, level, ways, sets) = (3, 3, 15, 32768)  // unified, 30 MiB
    default: return CPUIDLeaf()
    }
    let selfInitializing: UInt32 = 1 << 8
    return CPUIDLeaf(
      eax: type | level << 5 | selfInitializing, ebx: (ways - 1) << 22 | 63, ecx: sets - 1)
  }

  // MARK: Text

  /// The vendor's name in EBX, EDX, ECX.
  private static func text(_ name: String, eax: UInt32) -> CPUIDLeaf {
    let bytes = Array(name.utf8)
    return CPUIDLeaf(
      eax: eax, ebx: fourBytes(bytes, 0), ecx: fourBytes(bytes, 8), edx: fourBytes(bytes, 4))
  }

  private static func brandPart(_ part: Int) -> CPUIDLeaf {
    let bytes = Array(brand.utf8)
    let start = part * 16
    return CPUIDLeaf(
      eax: fourBytes(bytes, start), ebx: fourBytes(bytes, start + 4),
      ecx: fourBytes(bytes, start + 8), edx: fourBytes(bytes, start + 12))
  }

  private static func fourBytes(_ bytes: [UInt8], _ start: Int) -> UInt32 {
    var value: UInt32 = 0
    for n in 0..<4 where start + n < bytes.count {
      value |= UInt32(bytes[start + n]) << UInt32(n * 8)
    }
    return value
  }
}
