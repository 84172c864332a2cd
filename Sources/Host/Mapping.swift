// SPDX-License-Identifier: Apache-2.0
//
// Memory that this process maps: guest memory, code memory, the kvm_run page. A `Mapping` is the
// one owner of its range and unmaps it at the end of its life. Pointers into it are valid as long
// as the owner lives, and keeping to that is the duty of whoever takes one.
//
//     let memory = try Mapping(anonymous: 512 << 20, hugePages: true)
//     memory.address.storeBytes(of: 1, as: UInt32.self)

import CHost
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// What a mapping's pages may be used for.
package struct MemoryProtection: OptionSet, Sendable {
  package let rawValue: Int32
  package init(rawValue: Int32) { self.rawValue = rawValue }

  package static let read = Self(rawValue: PROT_READ)
  package static let write = Self(rawValue: PROT_WRITE)
  package static let execute = Self(rawValue: PROT_EXEC)
}

/// The owner of a range of mapped memory.
/// Sendable: it owns an address range and does not access it.
@safe package struct Mapping: ~Copyable, @unchecked Sendable {
  /// The first byte.
  package let address: UnsafeMutableRawPointer
  /// Bytes, a multiple of the page size.
  package let size: Int

  /// What is unmapped in the end: the guards too.
  private let whole: UnsafeMutableRawBufferPointer

  /// Bytes before and behind guest memory and a CPU's state that nothing can access, at least: an
  /// address that is wrong by less ends the program and reaches nothing.
  package static let guardSize = 1 << 20

  /// The alignment that lets the kernel back memory with 2 MiB pages.
  package static let hugePageSize = 2 << 20

  /// Maps private zeroed memory.
  ///
  /// - Parameters:
  ///   - size: bytes, above 0; rounded up to pages.
  ///   - hugePages: align to 2 MiB and ask for huge pages (advice that the kernel may ignore).
  ///   - guards: `guardSize` bytes or more on either side cannot be accessed.
  package init(
    anonymous size: Int, hugePages: Bool = false, guards: Bool = false, isShared: Bool = false
  ) throws(Errno) {
    try self.init(
      size: size, protection: [.read, .write],
      flags: (isShared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_NORESERVE, descriptor: -1,
      offset: 0, hugePages: hugePages, guards: guards)
  }

  /// Maps a range of a file, shared with whoever else maps it.
  package init(
    sharing descriptor: Int32, offset: Int = 0, size: Int,
    protection: MemoryProtection = [.read, .write], hugePages: Bool = false
  ) throws(Errno) {
    try self.init(
      size: size, protection: protection, flags: MAP_SHARED, descriptor: descriptor,
      offset: offset, hugePages: hugePages)
  }

  /// Maps zeroed memory without a name that can be mapped again; where there is room for a huge
  /// page its address is one's.
  fileprivate init(sharedSize size: Int) throws(Errno) {
    try self.init(
      size: size, protection: [.read, .write], flags: MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
      descriptor: -1, offset: 0, hugePages: size >= Self.hugePageSize)
  }

  /// Maps the same memory a second time, with another protection.
  fileprivate init(
    again first: borrowing Mapping, protection: MemoryProtection
  ) throws(Errno) {
    let (from, size) = unsafe (first.address, first.size)
    let place =
      unsafe size >= Self.hugePageSize ? try Self.reserve(size, alignment: Self.hugePageSize) : nil
    let second: UnsafeMutableRawPointer
    do throws(Errno) {
      unsafe second = try unsafe mappingCall {
        unsafe place.map { unsafe chost_map_again_at(from, size, $0) }
          ?? chost_map_again(from, size)
      }
    } catch {
      if let place = unsafe place { unsafe munmap(place, size) }
      throw error
    }
    do throws(Errno) {
      _ = try systemCall { () -> Int32 in unsafe mprotect(second, size, protection.rawValue) }
    } catch {
      unsafe munmap(second, size)
      throw error
    }
    unsafe address = unsafe second
    self.size = size
    unsafe whole = unsafe UnsafeMutableRawBufferPointer(start: second, count: size)
  }

  private init(
    size: Int, protection: MemoryProtection, flags: Int32, descriptor: Int32, offset: Int,
    hugePages: Bool, guards: Bool = false
  ) throws(Errno) {
    guard size > 0, size <= Int.max / 2 else { throw .invalidArgument }
    let rounded = (size + 4095) & ~4095
    let alignment = hugePages ? Self.hugePageSize : 4096
    let margin = guards ? (Self.guardSize + alignment - 1) & ~(alignment - 1) : 0
    let isPlaced = hugePages || guards
    let start = unsafe isPlaced ? try Self.reserve(rounded + 2 * margin, alignment: alignment) : nil
    let place = unsafe start.map { unsafe $0 + margin }
    do throws(Errno) {
      unsafe address = try unsafe mappingCall {
        unsafe mmap(
          place, rounded, protection.rawValue, flags | (isPlaced ? MAP_FIXED : 0), descriptor,
          offset)
      }
    } catch {
      if let start = unsafe start { unsafe munmap(start, rounded + 2 * margin) }
      throw error
    }
    self.size = rounded
    unsafe whole = unsafe UnsafeMutableRawBufferPointer(
      start: start ?? address, count: rounded + 2 * margin)
    if hugePages { _ = unsafe madvise(address, rounded, MADV_HUGEPAGE) }
  }

  deinit { unsafe munmap(whole.baseAddress, whole.count) }

  /// Reserves an aligned range of addresses: too much is mapped, then both ends are cut off.
  private static func reserve(
    _ size: Int, alignment: Int
  ) throws(Errno) -> UnsafeMutableRawPointer {
    let whole = try unsafe mappingCall {
      unsafe mmap(
        nil, size + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    }
    let start = Int(bitPattern: whole)
    let head = (alignment - start % alignment) % alignment
    if head > 0 { unsafe munmap(whole, head) }
    let tail = alignment - head
    if tail > 0 { unsafe munmap(whole + head + size, tail) }
    return unsafe whole + head
  }

  /// Shows a page-aligned range of another file in place of a part of this mapping.
  package func replace(
    _ part: Range<Int>, sharing descriptor: Int32, offset: Int
  ) throws(Errno) {
    guard part.lowerBound >= 0, part.upperBound <= size else { throw .invalidArgument }
    let place = unsafe address + part.lowerBound
    _ = try unsafe mappingCall {
      unsafe mmap(
        place, part.count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor, offset)
    }
  }

  /// Puts huge pages behind shared memory, which MADV_HUGEPAGE alone does only where the host's
  /// setting for shared memory says so. All of it is in memory then.
  package func collapse() {
    for start in stride(from: 0, to: size, by: Self.hugePageSize) {
      let count = min(Self.hugePageSize, size - start)
      // MADV_POPULATE_WRITE: an empty range cannot be collapsed.
      if unsafe madvise(address + start, count, 23) != 0 { return }
      if unsafe madvise(address + start, count, chost_madv_collapse) != 0 { return }
    }
  }

  /// Leaves the memory mapped for as long as the process lives.
  package consuming func keep() { discard self }

  /// All bytes.
  package var bytes: UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(start: address, count: size)
  }

  /// Bytes of the mapping that are in memory now.
  package func residentBytes() throws(Errno) -> Int {
    var pages = [UInt8](repeating: 0, count: size / 4096)
    _ = try systemCall { () -> Int32 in unsafe mincore(address, size, &pages) }
    return pages.reduce(0) { $0 + Int($1 & 1) } * 4096
  }
}

/// Memory without a name in the file system (memfd) that can be mapped more than once.
package struct MemoryFile: ~Copyable, Sendable {
  /// The open memfd.
  package let descriptor: OwnedFileDescriptor
  /// Bytes.
  package let size: Int

  /// Makes a zero-filled file; `name` shows in /proc/self/maps.
  package init(name: String, size: Int) throws(Errno) {
    let raw = try systemCall { () -> Int32 in unsafe memfd_create(name, UInt32(MFD_CLOEXEC)) }
    let owner = OwnedFileDescriptor(owning: raw)
    _ = try systemCall { () -> Int32 in ftruncate(raw, size) }
    descriptor = owner
    self.size = size
  }
}

/// Memory for generated code, mapped twice: what is written through `writable` can be run at the
/// same offset of `executable`. No mapping is both. It is anonymous memory and not a memfd, because
/// `perf` takes names from its map file for anonymous memory alone.
///
/// The writable mapping stays: a translation is written some thousand times a second, and a change
/// of protection stops every thread of the process. No guest can name either mapping: its accesses
/// go by the TLB, whose entries are made from EPT, and EPT's from slots alone (docs/security.md).
/// Sendable: it owns two mappings and does not access them.
package struct CodeMemory: ~Copyable, @unchecked Sendable {
  private let writableMapping: Mapping
  private let executableMapping: Mapping

  /// Maps `size` bytes (rounded up to pages).
  package init(size: Int) throws(Errno) {
    let writable = try Mapping(sharedSize: size)
    let executable = try Mapping(again: writable, protection: [.read, .execute])
    writableMapping = writable
    executableMapping = executable
  }

  /// Where code is written.
  package var writable: UnsafeMutableRawPointer { unsafe writableMapping.address }
  /// Where code is run.
  package var executable: UnsafeRawPointer { unsafe UnsafeRawPointer(executableMapping.address) }
  /// Bytes in either mapping.
  package var size: Int { writableMapping.size }

  /// Puts huge pages behind a part, where the kernel can: large code that runs from 4 KiB pages
  /// misses the processor's TLB for instructions all the time. That is madvise(2)'s MADV_COLLAPSE
  /// (Linux 6.1), which obeys no setting for shared memory as MADV_HUGEPAGE does.
  ///
  /// - Parameter part: multiples of 2 MiB; what is outside of the memory is left out.
  /// - Returns: false where it has not worked and need not be tried again.
  package func collapse(_ part: Range<Int>) -> Bool {
    guard part.lowerBound >= 0, part.upperBound <= size, !part.isEmpty else { return true }
    for view in 0..<2 {
      let start = unsafe view == 0 ? UnsafeMutableRawPointer(mutating: executable) : writable
      let failed = unsafe madvise(start + part.lowerBound, part.count, chost_madv_collapse) != 0
      if failed { return false }
    }
    return true
  }
}
