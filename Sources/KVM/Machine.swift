// SPDX-License-Identifier: Apache-2.0
//
// A virtual machine: memory slots and the nested tables that they become, vCPUs, interrupt chips,
// clock.

import CHost
import Host
import Synchronization
import SystemPackage
import X86
import InterruptChips
import X86CPU

#if canImport(Glibc)
  import Glibc
#endif

final class Machine: @unchecked Sendable {
  let hypervisor: Hypervisor
  let memory: MachineMemory
  let clock: MachineClock
  /// The vCPUs in order of creation and how their local APICs are addressed.
  let cpus = Mutex(CPUList())
  private(set) lazy var timers = TimerThread(machine: self)
  /// Serialises the ioctls that change the machine.
  let ioctlLock = Mutex(Configuration())
  /// Set once, by KVM_CREATE_IRQCHIP, before any vCPU exists.
  private(set) var interrupts: InterruptController?

  struct CPUList: Sendable {
    var all: [VirtualCPU] = []
    var identities: [LocalAPICIdentity] = []
  }

  /// What ioctls configure.
  struct Configuration: Sendable {
    var bootCPU: UInt32 = 0
    var tssAddress: UInt64?
    var identityMapAddress: UInt64 = 0xFFFB_C000
    var maxCPUID: UInt32 = Machine.maxVirtualCPUs
  }

  /// As many as have eight-bit APIC identifiers.
  static let maxVirtualCPUs: UInt32 = 255

  init(hypervisor: Hypervisor) throws(Errno) {
    self.hypervisor = hypervisor
    memory = try MachineMemory()
    clock = MachineClock()
  }

  deinit {
    if interrupts != nil { timers.stop() }
    for vcpu in cpus.withLock({ $0.all }) {
      hypervisor.pool.evict(vcpu)
      hypervisor.finished.withLock { $0.add(vcpu.statistics) }
    }
    // Another machine's memory may come to lie where this one's was.
    hypervisor.mappings.add(1, ordering: .sequentiallyConsistent)
  }

  /// The vCPUs now.
  var virtualCPUs: [VirtualCPU] { cpus.withLock { $0.all } }

  func installInterruptController() throws(Errno) {
    interrupts = InterruptController(machine: self)
    try timers.start()
  }

  /// Runs `change` while no vCPU is in guest code, then has every physical CPU drop its cached
  /// mappings before it enters a guest again.
  func withGuestsStopped<R>(_ change: () throws(Errno) -> R) throws(Errno) -> R {
    memory.gate.add(1, ordering: .sequentiallyConsistent)
    let all = virtualCPUs
    for vcpu in all { vcpu.request(.gate) }
    for vcpu in all { while vcpu.isInGuest { sched_yield() } }
    defer {
      hypervisor.mappings.add(1, ordering: .sequentiallyConsistent)
      memory.gate.subtract(1, ordering: .sequentiallyConsistent)
      for vcpu in all { vcpu.gateParker.unpark() }
    }
    return try change()
  }
}
