// SPDX-License-Identifier: Apache-2.0
//
// Clients that map, unmap or protect memory of slots. The kernel notifies Linux's KVM by MMU
// notifiers; here the code that intercepts the client's calls does.
//
//     let result = hypervisor.changeMappings(range) { munmap(...) }

import ClientMemory
import Host
import Synchronization
import SystemPackage
import X86CPU

#if canImport(Glibc)
  import Glibc
#endif

extension Hypervisor {
  /// Runs `change`, which changes mappings or rights of a range of this process's memory. Meanwhile
  /// no guest with that memory runs, and afterwards none has stale mappings of it.
  package func changeMappings<R>(_ range: Range<UInt>, _ change: () -> R) -> R {
    let affected = openMachines.filter { $0.memories.contains { $0.uses(range) } }
    if affected.isEmpty {
      defer { client.map?.changed() }
      return change()
    }
    // The client's range may exceed the address space: use only what slots have of it.
    let parts = affected.flatMap(\.memories).flatMap { memory in
      memory.all.map { $0.hostRange.clamped(to: range) }
    }
    let result = Self.stop(affected, change)
    for part in parts { forget(part) }
    return result
  }

  /// Runs `change`, which changes the contents of a range of memory, or of none.
  package func changeContents<R>(_ range: Range<UInt>, _ change: () -> R) -> R {
    // Pages that the client brings in must be brought in again.
    if !watching(range).isEmpty { return changeMappings(range, change) }
    defer { forget(client.part(of: range)) }
    return change()
  }

  /// The client brings in a range of memory page by page from now on.
  package func noteUserFaults(_ range: Range<UInt>) {
    for machine in watching(range) { machine.forgetMappings() }
  }

  /// Machines whose guests use asynchronous page faults, and have memory that the client brings in.
  private func watching(_ range: Range<UInt>) -> [Machine] {
    guard client.userFaults.overlaps(range) else { return [] }
    return openMachines.filter { machine in
      machine.memory.watchesPresence.load(ordering: .relaxed) && machine.memory.uses(range)
    }
  }

  /// Runs `change`, which changes a file's size or punches holes in it.
  package func changeFile<R>(_ descriptor: Int32, _ change: () -> R) -> R {
    let machines = openMachines
    let ranges = machines.flatMap(\.memories).flatMap { $0.all.map(\.hostRange) }
    guard let file = HostMemoryMap.File(descriptor),
      let map = client.map, map.maps(file, in: ranges)
    else {
      defer { client.map?.changed() }
      return change()
    }
    let result = Self.stop(machines, change)
    for range in ranges { forget(range) }
    return result
  }

  /// The client closed a descriptor that it had given to KVM_IRQFD. Does not block.
  package func eventsClosed() {
    for machine in openMachines { machine.interruptEvents?.clientClosed() }
  }

  /// The client wants to watch a range of memory by a userfaultfd of its own; the kernel allows
  /// only one.
  package func yieldProtection(of range: Range<UInt>) {
    for range in client.codeGuard?.yield(range) ?? [] { forget(range) }
  }

  /// Drops code decoded from slots' memory.
  private func forget(_ range: Range<UInt>) {
    guard let start = unsafe UnsafeRawPointer(bitPattern: range.lowerBound) else { return }
    unsafe PhysicalCPU.noteHostWrite(start, count: range.count)
  }

  /// Runs `change` while no guest of the machines runs, and has all their mappings rebuilt.
  private static func stop<R>(_ machines: [Machine], _ change: () -> R) -> R {
    let deadline = HostClock.monotonic() &+ Machine.patience
    func stopRest(_ rest: ArraySlice<Machine>) -> R {
      guard let machine = rest.first else { return changeRest(machines.flatMap(\.memories)[...]) }
      return machine.withGuestsStopped(until: deadline) { stopRest(rest.dropFirst()) }
    }
    func changeRest(_ rest: ArraySlice<MachineMemory>) -> R {
      guard let memory = rest.first else { return change() }
      return memory.withMappingsChanging { changeRest(rest.dropFirst()) }
    }
    return stopRest(machines[...])
  }

  /// Machines with open handles, of their own or of their vCPUs; always in the same order, which is
  /// the lock order.
  private var openMachines: [Machine] {
    var all: [Machine] = []
    for object in openObjects {
      switch object {
      case .machine(let machine), .virtualCPU(_, let machine):
        if !all.contains(where: { $0 === machine }) { all.append(machine) }
      case .system: break
      }
    }
    return all.sorted { ObjectIdentifier($0) < ObjectIdentifier($1) }
  }
}

extension Machine {
  /// Memory of a slot has vanished at an address, and maybe elsewhere: drops all entries, and all
  /// code decoded from the slot. The caller is a vCPU outside guest code.
  func memoryVanished(_ address: UInt) {
    let deadline = HostClock.monotonic() &+ Self.patience
    withGuestsStopped(until: deadline) {
      for memory in memories { memory.withMappingsChanging {} }
    }
    for range in memories.flatMap({ $0.all.map(\.hostRange) }) where range.contains(address) {
      guard let start = unsafe UnsafeRawPointer(bitPattern: range.lowerBound) else { continue }
      unsafe PhysicalCPU.noteHostWrite(start, count: range.count)
    }
  }
}

extension MachineMemory {
  /// An access of the hypervisor found that memory has vanished: read mappings again.
  func hostMemoryVanished() { host?.changed() }

  /// Whether a slot uses a part of this memory.
  func uses(_ range: Range<UInt>) -> Bool {
    withSlots { $0.ordered.contains { $0.hostRange.overlaps(range) } }
  }
}
