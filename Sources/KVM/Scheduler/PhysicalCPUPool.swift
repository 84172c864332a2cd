// SPDX-License-Identifier: Apache-2.0
//
// The physical CPUs of the software processor, shared by every vCPU of every machine.
//
// A vCPU needs a physical CPU whenever its state is run, read or written. It gives the CPU up when
// it halts or exits to user space, but stays *resident* on it until another vCPU needs that CPU. So
// the usual return a microsecond later finds its state in place. A vCPU that takes over the CPU of
// a resident one saves that one's state first (`unload`).
//
// Invariants, under `lock`: a slot is busy for at most one vCPU; a vCPU is resident on at most one
// slot; only the vCPU that has a slot busy touches its state without the lock.
//
// With more vCPUs than CPUs, waiters queue (`WaitQueue`). A release hands the slot to the first of
// them, and a waiter kicks the vCPU that has run longest once its time slice is over. Threads that
// only read or change a vCPU's state do not wait: for them there is a spare CPU, created when first
// needed, which never runs a guest.

import Host
import Synchronization
import SystemPackage
import X86
import X86CPU

/// One physical CPU and its vCPU.
/// Sendable: `resident`, `isBusy` and `busySince` change under the pool's lock; only the owner of a
/// busy slot uses the rest.
final class PhysicalCPUSlot: @unchecked Sendable {
  let index: Int
  let cpu: PhysicalCPU
  /// The vCPU whose state is loaded.
  fileprivate(set) unowned(unsafe) var resident: VirtualCPU?
  fileprivate(set) var isBusy = false
  fileprivate var busySince: UInt64 = 0
  /// Set when the running vCPU should give the CPU up.
  let shouldYield = Atomic<Bool>(false)
  /// The mapping generation of this CPU's TLB (see `Hypervisor.mappings`).
  var mappingGeneration: UInt64 = 0

  init(index: Int, cpu: PhysicalCPU) {
    self.index = index
    self.cpu = cpu
  }
}

/// Sendable: what changes is in `state`, under its lock.
final class PhysicalCPUPool: @unchecked Sendable {
  private struct State: Sendable {
    var queue = WaitQueue()
    /// The CPU that runs no guest.
    var spare: PhysicalCPUSlot?
  }

  let slots: [PhysicalCPUSlot]
  private let state = Mutex(State())
  private let waiterCount = Atomic<Int>(0)

  private let silicon: SiliconVendor
  private let enableSpare: @Sendable (PhysicalCPU) throws(Errno) -> Void

  /// Creates `count` physical CPUs and prepares each to enter guests.
  ///
  /// - Parameters:
  ///   - silicon: their vendor.
  ///   - enable: prepares a CPU.
  ///   - enableSpare: the same for one that runs no guest.
  init(
    count: Int, silicon: SiliconVendor, enable: (PhysicalCPU) throws(Errno) -> Void,
    enableSpare: @escaping @Sendable (PhysicalCPU) throws(Errno) -> Void
  ) throws(Errno) {
    self.enableSpare = enableSpare
    self.silicon = silicon
    var slots: [PhysicalCPUSlot] = []
    for index in 0..<count {
      let cpu = try PhysicalCPU(number: index, silicon: silicon)
      try enable(cpu)
      slots.append(PhysicalCPUSlot(index: index, cpu: cpu))
    }
    self.slots = slots
  }

  /// Numbers of CPUs are below 64.
  private var spareNumber: Int? { slots.count < 64 ? slots.count : nil }

  /// The spare CPU if it is free, created if necessary.
  private func takeSpare(_ state: inout State) -> PhysicalCPUSlot? {
    if let spare = state.spare { return spare.isBusy ? nil : spare }
    guard let number = spareNumber else { return nil }
    guard let cpu = try? PhysicalCPU(number: number, silicon: silicon, blockOps: 1 << 10),
      (try? enableSpare(cpu)) != nil
    else { return nil }
    let spare = PhysicalCPUSlot(index: number, cpu: cpu)
    state.spare = spare
    return spare
  }

  var hasWaiters: Bool { waiterCount.load(ordering: .relaxed) != 0 }

  /// Takes a physical CPU for `vcpu` and loads its state there; waits if none is free.
  ///
  /// - Parameter runs: guest code is to run; if not, the spare CPU suffices.
  func acquire(_ vcpu: VirtualCPU, runs: Bool = true) -> PhysicalCPUSlot {
    var waiter: Waiter?
    let slot = state.withLock { state -> PhysicalCPUSlot? in
      if let slot = pick(vcpu) ?? (runs ? nil : takeSpare(&state)) {
        occupy(slot, vcpu, state)
        return slot
      }
      let new = Waiter(vcpu, patience: patience(ahead: state.queue.count))
      state.queue.append(new)
      waiter = new
      waiterCount.add(1, ordering: .relaxed)
      return nil
    }
    if let slot { return slot }
    guard let waiter else { return slots[0] }
    return wait(waiter, vcpu)
  }

