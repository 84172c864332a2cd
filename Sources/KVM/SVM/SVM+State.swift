// SPDX-License-Identifier: Apache-2.0
//
// The guest's registers in the VMCB, and those outside of it.

import X86
import X86CPU

extension SVM {
  /// The fields of registers without further rules; nil for the others.
  private static let fields: [VMCBField?] = ControlBlockRegister.allCases.map {
    switch $0 {
    case .rip: .rip
    case .rsp: .rsp
    case .rflags: .rflags
    case .cr0: .cr0
    case .cr3: .cr3
    case .cr4: .cr4
    case .pat: .guestPAT
    case .dr7: .dr7
    case .debugctl: .debugctl
    case .sysenterCS: .sysenterCS
    case .sysenterESP: .sysenterESP
    case .sysenterEIP: .sysenterEIP
    case .gdtrBase: .gdtrBase
    case .gdtrLimit: .gdtrLimit
    case .idtrBase: .idtrBase
    case .idtrLimit: .idtrLimit
    case .efer, .pdptr0, .pdptr1, .pdptr2, .pdptr3, .interruptibility, .pendingDebug: nil
    }
  }

  subscript(_ register: ControlBlockRegister) -> UInt64 {
    get {
      if let field = Self.fields[register.rawValue] { return unsafe cpu.vmcbRead(field) }
      let s = unsafe cpu.cpu.s
      switch register {
      case .efer:
        let hides = current === page && !isGuestSVMEnabled
        return unsafe hides ? s.pointee.efer & ~EFER.svme.rawValue : s.pointee.efer
      case .interruptibility: return unsafe UInt64(s.pointee.interruptibility)
      case .pendingDebug: return unsafe s.pointee.pendingDebug
      default: return unsafe s.pointee.pdptrs[Self.pdptr(register)]
      }
    }
    set {
      if let field = Self.fields[register.rawValue] {
        unsafe cpu.vmcbWrite(field, register == .cr0 ? newValue | CR0.et.rawValue : newValue)
        return
      }
      let s = unsafe cpu.cpu.s
      switch register {
      case .efer:
        if current === page { isGuestSVMEnabled = newValue & EFER.svme.rawValue != 0 }
        unsafe cpu.vmcbWrite(.efer, newValue | EFER.svme.rawValue)
      case .interruptibility: setInterruptibility(UInt32(truncatingIfNeeded: newValue))
      case .pendingDebug: unsafe s.pointee.pendingDebug = newValue
      default: unsafe s.pointee.pdptrs[Self.pdptr(register)] = newValue
      }
    }
  }

  private static func pdptr(_ register: ControlBlockRegister) -> Int {
    switch register {
    case .pdptr1: 1
    case .pdptr2: 2
    case .pdptr3: 3
    default: 0
    }
  }

  private func setInterruptibility(_ value: UInt32) {
    let old = unsafe cpu.cpu.s.pointee.interruptibility
    if value == old { return }
    unsafe cpu.cpu.s.pointee.interruptibility = value
    let blocked = value & Interruptibility.blockingByNMI != 0
    if (old ^ value) & Interruptibility.blockingByNMI != 0 { setNMIBlocking(blocked) }
  }

  func segment(_ register: SegmentRegister) -> SegmentState {
    unsafe cpu.cpu.segment(register).pointee
  }

  /// The privilege level is that of SS, as in the VMCS.
  func setSegment(_ register: SegmentRegister, _ value: SegmentState) {
    unsafe cpu.vmcbWrite(.base(of: register), value.base)
    unsafe cpu.vmcbWrite(.limit(of: register), UInt64(value.limit))
    unsafe cpu.vmcbWrite(.attributes(of: register), UInt64(value.rights.vmcbAttributes))
    unsafe cpu.vmcbWrite(.selector(of: register), UInt64(value.selector))
    if register == .ss { unsafe cpu.vmcbWrite(.cpl, UInt64(value.rights.dpl)) }
  }
}
