// SPDX-License-Identifier: Apache-2.0
//
// Events that wait for the next entry: an exception that a handler raised, an event whose delivery
// an exit interrupted, the client's interrupt. NMIs and SMIs, which come from any thread, are in
// the mailbox. Belongs to the thread that is in an ioctl of the vCPU; it touches DR6 and CR2 of the
// physical CPU that it is given, and nothing else.

import X86
import X86CPU

struct PendingEvents {
  /// An exception that an exit handler raised.
  var exception: GuestException?
  /// What its delivery does to DR6 or CR2, until then.
  var payload: UInt64?
  /// An event that an exit interrupted on its way into the guest.
  var interrupted: GuestEvent?
  /// KVM_INTERRUPT's vector, without an 8259 of ours.
  var queuedInterrupt: UInt8?
  /// The guest goes down at the next entry.
  var isTripleFault = false
  /// Of the instruction whose #BP or #OF was intercepted.
  var instructionLength: UInt32 = 1
  /// Whether interrupts have to be looked at before the next entry.
  var mustCheck = true

  /// Nothing that is to be delivered before an interrupt.
  var hasNone: Bool { interrupted == nil && exception == nil }

  /// An exception of the instruction at RIP.
  mutating func raise(_ exception: GuestException, payload: UInt64? = nil) {
    self.exception = exception
    self.payload = payload
  }

  mutating func dropException() {
    exception = nil
    payload = nil
  }

  mutating func takeInterrupted() -> GuestEvent? {
    guard let event = interrupted else { return nil }
    interrupted = nil
    return event
  }

  mutating func takeQueuedInterrupt() -> UInt8? {
    guard let vector = queuedInterrupt else { return nil }
    queuedInterrupt = nil
    return vector
  }

  mutating func takeTripleFault() -> Bool {
    defer { isTripleFault = false }
    return isTripleFault
  }

  /// The exception as an event, its payload delivered.
  mutating func takeException(_ cpu: CPU) -> GuestEvent? {
    guard let exception else { return nil }
    deliverPayload(exception, cpu)
    self.exception = nil
    return GuestEvent(
      exception: exception.vector,
      errorCode: exception.hasErrorCode ? exception.errorCode : nil,
      instructionLength: instructionLength)
  }

  /// What an exception does to a register before its handler runs: #DB to DR6, #PF to CR2.
  mutating func deliverPayload(_ exception: GuestException, _ cpu: CPU) {
    guard let payload else { return }
    self.payload = nil
    switch ExceptionVector(rawValue: exception.vector) {
    case .debug:
      let kept = unsafe cpu.s.pointee.dr6 & ~PendingDebug.breakpoints
      unsafe cpu.s.pointee.dr6 = kept | payload & 0xE00F | DR6.initial.rawValue
    case .pageFault: unsafe cpu.s.pointee.cr2 = payload
    default: break
    }
  }
}
