// SPDX-License-Identifier: Apache-2.0
//
// System management mode (SDM volume 3, "System Management Mode"): the CPU takes an SMI between two
// instructions, before NMIs and interrupts. It saves its state at SMBASE + FE00 in address space 1,
// which is its memory until RSM, and continues at SMBASE + 8000 in real mode with segments of 4
// GiB. RSM restores the state, with the handler's changes.
//
// SMIs and INITs that arrive meanwhile wait for RSM; so do NMIs, unless the handler executes IRET.
// To the processor all this is VMX non-root operation, where RSM raises #UD, which exits.

import CHost
import Synchronization
import SystemPackage
import X86
import X86CPU

/// A vCPU's system management state. Only the thread in an ioctl of the vCPU uses it. A pending SMI
/// is in the mailbox.
struct SystemManagement: Sendable {
  var isActive = false
  /// SMBASE.
  var base: UInt64 = 0x3_0000
  /// NMIs were blocked at entry.
  var wasNMIBlocked = false
  /// An INIT waits for RSM.
  var isINITLatched = false
  /// Debug traps of the instruction before the SMI.
  var pendingDebug: UInt64 = 0
}

extension VirtualCPU {
  /// The memory that the guest currently uses.
  var memory: MachineMemory { unsafe smm.isActive ? machine.managementMemory : machine.memory }

  /// An SMI, from any thread.
  func queueSMI() {
    mailbox.pendingSMI.store(true, ordering: .sequentiallyConsistent)
    request(.smi)
  }

  var isSMIDeliverable: Bool {
    mailbox.pendingSMI.load(ordering: .relaxed) && !smm.isActive && !debug.blocksInterrupts
      && nested.map { !$0.holdsEvents && (!$0.isGuest || $0.takesManagementInterrupts) } != false
  }

  /// Called before an entry, with or without an event. An event comes first: the CPU is kicked, so
  /// that it exits before the first instruction of the event's handler.
  func deliverSMI(after isEventTaken: Bool) {
    events.mustCheck = true
    if isEventTaken { slot?.cpu.kick() } else { enterSystemManagement() }
  }

  /// KVM_SET_VCPU_EVENTS.
  func setManagement(_ value: kvm_vcpu_events) {
    setManagementMode(value.smi.smm != 0)
    mailbox.pendingSMI.store(value.smi.pending != 0, ordering: .sequentiallyConsistent)
    if smm.isActive { smm.wasNMIBlocked = value.smi.smm_inside_nmi != 0 }
    smm.isINITLatched = smm.isActive && value.smi.latched_init != 0
  }

  private func setManagementMode(_ on: Bool) {
    if smm.isActive == on { return }
    smm.isActive = on
    backend.setNestedTables(memory.root)
  }

  private var hasLongMode: Bool {
    cpuid.lookUp(0x8000_0001, 0, cpuidState).edx & 1 << 29 != 0
  }

  // MARK: SMI

  private func enterSystemManagement() {
    mailbox.pendingSMI.store(false, ordering: .sequentiallyConsistent)
    msrs.smiCount &+= 1
    var area = hasLongMode ? savedState64 : savedState32
    let blocking = backend[.interruptibility]
    smm.wasNMIBlocked = blocking & UInt64(Interruptibility.blockingByNMI) != 0
    smm.pendingDebug = backend[.pendingDebug]
    if let nested, nested.isGuest, !suspend(nested, in: &area) {
      events.isTripleFault = true
      return
    }
    setManagementMode(true)
    _ = writeMemory(smm.base &+ StateSaveArea.offset, count: StateSaveArea.size) { place in
      unsafe area.bytes.withUnsafeBytes {
        unsafe place.copyMemory(from: $0.baseAddress!, byteCount: StateSaveArea.size)
      }
    }
    let paging = CR0([.pe, .em, .ts, .pg]).rawValue
    let values: [(ControlBlockRegister, UInt64)] = [
      (.rip, 0x8000), (.rflags, RFLAGS.fixed.rawValue), (.cr0, backend[.cr0] & ~paging),
      (.cr4, 0), (.efer, 0), (.idtrBase, 0), (.idtrLimit, 0), (.pendingDebug, 0),
      (.interruptibility, UInt64(Interruptibility.blockingByNMI)),
    ]
    for (register, value) in values { backend[register] = value }
    setDR7(DR7.initial.rawValue)
    for register: SegmentRegister in [.cs, .ds, .es, .fs, .gs, .ss] {
      let isCode = register == .cs
      backend.setSegment(
        register,
        SegmentState(
          base: isCode ? smm.base : 0, limit: .max, accessRights: 0x8093,
          selector: isCode ? UInt16(truncatingIfNeeded: smm.base >> 4) : 0))
    }
    stateChanged()
  }

