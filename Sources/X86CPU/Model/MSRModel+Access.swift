// SPDX-License-Identifier: Apache-2.0
//
// Reads and writes of MSRs by the rules of MSRModel, without intercepts: for RDMSR and WRMSR that
// do not exit, and for the hypervisor's own accesses.

import X86

extension MSRRule.Check {
  /// Whether `value` is a valid value.
  package func allows(_ value: UInt64, _ c: CPU) -> Bool {
    switch self {
    case .readOnly: return false
    case .ignored: return true
    case .bits(let mask): return value & ~mask == 0
    case .canonical: return c.isCanonicalBase(value)
    case .memoryTypesPAT: return Self.everyByte(value) { $0 < 8 && $0 != 2 && $0 != 3 }
    case .memoryTypesMTRR: return Self.everyByte(value, Self.isMTRRType)
    case .mtrrType(let mask): return value & ~mask == 0 && Self.isMTRRType(UInt8(value & 0xFF))
    case .allOnesOrZeros: return value == 0 || value == .max
    case .zero: return value == 0
    }
  }

  /// UC, WC, WT, WP or WB.
  private static func isMTRRType(_ type: UInt8) -> Bool { [0, 1, 4, 5, 6].contains(type) }

  private static func everyByte(_ value: UInt64, _ test: (UInt8) -> Bool) -> Bool {
    for shift in stride(from: UInt64(0), to: 64, by: 8)
    where !test(UInt8(truncatingIfNeeded: value >> shift)) { return false }
    return true
  }
}

extension CPU {
  /// The value of an MSR.
  ///
  /// - Parameter hostInitiated: read by the hypervisor, not the guest: the TSC is then without the
  ///   VMCS's offset.
  /// - Throws: #GP(0) if the processor has no such MSR.
  package func readMSR(
    _ number: UInt32, hostInitiated: Bool = false
  ) throws(GuestException) -> UInt64 {
    guard let rule = MSRModel.rule(number) else {
      let owner = owner
      if owner.silicon == .intel, let value = VMXCapabilities.value(ofMSR: number) { return value }
      if let value = owner.readSVMMSR(number) { return value }
      throw .generalProtection
    }
    switch rule.storage {
    case .constant(let value): return value
    case .state(let offset): return raw.load(fromByteOffset: offset, as: UInt64.self)
    case .slot: return s.pointee.system.msrs[rule.slot]
    case .computed: return computedMSR(MSR(rawValue: number), hostInitiated)
    }
  }

  /// Writes an MSR.
  ///
  /// - Parameter hostInitiated: written by the hypervisor, not the guest: read-only MSRs with
  ///   storage and machine-check banks take any value, and EFER.LME may change while paging is on.
  /// - Throws: #GP(0) if the processor has no such MSR or the value is invalid.
  package func writeMSR(
    _ number: UInt32, _ value: UInt64, hostInitiated: Bool = false
  ) throws(GuestException) {
    guard let rule = MSRModel.rule(number) else {
      if owner.writeSVMMSR(number, value) == true { return }
      throw .generalProtection
    }
    if !rule.check.allows(value, self) {
      guard hostInitiated, case .slot = rule.storage, case .zero = rule.check else {
        throw .generalProtection
      }
    }
    switch rule.storage {
    case .constant: break
    case .state(let offset): raw.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    case .slot: s.pointee.system.msrs[rule.slot] = value
    case .computed: try writeComputedMSR(MSR(rawValue: number), value, hostInitiated)
    }
  }

  private func computedMSR(_ msr: MSR, _ hostInitiated: Bool) -> UInt64 {
    switch msr {
    case .timeStampCounter: return hostInitiated ? physicalTSC : guestTSC
    case .tscAdjust: return s.pointee.system.tscAdjust
    case .efer: return s.pointee.efer
    case .fsBase: return segment(.fs).pointee.base
    case .gsBase: return segment(.gs).pointee.base
    default: return 0
    }
  }

  private func writeComputedMSR(
    _ msr: MSR, _ value: UInt64, _ hostInitiated: Bool
  ) throws(GuestException) {
    switch msr {
    case .timeStampCounter: s.pointee.system.tscAdjust &+= value &- physicalTSC
    case .tscAdjust: s.pointee.system.tscAdjust = value
    case .efer: try writeEFER(value, hostInitiated: hostInitiated)
    case .fsBase: segment(.fs).pointee.base = value
    case .gsBase: segment(.gs).pointee.base = value
    default: break
    }
  }

  /// IA32_EFER: LMA is read-only and ignored; LME may not change while paging is on.
  private func writeEFER(_ value: UInt64, hostInitiated: Bool) throws(GuestException) {
    var allowed: EFER = [.sce, .lme, .lma, .nxe]
    if owner.silicon == .amd { allowed.insert(.svme) }
    if !EFER(rawValue: value).isSubset(of: allowed) { throw .generalProtection }
    let old = EFER(rawValue: s.pointee.efer)
    var new = EFER(rawValue: value).subtracting(.lma).union(old.intersection(.lma))
    let changed = old.symmetricDifference(new)
    let paging = s.pointee.cr0 & CR0.pg.rawValue != 0
    if changed.contains(.lme) && paging {
      if !hostInitiated { throw .generalProtection }
      if new.contains(.lme) { new.insert(.lma) } else { new.remove(.lma) }
    }
    s.pointee.efer = new.rawValue
    updateMode()
    if changed.contains(.nxe) || changed.contains(.lme) && paging { flushTLB() }
  }
}
