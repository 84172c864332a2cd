// SPDX-License-Identifier: Apache-2.0
//
// The ioctls for general, special and debug registers. Combinations that no processor can be in
// fail with EINVAL, so they cannot make a VM entry fail.

import CHost
import Host
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

/// General, special and debug registers.
extension VirtualCPU {
  static let registerIoctls: [(UInt32, Method)] = [
    (
      CKVM_GET_REGS,
      { (vcpu, argument) throws(Errno) in
        try argument.write(vcpu.generalRegisters)
        return 0
      }
    ),
    (
      CKVM_SET_REGS,
      { (vcpu, argument) throws(Errno) in
        vcpu.setGeneralRegisters(try argument.read())
        return 0
      }
    ),
    (
      CKVM_GET_SREGS,
      { (vcpu, argument) throws(Errno) in
        try argument.write(vcpu.specialRegisters)
        return 0
      }
    ),
    (
      CKVM_SET_SREGS,
      { (vcpu, argument) throws(Errno) in
        try vcpu.setSpecialRegisters(argument.read())
        return 0
      }
    ),
    (
      CKVM_GET_SREGS2,
      { (vcpu, argument) throws(Errno) in
        try argument.write(vcpu.specialRegisters2)
        return 0
      }
    ),
    (
      CKVM_SET_SREGS2,
      { (vcpu, argument) throws(Errno) in
        try vcpu.setSpecialRegisters2(argument.read())
        return 0
      }
    ),
    (
      CKVM_GET_DEBUGREGS,
      { (vcpu, argument) throws(Errno) in
        var value = kvm_debugregs()
        let own = vcpu.guestDebugAddresses
        value.db = (own.addresses[0], own.addresses[1], own.addresses[2], own.addresses[3])
        value.dr6 = unsafe vcpu.cpu.s.pointee.dr6
        value.dr7 = own.dr7
        try argument.write(value)
        return 0
      }
    ),
    (
      CKVM_SET_DEBUGREGS,
      { (vcpu, argument) throws(Errno) in
        let value: kvm_debugregs = try argument.read()
        guard value.flags == 0, value.dr6 >> 32 == 0, value.dr7 >> 32 == 0 else {
          throw .invalidArgument
        }
        vcpu.guestDebugAddresses = DebugAddresses(
          addresses: [value.db.0, value.db.1, value.db.2, value.db.3],
          dr7: value.dr7 & 0xFFFF_2FFF | DR7.initial.rawValue)
        unsafe vcpu.cpu.s.pointee.dr6 = value.dr6 & 0x1_E00F | DR6.initial.rawValue
        vcpu.stateChanged()
        return 0
      }
    ),
    (
      CKVM_TRANSLATE,
      { (vcpu, argument) throws(Errno) in
        var value: kvm_translation = try argument.read()
        let physical = vcpu.translate(value.linear_address)
        value.physical_address = physical ?? .max
        value.valid = physical == nil ? 0 : 1
        value.writeable = 1
        value.usermode = 0
        try argument.write(value)
        return 0
      }
    ),
  ]

  /// The client changed the state left by the last exit.
  func stateChanged() { registers.changed() }

  // MARK: General

  var generalRegisters: kvm_regs {
    let gpr = unsafe cpu.gpr
    return unsafe kvm_regs(
      rax: gpr[0], rbx: gpr[3], rcx: gpr[1], rdx: gpr[2], rsi: gpr[6], rdi: gpr[7],
      rsp: backend[.rsp], rbp: gpr[5], r8: gpr[8], r9: gpr[9], r10: gpr[10], r11: gpr[11],
      r12: gpr[12], r13: gpr[13], r14: gpr[14], r15: gpr[15], rip: backend[.rip],
      rflags: backend[.rflags])
  }

  func setGeneralRegisters(_ value: kvm_regs) {
    let gpr = unsafe cpu.gpr
    unsafe (gpr[0], gpr[1], gpr[2], gpr[3]) = (value.rax, value.rcx, value.rdx, value.rbx)
    unsafe (gpr[5], gpr[6], gpr[7]) = (value.rbp, value.rsi, value.rdi)
    unsafe (gpr[8], gpr[9], gpr[10], gpr[11]) = (value.r8, value.r9, value.r10, value.r11)
    unsafe (gpr[12], gpr[13], gpr[14], gpr[15]) = (value.r12, value.r13, value.r14, value.r15)
    backend[.rsp] = value.rsp
    backend[.rip] = value.rip
    backend[.rflags] = value.rflags & RFLAGS.all.rawValue | RFLAGS.fixed.rawValue
    events.dropException()
    events.mustCheck = true
    stateChanged()
  }

  // MARK: Special

  private static func table(_ base: UInt64, _ limit: UInt64) -> kvm_dtable {
    var table = kvm_dtable()
    table.base = base
    table.limit = UInt16(truncatingIfNeeded: limit)
    return table
  }