  /// Gives a physical CPU up; the vCPU stays resident unless another one waits.
  func release(_ slot: PhysicalCPUSlot) {
    state.withLock { state in
      slot.shouldYield.store(false, ordering: .relaxed)
      guard slot !== state.spare, let waiter = state.queue.takeFirst() else {
        slot.isBusy = false
        return
      }
      // The slot stays busy: the waiter owns it now, and loads itself when it wakes.
      waiterCount.subtract(1, ordering: .relaxed)
      waiter.slot = slot
      waiter.parker.unpark()
    }
  }

  /// Moves `vcpu` to the front of the queue, if it is there: others wait for its work.
  func prefer(_ vcpu: VirtualCPU) {
    if hasWaiters { state.withLock { $0.queue.moveToFront(vcpu) } }
  }

  /// Saves a vCPU's state and removes the vCPU: it ends, or another thread needs its state. The
  /// caller is the only user of the vCPU.
  func evict(_ vcpu: VirtualCPU) {
    state.withLock { state in
      for slot in all(state) where unsafe slot.resident === vcpu {
        vcpu.unload(from: slot.cpu)
        unsafe slot.resident = nil
      }
    }
  }

  private func wait(_ waiter: Waiter, _ vcpu: VirtualCPU) -> PhysicalCPUSlot {
    while true {
      let woken = waiter.parker.park(until: HostClock.monotonic() &+ waiter.patience)
      let slot = state.withLock { state -> PhysicalCPUSlot? in
        guard let slot = waiter.slot else {
          if !woken { waiter.patience = preempt(state) }
          return nil
        }
        occupy(slot, vcpu, state)
        return slot
      }
      if let slot { return slot }
    }
  }

  private func all(_ state: State) -> [PhysicalCPUSlot] {
    state.spare.map { slots + [$0] } ?? slots
  }

  /// The best free slot for `vcpu`: where it is resident, else an empty one, else any.
  private func pick(_ vcpu: VirtualCPU) -> PhysicalCPUSlot? {
    var best: PhysicalCPUSlot?
    for slot in slots where !slot.isBusy {
      if unsafe slot.resident === vcpu { return slot }
      if unsafe best == nil || best?.resident != nil && slot.resident == nil { best = slot }
    }
    return best
  }

  private func occupy(_ slot: PhysicalCPUSlot, _ vcpu: VirtualCPU, _ state: State) {
    slot.isBusy = true
    slot.busySince = HostClock.monotonic()
    guard unsafe slot.resident !== vcpu else { return }
    if let previous = unsafe slot.resident { previous.unload(from: slot.cpu) }
    // The vCPU may be resident on another CPU. If a vCPU has taken that one over, it has saved this
    // one's state; if that CPU is free, save it now.
    for other in all(state) where unsafe other.resident === vcpu {
      vcpu.unload(from: other.cpu)
      unsafe other.resident = nil
    }
    unsafe slot.resident = vcpu
    vcpu.load(on: slot.cpu)
  }

  // MARK: Time slices

  /// How long a vCPU may run while others wait. Shorter slices cost more than they gain: many vCPUs
  /// wait only to take a timer interrupt, and those with work to do would get equally short slices.
  private static let timeSlice: UInt64 = 10_000_000

  /// How long a waiter sleeps until it checks for expired time slices: about as long as those ahead
  /// of it run. So the rate of checks does not grow with their number.
  private func patience(ahead: Int) -> UInt64 {
    Self.timeSlice &* (1 &+ UInt64(clamping: ahead) / UInt64(clamping: max(slots.count, 1)))
  }

  /// Asks the vCPU that has run longest to give its CPU up, if its time slice is over.
  ///
  /// - Returns: nanoseconds until the next check.
  private func preempt(_ state: State) -> UInt64 {
    var oldest: PhysicalCPUSlot?
    for slot in slots where slot.isBusy && !slot.shouldYield.load(ordering: .relaxed) {
      if slot.busySince < oldest?.busySince ?? .max { oldest = slot }
    }
    guard let oldest else { return Self.timeSlice }
    let end = oldest.busySince &+ Self.timeSlice
    let now = HostClock.monotonic()
    guard end <= now else { return end &- now }
    oldest.shouldYield.store(true, ordering: .relaxed)
    oldest.cpu.kick()
    return Self.timeSlice
  }
}
