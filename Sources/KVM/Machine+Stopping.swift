// SPDX-License-Identifier: Apache-2.0
//
// Keeping the guests of a machine out of guest code while their memory changes.
//
// Whoever changes memory waits for every vCPU that is in guest code, as long as it takes. There is
// one vCPU that may never come: one that waits for a page which the client brings by userfaultfd,
// maybe with the very thread that changes memory now. Such a straggler is left behind after a
// while:
//
//  - the nested tables that it may be walking stay until all guests have been outside;
//  - what it knows of memory is taken from it before the change is reported done, so its next
//    access of any other page walks, finds nothing and exits; and it has to come here before it
//    enters again;
//  - the access that it waits in, and pages that the running instructions have looked up already,
//    are addresses of a slot's memory, where the host's own page tables say what may be accessed.

import ClientMemory
import Host
import Synchronization
import X86CPU

#if canImport(Glibc)
  import Glibc
#endif

extension Machine {
  /// How long a change waits before it asks whether a vCPU may wait for the client.
  static let patience: UInt64 = 1_000_000_000

  /// Runs `change` while no vCPU is in guest code, then has every physical CPU drop its cached
  /// mappings before it enters a guest again.
  ///
  /// - Parameter deadline: monotonic time after which a vCPU is left behind that may wait for
  ///   memory which the client is to bring.
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

  /// - Returns: false where the vCPU is still in guest code.
  private func waitUntilOutside(_ vcpu: VirtualCPU, _ deadline: UInt64) -> Bool {
    while vcpu.mailbox.isInGuest {
      if deadline != .max, HostClock.monotonic() >= deadline, mayWaitForClient { return false }
      sched_yield()
    }
    return true
  }

  /// Whether a vCPU may wait for a page that the client brings.
  private var mayWaitForClient: Bool {
    let userFaults = hypervisor.client.userFaults
    return !userFaults.isEmpty
      && memories.contains { memory in
        memory.withSlots { $0.ordered.contains { userFaults.overlaps($0.hostRange) } }
      }
  }
}

extension VirtualCPU {
  /// Of a vCPU that is in guest code: its CPU knows no translation any more.
  fileprivate func takeTranslations() {
    let running = mailbox.runningOn
    if running >= 0 { hypervisor.pool.slots[running].cpu.takeTranslations() }
  }
}
