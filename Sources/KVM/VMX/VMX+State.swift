// SPDX-License-Identifier: Apache-2.0
//
// The guest's registers in the VMCS.

import X86
import X86CPU

extension VMX {
  /// The fields of registers without further rules.
  private static let fields: [VMCSField] = ControlBlockRegister.allCases.map {
    switch $0 {
    case .rip: .guestRIP
    case .rsp: .guestRSP
    case .rflags: .guestRFLAGS
    case .cr0: .guestCR0
    case .cr3: .guestCR3
    case .cr4: .guestCR4
    case .efer: .guestEFER
    case .pat: .guestPAT
    case .dr7: .guestDR7
    case .debugctl: .guestDebugControl
    case .sysenterCS: .guestSysenterCS
    case .sysenterESP: .guestSysenterESP
    case .sysenterEIP: .guestSysenterEIP
    case .gdtrBase: .guestGDTRBase
    case .gdtrLimit: .guestGDTRLimit
    case .idtrBase: .guestIDTRBase
    case .idtrLimit: .guestIDTRLimit
    case .pdptr0: .guestPDPTE0
    case .pdptr1: .guestPDPTE1
    case .pdptr2: .guestPDPTE2
    case .pdptr3: .guestPDPTE3
    case .interruptibility: .guestInterruptibility
    case .pendingDebug: .guestPendingDebugExceptions
    }
  }

  subscript(_ register: ControlBlockRegister) -> UInt64 {
    get {
      switch register {
      // What a guest's guest sees of them is its hypervisor's to say.
      case .cr0 where current === own: masked(.guestCR0, .cr0Mask, .cr0ReadShadow)
      case .cr4 where current === own: masked(.guestCR4, .cr4Mask, .cr4ReadShadow)
      default: unsafe cpu.vmread(Self.fields[register.rawValue])
      }
    }
    set {
      switch register {
      case .cr0:
        unsafe cpu.vmwrite(.guestCR0, newValue | CR0([.ne, .et]).rawValue)
        if current === own { unsafe cpu.vmwrite(.cr0ReadShadow, newValue) }
      case .cr4:
        unsafe cpu.vmwrite(.guestCR4, newValue | CR4.vmxe.rawValue)
        if current === own { unsafe cpu.vmwrite(.cr4ReadShadow, newValue) }
      case .efer:
        unsafe cpu.vmwrite(.guestEFER, newValue)
        setLongMode(newValue & EFER.lma.rawValue != 0)
      default: unsafe cpu.vmwrite(Self.fields[register.rawValue], newValue)
      }
    }
  }

  /// A control register as the guest reads it.
  private func masked(_ field: VMCSField, _ mask: VMCSField, _ shadow: VMCSField) -> UInt64 {
    let mask = unsafe cpu.vmread(mask)
    return unsafe cpu.vmread(field) & ~mask | cpu.vmread(shadow) & mask
  }

  /// Keeps the entry control "IA-32e mode guest" equal to EFER.LMA.
  private func setLongMode(_ on: Bool) {
    let bit = UInt64(EntryControls.ia32eModeGuest)
    let old = unsafe cpu.vmread(.entryControls)
    unsafe cpu.vmwrite(.entryControls, on ? old | bit : old & ~bit)
  }

  // MARK: Segments

  private struct SegmentFields {
    var selector: VMCSField
    var base: VMCSField
    var limit: VMCSField
    var rights: VMCSField
  }

  /// By SegmentRegister.rawValue.
  private static let segments: [SegmentFields] = [
    .init(
      selector: .guestESSelector, base: .guestESBase, limit: .guestESLimit,
      rights: .guestESAccessRights),
    .init(
      selector: .guestCSSelector, base: .guestCSBase, limit: .guestCSLimit,
      rights: .guestCSAccessRights),
    .init(
      selector: .guestSSSelector, base: .guestSSBase, limit: .guestSSLimit,
      rights: .guestSSAccessRights),
    .init(
      selector: .guestDSSelector, base: .guestDSBase, limit: .guestDSLimit,
      rights: .guestDSAccessRights),
    .init(
      selector: .guestFSSelector, base: .guestFSBase, limit: .guestFSLimit,
      rights: .guestFSAccessRights),
    .init(
      selector: .guestGSSelector, base: .guestGSBase, limit: .guestGSLimit,
      rights: .guestGSAccessRights),
    .init(
      selector: .guestLDTRSelector, base: .guestLDTRBase, limit: .guestLDTRLimit,
      rights: .guestLDTRAccessRights),
    .init(
      selector: .guestTRSelector, base: .guestTRBase, limit: .guestTRLimit,
      rights: .guestTRAccessRights),
  ]

  func segment(_ register: SegmentRegister) -> SegmentState {
    let fields = Self.segments[Int(register.rawValue)]
    return unsafe SegmentState(
      base: cpu.vmread(fields.base),
      limit: UInt32(truncatingIfNeeded: cpu.vmread(fields.limit)),
      accessRights: UInt32(truncatingIfNeeded: cpu.vmread(fields.rights)),
      selector: UInt16(truncatingIfNeeded: cpu.vmread(fields.selector)))
  }

  func setSegment(_ register: SegmentRegister, _ value: SegmentState) {
    let fields = Self.segments[Int(register.rawValue)]
    unsafe cpu.vmwrite(fields.base, value.base)
    unsafe cpu.vmwrite(fields.limit, UInt64(value.limit))
    unsafe cpu.vmwrite(fields.rights, UInt64(value.accessRights))
    unsafe cpu.vmwrite(fields.selector, UInt64(value.selector))
  }
}
