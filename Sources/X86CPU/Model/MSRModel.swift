// SPDX-License-Identifier: Apache-2.0
//
// The MSRs of this processor as a table: storage and valid values. Reads and writes of numbers
// outside the table raise #GP(0).
//
//     MSRRule(.lstar, .state(\.lstar), .canonical)
//     MSRRule(.sysenterCS, .state(\.sysenterCS), .bits(0xFFFF_FFFF))
//     MSRRule(.biosSignatureID, .constant(...), .ignored)
//
// Effects of accesses beyond storage (EFER, TSC, segment bases) are in MSRModel+Access.

import X86

package struct MSRRule: Sendable {
  package enum Storage: Sendable {
    /// Read-only by nature, or without effect.
    case constant(UInt64)
    /// Byte offset of a 64-bit field of `CPUState`.
    case state(Int)
    /// Index in `SystemState.msrs`; the associated value is the reset value.
    case slot(UInt64)
    /// Functions in MSRModel+Access read and write it.
    case computed
  }

  /// The valid values of a write.
  package enum Check: Sendable {
    /// None: #GP(0).
    case readOnly
    /// Any, without effect.
    case ignored
    /// Only these bits may be 1.
    case bits(UInt64)
    /// A canonical address, by the widest linear address that the processor offers.
    case canonical
    /// Eight bytes, each a memory type of the PAT.
    case memoryTypesPAT
    /// Eight bytes, each a memory type of the MTRRs.
    case memoryTypesMTRR
    /// IA32_MTRR_DEF_TYPE, IA32_MTRR_PHYSBASEn.
    case mtrrType(UInt64)
    /// All ones or all zeros (IA32_MCi_CTL), all zeros (IA32_MCi_STATUS and the like).
    case allOnesOrZeros
    case zero
  }

  package var number: UInt32
  package var storage: Storage
  package var check: Check
  /// Index in `SystemState.msrs`, of `.slot`.
  package var slot = 0

  init(_ msr: MSR, _ storage: Storage, _ check: Check) {
    number = msr.rawValue
    self.storage = storage
    self.check = check
  }

  init(_ msr: MSR, _ field: PartialKeyPath<CPUState>, _ check: Check) {
    self.init(msr, .state(MemoryLayout<CPUState>.offset(of: field) ?? CPU.zeroOffset), check)
  }
}

