// SPDX-License-Identifier: Apache-2.0
//
// Delivery of events: exceptions, interrupts, NMIs, software interrupts.
//
// An event is first offered to the hypervisor (`intercepts`), then changes CR2, DR6 and DR7, then
// goes through the mode's interrupt table. A fault during delivery is the next event: it is offered
// in turn, merged into a double fault if its class requires, and so on to shutdown. A faulting
// delivery has changed only memory, so each attempt starts from the same state (SDM volume 3,
// "Interrupt and Exception Handling" and "Event Delivery").
//
// - `rip` is the address of the event's instruction, pushed by faults of a delivery; `returnRIP` is
//   pushed by the first event.
// - An exit in the middle of a delivery reports the event as interrupted.

import CHost
import X86

extension CPU {
  /// Takes the exception in `pendingException` (raised by the instruction at `rip`): intercepts,
  /// double faults and delivery through the IDT.
  ///
  /// - Returns: false on a VM exit, which is then in `exit`.
  package func handleFault() -> Bool {
    let error = GuestException(rawValue: s.pointee.pendingException)
    defer { s.pointee.unblockedNMI = false }
    if error.isVMExit { return false }
    if error.rawValue & GuestException.aloneBit != 0 { return true }
    return raiseException(error)
  }

  /// Raises an exception as if by the instruction at `rip`.
  ///
  /// - Returns: false on a VM exit.
  package func raiseException(_ error: GuestException) -> Bool {
    var error = error
    if error.vector == ExceptionVector.debug.rawValue {
      error = .debug(DR6(rawValue: UInt64(error.errorCode) | takeWaitingDebugCauses()))
    }
    guard let event = offered(error), deliver(event, returnRIP: s.pointee.rip) else { return false }
    if s.pointee.slow & SlowReason.monitorTrap == 0 { return true }
    // The monitor trap flag counts the delivery as an instruction.
    _ = exit(.monitorTrap)
    return false
  }

  /// Delivers an event through the guest's IDT: an injected or virtual interrupt, an exception, a
  /// software interrupt. Handles nested faults as the architecture requires.
  ///
  /// - Parameter returnRIP: RIP to push.
  /// - Returns: false on a VM exit, which is then in `exit`.
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

  /// Whether to deliver the next event in a possibly endless chain of faults during delivery (an
  /// alignment check whose handler's stack is misaligned, SDM volume 3, "Notify VM Exits"). It
  /// answers requests to the CPU even if the guest's hypervisor does not use notify exits.
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
  /// registers; nil on an exit.
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

  /// The event after `error` in the delivery of `event`; nil on an exit.
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
      // A page fault that becomes a double fault has already changed CR2.
      if error.vector == ExceptionVector.pageFault.rawValue {
        s.pointee.cr2 = s.pointee.faultAddress
      }
      return offered(GuestException(.doubleFault, code: 0))
    case .shutdown:
      _ = exit(.tripleFault)
      return nil
    }
  }

  /// Records the event whose delivery the exit interrupted.
  ///
  /// - Parameter length: of the instruction that raised it, if any.
  func noteInterrupted(_ event: GuestEvent, length: UInt8) {
    s.pointee.exit.interrupted = reportable(event)
    if event.isOfInstruction { s.pointee.exit.instructionLength = length }
  }

  /// An exit's information on an exception besides its error code.
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
  /// Maximum length before the first check.
  static let patience: UInt64 = 64
  var length: UInt64 = 0
  /// Host TSC at the first check.
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
