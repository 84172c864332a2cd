// SPDX-License-Identifier: Apache-2.0
//
// Dispatches each exit, for every vendor, to its handler. An arm that returns `.userSpace` has
// filled `kvm_run`.

import CHost
import X86
import X86CPU

extension VirtualCPU {
  func handle(_ exit: GuestExit) -> Disposition {
    statistics.exits[Int(exit.cause.rawValue)] &+= 1
    switch exit {
    case .instruction(let instruction): return handle(instruction)
    case .port(let port): return accessPort(port.number, size: port.size, isInput: port.isInput)
    case .nestedFault(let fault): return handle(fault)
    case .externalInterrupt, .handled: return .resume
    case .interruptWindow, .nmiWindow:
      events.mustCheck = true
      return .resume
    case .exception(let event, let causes): return exitForException(event, debugCauses: causes)
    case .hostFault: return memoryVanished()
    case .tripleFault: return shutDown()
    case .taskSwitch(let selector, let source):
      return switchTask(selector: selector, source: source)
    case .controlRegister(let number, let general, let isWrite):
      return accessControlRegister(number, general: general, isWrite: isWrite)
    case .debugRegister(let number, let general, let isRead):
      return accessDebugRegister(number, general: general, isRead: isRead)
    case .stringPort(let access): return emulateStringIO(access)
    case .singleStep: return debug.isStepping ? stepExit() : .resume
    case .busLock: return exitForBusLock()
    case .notify(let isContextLost): return exitForNotify(isContextLost: isContextLost)
    case .entryFailed(let reason): return entryFailed(reason)
    case .unexpected(let code, let detail):
      return internalError(
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
        data: [code, detail ?? UInt64(slot?.index ?? 0)])
    }
  }

  private func handle(_ instruction: InterceptedInstruction) -> Disposition {
    switch instruction {
    case .cpuid: return emulateCPUID()
    case .hlt: return emulateHLT()
    case .rdmsr: return emulateRDMSR()
    case .wrmsr: return emulateWRMSR()
    case .xsetbv: return emulateXSETBV()
    case .pause: return emulatePause()
    case .rdpmc: return emulateRDPMC()
    case .rdtsc: return emulateRDTSC()
    case .rdtscp:
      unsafe cpu.gpr[1] = unsafe cpu.s.pointee.tscAux & 0xFFFF_FFFF
      return emulateRDTSC()
    case .hypercall: return emulateHypercall()
    case .monitorWait: return emulateMonitorWait()
    // Caches are coherent.
    case .cacheFlush, .invlpg, .controlRegisterWrite:
      advance()
      return .resume
    case .virtualization: return executeVirtualization()
    case .undefined:
      raise(.invalidOpcode)
      return .resume
    // The processor itself emulates best.
    case .emulated: return emulateInstruction()
    }
  }

  private func emulateRDTSC() -> Disposition {
    let value = guestTSC
    unsafe cpu.gpr[0] = value & 0xFFFF_FFFF
    unsafe cpu.gpr[2] = value >> 32
    advance()
    return .resume
  }

  private func accessControlRegister(
    _ number: UInt8, general: Int, isWrite: Bool
  ) -> Disposition {
    switch number {
    case 0 where isWrite, 4 where isWrite:
      // A bit that its CPUID does not offer, or that VMX operation fixes.
      raise(.generalProtection)
      return .resume
    case 8: return accessCR8(general, isWrite: isWrite)
    default: return handle(.unexpected(code: UInt64(number), detail: nil))
    }
  }

  private func handle(_ fault: NestedFault) -> Disposition {
    if isBeyondWidth(fault.address), events.interrupted == nil {
      return accessBeyondWidth(
        linear: fault.linear, isWrite: fault.isWrite, isFetch: fault.isFetch)
    }
    switch mapTouched(fault.address, writing: fault.isWrite) {
    case .mapped, .waits: return .resume
    case .fault: return hostFault()
    case .dirtied(let slot, let page): return noteDirty(slot: slot, page: page)
    case .none: break
    }
    if let event = events.interrupted { return undeliverable(event, at: fault.address) }
    return emulateInstruction()
  }

  /// An event cannot be delivered through a device.
  func undeliverable(_ event: GuestEvent, at address: UInt64) -> Disposition {
    internalError(
      KVM_INTERNAL_ERROR_DELIVERY_EV, data: [backend.vendorInformation(of: event), address])
  }
}
