// SPDX-License-Identifier: Apache-2.0
//
// KVM_SET_GUEST_DEBUG: a debugger outside the guest. Single steps use the monitor trap flag,
// software breakpoints the interception of #BP, hardware breakpoints the debug registers. While the
// client uses those, `GuestDebug.hidden` has the guest's values and the guest's accesses exit.

import CHost
import Synchronization
import SystemPackage
import X86
import X86CPU

/// The client's debug settings. Only the thread in an ioctl of the vCPU uses it.
struct GuestDebug: Sendable {
  /// KVM_GUESTDBG_...; 0 while debugging is off.
  var control: UInt32 = 0
  /// DR0 to DR3, and DR7, of KVM_GUESTDBG_USE_HW_BP.
  var addresses = InlineArray<4, UInt64>(repeating: 0)
  var dr7: UInt64 = 0
  /// The guest's debug registers while the client uses the processor's.
  var hidden: DebugAddresses?
  /// An instruction that was emulated during a single step has finished.
  var isStepDone = false

  private func has(_ bit: Int32) -> Bool { control & UInt32(bit) != 0 }
  var isStepping: Bool { has(KVM_GUESTDBG_SINGLESTEP) }
  var hasSoftwareBreakpoints: Bool { has(KVM_GUESTDBG_USE_SW_BP) }
  var hasHardwareBreakpoints: Bool { has(KVM_GUESTDBG_USE_HW_BP) }
  var blocksInterrupts: Bool { has(KVM_GUESTDBG_BLOCKIRQ) }

  /// The exceptions that exit, one bit for each vector.
  var exceptions: UInt32 {
    (isStepping || hasHardwareBreakpoints ? 1 << UInt32(ExceptionVector.debug.rawValue) : 0)
      | (hasSoftwareBreakpoints ? 1 << UInt32(ExceptionVector.breakpoint.rawValue) : 0)
  }

  static let valid = UInt32(
    KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP
      | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP
      | KVM_GUESTDBG_BLOCKIRQ)
}

/// DR0 to DR3 and DR7.
struct DebugAddresses: Sendable {
  var addresses = InlineArray<4, UInt64>(repeating: 0)
  var dr7: UInt64 = DR7.initial.rawValue
}

extension VirtualCPU {
  static let debugIoctls: [(UInt32, Method)] = [
    (
      CKVM_SET_GUEST_DEBUG,
      { (vcpu, argument) throws(Errno) in
        try vcpu.setGuestDebug(argument.read())
        return 0
      }
    )
  ]

  private func setGuestDebug(_ request: kvm_guest_debug) throws(Errno) {
    let inject = request.control & UInt32(KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)
    if inject != 0 {
      guard events.hasNone else { throw .resourceBusy }
      raise(
        inject & UInt32(KVM_GUESTDBG_INJECT_DB) != 0
          ? GuestException(.debug) : GuestException(.breakpoint))
    }
    var new = GuestDebug()
    if request.control & UInt32(KVM_GUESTDBG_ENABLE) != 0 {
      let registers = request.arch.debugreg
      new.control = request.control
      new.addresses = [
        UInt64(registers.0), UInt64(registers.1), UInt64(registers.2), UInt64(registers.3),
      ]
      new.dr7 = UInt64(registers.7)
    }
    let guests = guestDebugAddresses
    new.hidden = new.hasHardwareBreakpoints ? guests : nil
    new.isStepDone = debug.isStepDone
    debug = new
    loadDebugRegisters(
      new.hasHardwareBreakpoints
        ? DebugAddresses(addresses: new.addresses, dr7: new.dr7) : guests)
    updateDebugControls()
    stateChanged()
  }

  /// The guest's values.
  var guestDebugAddresses: DebugAddresses {
    get {
      unsafe debug.hidden ?? DebugAddresses(addresses: cpu.s.pointee.dr, dr7: backend[.dr7])
    }
    set {
      if debug.hidden != nil { debug.hidden = newValue } else { loadDebugRegisters(newValue) }
    }
  }

