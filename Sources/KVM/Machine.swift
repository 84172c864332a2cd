// SPDX-License-Identifier: Apache-2.0
//
// A virtual machine: memory slots with their nested tables, vCPUs, interrupt chips, clock.

import CHost
import Host
import InterruptChips
import Synchronization
import SystemPackage
import X86
import X86CPU

#if canImport(Glibc)
  import Glibc
#endif

/// The vCPUs of a machine in order of creation, and the addresses of their local APICs. A separate
/// object for users that must not keep the machine alive: the timer thread and the interrupt chips.
final class VirtualCPUList: Sendable {
  struct List: Sendable {
    var all: [VirtualCPU] = []
    var identities: [LocalAPICIdentity] = []
  }

  let list = Mutex(List())
  var all: [VirtualCPU] { list.withLock { $0.all } }
}

/// Sendable: what changes is in mutexes, or guarded by the lock of ioctls.
final class Machine: @unchecked Sendable {
  let hypervisor: Hypervisor
  let memory: MachineMemory
  /// The memory of vCPUs in system management mode: address space 1.
  let managementMemory: MachineMemory
  /// By address space.
  var memories: [MachineMemory] { [memory, managementMemory] }
  let clock: MachineClock
  let cpus = VirtualCPUList()
  let timers: TimerThread
  let writeSinks = WriteSinks()
  /// Serialises the ioctls that change the machine.
  let configuration = Mutex(Configuration())
  let options = Mutex(MachineOptions())
  /// Created by the first KVM_GET_STATS_FD, under the lock of `configuration`.
  var statisticsFile: StatisticsFile?
  /// Set once, by KVM_CREATE_IRQCHIP, before any vCPU exists.
  private(set) var interrupts: InterruptController?
  /// Created for the first irqfd.
  private(set) var interruptEvents: InterruptEvents?

  /// State that ioctls configure.
  struct Configuration: Sendable {
    var bootCPU: UInt32 = 0
    var tssAddress: UInt64?
    var identityMapAddress: UInt64 = 0xFFFB_C000
    /// The limit of KVM_CAP_MAX_VCPU_ID, once set.
    var maxCPUID: UInt32?
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2's options.
    var dirtyLogOptions: UInt64 = 0
    /// Entries of each vCPU's dirty ring; 0 without.
    var dirtyRingEntries: UInt32 = 0
  }

  /// Linux's limits: the number of vCPUs, and the bound of their identifiers.
  static let maxVirtualCPUs: UInt32 = 1024
  static let maxCPUIDs: UInt32 = 4096

  init(hypervisor: Hypervisor) throws(Errno) {
    self.hypervisor = hypervisor
    let format: NestedTableFormat = hypervisor.silicon == .amd ? .ordinary : .extended
    memory = try MachineMemory(client: hypervisor.client, format: format)
    managementMemory = try MachineMemory(client: hypervisor.client, format: format)
    clock = MachineClock()
    timers = TimerThread(cpus: cpus)
  }

  deinit {
    // While the list here retains the vCPUs: a thread that reports a page may retain a vCPU
    // briefly, and must not be the one that frees it.
    for vcpu in cpus.all { vcpu.paravirtual.faults.clear() }
    interruptEvents?.stop()
    if interrupts != nil { timers.stop() }
    for vcpu in cpus.all {
      hypervisor.pool.evict(vcpu)
      hypervisor.finished.withLock { $0.add(vcpu.statistics) }
    }
    if hypervisor.watchesCode {
      for slot in memories.flatMap(\.all) { release(slot) }
    }
    // Another machine's memory may get the same addresses.
    hypervisor.mappings.add(1, ordering: .sequentiallyConsistent)
  }

  /// The current vCPUs.
  var virtualCPUs: [VirtualCPU] { cpus.all }

  /// Under the lock of `configuration`.
  func makeInterruptEvents(_ controller: InterruptController) throws(Errno) -> InterruptEvents {
    if let interruptEvents { return interruptEvents }
    let events = try InterruptEvents(controller, comparesCode: hypervisor.watchesCode)
    interruptEvents = events
    return events
  }

  /// - Parameter splitRoutes: pins of the client's I/O APIC; nil if all chips are ours.
  func installInterruptController(splitRoutes: UInt32? = nil) throws(Errno) {
    let controller = InterruptController(cpus: cpus, timers: timers, splitRoutes: splitRoutes)
    try timers.start(controller)
    interrupts = controller
  }
}
