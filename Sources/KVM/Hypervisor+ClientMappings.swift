// SPDX-License-Identifier: Apache-2.0
//
// A client that maps, unmaps or protects memory of slots. The kernel notifies Linux's KVM (MMU
// notifiers); here the code that intercepts the client's calls does.
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
  /// Runs `change`, which changes mappings or rights of a part of this process's memory. No guest
  /// that has it runs meanwhile, and none has what was there before.
  package func changeMappings<R>(_ range: Range<UInt>, _ change: () -> R) -> R {
    let affected = openMachines.filter { $0.memories.contains { $0.uses(range) } }
    if affected.isEmpty {
      defer { client.map?.changed() }
      return change()
    }
    // A client may name more than there are addresses: what slots have of it is what counts.
    let parts = affected.flatMap(\.memories).flatMap { memory in
      memory.all.map { $0.hostRange.clamped(to: range) }
    }
    let result = Self.stop(affected, change)
    for part in parts { forget(part) }
    return result
  }

  /// Runs `change`, which changes the contents of a part of memory, or of nothing.
  package func changeContents<R>(_ range: Range<UInt>, _ change: () -> R) -> R {
    // Pages that the client brings have to be brought again.
    if !watching(range).isEmpty { return changeMappings(range, change) }
    defer { forget(client.part(of: range)) }
    return change()
  }

  /// The client brings a part of memory page by page from now on.
  package func noteUserFaults(_ range: Range<UInt>) {
    for machine in watching(range) { machine.forgetMappings() }
  }

  /// Machines whose guests want to hear of pages that they would wait for, in memory that the
  /// client brings.
  private func watching(_ range: Range<UInt>) -> [Machine] {
    guard client.userFaults.overlaps(range) else { return [] }
    return openMachines.filter { machine in
      machine.memory.watchesPresence.load(ordering: .relaxed) && machine.memory.uses(range)
    }
  }

  /// Runs `change`, which changes a file's size or takes pages out of it.
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

  /// The client closed a descriptor that it had given to KVM_IRQFD. Waits for nobody.
  package func eventsClosed() {
    for machine in openMachines { machine.interruptEvents?.clientClosed() }
  }

  /// The client wants to watch a part of memory by a userfaultfd of its own, of which there can be
  /// one.
  package func yieldProtection(of range: Range<UInt>) {
    for range in client.codeGuard?.yield(range) ?? [] { forget(range) }
  }

  /// Drops the code of slots' memory.
  private func forget(_ range: Range<UInt>) {
    guard let start = unsafe UnsafeRawPointer(bitPattern: range.lowerBound) else { return }
    unsafe PhysicalCPU.noteHostWrite(start, count: range.count)
  }

  /// Runs `change` while no guest of the machines runs, and has all their mappings made anew.
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

  /// Machines that a client can reach, by their own handles or by those of their vCPUs; always in
  /// the same order, in which their locks are taken.
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
  /// Memory of a slot has gone at an address, and maybe more: all entries are made anew, and code
  /// that came from the slot is decoded again. The caller is a vCPU outside guest code.
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
  /// An access of ours found out that memory has gone: mappings are read anew.
  func hostMemoryVanished() { host?.changed() }

  /// Whether a slot names a part of this memory.
  func uses(_ range: Range<UInt>) -> Bool {
    withSlots { $0.ordered.contains { $0.hostRange.overlaps(range) } }
  }
}