  private var apicBase: UInt64 { readMSR(MSR.apicBase.rawValue, byHost: true) ?? 0 }

  var specialRegisters: kvm_sregs {
    var value = kvm_sregs()
    let common = specialRegisters2
    (value.cs, value.ds, value.es, value.fs) = (common.cs, common.ds, common.es, common.fs)
    (value.gs, value.ss, value.tr, value.ldt) = (common.gs, common.ss, common.tr, common.ldt)
    (value.gdt, value.idt) = (common.gdt, common.idt)
    (value.cr0, value.cr2, value.cr3) = (common.cr0, common.cr2, common.cr3)
    (value.cr4, value.cr8, value.efer) = (common.cr4, common.cr8, common.efer)
    value.apic_base = common.apic_base
    if let vector = (apic == nil ? events.queuedInterrupt : nil) ?? injectedInterrupt {
      withMutableBytes(of: &value.interrupt_bitmap) {
        $0.storeBytes(of: 1 << (vector & 7), toByteOffset: Int(vector) / 8, as: UInt8.self)
      }
    }
    return value
  }

  /// The vector of an external interrupt whose delivery an exit interrupted.
  private var injectedInterrupt: UInt8? {
    guard let event = events.interrupted, event.kind == .externalInterrupt else { return nil }
    return event.vector
  }

  var specialRegisters2: kvm_sregs2 {
    var value = kvm_sregs2()
    value.cs = SegmentStruct.make(backend.segment(.cs))
    value.ds = SegmentStruct.make(backend.segment(.ds))
    value.es = SegmentStruct.make(backend.segment(.es))
    value.fs = SegmentStruct.make(backend.segment(.fs))
    value.gs = SegmentStruct.make(backend.segment(.gs))
    value.ss = SegmentStruct.make(backend.segment(.ss))
    value.tr = SegmentStruct.make(backend.segment(.tr))
    value.ldt = SegmentStruct.make(backend.segment(.ldtr))
    value.gdt = Self.table(backend[.gdtrBase], backend[.gdtrLimit])
    value.idt = Self.table(backend[.idtrBase], backend[.idtrLimit])
    value.cr0 = backend[.cr0]
    value.cr2 = unsafe cpu.s.pointee.cr2
    value.cr3 = backend[.cr3]
    value.cr4 = backend[.cr4]
    value.cr8 = UInt64(getCR8())
    value.efer = backend[.efer]
    value.apic_base = apicBase
    if usesPAE {
      value.flags = UInt64(KVM_SREGS2_FLAGS_PDPTRS_VALID)
      value.pdptrs = (backend[.pdptr0], backend[.pdptr1], backend[.pdptr2], backend[.pdptr3])
    }
    return value
  }

  /// CR4 bits that the guest may set, on this processor.
  var allowedCR4: UInt64 {
    hypervisor.silicon == .intel ? cpuid.allowedCR4 : cpuid.allowedCR4 & ~CR4.vmxe.rawValue
  }

  private var usesPAE: Bool {
    backend[.cr0] & CR0.pg.rawValue != 0 && backend[.cr4] & CR4.pae.rawValue != 0
      && backend[.efer] & EFER.lma.rawValue == 0
  }

  func setSpecialRegisters(_ value: kvm_sregs) throws(Errno) {
    var common = kvm_sregs2()
    (common.cs, common.ds, common.es, common.fs) = (value.cs, value.ds, value.es, value.fs)
    (common.gs, common.ss, common.tr, common.ldt) = (value.gs, value.ss, value.tr, value.ldt)
    (common.gdt, common.idt) = (value.gdt, value.idt)
    (common.cr0, common.cr2, common.cr3) = (value.cr0, value.cr2, value.cr3)
    (common.cr4, common.cr8, common.efer) = (value.cr4, value.cr8, value.efer)
    common.apic_base = value.apic_base
    try setCommonRegisters(common)
    loadPDPTRs()
    setInterruptBitmap(value)
  }

  private func setSpecialRegisters2(_ value: kvm_sregs2) throws(Errno) {
    let valid = UInt64(KVM_SREGS2_FLAGS_PDPTRS_VALID)
    guard value.flags & ~valid == 0 else { throw .invalidArgument }
    try setCommonRegisters(value)
    if value.flags & valid != 0, usesPAE {
      backend[.pdptr0] = value.pdptrs.0
      backend[.pdptr1] = value.pdptrs.1
      backend[.pdptr2] = value.pdptrs.2
      backend[.pdptr3] = value.pdptrs.3
    } else {
      loadPDPTRs()
    }
  }

