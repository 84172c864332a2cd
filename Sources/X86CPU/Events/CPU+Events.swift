// SPDX-License-Identifier: Apache-2.0
//
// Delivery of events: exceptions, interrupts, NMIs, software interrupts.
//
// An event is first offered to the hypervisor (`intercepts`), then takes
// effect on CR2, DR6 and DR7, then goes through the interrupt table of the mode. A fault in that is
// the next event: offered in turn, merged into a double fault where the classes say so, and so on
// to shutdown. Nothing but memory has changed when a delivery faults, so each try starts from the
// same state (SDM volume 3, "Interrupt and Exception Handling" and "Event Delivery").
//
// - `rip` is the address of the instruction that the event belongs to, and what faults of a
//   delivery push; `returnRIP` is what the first event pushes.
// - An exit in the middle of a delivery reports the event as interrupted.

import CHost
import X86

extension CPU {
  /// Takes the exception in `pendingException` (raised by the instruction at `rip`): intercepts,
  /// double faults and delivery through the IDT.
  ///
  /// - Returns: false where it ended in a VM exit, which is then in `exit`.
  package func handleFault() -> Bool {
    let error = GuestException(rawValue: s.pointee.pendingException)
    defer { s.pointee.unblockedNMI = false }
    if error.isVMExit { return false }
    if error.rawValue & GuestException.aloneBit != 0 { return true }
    return raiseException(error)
  }

  /// Raises an exception at `rip` as if the instruction there had.
  ///
  /// - Returns: false where it ended in a VM exit.
  package func raiseException(_ error: GuestException) -> Bool {
    var error = error
    if error.vector == ExceptionVector.debug.rawValue {
      error = .debug(DR6(rawValue: UInt64(error.errorCode) | takeWaitingDebugCauses()))
    }
    guard let event = offered(error), deliver(event, returnRIP: s.pointee.rip) else { return false }
    if s.pointee.slow & SlowReason.monitorTrap == 0 { return true }
    // The monitor trap flag counts the delivery for an instruction.
    _ = exit(.monitorTrap)
    return false
  }

  /// Delivers an event through the guest's IDT: an injected or virtual interrupt, an exception, a
  /// software interrupt. Nested faults are handled as the architecture says.
  ///
  /// - Parameter returnRIP: RIP to push.
  /// - Returns: false where it ended in a VM exit, which is then in `exit`.
  package func deliver(_ event: GuestEvent, returnRIP: UInt64) -> Bool {
    var (event, returnRIP) = (event, returnRIP)
    var chain = DeliveryChain()
    s.pointee.pageTracking.isDelivering = true
    defer { s.pointee.pageTracking.isDelivering = false }
    while true {
      do {
        try deliverThroughTable(event, returnRIP)
        return true
      } catch {
        guard let next = nested(error, in: event, returnRIP) else { return false }
        event = next
        returnRIP = s.pointee.rip
        chain.length &+= 1
        if chain.length >= DeliveryChain.patience, !goesOn(&chain) {
          noteInterrupted(event, length: 0)
          return false
        }
      }
    }
  }

  /// In a chain of faults of deliveries, which need not end (an alignment check whose handler's
  /// stack is not aligned, SDM volume 3, "Notify VM Exits"): whether the next one is delivered. Who
  /// wants the CPU is heard even where the guest's hypervisor does not ask for notify exits.
  private func goesOn(_ chain: inout DeliveryChain) -> Bool {
    if s.requests & CPURequest.shootdown != 0 { owner.processShootdowns() }
    if s.requests & CPURequest.kick != 0 { return takeKick() }
    guard intercepts(.notify) else { return true }
    let now = HostTSC.read()
    if chain.start == 0 { chain.start = now }
    if now &- chain.start < UInt64(s.pointee.intercepts.notifyWindow) { return true }
    _ = exit(.notify)
    return false
  }

