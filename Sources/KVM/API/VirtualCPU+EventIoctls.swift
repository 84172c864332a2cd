// SPDX-License-Identifier: Apache-2.0
//
// The ioctls that queue interrupts, NMIs and SMIs, and those that save and restore pending events.
// Restored events are checked as at VM entry.

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
        guard vcpu.hasClientPIC else { throw .noSuchAddressOrDevice }
        guard vcpu.events.queuedInterrupt == nil else { throw .fileExists }
        unsafe vcpu.machine.noteInterrupt()
        vcpu.events.queuedInterrupt = UInt8(interrupt.irq)
        vcpu.events.mustCheck = true
        return 0
      }
    ),
    (
      CKVM_NMI,
      { (vcpu, _) throws(Errno) in
        unsafe vcpu.machine.noteInterrupt()
        vcpu.queueNMI()
        return 0
      }
    ),
    (
      CKVM_SMI,
      { (vcpu, _) throws(Errno) in
        vcpu.queueSMI()
        return 0
      }
    ),
    (
      CKVM_GET_VCPU_EVENTS,
      { (vcpu, argument) throws(Errno) in
        try argument.write(vcpu.clientEvents)
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

  private var options: MachineOptions { unsafe machine.options.withLock { $0 } }

  /// KVM_GET_VCPU_EVENTS.
  var clientEvents: kvm_vcpu_events {
    takePendingEvents()
    let options = options
    var value = kvm_vcpu_events()
    if let event = events.interrupted {
      describe(event, &value)
    } else if let exception = events.exception {
      describe(exception, &value, hasPayloads: options.hasExceptionPayload)
    } else if let vector = events.queuedInterrupt, apic == nil {
      value.interrupt.injected = 1
      value.interrupt.nr = vector
    }
    let state = backend[.interruptibility]
    value.interrupt.shadow = UInt8(
      (state & UInt64(Interruptibility.blockingBySTI) != 0 ? KVM_X86_SHADOW_INT_STI : 0)
        | (state & UInt64(Interruptibility.blockingByMovSS) != 0 ? KVM_X86_SHADOW_INT_MOV_SS : 0))
    value.nmi.pending = mailbox.hasNMI ? 1 : 0
    value.nmi.masked = state & UInt64(Interruptibility.blockingByNMI) != 0 ? 1 : 0
    value.flags = UInt32(
      KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM)
    value.smi.smm = smm.isActive ? 1 : 0
    value.smi.pending = mailbox.pendingSMI.load(ordering: .sequentiallyConsistent) ? 1 : 0
    value.smi.smm_inside_nmi = smm.isActive && smm.wasNMIBlocked ? 1 : 0
    value.smi.latched_init = smm.isINITLatched ? 1 : 0
    if options.hasExceptionPayload { value.flags |= UInt32(KVM_VCPUEVENT_VALID_PAYLOAD) }
    if options.hasTripleFaultEvent {
      value.flags |= UInt32(KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
      value.triple_fault.pending = events.isTripleFault ? 1 : 0
    }
    return value
  }

  /// An event on its way into the guest. INT3 and INTO are executed again instead.
  private func describe(_ event: GuestEvent, _ value: inout kvm_vcpu_events) {
    switch event.kind {
    case .externalInterrupt:
      value.interrupt.injected = 1
      value.interrupt.nr = event.vector
    case .softwareInterrupt, .softwareException, .privilegedSoftwareException: break
    case .nmi: value.nmi.injected = 1
    case .hardwareException:
      value.exception.injected = 1
      value.exception.nr = event.vector
      value.exception.has_error_code = event.errorCode == nil ? 0 : 1
      value.exception.error_code = event.errorCode ?? 0
    }
  }

  private func describe(
    _ exception: GuestException, _ value: inout kvm_vcpu_events, hasPayloads: Bool
  ) {
    if !hasPayloads { events.deliverPayload(exception, cpu) }
    value.exception.nr = exception.vector
    value.exception.has_error_code = exception.hasErrorCode ? 1 : 0
    value.exception.error_code = exception.hasErrorCode ? exception.errorCode : 0
    if GuestEvent.isSoftware(exception.vector) { return }
    value.exception.injected = hasPayloads ? 0 : 1
    value.exception.pending = 1
    value.exception_has_payload = events.payload == nil ? 0 : 1
    value.exception_payload = events.payload ?? 0
  }

  private func check(_ value: kvm_vcpu_events, _ options: MachineOptions) throws(Errno) {
    var known = UInt32(
      KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM)
    if options.hasExceptionPayload { known |= UInt32(KVM_VCPUEVENT_VALID_PAYLOAD) }
    if options.hasTripleFaultEvent { known |= UInt32(KVM_VCPUEVENT_VALID_TRIPLE_FAULT) }
    let hasPayload = value.flags & UInt32(KVM_VCPUEVENT_VALID_PAYLOAD) != 0
    let hasException =
      value.exception.injected != 0 || hasPayload && value.exception.pending != 0
    guard value.flags & ~known == 0,
      !hasException || value.exception.nr < 32 && value.exception.nr != ExceptionVector.nmi.rawValue
    else { throw .invalidArgument }
    // A CPU that waits for its start cannot be in system management mode.
    if value.flags & UInt32(KVM_VCPUEVENT_VALID_SMM) != 0,
      value.smi.smm != 0 || value.smi.pending != 0, runState.hasReceivedINIT
    {
      throw .invalidArgument
    }
  }

  func setEvents(_ value: kvm_vcpu_events) throws(Errno) {
    try check(value, options)
    events.interrupted = nil
    events.dropException()
    if apic == nil { events.queuedInterrupt = nil }
    let hasPayload = value.flags & UInt32(KVM_VCPUEVENT_VALID_PAYLOAD) != 0
    let exception = value.exception
    if hasPayload, exception.pending != 0 {
      let code = exception.has_error_code != 0 ? 1 << 8 | UInt64(exception.error_code) << 32 : 0
      events.exception = GuestException(rawValue: UInt64(exception.nr) | code)
      if value.exception_has_payload != 0 { events.payload = value.exception_payload }
    } else if exception.injected != 0 {
      events.interrupted = GuestEvent(
        exception: exception.nr,
        errorCode: exception.has_error_code != 0 ? exception.error_code : nil,
        instructionLength: events.instructionLength)
    } else if value.interrupt.injected != 0 {
      setInjectedInterrupt(value.interrupt.nr, isSoftware: value.interrupt.soft != 0)
    } else if value.nmi.injected != 0 {
      events.interrupted = .nmi
    }
    if value.flags & UInt32(KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0 {
      events.isTripleFault = value.triple_fault.pending != 0
    }
    if value.flags & UInt32(KVM_VCPUEVENT_VALID_SMM) != 0 { setManagement(value) }
    setBlocking(value)
    events.mustCheck = true
    stateChanged()
  }

  private func setInjectedInterrupt(_ vector: UInt8, isSoftware: Bool) {
    if apic == nil, !isSoftware {
      events.queuedInterrupt = vector
      return
    }
    events.interrupted = GuestEvent(
      isSoftware ? .softwareInterrupt : .externalInterrupt, vector: vector)
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
      mailbox.pendingNMIs.store(Int(min(value.nmi.pending, 2)), ordering: .sequentiallyConsistent)
    }
    if value.flags & UInt32(KVM_VCPUEVENT_VALID_SIPI_VECTOR) != 0 {
      mailbox.startupVector.store(
        UInt8(truncatingIfNeeded: value.sipi_vector), ordering: .sequentiallyConsistent)
    }
  }
}
