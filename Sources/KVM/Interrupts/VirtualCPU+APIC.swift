// SPDX-License-Identifier: Apache-2.0
//
// A vCPU and its local APIC: messages from the bus, effects of register writes, and the timer.

import CHost
import Host
import InterruptChips
import Synchronization
import X86
import X86CPU

extension LocalAPIC {
  /// KVM's reset state: LINT0 of the boot CPU is connected to the 8259.
  mutating func acceptExternalAtReset() {
    var image = registerImage(at: Time(nanoseconds: 0), wideID: false)
    image[APICRegister.lvtLINT0 >> 2] = UInt32(DeliveryMode.external.rawValue) << 8
    _ = load(registerImage: image, at: Time(nanoseconds: 0), wideID: false)
  }
}

extension VirtualCPU {
  // MARK: From the bus; any thread

  /// Takes a message.
  ///
  /// - Returns: false when it merged with a pending one or was ignored.
  @discardableResult
  func accept(_ message: InterruptMessage) -> Bool {
    guard let apic else { return false }
    return note(apic.state.withLock { $0.deliver(message) })
  }

  /// The 8259's INTR changed.
  func picChanged(_ asserted: Bool) {
    guard let apic else { return }
    note(apic.state.withLock { $0.setLINT(0, asserted: asserted) })
  }

  /// Posts the requests of a delivery to the run loop.
  @discardableResult
  func note(_ delivery: LocalAPIC.Delivery) -> Bool {
    switch delivery {
    case .ignored, .coalesced: return false
    case .requested, .external: request(.interrupt)
    case .nmi: queueNMI()
    case .smi: queueSMI()
    case .initialize: request(.initSignal)
    case .startup(let page):
      mailbox.startupVector.store(page, ordering: .sequentiallyConsistent)
      request(.startup)
    }
    return true
  }

  /// An NMI, from any thread.
  func queueNMI() {
    mailbox.addNMI()
    request(.nmi)
  }

  // MARK: The vCPU's own accesses

  /// Both clocks that a local APIC timer may count.
  var apicTime: LocalAPIC.Time {
    LocalAPIC.Time(nanoseconds: HostClock.monotonic(), tsc: guestTSC)
  }

  /// Carries out a register write's effect.
  func perform(_ effect: LocalAPIC.Effect) {
    events.mustCheck = true
    switch effect {
    case .none: break
    case .send(let interrupt): unsafe machine.interrupts?.send(interrupt, from: self)
    case .endOfInterrupt(let vector):
      if unsafe machine.interrupts?.endOfInterrupt(vector) == true { runState.endedVector = vector }
    case .edgeEnded(let vector): unsafe machine.interrupts?.edgeEnded(vector)
    case .timerChanged: armTimer()
    case .identityChanged: apicIdentityChanged()
    case .linesChanged:
      if unsafe machine.interrupts?.isPICRequesting.load(ordering: .sequentiallyConsistent) == true
      {
        picChanged(true)
      }
    }
  }

  /// Updates this local APIC's address on the bus.
  func apicIdentityChanged() {
    guard let identity = apic?.state.withLock({ $0.identity }) else { return }
    unsafe machine.cpus.list.withLock { cpus in
      if index < cpus.identities.count { cpus.identities[index] = identity }
    }
  }

  // MARK: Timer

  /// Publishes the timer's next deadline to the timer thread.
  func armTimer() {
    guard let apic else { return }
    let deadline: UInt64
    clock.deadline = .max
    switch apic.state.withLock({ $0.nextDeadline }) {
    case nil: deadline = .max
    case .nanoseconds(let time): deadline = time
    case .tsc(let value):
      clock.deadline = value
      let time = apicTime
      let distance = value > time.tsc ? clock.rate.nanoseconds(value &- time.tsc) : 0
      let (sum, overflow) = time.nanoseconds.addingReportingOverflow(distance)
      // Rounded up: a timer must not fire early.
      deadline = overflow || sum == .max ? .max &- 1 : sum &+ 1
    }
    mailbox.timerDeadline.store(deadline, ordering: .sequentiallyConsistent)
    if deadline != .max { unsafe machine.timers.note(deadline) }
  }

  /// Before an entry: fires an expired TSC deadline without the timer thread.
  func takeExpiredDeadline() {
    if clock.isDeadlineOver { expireTimer() }
  }

  /// The timer has expired.
  func expireTimer() { expireTimer(at: apicTime) }

  func expireTimer(at time: LocalAPIC.Time) {
    guard let apic else { return }
    note(apic.state.withLock { $0.expireTimer(at: time) })
    armTimer()
  }
}
