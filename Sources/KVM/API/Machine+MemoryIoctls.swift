// SPDX-License-Identifier: Apache-2.0
//
// The ioctls that set memory slots and read and clear their dirty logs. All numbers come from the
// client: addresses and sizes are checked for overflow and limits before use.

import CHost
import ClientMemory
import Synchronization
import SystemPackage
import X86CPU

/// KVM_SET_USER_MEMORY_REGION, its successor, and the dirty log.
extension Machine {
  /// As Linux: 15 bits minus its internal slots.
  static let maxMemorySlots: UInt32 = 32764
  /// A slot number's bits 31:16 select its address space: 0, or that of system management mode.
  static let addressSpaces: UInt32 = 2

  /// The address space of a slot; nil for invalid slot numbers.
  func memory(of slot: UInt32) -> MachineMemory? {
    guard slot & 0xFFFF < Self.maxMemorySlots else { return nil }
    return switch slot >> 16 {
    case 0: memory
    case 1: managementMemory
    default: nil
    }
  }

  static let memoryIoctls: [(UInt32, Method)] = [
    (
      CKVM_SET_USER_MEMORY_REGION,
      { (machine, argument) throws(Errno) in
        let region: kvm_userspace_memory_region = try argument.read()
        try machine.configuration.withLock { (configuration) throws(Errno) in
          try machine.setMemory(region, configuration)
        }
        return 0
      }
    ),
    // The same in a longer struct. Its additional part is for KVM_MEM_GUEST_MEMFD (memory that the
    // client cannot map), which is unsupported: its flag is rejected as unknown.
    (
      CKVM_SET_USER_MEMORY_REGION2,
      { (machine, argument) throws(Errno) in
        let given: kvm_userspace_memory_region2 = try argument.read()
        let region = kvm_userspace_memory_region(
          slot: given.slot, flags: given.flags, guest_phys_addr: given.guest_phys_addr,
          memory_size: given.memory_size, userspace_addr: given.userspace_addr)
        try machine.configuration.withLock { (configuration) throws(Errno) in
          try machine.setMemory(region, configuration)
        }
        return 0
      }
    ),
    (
      CKVM_GET_DIRTY_LOG,
      { (machine, argument) throws(Errno) in
        let log: kvm_dirty_log = try unsafe argument.read()
        try machine.configuration.withLock { (configuration) throws(Errno) in
          try unsafe machine.getDirtyLog(log, configuration)
        }
        return 0
      }
    ),
    (
      CKVM_CLEAR_DIRTY_LOG,
      { (machine, argument) throws(Errno) in
        let log: kvm_clear_dirty_log = try unsafe argument.read()
        try machine.configuration.withLock { (configuration) throws(Errno) in
          try unsafe machine.clearDirtyLog(log, configuration)
        }
        return 0
      }
    ),
  ]

  private static let pageMask: UInt64 = 4095
  /// The reach of nested page tables with four levels.
  private static let guestLimit: UInt64 = 1 << 48
  /// No address of this process is beyond this.
  private static let hostLimit: UInt64 = 1 << 47

  private func setMemory(
    _ region: kvm_userspace_memory_region, _ configuration: Configuration
  ) throws(Errno) {
    var slot = MemorySlot(
      id: region.slot, base: region.guest_phys_addr, size: region.memory_size,
      host: region.userspace_addr, flags: region.flags)
    try Self.check(slot)
    guard let memory = memory(of: slot.id) else { throw .invalidArgument }
    guard let old = memory.find(slot.id) else {
      if slot.size == 0 { throw .invalidArgument }
      return try create(&slot, configuration, in: memory)
    }
    if slot.size == 0 {
      try withGuestsStopped { () throws(Errno) in memory.remove(slot.id) }
      release(old)
      return
    }
    guard slot.size == old.size, slot.host == old.host, slot.isReadOnly == old.isReadOnly else {
      throw .invalidArgument
    }
    if slot.base == old.base, slot.flags == old.flags { return }
    if slot.base != old.base, memory.isTaken(slot) { throw .fileExists }
    slot.log = slot.isLogged && old.isLogged ? old.log : try Self.makeLog(slot, configuration)
    try withGuestsStopped { () throws(Errno) in memory.remove(slot.id, replacement: slot) }
  }

