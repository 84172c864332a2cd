// SPDX-License-Identifier: Apache-2.0
//
// What the hypervisor does in place of the instructions that exit.

import CHost
import InterruptChips
import Synchronization
import X86
import X86CPU

extension VirtualCPU {
  /// CPUID, from the table that the client set.
  func emulateCPUID() -> Disposition {
    let function = UInt32(truncatingIfNeeded: cpu.gpr[0])
    let index = UInt32(truncatingIfNeeded: cpu.gpr[1])
    let values = cpuid.lookUp(
      function, index,
      GuestCPUID.Dynamic(
        cr4: backend[.cr4], xcr0: cpu.s.pointee.xcr0, xss: cpu.s.pointee.xss,
        isAPICEnabled: isAPICEnabled))
    cpu.gpr[0] = UInt64(values.eax)
    cpu.gpr[3] = UInt64(values.ebx)
    cpu.gpr[1] = UInt64(values.ecx)
    cpu.gpr[2] = UInt64(values.edx)
    advance()
    return .resume
  }

  private var isAPICEnabled: Bool {
    guard let apic else {
      return msrs.apicBaseWithoutChip & APICBase.en.rawValue != 0
    }
    return apic.state.withLock { $0.base } & APICBase.en.rawValue != 0
  }

  /// HLT: waits in KVM_RUN where the interrupt chips are ours, else the client is told.
  func emulateHLT() -> Disposition {
    advance()
    guard apic != nil else {
      run.pointee.exit_reason = UInt32(KVM_EXIT_HLT)
      return .userSpace
    }
    mpState = UInt32(KVM_MP_STATE_HALTED)
    return .resume
  }

  func emulateRDMSR() -> Disposition {
    let number = UInt32(truncatingIfNeeded: cpu.gpr[1])
    guard let value = readMSR(number, byHost: false) else {
      raise(.generalProtection)
      return .resume
    }
    cpu.gpr[0] = value & 0xFFFF_FFFF
    cpu.gpr[2] = value >> 32
    advance()
    return .resume
  }

  func emulateWRMSR() -> Disposition {
    let number = UInt32(truncatingIfNeeded: cpu.gpr[1])
    let value = cpu.gpr[0] & 0xFFFF_FFFF | cpu.gpr[2] << 32
    guard writeMSR(number, value, byHost: false) else {
      raise(.generalProtection)
      return .resume
    }
    advance()
    return .resume
  }

  /// XSETBV: XCR0 may enable what the guest's CPUID offers, in the combinations that exist (SDM
  /// volume 1, "Enabling the XSAVE Feature Set and XSAVE-Enabled Features").
  func emulateXSETBV() -> Disposition {
    let value = cpu.gpr[0] & 0xFFFF_FFFF | cpu.gpr[2] << 32
    guard UInt32(truncatingIfNeeded: cpu.gpr[1]) == 0,
      ExtendedState.isValidXCR0(value, supported: cpuid.supportedXCR0)
    else {
      raise(.generalProtection)
      return .resume
    }
    cpu.s.pointee.xcr0 = value
    advance()
    return .resume
  }

  /// PAUSE in a loop: whoever holds the lock may be waiting for this CPU.
  func emulatePause() -> Disposition {
    advance()
    if hypervisor.pool.hasWaiters { releaseSlot() }
    return .resume
  }

  /// VMCALL: no hypercall is offered but the wake-up of a halted CPU.
  func emulateHypercall() -> Disposition {
    let is64Bit = cpu.is64Bit
    let mask: UInt64 = is64Bit ? .max : 0xFFFF_FFFF
    let number = cpu.gpr[0] & mask
    var result: UInt64
    if cpu.cpl != 0 {
      result = UInt64(bitPattern: Hypercall.notPermitted)
    } else {
      switch number {
      case Hypercall.kickCPU:
        machine.wake(apicID: UInt32(truncatingIfNeeded: cpu.gpr[1]))
        result = 0
      default: result = UInt64(bitPattern: Hypercall.notImplemented)
      }
    }
    if !is64Bit { result &= 0xFFFF_FFFF }
    cpu.gpr[0] = result
    advance()
    return .resume
  }

  /// MOV to or from CR8.
  func accessCR8(_ register: Int, isWrite: Bool) -> Disposition {
    if isWrite {
      let value = cpu.gpr[register]
      guard value <= 15 else {
        raise(.generalProtection)
        return .resume
      }
      advance()
      setCR8(UInt8(value))
      return .resume
    }
    cpu.gpr[register] = UInt64(getCR8())
    advance()
    return .resume
  }

  func getCR8() -> UInt8 {
    guard let apic else { return UInt8(cpu.s.pointee.cr8 & 15) }
    return apic.state.withLock { $0.cr8 }
  }

  func setCR8(_ value: UInt8) {
    guard let apic else {
      cpu.s.pointee.cr8 = UInt64(value & 15)
      return
    }
    apic.state.withLock { $0.cr8 = value }
    mustCheckEvents = true
  }
}

extension Machine {
  /// Ends the halt of the CPU with this APIC identifier.
  func wake(apicID: UInt32) {
    for vcpu in virtualCPUs where vcpu.id == apicID { vcpu.request(.wake) }
  }
}
