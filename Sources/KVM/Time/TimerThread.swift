// SPDX-License-Identifier: Apache-2.0
//
// One thread per machine that watches the deadlines of its local APIC timers, of cycle counters
// about to overflow, and of the 8254.
//
// A deadline is one atomic word of its owner. A thread that sets one calls `note`, which wakes the
// timer thread only if it would sleep past it. Postponing a deadline costs nothing but one useless
// wake-up. A halted vCPU waits for its own deadline itself, so the thread skips it.
//
// `target` is the thread's wake-up time; `.max` while it checks the deadlines, so that one set
// meanwhile is never missed.

import Host
import Synchronization
import SystemPackage

/// Sendable: `interrupts` is set before the thread starts; the rest is atomic.
final class TimerThread: @unchecked Sendable {
  private let cpus: VirtualCPUList
  /// Set before the thread starts.
  private var interrupts: InterruptController?
  private let target = Atomic<UInt64>(.max)
  private let isStopping = Atomic<Bool>(false)
  private let parker = Parker()
  private let ended = Parker()

  init(cpus: VirtualCPUList) { self.cpus = cpus }

  func start(_ interrupts: InterruptController) throws(Errno) {
    self.interrupts = interrupts
    let thread = try HostThread(name: "kvm-timer", stackSize: 256 << 10) { [self] in
      self.run()
      self.ended.unpark()
    }
    _ = consume thread
  }

  /// Ends the thread and joins it. Not called by the thread itself: it knows the machine's parts,
  /// never the machine.
  func stop() {
    isStopping.store(true, ordering: .sequentiallyConsistent)
    parker.unpark()
    ended.park()
    interrupts = nil
  }

  /// A deadline (monotonic nanoseconds) was set.
  func note(_ deadline: UInt64) {
    if deadline < target.load(ordering: .sequentiallyConsistent) { parker.unpark() }
  }

  private func run() {
    while !isStopping.load(ordering: .sequentiallyConsistent) {
      target.store(.max, ordering: .sequentiallyConsistent)
      let next = fireDue(HostClock.monotonic())
      target.store(next, ordering: .sequentiallyConsistent)
      parker.park(until: next)
    }
  }

  /// Notifies the owners of expired deadlines; returns the next one.
  private func fireDue(_ now: UInt64) -> UInt64 {
    var next = UInt64.max
    for vcpu in cpus.all where !vcpu.mailbox.isParked {
      if Self.isDue(vcpu.mailbox.timerDeadline, now, &next) { vcpu.request(.timer) }
      if Self.isDue(vcpu.mailbox.overflowDeadline, now, &next) { vcpu.request(.counters) }
    }
    if let interrupts {
      if interrupts.pitDeadline.load(ordering: .sequentiallyConsistent) <= now {
        interrupts.firePIT(now)
      }
      next = min(next, interrupts.pitDeadline.load(ordering: .sequentiallyConsistent))
    }
    return next
  }

  /// Removes an expired deadline; another lowers `next` if it is earlier.
  private static func isDue(
    _ deadline: borrowing Atomic<UInt64>, _ now: UInt64, _ next: inout UInt64
  ) -> Bool {
    let time = deadline.load(ordering: .sequentiallyConsistent)
    if time > now {
      next = min(next, time)
      return false
    }
    return deadline.compareExchange(
      expected: time, desired: .max, ordering: .sequentiallyConsistent
    ).exchanged
  }
}
