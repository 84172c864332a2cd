// SPDX-License-Identifier: Apache-2.0

import CHost
import Synchronization
import SystemPackage
import X86CPU

/// KVM_SET_USER_MEMORY_REGION.
extension Machine {
  /// As Linux: 15 bits less the slots that it keeps for itself.
  static let maxMemorySlots: UInt32 = 32764

  static let memoryIoctls: [(UInt32, Method)] = [
    (
      CKVM_SET_USER_MEMORY_REGION,
      { (machine, argument) throws(Errno) in
        let region: kvm_userspace_memory_region = try argument.read()
        try machine.ioctlLock.withLock { (_) throws(Errno) in try machine.setMemory(region) }
        return 0
      }
    )
  ]

  private static let pageMask: UInt64 = 4095
  /// Beyond this no address of a 64-bit guest or of this process can be.
  private static let addressLimit: UInt64 = 1 << 47

  private func setMemory(_ region: kvm_userspace_memory_region) throws(Errno) {
    let slot = MemorySlot(
      id: region.slot, base: region.guest_phys_addr, size: region.memory_size,
      host: region.userspace_addr, flags: region.flags)
    try Self.check(slot)
    guard let old = memory.find(slot.id) else {
      if slot.size == 0 { throw .invalidArgument }
      return try create(slot)
    }
    if slot.size == 0 {
      try withGuestsStopped { () throws(Errno) in memory.remove(slot.id) }
      Self.forgetCode(old)
      return
    }
    guard slot.size == old.size, slot.host == old.host, slot.isReadOnly == old.isReadOnly else {
      throw .invalidArgument
    }
    if slot == old { return }
    if slot.base != old.base, memory.isTaken(slot) { throw .fileExists }
    try withGuestsStopped { () throws(Errno) in memory.remove(slot.id, replacement: slot) }
  }

  private func create(_ slot: MemorySlot) throws(Errno) {
    if memory.isTaken(slot) { throw .fileExists }
    // What was decoded of this memory when it was something else is not this machine's code.
    Self.forgetCode(slot)
    memory.add(slot)
  }

  private static func forgetCode(_ slot: MemorySlot) {
    guard let start = UnsafeRawPointer(bitPattern: UInt(slot.host)) else { return }
    PhysicalCPU.noteHostWrite(start, count: Int(slot.size))
  }

  private static func check(_ slot: MemorySlot) throws(Errno) {
    let flags = UInt32(KVM_MEM_READONLY)
    guard slot.flags & ~flags == 0, slot.size & pageMask == 0, slot.base & pageMask == 0,
      slot.host & pageMask == 0, slot.id < maxMemorySlots,
      slot.base < addressLimit, slot.size <= addressLimit, slot.host < addressLimit,
      slot.base &+ slot.size <= addressLimit, slot.host &+ slot.size <= addressLimit,
      slot.host != 0 || slot.size == 0
    else { throw .invalidArgument }
  }
}
