// SPDX-License-Identifier: Apache-2.0
//
// The MSRs and instructions that a guest has, by its CPUID: none of these until the client sets it,
// as in Linux.

import CHost
import X86
import X86CPU

/// Features that MSRs and instructions of a guest depend on.
struct GuestFeatures: OptionSet, Sendable {
  var rawValue: UInt32

  static let x2APIC = Self(rawValue: 1 << 0)
  static let tscDeadline = Self(rawValue: 1 << 1)
  static let xsave = Self(rawValue: 1 << 2)
  static let rdrand = Self(rawValue: 1 << 3)
  static let tscAdjust = Self(rawValue: 1 << 4)
  static let invpcid = Self(rawValue: 1 << 5)
  static let rdseed = Self(rawValue: 1 << 6)
  static let rdpid = Self(rawValue: 1 << 7)
  static let xsaves = Self(rawValue: 1 << 8)
  static let rdtscp = Self(rawValue: 1 << 9)
  static let executeDisable = Self(rawValue: 1 << 10)
  static let longMode = Self(rawValue: 1 << 11)
  static let architecturalCapabilities = Self(rawValue: 1 << 12)
  static let performanceCapabilities = Self(rawValue: 1 << 13)
  /// IA32_SPEC_CTRL exists for these: IBRS (with IBPB), and AMD's three bits.
  static let speculationControl = Self(rawValue: 1 << 14)
  /// IA32_PRED_CMD exists for these: IBPB (with IBRS), and AMD's bit.
  static let predictionBarrier = Self(rawValue: 1 << 15)

  /// The guest may be a hypervisor.
  static let svm = Self(rawValue: 1 << 16)
  static let vmx = Self(rawValue: 1 << 17)
  static let virtualization: Self = [.svm, .vmx]

  enum Register { case ebx, ecx, edx, eax }

  private static let table: [(Self, UInt32, UInt32, Register, UInt32)] = [
    (.x2APIC, 1, 0, .ecx, 1 << 21), (.tscDeadline, 1, 0, .ecx, 1 << 24),
    (.vmx, 1, 0, .ecx, SupportedCPUID.vmxBit), (.xsave, 1, 0, .ecx, 1 << 26),
    (.rdrand, 1, 0, .ecx, 1 << 30),
    (.performanceCapabilities, 1, 0, .ecx, SupportedCPUID.performanceCapabilitiesBit),
    (.tscAdjust, 7, 0, .ebx, 1 << 1), (.invpcid, 7, 0, .ebx, 1 << 10),
    (.rdseed, 7, 0, .ebx, 1 << 18), (.rdpid, 7, 0, .ecx, 1 << 22),
    (.speculationControl, 7, 0, .edx, 1 << 26), (.predictionBarrier, 7, 0, .edx, 1 << 26),
    (.architecturalCapabilities, 7, 0, .edx, 1 << 29), (.xsaves, 0xD, 1, .eax, 1 << 3),
    (.svm, 0x8000_0001, 0, .ecx, SupportedCPUID.svmBit),
    (.executeDisable, 0x8000_0001, 0, .edx, 1 << 20), (.rdtscp, 0x8000_0001, 0, .edx, 1 << 27),
    (.longMode, 0x8000_0001, 0, .edx, 1 << 29),
    (.speculationControl, 0x8000_0008, 0, .ebx, 1 << 14 | 1 << 15 | 1 << 24),
    (.predictionBarrier, 0x8000_0008, 0, .ebx, 1 << 12),
  ]

  init(rawValue: UInt32) { self.rawValue = rawValue }

  /// - Parameter find: returns the entry of a function and an index; zeros if there is none.
  init(_ find: (UInt32, UInt32) -> kvm_cpuid_entry2) {
    rawValue = 0
    for (feature, function, index, register, bits) in Self.table {
      let entry = find(function, index)
      let word =
        switch register {
        case .eax: entry.eax
        case .ebx: entry.ebx
        case .ecx: entry.ecx
        case .edx: entry.edx
        }
      if word & bits != 0 { insert(feature) }
    }
  }

  /// A guest has an MSR if it has one of these features; nil: always.
  static func needed(forMSR number: UInt32) -> Self? {
    if (MSR.vmxBasic.rawValue...MSR.vmxVMFunc.rawValue).contains(number) { return .vmx }
    return switch MSR(rawValue: number) {
    case .specCtrl: .speculationControl
    case .predCmd: .predictionBarrier
    case .archCapabilities: .architecturalCapabilities
    case .performanceCapabilities: .performanceCapabilities
    case .tscAux: [.rdtscp, .rdpid]
    case .xss: .xsaves
    case .vmcr: .svm
    default: nil
    }
  }
}

extension GuestCPUID {
  /// EBX of leaf 0 for vendor Intel.
  static let intelVendor: UInt32 = 0x756E_6547
  /// MAXPHYADDR if the guest's CPUID lacks it (SDM volume 2, "CPUID": leaf 80000008H).
  private static let defaultPhysicalAddressBits: UInt64 = 36

  /// Reserved address bits, by the guest's MAXPHYADDR.
  var reservedAddressBits: UInt64 {
    let bits = physicalAddressBits ?? Self.defaultPhysicalAddressBits
    return bits >= 64 ? 0 : ~((1 &<< bits) &- 1)
  }

  /// Rejects widths of linear addresses that no processor has, as in Linux.
  static func isValid(_ entries: [kvm_cpuid_entry2]) -> Bool {
    guard let sizes = entries.first(where: { $0.function == 0x8000_0008 }) else { return true }
    return [0, 48, 57].contains(sizes.eax >> 8 & 0xFF)
  }

  /// The table for the guest: without the hypercall that ends halts if HLT does not exit.
  static func adjusted(
    _ entries: [kvm_cpuid_entry2], haltsInGuest: Bool
  ) -> [kvm_cpuid_entry2] {
    guard haltsInGuest else { return entries }
    return entries.map { entry in
      var entry = entry
      if entry.function == 0x4000_0001 { entry.eax &= ~ParavirtualFeature.unhalt }
      return entry
    }
  }
}