package enum MSRModel {
  /// Number of variable-range MTRRs and of machine-check banks.
  package static let variableRanges = 8
  package static let machineCheckBanks = 4

  /// IA32_MTRR_CAP: variable ranges, fixed ranges, write combining.
  static let mtrrCapabilities = UInt64(variableRanges) | 1 << 8 | 1 << 10
  /// IA32_MISC_ENABLE: fast strings; performance monitoring off; BTS and PEBS not available.
  static let miscEnableReset: UInt64 = 1 << 0 | 1 << 11 | 1 << 12 | 1 << 18
  /// Its writable bits: fast strings, thermal control, SpeedStep, MONITOR, CPUID limit, xTPR, XD
  /// disable (the last has no effect: NX is always offered).
  static let miscEnableWritable: UInt64 =
    1 << 0 | 1 << 3 | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34
  /// IA32_MISC_ENABLE: performance monitoring is available. Read-only; the hypervisor may set it.
  package static let miscEnablePerformance: UInt64 = 1 << 7
  /// IA32_APIC_BASE after reset: enabled, bootstrap processor, at 0xFEE00000.
  static let apicBaseReset: UInt64 = 0xFEE0_0900
  /// IA32_FEATURE_CONTROL: locked, VMX outside SMX.
  static let featureControl: UInt64 = 1 << 0 | 1 << 2
  /// IA32_ARCH_CAPABILITIES.
  package static let architecturalCapabilities = HostVulnerabilities.capabilities.rawValue
  /// IA32_BIOS_SIGN_ID: the microcode revision in bits 63:32.
  package static let microcodeRevision: UInt64 = 0x2B00_0643 << 32
  /// AMD's PATCH_LEVEL, the same MSR: the revision in bits 31:0.
  package static let amdPatchLevel: UInt64 = 0x0A10_1148
  /// Physical-address bits above which a base or mask is reserved.
  static let physicalMask = (UInt64(1) << UInt64(CPUIDModel.physicalAddressBits)) - 1

  private static let plain: [MSRRule] = [
    MSRRule(.p5MCAddress, .constant(0), .ignored),
    MSRRule(.p5MCType, .constant(0), .ignored),
    MSRRule(.monitorFilterSize, .slot(64), .bits(0xFFFF_FFFF)),
    MSRRule(.timeStampCounter, .computed, .bits(.max)),
    MSRRule(.platformID, .constant(0), .readOnly),
    MSRRule(.apicBase, .slot(apicBaseReset), .bits(physicalMask & ~0x2FF)),
    MSRRule(.featureControl, .constant(featureControl), .readOnly),
    MSRRule(.tscAdjust, .computed, .bits(.max)),
    MSRRule(.biosUpdateTrigger, .constant(0), .ignored),
    MSRRule(.biosSignatureID, .constant(microcodeRevision), .ignored),
    MSRRule(.platformInfo, .constant(0), .readOnly),
    MSRRule(.mtrrCap, .constant(mtrrCapabilities), .readOnly),
    MSRRule(.archCapabilities, .constant(architecturalCapabilities), .readOnly),
    MSRRule(.miscFeaturesEnables, .slot(0), .bits(0)),
    MSRRule(.sysenterCS, \.sysenterCS, .bits(0xFFFF_FFFF)),
    MSRRule(.sysenterESP, \.sysenterESP, .canonical),
    MSRRule(.sysenterEIP, \.sysenterEIP, .canonical),
    MSRRule(.mcgCap, .constant(UInt64(machineCheckBanks)), .readOnly),
    MSRRule(.mcgStatus, .slot(0), .bits(7)),
    MSRRule(.miscEnable, .slot(miscEnableReset), .bits(miscEnableWritable)),
    MSRRule(.debugctl, \.debugctl, .bits(3)),
    MSRRule(.pat, \.pat, .memoryTypesPAT),
    MSRRule(.mtrrDefType, .slot(0), .mtrrType(0xCFF)),
    MSRRule(.mtrrFix64K00000, .slot(0), .memoryTypesMTRR),
    MSRRule(.mtrrFix16K80000, .slot(0), .memoryTypesMTRR),
    MSRRule(.mtrrFix16KA0000, .slot(0), .memoryTypesMTRR),
    MSRRule(.xss, \.xss, .bits(0)),
    MSRRule(.efer, .computed, .bits(.max)),
    MSRRule(.star, \.star, .bits(.max)),
    MSRRule(.lstar, \.lstar, .canonical),
    MSRRule(.cstar, \.cstar, .canonical),
    MSRRule(.fmask, \.fmask, .bits(0xFFFF_FFFF)),
    MSRRule(.fsBase, .computed, .canonical),
    MSRRule(.gsBase, .computed, .canonical),
    MSRRule(.kernelGSBase, \.kernelGSBase, .canonical),
    MSRRule(.tscAux, \.tscAux, .bits(0xFFFF_FFFF)),
  ]

  /// Variable-range and 4 KiB fixed-range MTRRs, machine-check banks.
  private static var ranges: [MSRRule] {
    var rules: [MSRRule] = []
    for n in 0..<UInt32(variableRanges) {
      let base = MSR.mtrrPhysBase0.rawValue + 2 * n
      rules.append(MSRRule(MSR(rawValue: base), .slot(0), .mtrrType(physicalMask & ~0xF00)))
      rules.append(
        MSRRule(MSR(rawValue: base + 1), .slot(0), .bits(physicalMask & ~0x7FF)))
    }
    for n in 0..<UInt32(8) {
      let number = MSR.mtrrFix4KC0000.rawValue + n
      rules.append(MSRRule(MSR(rawValue: number), .slot(0), .memoryTypesMTRR))
    }
    for n in 0..<UInt32(machineCheckBanks) {
      let control = MSR.mc0Ctl.rawValue + 4 * n
      rules.append(MSRRule(MSR(rawValue: control), .slot(.max), .allOnesOrZeros))
      for status in 1...UInt32(3) {
        rules.append(MSRRule(MSR(rawValue: control + status), .slot(0), .zero))
      }
    }
    return rules
  }

  /// All rules, by ascending number, with slots assigned.
  package static let rules: [MSRRule] = {
    var slots = 0
    return (plain + ranges).sorted { $0.number < $1.number }.map { rule in
      var rule = rule
      if case .slot = rule.storage {
        rule.slot = slots
        slots += 1
      }
      return rule
    }
  }()

  /// The reset values of the slots.
  package static let initialSlots: InlineArray<112, UInt64> = {
    var values = InlineArray<112, UInt64>(repeating: 0)
    for rule in rules {
      if case .slot(let value) = rule.storage, rule.slot < values.count {
        values[rule.slot] = value
      }
    }
    return values
  }()

  /// The rule of an MSR, or nil if the processor has no such MSR.
  package static func rule(_ number: UInt32) -> MSRRule? {
    var low = 0
    var high = rules.count
    while low < high {
      let middle = (low + high) / 2
      if rules[middle].number < number { low = middle + 1 } else { high = middle }
    }
    return low < rules.count && rules[low].number == number ? rules[low] : nil
  }
}