  /// The 32-bit layout has no place for a guest's guest: such a hypervisor has long mode.
  private func suspend(_ nested: any NestedVirtualization, in area: inout StateSaveArea) -> Bool {
    guard hasLongMode, let guest = nested.suspend(self) else { return false }
    area[word: Layout.isNested] = 1
    area[word: Layout.nestedControlBlock] = guest.controlBlock
    area[word: Layout.nestedVirtualInterrupt] = guest.virtualInterrupt
    return true
  }

  private func resumeNested(_ area: StateSaveArea) -> Bool {
    guard area[word: Layout.isNested] & 1 != 0 else { return true }
    let guest = SuspendedGuest(
      controlBlock: area[word: Layout.nestedControlBlock],
      virtualInterrupt: area[word: Layout.nestedVirtualInterrupt])
    return nested?.resume(guest, self) == true
  }

  private func setDR7(_ value: UInt64) {
    var debug = guestDebugAddresses
    if debug.dr7 == value { return }
    debug.dr7 = value
    guestDebugAddresses = debug
  }

  private var shadow: UInt8 {
    let state = backend[.interruptibility]
    return UInt8(truncatingIfNeeded: state)
      & UInt8(Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS)
  }

  private func save(_ registers: StateSaveArea.Layout.Registers, in area: inout StateSaveArea) {
    area[dword: registers.cr0] = backend[.cr0]
    area[dword: registers.cr3] = backend[.cr3]
    area[dword: registers.cr4] = backend[.cr4]
    area[dword: registers.dr6] = unsafe cpu.s.pointee.dr6
    area[dword: registers.dr7] = guestDebugAddresses.dr7
    area[dword: registers.rflags] = backend[.rflags]
    area[dword: registers.rip] = backend[.rip]
    area[StateSaveArea.Layout.shadow, UInt8.self] = shadow
  }

  private typealias Layout = StateSaveArea.Layout

  private var savedState64: StateSaveArea {
    var area = StateSaveArea()
    for index in 0..<16 { area[word: Layout.rax64 - 8 * index] = unsafe cpu.gpr[index] }
    area[word: Layout.rax64 - 8 * 4] = backend[.rsp]
    save(Layout.registers64, in: &area)
    // Registers that only this layout has.
    area[word: Layout.registers64.cr3] = backend[.cr3]
    area[word: Layout.registers64.rip] = backend[.rip]
    area[word: Layout.efer] = backend[.efer]
    area[dword: Layout.revision] = Layout.revision64
    area[dword: Layout.base64] = smm.base
    for (register, offset) in Layout.segments64 {
      area.setSegment64(offset, backend.segment(register))
    }
    area[dword: Layout.gdtr64 + 4] = backend[.gdtrLimit]
    area[word: Layout.gdtr64 + 8] = backend[.gdtrBase]
    area[dword: Layout.idtr64 + 4] = backend[.idtrLimit]
    area[word: Layout.idtr64 + 8] = backend[.idtrBase]
    return area
  }

  private var savedState32: StateSaveArea {
    var area = StateSaveArea()
    for index in 0..<8 { area[dword: Layout.eax32 + 4 * index] = unsafe cpu.gpr[index] }
    area[dword: Layout.eax32 + 4 * 4] = backend[.rsp]
    save(Layout.registers32, in: &area)
    area[dword: Layout.revision] = Layout.revision32
    area[dword: Layout.base32] = smm.base
    for (register, offset) in Layout.segments32 {
      guard let selector = Layout.selectors32[register] else { continue }
      area.setSegment32(offset, selector: selector, backend.segment(register))
    }
    area[dword: Layout.gdtr32] = backend[.gdtrLimit]
    area[dword: Layout.gdtr32 + 4] = backend[.gdtrBase]
    area[dword: Layout.idtr32] = backend[.idtrLimit]
    area[dword: Layout.idtr32 + 4] = backend[.idtrBase]
    return area
  }

  // MARK: RSM

  /// Whether the instruction at a linear address is RSM, after any prefixes.
  func isResume(at start: UInt64) -> Bool {
    let bytes = code(at: start, count: 15)
    let prefixes: [UInt8] = [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3]
    let rest = bytes.drop { prefixes.contains($0) || cpu.is64Bit && $0 & 0xF0 == 0x40 }
    return rest.prefix(2).elementsEqual([0x0F, 0xAA])
  }

