// SPDX-License-Identifier: Apache-2.0
//
// The typed calls of a virtual machine. One instance owns the descriptor of one machine.

import CHost
import SystemPackage

/// A virtual machine: memory slots, interrupt chips, virtual CPUs.
package final class MachineHandle: Sendable {
  package let transport: any KVMTransport
  private let handle: Int32
  private let runSize: Int

  init(transport: any KVMTransport, handle: Int32, runSize: Int) {
    self.transport = transport
    self.handle = handle
    self.runSize = runSize
  }

  deinit { transport.close(handle) }

  /// Calls an ioctl that takes a struct.
  func call<Argument>(
    _ request: UInt32, _ argument: inout Argument
  ) throws(Errno) {
    try unsafe withUnsafeMutablePointer(to: &argument) { (pointer) throws(Errno) in
      _ = try transport.ioctl(handle, request, UInt(bitPattern: pointer))
    }
  }

  /// The answer to KVM_CHECK_EXTENSION on this machine.
  package func capability(_ number: Int32) -> Int32 {
    (try? transport.ioctl(handle, CKVM_CHECK_EXTENSION, UInt(number))) ?? 0
  }

  /// A flag of `setMemory`: the guest's writes exit as device accesses.
  package static let readOnlyMemory = UInt32(KVM_MEM_READONLY)

  /// Maps host memory into the guest's physical address space; size 0 removes the slot.
  ///
  /// - Parameters:
  ///   - guestAddress, size: multiples of 4096.
  ///   - hostAddress: must stay mapped as long as the machine lives.
  package func setMemory(
    slot: UInt32, guestAddress: UInt64, size: UInt64, hostAddress: UnsafeMutableRawPointer,
    flags: UInt32 = 0
  ) throws(Errno) {
    var region = kvm_userspace_memory_region(
      slot: slot, flags: flags, guest_phys_addr: guestAddress, memory_size: size,
      userspace_addr: UInt64(UInt(bitPattern: hostAddress)))
    try call(CKVM_SET_USER_MEMORY_REGION, &region)
  }

  /// Sets the three pages that Intel's KVM needs for real mode, below 4 GiB and outside memory.
  package func setTSSAddress(_ address: UInt64) throws(Errno) {
    _ = try transport.ioctl(handle, CKVM_SET_TSS_ADDR, UInt(address))
  }

  /// Sets the page that Intel's KVM needs for its identity map.
  package func setIdentityMapAddress(_ address: UInt64) throws(Errno) {
    var address = address
    try call(CKVM_SET_IDENTITY_MAP_ADDR, &address)
  }

  /// Creates the in-kernel 8259 pair, IOAPIC and local APICs. Call it before creating virtual CPUs.
  package func createInterruptChips() throws(Errno) {
    _ = try transport.ioctl(handle, CKVM_CREATE_IRQCHIP, 0)
  }

  /// Creates the in-kernel 8254, with a dummy speaker port 0x61.
  package func createTimer() throws(Errno) {
    var config = kvm_pit_config()
    config.flags = UInt32(KVM_PIT_SPEAKER_DUMMY)
    try call(CKVM_CREATE_PIT2, &config)
  }

  /// Sets an interrupt line of the chips (by its GSI) to a level.
  package func setInterruptLine(_ line: UInt32, _ level: Bool) throws(Errno) {
    var setting = kvm_irq_level()
    setting.irq = line
    setting.level = level ? 1 : 0
    try call(CKVM_IRQ_LINE, &setting)
  }

  /// Sends a message-signalled interrupt.
  package func signalMessage(address: UInt64, data: UInt32) throws(Errno) {
    var message = kvm_msi()
    message.address_lo = UInt32(truncatingIfNeeded: address)
    message.address_hi = UInt32(truncatingIfNeeded: address >> 32)
    message.data = data
    try call(CKVM_SIGNAL_MSI, &message)
  }

  /// Routes GSIs to messages, one each, and removes all other routes.
  package func setMessageRoutes(
    _ routes: [(gsi: UInt32, address: UInt64, data: UInt32)]
  ) throws(Errno) {
    let entries = routes.map { route in
      var entry = kvm_irq_routing_entry()
      entry.gsi = route.gsi
      entry.type = UInt32(KVM_IRQ_ROUTING_MSI)
      unsafe entry.u.msi.address_lo = UInt32(truncatingIfNeeded: route.address)
      unsafe entry.u.msi.address_hi = UInt32(truncatingIfNeeded: route.address >> 32)
      unsafe entry.u.msi.data = route.data
      return entry
    }
    var list = EntryList(entries)
    _ = try list.call { (argument) throws(Errno) in
      try transport.ioctl(handle, CKVM_SET_GSI_ROUTING, argument)
    }
  }

  /// Connects an eventfd to a GSI (an edge for each signal).
  package func addInterruptEvent(_ descriptor: Int32, gsi: UInt32) throws(Errno) {
    var event = kvm_irqfd()
    event.fd = UInt32(bitPattern: descriptor)
    event.gsi = gsi
    try call(CKVM_IRQFD, &event)
  }

  /// Creates a virtual CPU; its number is its APIC identifier.
  package func createVirtualCPU(_ number: UInt32) throws(Errno) -> VirtualCPUHandle {
    let cpu = try transport.ioctl(handle, CKVM_CREATE_VCPU, UInt(number))
    return try VirtualCPUHandle(machine: self, handle: cpu, runSize: runSize)
  }
}
