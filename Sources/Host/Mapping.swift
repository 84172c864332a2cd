// SPDX-License-Identifier: Apache-2.0
//
// Memory that this process maps: guest memory, code memory, the kvm_run page. A `Mapping` is the
// one owner of its range and unmaps it at the end of its life. Spans of it cannot outlive it.
// Pointers into it can, and not to use them then is the duty of whoever takes one; they are for
// memory that a guest or the kernel changes, too.
//
//     var memory = try Mapping(anonymous: 512 << 20, hugePages: true)
//     memory.withMutableBytes { $0.storeBytes(of: 1, as: UInt32.self) }

import CHost
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// The access rights of a mapping's pages.
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

  /// The range to unmap, including guards.
  private let whole: UnsafeMutableRawBufferPointer

  /// Minimum size of the inaccessible guards before and after guest memory and a CPU's state: an
  /// address that is wrong by less ends the program.
  package static let guardSize = 1 << 20

  /// The alignment that lets the kernel back memory with 2 MiB pages.
  package static let hugePageSize = 2 << 20

  /// Maps private zeroed memory.
  ///
  /// - Parameters:
  ///   - size: bytes, above 0; rounded up to pages.
  ///   - hugePages: align to 2 MiB and ask for huge pages (advice that the kernel may ignore).
  ///   - guards: at least `guardSize` inaccessible bytes on either side.
  package init(
    anonymous size: Int, hugePages: Bool = false, guards: Bool = false
  ) throws(Errno) {
    try self.init(
      size: size, protection: [.read, .write],
      flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, descriptor: -1, offset: 0,
      hugePages: hugePages, guards: guards)
  }

  /// Maps private memory with guards that begins with these bytes, above 0 of them.
  package init(copying bytes: [UInt8]) throws(Errno) {
    try self.init(anonymous: bytes.count, guards: true)
    withMutableBytes { $0.copy(from: bytes.bytes) }
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

  /// Maps zeroed anonymous memory that can be mapped again; aligned to huge pages if large enough.
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

  /// Reserves an aligned range of addresses: maps too much, then cuts off both ends.
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

  /// Replaces a part of this mapping by a page-aligned range of another file.
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

  /// Keeps the memory mapped for the life of the process.
  package consuming func keep() { discard self }

  /// All bytes, which nobody changes meanwhile.
  package var bytes: RawSpan {
    @_lifetime(borrow self) get { unsafe RawSpan(_unsafeStart: address, byteCount: size) }
  }

  /// Calls a function with all bytes. A class cannot lend `bytes` of a mapping that it has.
  package func withBytes<Result, Failure: Error>(
    _ body: (RawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result { try body(bytes) }

  /// Calls a function with all bytes, to be overwritten.
  package mutating func withMutableBytes<Result, Failure: Error>(
    _ body: (inout MutableRawSpan) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    var bytes = unsafe MutableRawSpan(_unsafeStart: address, byteCount: size)
    return try body(&bytes)
  }

  /// Bytes of the mapping that are resident.
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

  /// Creates a zeroed file; `name` shows in /proc/self/maps.
  package init(name: String, size: Int) throws(Errno) {
    let raw = try systemCall { () -> Int32 in unsafe memfd_create(name, UInt32(MFD_CLOEXEC)) }
    let owner = OwnedFileDescriptor(owning: raw)
    _ = try systemCall { () -> Int32 in ftruncate(raw, size) }
    descriptor = owner
    self.size = size
  }
}

/// Memory for generated code, mapped twice: code written through `writable` can run at the same
/// offset of `executable`. No mapping is both. It is anonymous memory, not a memfd, because `perf`
/// uses its map file only for anonymous memory.
///
/// The writable mapping stays: translations are written some thousand times a second, and a change
/// of protection stops every thread of the process. No guest can address either mapping: its
/// accesses go through the TLB, filled from EPT, which is filled only from slots
/// (docs/security.md).
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

  /// The address for writing code.
  package var writable: UnsafeMutableRawPointer { unsafe writableMapping.address }
  /// The address for running code.
  package var executable: UnsafeRawPointer { unsafe UnsafeRawPointer(executableMapping.address) }
  /// Bytes in either mapping.
  package var size: Int { writableMapping.size }

  /// Backs a part with huge pages if the kernel can: large code in 4 KiB pages misses the
  /// processor's instruction TLB all the time. It uses madvise(2)'s MADV_COLLAPSE (Linux 6.1),
  /// which, unlike MADV_HUGEPAGE, ignores the settings for shared memory.
  ///
  /// - Parameter part: multiples of 2 MiB; bytes outside the memory are ignored.
  /// - Returns: false if it failed and need not be tried again.
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