  /// The event of an exception, after intercepts and with its effect on control and debug
  /// registers; nil where it exits.
  private func offered(_ error: GuestException) -> GuestEvent? {
    let event = GuestEvent(error)
    let value = value(of: error)
    if intercepts(event, value: value) { return nil }
    switch error.vector {
    case ExceptionVector.pageFault.rawValue: s.pointee.cr2 = s.pointee.faultAddress
    case ExceptionVector.debug.rawValue: enterDebugException(value)
    default: break
    }
    return event
  }

  /// What follows from `error` in the delivery of `event`; nil for an exit.
  private func nested(
    _ error: GuestException, in event: GuestEvent, _ returnRIP: UInt64
  ) -> GuestEvent? {
    let length = UInt8(truncatingIfNeeded: returnRIP &- s.pointee.rip)
    if error.isVMExit {
      noteInterrupted(event, length: length)
      return nil
    }
    let second = GuestEvent(error)
    if intercepts(second, value: value(of: error)) {
      noteInterrupted(event, length: length)
      return nil
    }
    switch FaultClass.combine(FaultClass(event), FaultClass(second)) {
    case .serial: return offered(error)
    case .doubleFault:
      // A page fault that becomes a double fault has been taken as far as CR2 goes.
      if error.vector == ExceptionVector.pageFault.rawValue {
        s.pointee.cr2 = s.pointee.faultAddress
      }
      return offered(GuestException(.doubleFault, code: 0))
    case .shutdown:
      _ = exit(.tripleFault)
      return nil
    }
  }

  /// The event that the delivery was of which the exit ended.
  ///
  /// - Parameter length: of the instruction that raised it, where one did.
  func noteInterrupted(_ event: GuestEvent, length: UInt8) {
    s.pointee.exit.interrupted = reportable(event)
    if event.isOfInstruction { s.pointee.exit.instructionLength = length }
  }

  /// What an exit says of an exception besides its error code.
  private func value(of error: GuestException) -> UInt64 {
    switch error.vector {
    case ExceptionVector.pageFault.rawValue: s.pointee.faultAddress
    case ExceptionVector.debug.rawValue: UInt64(error.errorCode)
    default: 0
    }
  }
}

extension GuestEvent {
  init(_ error: GuestException) {
    self.init(
      .hardwareException, vector: error.vector,
      errorCode: error.hasErrorCode ? error.errorCode : nil)
  }

  /// The EXT bit of error codes: the event is not a software interrupt.
  var isExternal: Bool { kind != .softwareInterrupt && kind != .softwareException }
}

extension CPU {
  /// The EXT bit of error codes that the delivery of an event ends in.
  func isExternal(_ event: GuestEvent) -> Bool {
    if event.kind == .hardwareException, follows(.exceptionsAreInternal) { return false }
    return event.isExternal
  }
}

/// Events that each came of the delivery of the one before.
private struct DeliveryChain {
  /// As many may follow each other before anybody looks.
  static let patience: UInt64 = 64
  var length: UInt64 = 0
  /// Host TSC when it was first looked at.
  var start: UInt64 = 0
}

/// Classes of exceptions (SDM volume 3, "Interrupt 8: Double Fault Exception").
private enum FaultClass {
  case benign, contributory, pageFault, doubleFault

  init(_ event: GuestEvent) {
    guard event.kind == .hardwareException else {
      self = .benign
      return
    }
    switch ExceptionVector(rawValue: event.vector) {
    case .divideError, .invalidTSS, .segmentNotPresent, .stackFault, .generalProtection,
      .controlProtection:
      self = .contributory
    case .pageFault, .virtualization: self = .pageFault
    case .doubleFault: self = .doubleFault
    default: self = .benign
    }
  }

  enum Combination { case serial, doubleFault, shutdown }

  static func combine(_ first: FaultClass, _ second: FaultClass) -> Combination {
    switch (first, second) {
    case (_, .benign), (.benign, _), (.contributory, .pageFault): .serial
    case (.doubleFault, _): .shutdown
    default: .doubleFault
    }
  }
}
