// SPDX-License-Identifier: Apache-2.0
//
// Emulation of the instructions that exit.

import CHost
import Host
import InterruptChips
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  /// CPUID, from the client's table.
  func emulateCPUID() -> Disposition {
    let function = unsafe UInt32(truncatingIfNeeded: cpu.gpr[0])
    let index = unsafe UInt32(truncatingIfNeeded: cpu.gpr[1])
    let values = cpuid.lookUp(function, index, cpuidState)
    unsafe cpu.gpr[0] = UInt64(values.eax)
    unsafe cpu.gpr[3] = UInt64(values.ebx)
    unsafe cpu.gpr[1] = UInt64(values.ecx)
    unsafe cpu.gpr[2] = UInt64(values.edx)
    advance()
    return .resume
  }

  var isAPICEnabled: Bool {
    guard let apic else {
      return msrs.apicBaseWithoutChip & APICBase.en.rawValue != 0
    }
    return apic.state.withLock { $0.base } & APICBase.en.rawValue != 0
  }

  /// HLT: waits in KVM_RUN if we have the interrupt chips, else exits to the client.
  func emulateHLT() -> Disposition {
    advance()
    // A pending single-step trap ends the halt at once.
    if hasPendingTrap { return .resume }
    guard unsafe apic != nil || machine.options.withLock({ $0.haltsInGuest }) else {
      unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_HLT)
      return .userSpace
    }
    runState.become(KVM_MP_STATE_HALTED)
    return .resume
  }

  /// XSETBV: XCR0 may enable what the guest's CPUID offers, in valid combinations (SDM volume 1,
  /// "Enabling the XSAVE Feature Set and XSAVE-Enabled Features").
  func emulateXSETBV() -> Disposition {
    let value = unsafe cpu.gpr[0] & 0xFFFF_FFFF | cpu.gpr[2] << 32
    guard unsafe UInt32(truncatingIfNeeded: cpu.gpr[1]) == 0,
      ExtendedState.isValidXCR0(value, supported: cpuid.supportedXCR0)
    else {
      raise(.generalProtection)
      return .resume
    }
    unsafe cpu.s.pointee.xcr0 = value
    advance()
    return .resume
  }

  /// PAUSE in a loop: the lock's holder may be waiting for this CPU.
  func emulatePause() -> Disposition {
    advance()
    if hypervisor.pool.hasWaiters { yieldSlot() }
    return .resume
  }

  /// VMCALL: wakes halted CPUs, and exits for hypercalls that the client requested.
  func emulateHypercall() -> Disposition {
    let mask: UInt64 = cpu.is64Bit ? .max : 0xFFFF_FFFF
    let number = unsafe cpu.gpr[0] & mask
    if cpu.cpl != 0 { return endHypercall(UInt64(bitPattern: Hypercall.notPermitted)) }
    switch number {
    case Hypercall.kickCPU where hasParavirtual(ParavirtualFeature.unhalt):
      unsafe machine.wake(apicID: UInt32(truncatingIfNeeded: cpu.gpr[1]))
      return endHypercall(0)
    case Hypercall.clockPairing: return endHypercall(UInt64(bitPattern: pairClocks()))
    case Hypercall.sendInterrupts where hasParavirtual(ParavirtualFeature.sendInterrupts):
      return endHypercall(UInt64(bitPattern: sendInterrupts()))
    case Hypercall.yield where hasParavirtual(ParavirtualFeature.yield):
      let target = unsafe UInt32(truncatingIfNeeded: cpu.gpr[3])
      let disposition = endHypercall(0)
      yieldSlot(to: target)
      return disposition
    case Hypercall.mapGPARange
    where unsafe machine.options.withLock({ $0.userSpaceHypercalls }) & 1 << number != 0:
      return askHypercall(number)
    default: return endHypercall(UInt64(bitPattern: Hypercall.notImplemented))
    }
  }

  /// KVM_HC_SCHED_YIELD: the guest waits until the vCPU with this APIC identifier answers an
  /// interrupt.
  private func yieldSlot(to apicID: UInt32) {
    guard hypervisor.pool.hasWaiters else { return }
    if let vcpu = unsafe machine.virtualCPUs.first(where: { $0.id == apicID }) {
      hypervisor.pool.prefer(vcpu)
    }
    yieldSlot()
  }

  /// KVM_HC_CLOCK_PAIRING: writes `kvm_clock_pairing` to the first argument; the second selects the
  /// clock, which must be the wall clock.
  private func pairClocks() -> Int64 {
    guard unsafe cpu.gpr[1] & 0xFFFF_FFFF == 0 else { return Hypercall.notSupported }
    let (time, tsc) = (HostClock.realtime(), guestTSC)
    let isWritten = unsafe writeMemory(cpu.gpr[3], count: 64) { place in
      for offset in stride(from: 24, to: 64, by: 8) {
        place.storeBytes(of: 0, toByteOffset: offset, as: UInt64.self)
      }
      place.storeBytes(of: time / 1_000_000_000, as: UInt64.self)
      place.storeBytes(of: time % 1_000_000_000, toByteOffset: 8, as: UInt64.self)
      place.storeBytes(of: tsc, toByteOffset: 16, as: UInt64.self)
    }
    return isWritten ? 0 : Hypercall.fault
  }

  /// - Returns: the number of CPUs.
  private func sendInterrupts() -> Int64 {
    guard let interrupts = unsafe machine.interrupts else { return Hypercall.notSupported }
    let width = cpu.is64Bit ? 64 : 32
    let mask: UInt64 = cpu.is64Bit ? .max : 0xFFFF_FFFF
    let command = unsafe UInt32(truncatingIfNeeded: cpu.gpr[6])
    guard command & (APICICR.logical | 3 << APICICR.shorthandShift) == 0 else {
      return Hypercall.invalid
    }
    return unsafe interrupts.send(
      InterruptMessage(
        destination: 0, deliveryMode: DeliveryMode(bits10To8: command),
        vector: UInt8(truncatingIfNeeded: command)),
      to: [cpu.gpr[3] & mask, cpu.gpr[1] & mask], wordWidth: width,
      first: UInt32(truncatingIfNeeded: cpu.gpr[2]))
  }

  private func endHypercall(_ result: UInt64) -> Disposition {
    unsafe cpu.gpr[0] = cpu.is64Bit ? result : result & 0xFFFF_FFFF
    advance()
    return .resume
  }

  /// KVM_EXIT_HYPERCALL. Arguments: first page's address, pages, attributes.
  private func askHypercall(_ number: UInt64) -> Disposition {
    let (address, pages) = unsafe (cpu.gpr[3], cpu.gpr[1])
    let (end, overflow) = address.addingReportingOverflow(pages &<< 12)
    guard address & 4095 == 0, pages > 0, !overflow, end > address, pages < 1 << 36 else {
      return endHypercall(UInt64(bitPattern: Hypercall.invalid))
    }
    unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_HYPERCALL)
    unsafe run.pointee.hypercall.nr = number
    unsafe run.pointee.hypercall.args.0 = address
    unsafe run.pointee.hypercall.args.1 = pages
    unsafe run.pointee.hypercall.args.2 = unsafe cpu.gpr[2]
    unsafe run.pointee.hypercall.longmode = cpu.is64Bit ? 1 : 0
    unsafe run.pointee.hypercall.ret = 0
    runState.completion = .hypercall
    return .userSpace
  }

  func completeHypercall() {
    runState.completion = .none
    _ = unsafe endHypercall(run.pointee.hypercall.ret)
  }

  /// MOV to or from CR8.
  func accessCR8(_ register: Int, isWrite: Bool) -> Disposition {
    if isWrite {
      let value = unsafe cpu.gpr[register]
      guard value <= 15 else {
        raise(.generalProtection)
        return .resume
      }
      let old = getCR8()
      advance()
      setCR8(UInt8(value))
      // A client with the local APIC may have an interrupt that the new priority allows.
      guard apic == nil, UInt8(value) < old else { return .resume }
      unsafe run.pointee.exit_reason = UInt32(KVM_EXIT_SET_TPR)
      return .userSpace
    }
    unsafe cpu.gpr[register] = UInt64(getCR8())
    advance()
    return .resume
  }

  func getCR8() -> UInt8 {
    guard let apic else { return unsafe UInt8(cpu.s.pointee.cr8 & 15) }
    return apic.state.withLock { $0.cr8 }
  }

  func setCR8(_ value: UInt8) {
    guard let apic else {
      unsafe cpu.s.pointee.cr8 = UInt64(value & 15)
      return
    }
    apic.state.withLock { $0.cr8 = value }
    events.mustCheck = true
  }
}

extension Machine {
  /// Wakes the halted CPU with this APIC identifier.
  func wake(apicID: UInt32) {
    for vcpu in virtualCPUs where vcpu.id == apicID { vcpu.request(.wake) }
  }
}
