// SPDX-License-Identifier: Apache-2.0
//
// The physical CPUs of the software processor, shared by every vCPU of every machine.
//
// A vCPU needs a physical CPU whenever its state is run, read or written. It gives it up when it
// halts or leaves for user space, but stays *resident* on it until another vCPU needs that CPU, so
// that the usual return a microsecond later finds everything in place. Taking a CPU over from a
// resident vCPU saves that vCPU's state first (`unload`).
//
// Invariants, under `lock`: a slot is busy for at most one vCPU; a vCPU is resident on at most one
// slot; a slot's state is touched without the lock only by whoever has it busy.
//
// More vCPUs than CPUs: waiters stand in a queue; a release hands the slot to the first of them,
// and a waiter that has waited for a time slice kicks the vCPU that has run longest. Whoever wants
// no more than to look at a vCPU's state or to change it does not wait: for them there is one CPU
// more, made when it is first needed, which never runs a guest.

import Host
import Synchronization
import SystemPackage
import X86
import X86CPU

/// One physical CPU and who is on it.
/// Sendable: `resident`, `isBusy` and `busySince` change under the pool's lock, the rest belongs to
/// whoever has the slot busy.
final class PhysicalCPUSlot: @unchecked Sendable {
  let index: Int
  let cpu: PhysicalCPU
  /// Whose state is loaded.
  fileprivate(set) unowned(unsafe) var resident: VirtualCPU?
  fileprivate(set) var isBusy = false
  fileprivate var busySince: UInt64 = 0
  /// Set when the running vCPU is to make room.
  let shouldYield = Atomic<Bool>(false)
  /// The generation of mappings that this CPU's TLB agrees with (see `Hypervisor.mappings`).
  var mappingGeneration: UInt64 = 0

  init(index: Int, cpu: PhysicalCPU) {
    self.index = index
    self.cpu = cpu
  }
}

/// Sendable: what changes is in `state`, under its lock.
final class PhysicalCPUPool: @unchecked Sendable {
  /// How long a vCPU may run while others wait.
  static let timeSlice: UInt64 = 10_000_000

  /// Sendable: `slot` is written under the pool's lock before the waiter is woken, and read after.
  private final class Waiter: @unchecked Sendable {
    let parker = Parker()
    var slot: PhysicalCPUSlot?
  }

  private struct State: Sendable {
    var queue: [Waiter] = []
    /// The CPU that runs no guest.
    var spare: PhysicalCPUSlot?
  }

  let slots: [PhysicalCPUSlot]
  private let state = Mutex(State())
  private let waiterCount = Atomic<Int>(0)

  private let silicon: SiliconVendor
  private let enableSpare: @Sendable (PhysicalCPU) throws(Errno) -> Void

  /// Makes `count` physical CPUs and makes each ready to enter guests.
  ///
  /// - Parameters:
  ///   - silicon: whose they are.
  ///   - enable: makes a CPU ready.
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

  /// The spare CPU if nobody has it, made if there is none.
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

  /// Takes a physical CPU for `vcpu` and loads its state there, waiting for one if none is free.
  ///
  /// - Parameter runs: guest code is to run; else the spare one will do.
  func acquire(_ vcpu: VirtualCPU, runs: Bool = true) -> PhysicalCPUSlot {
    var waiter: Waiter?
    let slot = state.withLock { state -> PhysicalCPUSlot? in
      if let slot = pick(vcpu) ?? (runs ? nil : takeSpare(&state)) {
        occupy(slot, vcpu, state)
        return slot
      }
      let new = Waiter()
      state.queue.append(new)
      waiter = new
      waiterCount.add(1, ordering: .relaxed)
      return nil
    }
    if let slot { return slot }
    guard let waiter else { return slots[0] }
    return wait(waiter, vcpu)
  }

  /// Gives a physical CPU up; the vCPU stays resident unless someone waits.
  func release(_ slot: PhysicalCPUSlot) {
    state.withLock { state in
      slot.shouldYield.store(false, ordering: .relaxed)
      guard !state.queue.isEmpty, slot !== state.spare else {
        slot.isBusy = false
        return
      }
      // Stays busy: the waiter has it now, and loads itself when it wakes.
      let waiter = state.queue.removeFirst()
      waiterCount.subtract(1, ordering: .relaxed)
      waiter.slot = slot
      waiter.parker.unpark()
    }
  }

  /// Saves a vCPU's state and forgets it: it is going away, or its state is wanted elsewhere. The
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
      let woken = waiter.parker.park(until: HostClock.monotonic() &+ Self.timeSlice)
      let slot = state.withLock { state -> PhysicalCPUSlot? in
        guard let slot = waiter.slot else {
          if !woken { preempt() }
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

  /// The free slot that suits `vcpu` best: where it is resident, else an empty one, else any.
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
    // The vCPU may be resident on a CPU that another vCPU has taken meanwhile: then that one has
    // saved it. On a free one it must be saved now.
    for other in all(state) where unsafe other.resident === vcpu {
      vcpu.unload(from: other.cpu)
      unsafe other.resident = nil
    }
    unsafe slot.resident = vcpu
    vcpu.load(on: slot.cpu)
  }

  /// Asks the vCPU that has run longest to make room.
  private func preempt() {
    var oldest: PhysicalCPUSlot?
    for slot in slots where slot.isBusy && !slot.shouldYield.load(ordering: .relaxed) {
      if slot.busySince < oldest?.busySince ?? .max { oldest = slot }
    }
    guard let oldest else { return }
    oldest.shouldYield.store(true, ordering: .relaxed)
    oldest.cpu.kick()
  }
}
