// SPDX-License-Identifier: Apache-2.0
//
// Power-up, INIT and start-up states (SDM volume 3, "Processor State After Reset").

import CHost
import InterruptChips
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  /// Power-up.
  func reset() {
    resetRegisters()
    let s = unsafe cpu.s
    unsafe s.pointee.xcr0 = XCR0.x87.rawValue
    unsafe s.pointee.pkru = 0
    unsafe cpu.vector.initialize(to: VectorState())
    ExtendedState.initializeX87(cpu)
    backend[.cr0] = Self.resetCR0
    backend[.pat] = 0x0007_0406_0007_0406
    smm = SystemManagement()
    backend.setNestedTables(memory.root)
    backend.setTSCOffset(clock.offset)
    backend.setTSCMultiplier(clock.rate.multiplier)
    backend.setGuestCR4(allowed: allowedCR4)
    backend.setInstructions(cpuid.features)
    updateDebugControls()
    updateHoggingControls()
  }

  /// INIT, and the part of power-up that equals it.
  func resetRegisters() {
    nested?.reset(self)
    let s = unsafe cpu.s
    for index in 0..<16 { unsafe s.pointee.gpr[index] = 0 }
    unsafe s.pointee.gpr[Int(GeneralRegister.rdx.rawValue)] = 0x600
    unsafe s.pointee.cr2 = 0
    unsafe s.pointee.cr8 = 0
    guestDebugAddresses = DebugAddresses()
    resetParavirtual()
    unsafe s.pointee.dr6 = DR6.initial.rawValue
    for (register, value) in Self.resetValues { backend[register] = value }
    for register in SegmentRegister.allCases {
      backend.setSegment(register, Self.resetSegment(register))
    }
  }

  /// Ends the guest's agreements with its hypervisor.
  private func resetParavirtual() {
    paravirtual.reset()
    clock.steal = StealTime()
    msrs.systemTime = 0
  }

  static let resetCR0 = CR0([.cd, .nw, .et]).rawValue

  private static let resetValues: [(ControlBlockRegister, UInt64)] = [
    (.rip, 0xFFF0), (.rsp, 0), (.rflags, RFLAGS.fixed.rawValue), (.efer, 0), (.cr0, resetCR0),
    (.cr3, 0), (.cr4, 0), (.debugctl, 0), (.sysenterCS, 0),
    (.sysenterESP, 0), (.sysenterEIP, 0), (.gdtrBase, 0), (.gdtrLimit, 0xFFFF), (.idtrBase, 0),
    (.idtrLimit, 0xFFFF), (.interruptibility, 0), (.pendingDebug, 0),
  ]

  private static func resetSegment(_ register: SegmentRegister) -> SegmentState {
    switch register {
    case .cs: SegmentState(base: 0xFFFF_0000, limit: 0xFFFF, accessRights: 0x9B, selector: 0xF000)
    case .ldtr: SegmentState(base: 0, limit: 0xFFFF, accessRights: 0x82, selector: 0)
    case .tr: SegmentState(base: 0, limit: 0xFFFF, accessRights: 0x8B, selector: 0)
    default: SegmentState(base: 0, limit: 0xFFFF, accessRights: 0x93, selector: 0)
    }
  }

  /// INIT from another CPU: the boot CPU restarts, the others wait for a start-up message.
  func handleINIT() {
    if smm.isActive {
      smm.isINITLatched = true
      return
    }
    mailbox.pendingSMI.store(false, ordering: .relaxed)
    let keep = backend[.cr0] & CR0([.cd, .nw]).rawValue
    resetRegisters()
    backend[.cr0] = keep | CR0.et.rawValue
    backend.setInterruptWindow(false)
    backend.setNMIWindow(false)
    events.dropException()
    mailbox.pendingNMIs.store(0, ordering: .relaxed)
    apic?.state.withLock { $0.initialize() }
    apicIdentityChanged()
    mailbox.timerDeadline.store(.max, ordering: .sequentiallyConsistent)
    clock.deadline = .max
    runState.become(msrs.isBootCPU ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED)
    events.mustCheck = true
  }

  /// Start-up message: real mode at page `vector`.
  func handleStartup() {
    guard runState.hasReceivedINIT else { return }
    let vector = UInt64(mailbox.startupVector.load(ordering: .sequentiallyConsistent))
    backend.setSegment(
      .cs,
      SegmentState(
        base: vector << 12, limit: 0xFFFF, accessRights: 0x9B, selector: UInt16(vector) << 8))
    backend[.rip] = 0
    runState.become(KVM_MP_STATE_RUNNABLE)
  }
}
