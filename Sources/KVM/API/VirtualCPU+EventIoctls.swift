// SPDX-License-Identifier: Apache-2.0

import CHost
import Synchronization
import SystemPackage
import X86
import X86CPU

/// Interrupts and events from the client.
extension VirtualCPU {
  static let eventIoctls: [(UInt32, Method)] = [
    (
      CKVM_INTERRUPT,
      { (vcpu, argument) throws(Errno) in
        let interrupt: kvm_interrupt = try argument.read()
        guard interrupt.irq < 256 else { throw .invalidArgument }
        guard vcpu.apic == nil else { throw .noSuchAddressOrDevice }
        guard vcpu.queuedInterrupt == nil else { throw .fileExists }
        vcpu.queuedInterrupt = UInt8(interrupt.irq)
        vcpu.mustCheckEvents = true
        return 0
      }
    ),
    (
      CKVM_NMI,
      { (vcpu, _) throws(Errno) in
        vcpu.queueNMI()
        return 0
      }
    ),
    (
      CKVM_GET_VCPU_EVENTS,
      { (vcpu, argument) throws(Errno) in
        try argument.write(vcpu.events)
        return 0
      }
    ),
    (
      CKVM_SET_VCPU_EVENTS,
      { (vcpu, argument) throws(Errno) in
        try vcpu.setEvents(argument.read())
        return 0
      }
    ),
  ]

  private var events: kvm_vcpu_events {
    var value = kvm_vcpu_events()
    if let event = interruptedEvent {
      switch event.info.type {
      case .externalInterrupt, .softwareInterrupt:
        value.interrupt.injected = 1
        value.interrupt.nr = event.info.vector
        value.interrupt.soft = event.info.type == .softwareInterrupt ? 1 : 0
      case .nmi: value.nmi.injected = 1
      default:
        value.exception.injected = 1
        value.exception.nr = event.info.vector
        value.exception.has_error_code = event.info.hasErrorCode ? 1 : 0
        value.exception.error_code = event.errorCode
      }
    } else if let exception = pendingException {
      value.exception.injected = 1
      value.exception.nr = exception.vector
      value.exception.has_error_code = exception.hasErrorCode ? 1 : 0
      value.exception.error_code = exception.errorCode
    } else if let vector = queuedInterrupt {
      value.interrupt.injected = 1
      value.interrupt.nr = vector
    }
    let state = backend[.interruptibility]
    value.interrupt.shadow = UInt8(
      (state & UInt64(Interruptibility.blockingBySTI) != 0 ? KVM_X86_SHADOW_INT_STI : 0)
        | (state & UInt64(Interruptibility.blockingByMovSS) != 0 ? KVM_X86_SHADOW_INT_MOV_SS : 0))
    value.nmi.pending = UInt8(clamping: pendingNMIs.load(ordering: .sequentiallyConsistent))
    value.nmi.masked = state & UInt64(Interruptibility.blockingByNMI) != 0 ? 1 : 0
    value.sipi_vector = UInt32(startupVector.load(ordering: .relaxed))
    value.flags = UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW)
    return value
  }

  private func setEvents(_ value: kvm_vcpu_events) throws(Errno) {
    let known = UInt32(
      KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | KVM_VCPUEVENT_VALID_SHADOW)
    guard value.flags & ~known == 0,
      value.exception.injected == 0 || value.exception.nr < 32 && value.exception.nr != 2
    else { throw .invalidArgument }
    interruptedEvent = nil
    pendingException = nil
    queuedInterrupt = nil
    if value.exception.injected != 0 {
      let code = value.exception.has_error_code != 0
      interruptedEvent = GuestEvent(
        info: InterruptionInfo(
          .hardwareException, vector: value.exception.nr, hasErrorCode: code),
        errorCode: value.exception.error_code)
    } else if value.interrupt.injected != 0 {
      setInjectedInterrupt(value.interrupt.nr, isSoftware: value.interrupt.soft != 0)
    } else if value.nmi.injected != 0 {
      interruptedEvent = GuestEvent(
        info: InterruptionInfo(.nmi, vector: ExceptionVector.nmi.rawValue))
    }
    setBlocking(value)
    mustCheckEvents = true
    stateChanged()
  }

  private func setInjectedInterrupt(_ vector: UInt8, isSoftware: Bool) {
    if apic == nil, !isSoftware {
      queuedInterrupt = vector
      return
    }
    interruptedEvent = GuestEvent(
      info: InterruptionInfo(
        isSoftware ? .softwareInterrupt : .externalInterrupt, vector: vector))
  }

  private func setBlocking(_ value: kvm_vcpu_events) {
    var state = backend[.interruptibility] & ~UInt64(Interruptibility.blockingByNMI)
    if value.nmi.masked != 0 { state |= UInt64(Interruptibility.blockingByNMI) }
    if value.flags & UInt32(KVM_VCPUEVENT_VALID_SHADOW) != 0 {
      state &= ~UInt64(Interruptibility.blockingBySTI | Interruptibility.blockingByMovSS)
      if Int32(value.interrupt.shadow) & KVM_X86_SHADOW_INT_STI != 0 {
        state |= UInt64(Interruptibility.blockingBySTI)
      }
      if Int32(value.interrupt.shadow) & KVM_X86_SHADOW_INT_MOV_SS != 0 {
        state |= UInt64(Interruptibility.blockingByMovSS)
      }
    }
    backend[.interruptibility] = state
    if value.flags & UInt32(KVM_VCPUEVENT_VALID_NMI_PENDING) != 0 {
      pendingNMIs.store(Int(min(value.nmi.pending, 2)), ordering: .sequentiallyConsistent)
    }
    if value.flags & UInt32(KVM_VCPUEVENT_VALID_SIPI_VECTOR) != 0 {
      startupVector.store(
        UInt8(truncatingIfNeeded: value.sipi_vector), ordering: .sequentiallyConsistent)
    }
  }
}