  private func create(
    _ slot: inout MemorySlot, _ configuration: Configuration, in memory: MachineMemory
  ) throws(Errno) {
    if memory.isTaken(slot) { throw .fileExists }
    slot.log = try Self.makeLog(slot, configuration)
    // Drops code decoded from this memory for earlier uses.
    Self.forgetCode(slot)
    hypervisor.client.addSlot(slot.hostRange)
    memory.add(slot)
  }

  /// Removes a slot's memory from the guest.
  func release(_ slot: MemorySlot) {
    Self.forgetCode(slot)
    hypervisor.client.removeSlot(slot.hostRange)
  }

  private static func makeLog(
    _ slot: MemorySlot, _ configuration: Configuration
  ) throws(Errno) -> DirtyBitmap? {
    guard slot.isLogged else { return nil }
    let full = configuration.dirtyLogOptions & UInt64(KVM_DIRTY_LOG_INITIALLY_SET) != 0
    return try DirtyBitmap(pages: slot.pageCount, full: full)
  }

  private static func forgetCode(_ slot: MemorySlot) {
    guard let start = unsafe UnsafeRawPointer(bitPattern: UInt(slot.host)) else { return }
    unsafe PhysicalCPU.noteHostWrite(start, count: Int(slot.size))
  }

  private static func check(_ slot: MemorySlot) throws(Errno) {
    let flags = UInt32(KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES)
    guard slot.flags & ~flags == 0, slot.size & pageMask == 0,
      slot.size >> 12 < 1 << 31, slot.base & pageMask == 0,
      slot.host & pageMask == 0,
      slot.base < guestLimit, slot.base &+ slot.size <= guestLimit, slot.host < hostLimit,
      slot.host &+ slot.size <= hostLimit,
      slot.host != 0 || slot.size == 0
    else { throw .invalidArgument }
  }

  // MARK: Dirty log

  /// The slot of a dirty-log request.
  ///
  /// - Throws: EINVAL for an invalid number, ENOENT if the slot has no log.
  private func logged(
    _ id: UInt32, _ configuration: Configuration
  ) throws(Errno) -> (memory: MachineMemory, slot: MemorySlot, log: DirtyBitmap) {
    if configuration.dirtyRingEntries != 0 { throw .noSuchAddressOrDevice }
    guard let memory = memory(of: id) else { throw .invalidArgument }
    guard let slot = memory.find(id), let log = slot.log else { throw .noSuchFileOrDirectory }
    return (memory, slot, log)
  }

  /// Copies the log out and, unless the client cleans pages itself, marks all of them clean.
  private func getDirtyLog(
    _ request: kvm_dirty_log, _ configuration: Configuration
  ) throws(Errno) {
    let (memory, slot, log) = unsafe try logged(request.slot, configuration)
    let buffer = unsafe Argument(value: UInt(bitPattern: request.dirty_bitmap))
    var words = try DirtyWords(count: log.wordCount)
    func copy(_ words: inout DirtyWords) throws(Errno) {
      memory.copyLog(of: slot, to: &words)
      try words.withBytes(buffer.write)
    }
    try copy(&words)
    let isManual =
      configuration.dirtyLogOptions & UInt64(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0
    if isManual || (0..<words.count).allSatisfy({ words[$0] == 0 }) { return }
    try withGuestsStopped { () throws(Errno) in
      try copy(&words)
      for word in 0..<words.count {
        let mask = words[word]
        if mask != 0 { memory.clean(slot, first: word * 64, mask: mask) }
      }
    }
  }

  private func clearDirtyLog(
    _ request: kvm_clear_dirty_log, _ configuration: Configuration
  ) throws(Errno) {
    guard unsafe request.first_page & 63 == 0 else { throw .invalidArgument }
    let (memory, slot, log) = unsafe try logged(request.slot, configuration)
    let total = UInt64(log.pageCount)
    let count = unsafe UInt64(request.num_pages)
    guard unsafe request.first_page <= total, unsafe count <= total &- request.first_page,
      unsafe count & 63 == 0 || count == total &- request.first_page
    else { throw .invalidArgument }
    let bitmap = unsafe Argument(value: UInt(bitPattern: request.dirty_bitmap))
    var masks = try DirtyWords(count: (Int(count) + 63) / 64)
    try masks.withMutableBytes(bitmap.read)
    let first = unsafe Int(request.first_page)
    try withGuestsStopped { () throws(Errno) in
      for word in 0..<masks.count {
        let mask = masks[word]
        if mask != 0 { memory.clean(slot, first: first + word * 64, mask: mask) }
      }
    }
  }
}
