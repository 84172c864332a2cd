// SPDX-License-Identifier: Apache-2.0
//
// The client's changes of its memory: mmap, munmap, mremap, mprotect and similar calls. Each makes
// the system call; if it concerns a slot's memory, it goes through the hypervisor, like the
// kernel's notification of its KVM.
//
// An allocator may call these at any time, from within anything. So a call that concerns no slot
// takes no lock, allocates nothing and looks up no function.

import CHost
import ClientMemory
import Glibc
import Host
import KVM

@_cdecl("mmap") public func exportedMmap(
  _ address: UInt, _ length: UInt, _ protection: Int32, _ flags: Int32, _ file: Int32, _ offset: Int
) -> Int {
  if DirtyRingMapping.isRefused(file, length, protection, flags, offset) {
    errno = EINVAL
    return -1
  }
  // Other mappings are made in free space.
  let replaces = flags & MAP_FIXED != 0
  let place = MemoryCalls.map(replaces ? address : 0, replaces ? length : 0) {
    chost_syscall(
      Int(SYS_mmap), Int(bitPattern: address), Int(bitPattern: length), Int(protection), Int(flags),
      Int(file), offset)
  }
  if file >= 0, place != -1 {
    CoalescedRingMapping.show(
      in: place, length, file: file, offset: offset, protection: protection, flags: flags)
  }
  return place
}

@_cdecl("mmap64") public func exportedMmap64(
  _ address: UInt, _ length: UInt, _ protection: Int32, _ flags: Int32, _ file: Int32, _ offset: Int
) -> Int {
  exportedMmap(address, length, protection, flags, file, offset)
}

@_cdecl("munmap") public func exportedMunmap(_ address: UInt, _ length: UInt) -> Int32 {
  Int32(
    truncatingIfNeeded: MemoryCalls.map(address, length) {
      chost_syscall(
        Int(SYS_munmap), Int(bitPattern: address), Int(bitPattern: length), 0, 0, 0, 0)
    })
}

@_cdecl("mprotect") public func exportedMprotect(
  _ address: UInt, _ length: UInt, _ protection: Int32
) -> Int32 {
  Int32(
    truncatingIfNeeded: MemoryCalls.map(address, length) {
      chost_syscall(
        Int(SYS_mprotect), Int(bitPattern: address), Int(bitPattern: length), Int(protection), 0, 0,
        0)
    })
}

@_cdecl("pkey_mprotect") public func exportedPkeyMprotect(
  _ address: UInt, _ length: UInt, _ protection: Int32, _ key: Int32
) -> Int32 {
  Int32(
    truncatingIfNeeded: MemoryCalls.map(address, length) {
      chost_syscall(
        Int(SYS_pkey_mprotect), Int(bitPattern: address), Int(bitPattern: length),
        Int(protection), Int(key), 0, 0)
    })
}

/// The fifth argument exists with MREMAP_FIXED and MREMAP_DONTUNMAP.
@_cdecl("mremap") public func exportedMremap(
  _ old: UInt, _ oldLength: UInt, _ length: UInt, _ flags: Int32, _ new: UInt
) -> Int {
  func call() -> Int {
    chost_syscall(
      Int(SYS_mremap), Int(bitPattern: old), Int(bitPattern: oldLength), Int(bitPattern: length),
      Int(flags), Int(bitPattern: new), 0)
  }
  let replaces = flags & 2 != 0  // MREMAP_FIXED
  return MemoryCalls.map(old, oldLength) {
    replaces ? MemoryCalls.map(new, length, call) : call()
  }
}

@_cdecl("shmat") public func exportedShmat(
  _ segment: Int32, _ address: UInt, _ flags: Int32
) -> Int {
  func call() -> Int {
    chost_syscall(Int(SYS_shmat), Int(segment), Int(bitPattern: address), Int(flags), 0, 0, 0)
  }
  // Only with SHM_REMAP does a segment replace mappings.
  guard flags & SharedMemory.remap != 0 else { return MemoryCalls.map(0, 0, call) }
  let start = flags & SharedMemory.round != 0 ? address & ~4095 : address
  return MemoryCalls.map(start, SharedMemory.size(of: segment), call)
}

@_cdecl("shmdt") public func exportedShmdt(_ address: UInt) -> Int32 {
  Int32(
    truncatingIfNeeded: MemoryCalls.map(address, SharedMemory.size(at: address)) {
      chost_syscall(Int(SYS_shmdt), Int(bitPattern: address), 0, 0, 0, 0, 0)
    })
}

