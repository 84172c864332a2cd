// SPDX-License-Identifier: Apache-2.0
//
// Events for the next entry: an exception that a handler raised, an event whose delivery an exit
// interrupted, the client's interrupt. NMIs and SMIs, which come from any thread, are in the
// mailbox. Only the thread in an ioctl of the vCPU uses it; it changes DR6 and CR2 of the given
// physical CPU, and nothing else.

import X86
import X86CPU

struct PendingEvents {
  /// An exception that an exit handler raised.
  var exception: GuestException?
  /// Its payload for DR6 or CR2, until it is delivered.
  var payload: UInt64?
  /// An event whose delivery an exit interrupted.
  var interrupted: GuestEvent?
  /// KVM_INTERRUPT's vector, without an 8259 of ours.
  var queuedInterrupt: UInt8?
  /// The next entry shuts the guest down.
  var isTripleFault = false
  /// Of an instruction with an intercepted #BP or #OF.
  var instructionLength: UInt32 = 1
  /// Whether interrupts must be checked before the next entry.
  var mustCheck = true

  /// No event that precedes an interrupt.
  var hasNone: Bool { interrupted == nil && exception == nil }

  /// Raises an exception of the instruction at RIP.
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

  /// Takes the exception as an event and delivers its payload.
  mutating func takeException(_ cpu: CPU) -> GuestEvent? {
    guard let exception else { return nil }
    deliverPayload(exception, cpu)
    self.exception = nil
    return GuestEvent(
      exception: exception.vector,
      errorCode: exception.hasErrorCode ? exception.errorCode : nil,
      instructionLength: instructionLength)
  }

  /// Sets the register that an exception changes before its handler runs: #DB DR6, #PF CR2.
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
