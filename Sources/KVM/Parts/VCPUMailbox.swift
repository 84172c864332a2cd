// SPDX-License-Identifier: Apache-2.0
//
// What other threads leave for a vCPU, and how they find it and wake it. The one part of a vCPU
// that any thread may touch: all of it is atomic. It reaches nothing else.
//
//     requests   what others want of the run loop, one bit each (VCPURequest)
//     runningOn  the physical CPU that is in this vCPU's guest code now
//
// A request is first posted, then the vCPU is kicked out of guest code or woken; the run loop first
// says that it is in guest code, then looks at the requests. So none is missed.

import Synchronization

/// What the run loop is asked for.
struct VCPURequest: OptionSet, Sendable {
  let rawValue: UInt64
  /// The client wants KVM_RUN to return.
  static let kick = Self(rawValue: 1 << 0)
  /// A local APIC or 8259 has something new.
  static let interrupt = Self(rawValue: 1 << 1)
  static let nmi = Self(rawValue: 1 << 2)
  static let smi = Self(rawValue: 1 << 10)
  static let initSignal = Self(rawValue: 1 << 3)
  static let startup = Self(rawValue: 1 << 4)
  /// The local APIC timer's deadline has come.
  static let timer = Self(rawValue: 1 << 5)
  /// Memory changes: stay out of guest code until the gate opens.
  static let gate = Self(rawValue: 1 << 6)
  /// kvmclock was set: write the time structure anew.
  static let clock = Self(rawValue: 1 << 7)
  /// End a halt (KVM_HC_KICK_CPU).
  static let wake = Self(rawValue: 1 << 8)
  /// Another MSR filter: other accesses exit.
  static let msrFilter = Self(rawValue: 1 << 9)
  /// A performance counter may have overflowed, or there is another event filter.
  static let counters = Self(rawValue: 1 << 11)
  /// A page that the guest was told to wait for may be there.
  static let pageArrival = Self(rawValue: 1 << 17)
  /// A signal came to the thread that is in KVM_RUN.
  static let signal = Self(rawValue: 1 << 16)
  /// What changes whether an interrupt can be delivered.
  static let events: Self = [.interrupt, .nmi, .smi]
}

struct VCPUMailbox: ~Copyable, Sendable {
  private let requests = Atomic<UInt64>(0)
  private let running = Atomic<Int>(-1)
  private let parked = Atomic<Bool>(false)
  private let parker = Parker()
  private let gateParker = Parker()

  /// When the local APIC timer has something to do, in monotonic nanoseconds.
  let timerDeadline = Atomic<UInt64>(.max)
  /// The same for a performance counter's overflow.
  let overflowDeadline = Atomic<UInt64>(.max)
  /// The page of the last start-up message.
  let startupVector = Atomic<UInt8>(0)
  let pendingNMIs = Atomic<Int>(0)
  let pendingSMI = Atomic<Bool>(false)

  // MARK: Requests

  /// Adds a request. Who posts then kicks or wakes the vCPU; see `VirtualCPU.request`.
  func post(_ request: VCPURequest) {
    requests.bitwiseOr(request.rawValue, ordering: .sequentiallyConsistent)
  }

  /// Takes the requests in `mask`; returns those that were set.
  func take(_ mask: VCPURequest) -> VCPURequest {
    let old = requests.bitwiseAnd(~mask.rawValue, ordering: .sequentiallyConsistent).oldValue
    return VCPURequest(rawValue: old).intersection(mask)
  }

  /// A look without order: one that is missed is found at the next entry.
  var mayHaveRequests: Bool { requests.load(ordering: .relaxed) != 0 }

  func mayHave(_ request: VCPURequest) -> Bool {
    requests.load(ordering: .relaxed) & request.rawValue != 0
  }

  /// Whether there are requests that keep a vCPU from entering which has passed the gate. Comes
  /// after `enter`.
  var preventsEntry: Bool {
    requests.load(ordering: .sequentiallyConsistent) & ~VCPURequest.gate.rawValue != 0
  }

  // MARK: Where the vCPU is

  /// Index of the slot whose CPU is in this vCPU's guest code; -1 outside.
  var runningOn: Int { running.load(ordering: .sequentiallyConsistent) }
  var isInGuest: Bool { runningOn >= 0 }
  var isParked: Bool { parked.load(ordering: .sequentiallyConsistent) }

  /// Guest code, or its emulation, runs from now on.
  func enter(_ index: Int) { running.store(index, ordering: .sequentiallyConsistent) }
  func leave() { running.store(-1, ordering: .sequentiallyConsistent) }

  // MARK: Sleep

  /// Sleeps until a request comes or the timer's deadline, which then is a request.
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

  /// At most two NMIs wait: one in service, one latched.
  func addNMI() {
    if pendingNMIs.load(ordering: .sequentiallyConsistent) < 2 {
      pendingNMIs.add(1, ordering: .sequentiallyConsistent)
    }
  }

  func takeNMI() { pendingNMIs.subtract(1, ordering: .sequentiallyConsistent) }

  /// While an NMI is in service one more is latched, however many came.
  func latchOneNMI() {
    _ = pendingNMIs.compareExchange(expected: 2, desired: 1, ordering: .sequentiallyConsistent)
  }
}