  private func loadDebugRegisters(_ value: DebugAddresses) {
    unsafe cpu.s.pointee.dr = value.addresses
    backend[.dr7] = value.dr7 & 0xFFFF_23FF | DR7.initial.rawValue
    // TLB entries know the pages with breakpoints.
    backend.invalidateNestedMappings()
  }

  /// #UD may be the other vendor's hypercall. #AC: see `exitForAlignmentCheck`.
  static let alwaysIntercepted: UInt32 =
    1 << UInt32(ExceptionVector.invalidOpcode.rawValue)
    | 1 << UInt32(ExceptionVector.alignmentCheck.rawValue)

  func updateDebugControls() {
    backend.setDebugging(
      exceptions: Self.alwaysIntercepted | debug.exceptions, stepping: debug.isStepping,
      debugRegisters: debug.hasHardwareBreakpoints)
  }

  // MARK: Exits

  /// KVM_EXIT_DEBUG.
  func debugExit(_ vector: ExceptionVector, dr6: UInt64) -> Disposition {
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_DEBUG)
    unsafe run.pointee.debug.arch.exception = UInt32(vector.rawValue)
    unsafe run.pointee.debug.arch.pc =
      backend[.rip] &+ (cpu.is64Bit ? 0 : backend.segment(.cs).base)
    unsafe run.pointee.debug.arch.dr6 = dr6
    unsafe run.pointee.debug.arch.dr7 = backend[.dr7]
    return .userSpace
  }

  /// Reports a single step over an instruction that was emulated here.
  func stepExit() -> Disposition {
    debug.isStepDone = false
    return debugExit(.debug, dr6: DR6.bs.rawValue | DR6.initial.rawValue)
  }

  /// Handles an intercepted #DB or #BP.
  func exitForException(_ event: GuestEvent, debugCauses: UInt64) -> Disposition {
    events.instructionLength = UInt32(truncatingIfNeeded: backend.instructionLength)
    switch ExceptionVector(rawValue: event.vector) {
    case .debug:
      return debugExit(.debug, dr6: debugCauses | DR6.initial.rawValue)
    case .invalidOpcode: return exitForUndefined()
    case .alignmentCheck: return exitForAlignmentCheck()
    case .breakpoint:
      return debugExit(.breakpoint, dr6: DR6.initial.rawValue)
    default:
      return internalError(
        KVM_INTERNAL_ERROR_SIMUL_EX, data: [backend.vendorInformation(of: event)])
    }
  }

  // MARK: The guest's debug registers while the client uses the processor's

  /// MOV to or from a debug register (SDM volume 3, "Debug Registers").
  func accessDebugRegister(_ number: Int, general: Int, isRead: Bool) -> Disposition {
    if number == 4 || number == 5, backend[.cr4] & CR4.de.rawValue != 0 {
      raise(.invalidOpcode)
      return .resume
    }
    if cpu.cpl != 0 {
      raise(.generalProtection)
      return .resume
    }
    if backend[.dr7] & DR7.gd.rawValue != 0 {
      return debugExit(.debug, dr6: DR6.bd.rawValue | DR6.initial.rawValue)
    }
    let mask: UInt64 = cpu.is64Bit ? .max : 0xFFFF_FFFF
    if isRead {
      unsafe cpu.gpr[general] = readDebugRegister(number) & mask
    } else if unsafe !writeDebugRegister(number, cpu.gpr[general] & mask) {
      raise(.generalProtection)
      return .resume
    }
    advance()
    return .resume
  }

  private func readDebugRegister(_ number: Int) -> UInt64 {
    switch number {
    case 0...3: guestDebugAddresses.addresses[number]
    case 4, 6: unsafe cpu.s.pointee.dr6
    default: guestDebugAddresses.dr7
    }
  }

  private func writeDebugRegister(_ number: Int, _ value: UInt64) -> Bool {
    if number >= 4, value >> 32 != 0 { return false }
    switch number {
    case 0...3: guestDebugAddresses.addresses[number] = value
    case 4, 6: unsafe cpu.s.pointee.dr6 = value & 0xE00F | DR6.initial.rawValue
    default: guestDebugAddresses.dr7 = value & 0xFFFF_23FF | DR7.initial.rawValue
    }
    return true
  }
}