  /// RSM. Invalid state shuts the CPU down.
  func leaveSystemManagement() -> Disposition {
    let saved = unsafe StateSaveArea {
      unsafe memory.read(smm.base &+ StateSaveArea.offset, to: $0, count: StateSaveArea.size)
    }
    guard let area = saved else { return shutDown() }
    setManagementMode(false)
    let is64Bit = hasLongMode
    do throws(Errno) {
      try setCommonRegisters(is64Bit ? special64(area) : special32(area))
    } catch {
      return shutDown()
    }
    loadPDPTRs()
    if is64Bit {
      for index in 0..<16 where index != 4 {
        unsafe cpu.gpr[index] = area[word: Layout.rax64 - 8 * index]
      }
      backend[.rsp] = area[word: Layout.rax64 - 8 * 4]
      smm.base = area[dword: Layout.base64]
      restore(area, Layout.registers64, rip: area[word: Layout.registers64.rip])
      if !resumeNested(area) { return shutDown() }
    } else {
      for index in 0..<8 where index != 4 {
        unsafe cpu.gpr[index] = area[dword: Layout.eax32 + 4 * index]
      }
      backend[.rsp] = area[dword: Layout.eax32 + 4 * 4]
      smm.base = area[dword: Layout.base32]
      restore(area, Layout.registers32, rip: area[dword: Layout.registers32.rip])
    }
    if debug.isStepping { debug.isStepDone = true }
    if smm.isINITLatched {
      smm.isINITLatched = false
      request(.initSignal)
    }
    return .resume
  }

  /// Restores what both layouts have, and resets what neither has.
  private func restore(_ area: StateSaveArea, _ registers: Layout.Registers, rip: UInt64) {
    backend[.rip] = rip
    let flags = area[dword: registers.rflags] & RFLAGS.all.rawValue | RFLAGS.fixed.rawValue
    backend[.rflags] = flags
    unsafe cpu.s.pointee.dr6 = area[dword: registers.dr6] & 0x1_E00F | DR6.initial.rawValue
    setDR7(area[dword: registers.dr7] & 0xFFFF_2FFF | DR7.initial.rawValue)
    var state = backend[.interruptibility] & UInt64(Interruptibility.blockingByNMI)
    if !smm.wasNMIBlocked { state = 0 }
    let shadow = area[Layout.shadow, UInt8.self]
    if UInt32(shadow) & Interruptibility.blockingByMovSS != 0 {
      state |= UInt64(Interruptibility.blockingByMovSS)
    } else if UInt32(shadow) & Interruptibility.blockingBySTI != 0,
      flags & RFLAGS.if.rawValue != 0
    {
      state |= UInt64(Interruptibility.blockingBySTI)
    }
    backend[.interruptibility] = state
    backend[.pendingDebug] = smm.pendingDebug
    smm.pendingDebug = 0
    events.exception = nil
    events.mustCheck = true
  }

  private func special64(_ area: StateSaveArea) -> kvm_sregs2 {
    var value = specialRegisters2
    setControl(&value, area, Layout.registers64, efer: area[word: Layout.efer])
    value.cr3 = area[word: Layout.registers64.cr3]
    setSegments(&value) { area.segment64(Layout.segments64[$0] ?? Layout.gdtr64) }
    (value.gdt.base, value.idt.base) = (
      area[word: Layout.gdtr64 + 8], area[word: Layout.idtr64 + 8]
    )
    value.gdt.limit = area[Layout.gdtr64 + 4]
    value.idt.limit = area[Layout.idtr64 + 4]
    return value
  }

  private func special32(_ area: StateSaveArea) -> kvm_sregs2 {
    var value = specialRegisters2
    setControl(&value, area, Layout.registers32, efer: 0)
    setSegments(&value) {
      area.segment32(
        Layout.segments32[$0] ?? Layout.gdtr32, selector: Layout.selectors32[$0] ?? Layout.gdtr32)
    }
    value.gdt.base = area[dword: Layout.gdtr32 + 4]
    value.idt.base = area[dword: Layout.idtr32 + 4]
    value.gdt.limit = area[Layout.gdtr32]
    value.idt.limit = area[Layout.idtr32]
    return value
  }

  private func setControl(
    _ value: inout kvm_sregs2, _ area: StateSaveArea, _ registers: Layout.Registers, efer: UInt64
  ) {
    value.cr0 = area[dword: registers.cr0]
    value.cr3 = area[dword: registers.cr3]
    value.cr4 = area[dword: registers.cr4]
    let isLong = efer & EFER.lme.rawValue != 0 && value.cr0 & CR0.pg.rawValue != 0
    value.efer = efer & ~EFER.lma.rawValue | (isLong ? EFER.lma.rawValue : 0)
  }

  private func setSegments(
    _ value: inout kvm_sregs2, _ segment: (SegmentRegister) -> SegmentState
  ) {
    value.cs = SegmentStruct.make(segment(.cs))
    value.ds = SegmentStruct.make(segment(.ds))
    value.es = SegmentStruct.make(segment(.es))
    value.fs = SegmentStruct.make(segment(.fs))
    value.gs = SegmentStruct.make(segment(.gs))
    value.ss = SegmentStruct.make(segment(.ss))
    value.tr = SegmentStruct.make(segment(.tr))
    value.ldt = SegmentStruct.make(segment(.ldtr))
  }
}
