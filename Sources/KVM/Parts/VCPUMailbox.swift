// SPDX-License-Identifier: Apache-2.0
//
// Requests of other threads to a vCPU, and how they locate and wake it. Any thread may use this
// part of a vCPU, and only this one: all of it is atomic.
//
//     requests   requests to the run loop, one bit each (VCPURequest)
//     runningOn  the physical CPU that is in this vCPU's guest code now
//
// A sender first posts its request, then kicks the vCPU out of guest code or wakes it; the run loop
// first sets `runningOn`, then checks the requests. So none is missed.

import Synchronization

/// Requests to the run loop.
struct VCPURequest: OptionSet, Sendable {
  let rawValue: UInt64
  /// The client wants KVM_RUN to return.
  static let kick = Self(rawValue: 1 << 0)
  /// The local APIC or 8259 has changed.
  static let interrupt = Self(rawValue: 1 << 1)
  static let nmi = Self(rawValue: 1 << 2)
  static let smi = Self(rawValue: 1 << 10)
  static let initSignal = Self(rawValue: 1 << 3)
  static let startup = Self(rawValue: 1 << 4)
  /// The local APIC timer has expired.
  static let timer = Self(rawValue: 1 << 5)
  /// Memory changes: stay out of guest code until the gate opens.
  static let gate = Self(rawValue: 1 << 6)
  /// kvmclock was set: rewrite the time structure.
  static let clock = Self(rawValue: 1 << 7)
  /// End a halt (KVM_HC_KICK_CPU).
  static let wake = Self(rawValue: 1 << 8)
  /// A new MSR filter: other accesses exit.
  static let msrFilter = Self(rawValue: 1 << 9)
  /// A performance counter may have overflowed, or the event filter has changed.
  static let counters = Self(rawValue: 1 << 11)
  /// A page that the guest waits for may have arrived.
  static let pageArrival = Self(rawValue: 1 << 17)
  /// A signal came to the thread that is in KVM_RUN.
  static let signal = Self(rawValue: 1 << 16)
  /// Requests that may make an interrupt deliverable.
  static let events: Self = [.interrupt, .nmi, .smi]
}

struct VCPUMailbox: ~Copyable, Sendable {
  private let requests = Atomic<UInt64>(0)
  private let running = Atomic<Int>(-1)
  private let parked = Atomic<Bool>(false)
  private let parker = Parker()
  private let gateParker = Parker()

  /// The local APIC timer's next deadline, in monotonic nanoseconds.
  let timerDeadline = Atomic<UInt64>(.max)
  /// The next overflow of a performance counter.
  let overflowDeadline = Atomic<UInt64>(.max)
  /// The page of the last start-up message.
  let startupVector = Atomic<UInt8>(0)
  let pendingNMIs = Atomic<Int>(0)
  let pendingSMI = Atomic<Bool>(false)

  // MARK: Requests

  /// Adds a request. The caller then kicks or wakes the vCPU; see `VirtualCPU.request`.
  func post(_ request: VCPURequest) {
    requests.bitwiseOr(request.rawValue, ordering: .sequentiallyConsistent)
  }

  /// Removes the requests in `mask`; returns those that were set.
  func take(_ mask: VCPURequest) -> VCPURequest {
    let old = requests.bitwiseAnd(~mask.rawValue, ordering: .sequentiallyConsistent).oldValue
    return VCPURequest(rawValue: old).intersection(mask)
  }

  /// A relaxed check: the next entry finds a missed request.
  var mayHaveRequests: Bool { requests.load(ordering: .relaxed) != 0 }

  func mayHave(_ request: VCPURequest) -> Bool {
    requests.load(ordering: .relaxed) & request.rawValue != 0
  }

  /// Whether requests prevent an entry after the vCPU has passed the gate. Called after `enter`.
  var preventsEntry: Bool {
    requests.load(ordering: .sequentiallyConsistent) & ~VCPURequest.gate.rawValue != 0
  }

  // MARK: Where the vCPU is

  /// Index of the slot whose CPU is in this vCPU's guest code; -1 outside.
  var runningOn: Int { running.load(ordering: .sequentiallyConsistent) }
  var isInGuest: Bool { runningOn >= 0 }
  var isParked: Bool { parked.load(ordering: .sequentiallyConsistent) }

  /// Marks guest code, or its emulation, as running.
  func enter(_ index: Int) { running.store(index, ordering: .sequentiallyConsistent) }
  func leave() { running.store(-1, ordering: .sequentiallyConsistent) }

  // MARK: Sleep

  /// Sleeps until a request arrives or the timer expires, which then is a request.
  ///
  /// - Returns: the deadline.
  func park() -> UInt64 {
    parked.store(true, ordering: .sequentiallyConsistent)
    let deadline = timerDeadline.load(ordering: .sequentiallyConsistent)
    if requests.load(ordering: .sequentiallyConsistent) == 0, !parker.park(until: deadline) {
      post(.timer)
    }
    parked.store(false, ordering: .sequentiallyConsistent)
    return deadline
  }

  func wakeIfParked() { if isParked { parker.unpark() } }

  /// Sleeps until memory may have changed.
  func parkAtGate(until deadline: UInt64) { _ = gateParker.park(until: deadline) }
  func gateOpened() { gateParker.unpark() }

  // MARK: NMIs

  var hasNMI: Bool { pendingNMIs.load(ordering: .sequentiallyConsistent) != 0 }

  /// At most two NMIs are pending: one to deliver, one latched.
  func addNMI() {
    if pendingNMIs.load(ordering: .sequentiallyConsistent) < 2 {
      pendingNMIs.add(1, ordering: .sequentiallyConsistent)
    }
  }

  func takeNMI() { pendingNMIs.subtract(1, ordering: .sequentiallyConsistent) }

  /// While an NMI is in service only one more is latched.
  func latchOneNMI() {
    _ = pendingNMIs.compareExchange(expected: 2, desired: 1, ordering: .sequentiallyConsistent)
  }
}