/// Segments of shmget(2).
enum SharedMemory {
  static let round: Int32 = 0o20000  // SHM_RND
  static let remap: Int32 = 0o40000  // SHM_REMAP

  static func size(of segment: Int32) -> UInt {
    var status = shmid_ds()
    return unsafe shmctl(segment, IPC_STAT, &status) == 0 ? UInt(status.shm_segsz) : 0
  }

  /// The size of the segment attached at an address. Irrelevant if it contains no slot's memory.
  static func size(at address: UInt) -> UInt {
    guard let memory = Client.memory, memory.mayConcern(address, 1) else { return 1 }
    return memory.map?.mappingSize(at: address) ?? 1
  }
}

@_cdecl("madvise") public func exportedMadvise(
  _ address: UInt, _ length: UInt, _ advice: Int32
) -> Int32 {
  func call() -> Int {
    chost_syscall(
      Int(SYS_madvise), Int(bitPattern: address), Int(bitPattern: length), Int(advice), 0, 0, 0)
  }
  switch advice {
  case MemoryCalls.guardInstall:
    return Int32(truncatingIfNeeded: MemoryCalls.map(address, length, call))
  case MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MemoryCalls.dontneedLocked:
    return Int32(truncatingIfNeeded: MemoryCalls.empty(address, length, call))
  default: return Int32(truncatingIfNeeded: call())
  }
}

@_cdecl("ftruncate") public func exportedFtruncate(_ file: Int32, _ size: Int) -> Int32 {
  Int32(
    truncatingIfNeeded: MemoryCalls.changeFile(file) {
      chost_syscall(Int(SYS_ftruncate), Int(file), size, 0, 0, 0, 0)
    })
}

@_cdecl("ftruncate64") public func exportedFtruncate64(_ file: Int32, _ size: Int) -> Int32 {
  exportedFtruncate(file, size)
}

@_cdecl("fallocate") public func exportedFallocate(
  _ file: Int32, _ mode: Int32, _ offset: Int, _ length: Int
) -> Int32 {
  func call() -> Int {
    chost_syscall(Int(SYS_fallocate), Int(file), Int(mode), offset, length, 0, 0)
  }
  // Without a mode (or with one that keeps the size) no existing contents change.
  return Int32(truncatingIfNeeded: mode > 1 ? MemoryCalls.changeFile(file, call) : call())
}

@_cdecl("fallocate64") public func exportedFallocate64(
  _ file: Int32, _ mode: Int32, _ offset: Int, _ length: Int
) -> Int32 {
  exportedFallocate(file, mode, offset, length)
}

/// Which memory changes concern the hypervisor.
enum MemoryCalls {
  static let dontneedLocked: Int32 = 24  // MADV_DONTNEED_LOCKED
  static let guardInstall: Int32 = 102  // MADV_GUARD_INSTALL

  /// The hypervisor if the range may contain a slot's memory.
  private static func concerned(_ address: UInt, _ length: UInt) -> Hypervisor? {
    guard length != 0, Client.memory?.mayConcern(address, length) == true else { return nil }
    return Library.existing?.hypervisor
  }

  private static func range(_ address: UInt, _ length: UInt) -> Range<UInt> {
    let start = address & ~4095
    let end = (address &+ length &+ 4095) & ~4095
    return start..<max(start, end)
  }

  /// Calls that map, unmap or protect.
  static func map(_ address: UInt, _ length: UInt, _ call: () -> Int) -> Int {
    guard let hypervisor = concerned(address, length) else {
      let result = call()
      Client.memory?.changed()
      return result
    }
    var error = errno
    let result = hypervisor.changeMappings(range(address, length)) { noting(&error, call) }
    errno = error
    return result
  }

  /// Calls that discard contents.
  static func empty(_ address: UInt, _ length: UInt, _ call: () -> Int) -> Int {
    guard let hypervisor = concerned(address, length) else { return call() }
    var error = errno
    let result = hypervisor.changeContents(range(address, length)) { noting(&error, call) }
    errno = error
    return result
  }

  static func changeFile(_ file: Int32, _ call: () -> Int) -> Int {
    guard Client.memory?.hasSlots == true, let hypervisor = Library.existing?.hypervisor else {
      return call()
    }
    var error = errno
    let result = hypervisor.changeFile(file) { noting(&error, call) }
    errno = error
    return result
  }

  /// Restores the call's errno at the end.
  private static func noting(_ error: inout Int32, _ call: () -> Int) -> Int {
    let result = call()
    error = errno
    return result
  }
}
