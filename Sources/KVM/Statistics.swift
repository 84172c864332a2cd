// SPDX-License-Identifier: Apache-2.0
//
// Statistics of vCPUs and physical CPUs, for `--stats`. Each thread writes its own counts; they are
// exact while none runs.

import ClientMemory
import Synchronization
import X86
import X86CPU

/// Statistics of a vCPU.
package struct RunStatistics: Sendable {
  /// Exits of the processor by cause, `GuestExit.Cause.count` of them.
  package var exits = InlineArray<32, UInt64>(repeating: 0)
  /// Returns of KVM_RUN with an exit for the client.
  package var userExits: UInt64 = 0
  /// How often the vCPU slept.
  package var halts: UInt64 = 0
  /// Instructions that the guest retired.
  package var instructions: UInt64 = 0

  package init() {}

  package mutating func add(_ other: RunStatistics) {
    for cause in 0..<GuestExit.Cause.count { exits[cause] &+= other.exits[cause] }
    userExits &+= other.userExits
    halts &+= other.halts
    instructions &+= other.instructions
  }

  /// Causes that occurred with their counts, most frequent first.
  package var byCause: [(cause: GuestExit.Cause, count: UInt64)] {
    GuestExit.Cause.allCases.map { ($0, exits[Int($0.rawValue)]) }
      .filter { $0.1 != 0 }
      .sorted { $0.1 > $1.1 }
  }
}

extension Hypervisor {
  /// Statistics of all vCPUs since the hypervisor was created; exact while none runs.
  package var totalStatistics: RunStatistics {
    var total = finished.withLock { $0 }
    for machine in machines {
      for vcpu in machine.virtualCPUs { total.add(vcpu.statistics) }
    }
    return total
  }

  /// Statistics of the TLBs and block caches of all physical CPUs, for people to read; exact while
  /// no vCPU runs.
  package var cacheStatistics: [(name: String, value: UInt64)] {
    var caches = CacheStatistics()
    for slot in pool.slots { caches.add(slot.cpu.cacheStatistics) }
    return [
      (name: "TLB entries made", value: caches.tlbFills),
      (name: "  address spaces flushed", value: caches.addressSpaceFlushes),
      (name: "  pages flushed", value: caches.pageFlushes),
      (name: "  wiped", value: caches.tlbWipes),
      (name: "blocks decoded", value: caches.blocksBuilt),
      (name: "  dropped, written over", value: caches.blocksDropped),
      (name: "  cache dropped, full", value: caches.blockCacheFlushes),
    ]
  }
}

extension Hypervisor {
  /// For each vCPU of the open machines: its exits by reason. Exact while none runs.
  package var virtualCPUReport: String {
    var text = ""
    for (number, machine) in machines.enumerated() {
      for vcpu in machine.virtualCPUs {
        let statistics = vcpu.statistics
        text += "martlet: machine \(number) vCPU \(vcpu.id): \(statistics.userExits) exits to the"
        text += " client, \(statistics.halts) halts\n"
        for (cause, count) in statistics.byCause { text += "  \(cause): \(count)\n" }
      }
    }
    if let codeGuard = client.codeGuard {
      text += "martlet: \(codeGuard.report(copies: PhysicalCPU.codeCopies))\n"
    }
    return text
  }
}
