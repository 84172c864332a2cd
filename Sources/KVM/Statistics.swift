// SPDX-License-Identifier: Apache-2.0

import X86

/// What a vCPU did.
package struct RunStatistics: Sendable {
  /// Exits of the processor by basic reason.
  package var exits = InlineArray<65, UInt64>(repeating: 0)
  /// Returns of KVM_RUN with an exit for the client.
  package var userExits: UInt64 = 0
  /// Times that the vCPU slept.
  package var halts: UInt64 = 0
  /// Instructions that the guest retired.
  package var instructions: UInt64 = 0

  package init() {}

  /// Reasons that occurred with their counts, most frequent first.
  package var byReason: [(reason: ExitReason, count: UInt64)] {
    (0..<65).filter { exits[$0] != 0 }
      .map { (ExitReason(rawValue: UInt16($0)), exits[$0]) }
      .sorted { $0.count > $1.count }
  }
}

extension Hypervisor {
  /// What a vCPU did so far; exact while it is not running.
  package func statistics(_ handle: Int32) -> RunStatistics? {
    guard case .virtualCPU(let vcpu, _)? = try? object(handle) else { return nil }
    return vcpu.statistics
  }

  /// What all vCPUs together did so far; exact while none is running.
  package var totalStatistics: RunStatistics {
    var total = RunStatistics()
    for case .virtualCPU(let vcpu, _) in objects {
      for reason in 0..<65 { total.exits[reason] &+= vcpu.statistics.exits[reason] }
      total.userExits &+= vcpu.statistics.userExits
      total.halts &+= vcpu.statistics.halts
      total.instructions &+= vcpu.statistics.instructions
    }
    return total
  }
}
