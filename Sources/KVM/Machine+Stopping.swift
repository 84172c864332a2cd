// SPDX-License-Identifier: Apache-2.0
//
// Keeps the guests of a machine out of guest code while their memory changes.
//
// A thread that changes memory waits for every vCPU in guest code, as long as it takes. Only one
// kind may never exit: a vCPU that waits for a page which the client brings in by userfaultfd,
// perhaps with the very thread that is changing memory. Such a straggler is left behind after a
// while:
//
//  - the nested tables that it may be walking are kept until all guests have exited;
//  - its cached translations are dropped before the change is reported as done, so its next access
//    to any other page walks, misses and exits; and it must come here before it enters again;
//  - the access that it waits in, and pages that the running instructions have looked up already,
//    are addresses of a slot's memory, which the host's own page tables protect.

import ClientMemory
import Host
import Synchronization
import X86CPU

#if canImport(Glibc)
  import Glibc
#endif

extension Machine {
  /// How long a change waits before it checks whether a vCPU may wait for the client.
  static let patience: UInt64 = 1_000_000_000

  /// Runs `change` while no vCPU is in guest code, then has every physical CPU flush its cached
  /// mappings before it enters a guest again.
  ///
  /// - Parameter deadline: monotonic time after which a vCPU is left behind that may wait for
  ///   memory which the client brings in.
  func withGuestsStopped<R, E: Error>(
    until deadline: UInt64 = .max, _ change: () throws(E) -> R
  ) throws(E) -> R {
    memory.gate.add(1, ordering: .sequentiallyConsistent)
    let all = virtualCPUs
    for vcpu in all { vcpu.request(.gate) }
    let stragglers = all.filter { !waitUntilOutside($0, deadline) }
    for memory in memories {
      memory.mayBeWalked.store(!stragglers.isEmpty, ordering: .sequentiallyConsistent)
    }
    defer {
      hypervisor.mappings.add(1, ordering: .sequentiallyConsistent)
      for vcpu in stragglers { vcpu.takeTranslations() }
      memory.gate.subtract(1, ordering: .sequentiallyConsistent)
      for vcpu in all { vcpu.mailbox.gateOpened() }
    }
    return try change()
  }

  /// - Returns: false if the vCPU is still in guest code.
  private func waitUntilOutside(_ vcpu: VirtualCPU, _ deadline: UInt64) -> Bool {
    while vcpu.mailbox.isInGuest {
      if deadline != .max, HostClock.monotonic() >= deadline, mayWaitForClient { return false }
      sched_yield()
    }
    return true
  }

  /// Whether a vCPU may wait for a page that the client brings in.
  private var mayWaitForClient: Bool {
    let userFaults = hypervisor.client.userFaults
    return !userFaults.isEmpty
      && memories.contains { memory in
        memory.withSlots { $0.ordered.contains { userFaults.overlaps($0.hostRange) } }
      }
  }
}

extension VirtualCPU {
  /// Flushes the translations of a vCPU in guest code.
  fileprivate func takeTranslations() {
    let running = mailbox.runningOn
    if running >= 0 { hypervisor.pool.slots[running].cpu.takeTranslations() }
  }
}