  /// As in Linux, EINVAL for combinations that no processor can be in.
  private func check(_ value: kvm_sregs2) throws(Errno) {
    let paging = value.cr0 & CR0.pg.rawValue != 0
    let efer = EFER(rawValue: value.efer)
    guard efer.isSubset(of: allowedEFER), value.cr4 & ~allowedCR4 == 0,
      value.cr0 >> 32 == 0, !paging || value.cr0 & CR0.pe.rawValue != 0,
      value.cr0 & CR0.nw.rawValue == 0 || value.cr0 & CR0.cd.rawValue != 0
    else { throw .invalidArgument }
    if efer.contains(.lme), paging {
      guard value.cr4 & CR4.pae.rawValue != 0, efer.contains(.lma),
        value.cr3 & cpuid.reservedAddressBits == 0,
        value.cr3 >> UInt64(CPUIDModel.physicalAddressBits) == 0
      else { throw .invalidArgument }
    } else {
      guard !efer.contains(.lma), value.cs.l == 0 else { throw .invalidArgument }
    }
  }

  func setCommonRegisters(_ value: kvm_sregs2) throws(Errno) {
    try check(value)
    guard writeMSR(MSR.apicBase.rawValue, value.apic_base, byHost: true) else {
      throw .invalidArgument
    }
    backend[.gdtrBase] = value.gdt.base
    backend[.gdtrLimit] = UInt64(value.gdt.limit)
    backend[.idtrBase] = value.idt.base
    backend[.idtrLimit] = UInt64(value.idt.limit)
    unsafe cpu.s.pointee.cr2 = value.cr2
    setCR8(UInt8(value.cr8 & 15))
    backend[.efer] = value.efer
    backend[.cr0] = value.cr0
    backend[.cr3] = value.cr3
    backend[.cr4] = value.cr4
    let segments: [(SegmentRegister, kvm_segment)] = [
      (.cs, value.cs), (.ds, value.ds), (.es, value.es), (.fs, value.fs), (.gs, value.gs),
      (.ss, value.ss), (.tr, value.tr), (.ldtr, value.ldt),
    ]
    for (register, segment) in segments {
      backend.setSegment(register, SegmentStruct.state(segment, register))
    }
    events.mustCheck = true
    stateChanged()
  }

  /// Loads the page-directory pointers of a PAE guest.
  func loadPDPTRs() {
    guard usesPAE else { return }
    let base = backend[.cr3] & 0xFFFF_FFE0
    let registers: [ControlBlockRegister] = [.pdptr0, .pdptr1, .pdptr2, .pdptr3]
    for (index, register) in registers.enumerated() {
      backend[register] = memory.load(base &+ UInt64(index) * 8) ?? 0
    }
  }

  private func setInterruptBitmap(_ value: kvm_sregs) {
    let vector = withBytes(of: value.interrupt_bitmap) { bits in
      (0..<256).first { (bits.load(UInt8.self, at: $0 / 8) ?? 0) & (1 << UInt8($0 & 7)) != 0 }
    }
    guard let vector else { return }
    if apic == nil { events.queuedInterrupt = UInt8(vector) }
    if apic != nil {
      events.interrupted = GuestEvent(.externalInterrupt, vector: UInt8(vector))
    }
  }
}

/// Converts to and from `kvm_segment`.
enum SegmentStruct {
  static func make(_ state: SegmentState) -> kvm_segment {
    var segment = kvm_segment()
    let rights = state.rights
    segment.base = state.base
    segment.limit = state.limit
    segment.selector = state.selector
    segment.type = rights.type
    segment.s = rights.isCodeOrData ? 1 : 0
    segment.dpl = rights.dpl
    segment.present = rights.isPresent && !rights.isUnusable ? 1 : 0
    segment.avl = rights.rawValue & 1 << 12 != 0 ? 1 : 0
    segment.l = rights.isLong ? 1 : 0
    segment.db = rights.isBig ? 1 : 0
    segment.g = rights.isPageGranular ? 1 : 0
    segment.unusable = rights.isUnusable ? 1 : 0
    return segment
  }

  static func state(_ segment: kvm_segment, _ register: SegmentRegister) -> SegmentState {
    var rights = UInt32(segment.type & 15) | UInt32(segment.s & 1) << 4
    rights |= UInt32(segment.dpl & 3) << 5 | UInt32(segment.present & 1) << 7
    rights |= UInt32(segment.avl & 1) << 12 | UInt32(segment.l & 1) << 13
    rights |= UInt32(segment.db & 1) << 14 | UInt32(segment.g & 1) << 15
    // A segment that is not present is unusable.
    if segment.unusable != 0 || segment.present == 0 {
      rights |= SegmentAccessRights.unusableBit
    }
    // A loaded TR is always busy.
    if register == .tr, segment.s == 0 { rights |= 2 }
    return SegmentState(
      base: segment.base, limit: segment.limit, accessRights: rights, selector: segment.selector)
  }
}
