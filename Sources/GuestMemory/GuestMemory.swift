// SPDX-License-Identifier: Apache-2.0
//
// The guest's physical memory for the VMM and its devices: one host mapping, split into a
// guest-physical range below the hole under 4 GiB and one above it. Every access is checked against
// the ranges. A software processor caches decoded code, so every write that is not the guest's own
// must be reported by `noteWrite`, after the bytes are written.
//
//     let memory = try GuestMemory(size: 512 << 20, lowEnd: 0xC000_0000, highStart: 0x1_0000_0000)
//     guard memory.write([1, 2], at: 0x1000) else { ... }

import Glibc
import Host
import SystemPackage

/// The memory of a machine, shared by guest and VMM; the owner of the machine keeps it alive.
@safe package final class GuestMemory: Sendable {
  /// A range of guest-physical addresses and the host memory behind it.
  /// Sendable: plain numbers; what the address points to is shared with the guest in any case.
  @safe package struct Region: @unchecked Sendable {
    package let guestAddress: UInt64
    package let size: UInt64
    package let hostAddress: UnsafeMutableRawPointer
    /// The first address after the range.
    package var end: UInt64 { guestAddress + size }
  }

  /// Called for host memory that was written.
  package typealias WriteObserver = @Sendable (_ start: UnsafeRawPointer, _ count: Int) -> Void

  private let mapping: Mapping
  private let observer: WriteObserver?
  /// In ascending order.
  package let regions: [Region]
  /// Bytes in all regions.
  package let size: Int

  /// Maps zeroed memory, with huge pages if the host provides them.
  ///
  /// - Parameters:
  ///   - size: bytes, a multiple of 4096.
  ///   - lowEnd: upper limit of the memory's first range.
  ///   - highStart: start of the second range.
  ///   - observer: called for all writes.
  package init(
    size: Int, lowEnd: UInt64, highStart: UInt64, observer: WriteObserver? = nil
  ) throws(Errno) {
    let mapping = try Mapping(anonymous: size, hugePages: true, guards: true)
    let low = min(UInt64(size), lowEnd)
    var regions = unsafe [Region(guestAddress: 0, size: low, hostAddress: mapping.address)]
    if UInt64(size) > low {
      unsafe regions.append(
        Region(
          guestAddress: highStart, size: UInt64(size) - low,
          hostAddress: mapping.address + Int(low)))
    }
    self.mapping = mapping
    unsafe self.observer = unsafe observer
    self.regions = regions
    self.size = size
  }

  /// The end of the memory below 4 GiB.
  package var lowEnd: UInt64 { regions[0].end }

  /// The host address of a range; nil unless it is entirely in one region.
  package func host(_ address: UInt64, count: Int) -> UnsafeMutableRawPointer? {
    guard count >= 0 else { return nil }
    for region in regions where address >= region.guestAddress && address <= region.end {
      guard UInt64(count) <= region.end - address else { return nil }
      return unsafe region.hostAddress + Int(address - region.guestAddress)
    }
    return nil
  }

  /// Zeroes all bytes and returns the memory to the host. Call it while no guest runs.
  package func clear() {
    for region in regions {
      let size = Int(truncatingIfNeeded: region.size)
      if unsafe madvise(region.hostAddress, size, Int32(MADV_DONTNEED)) != 0 {
        unsafe memset(region.hostAddress, 0, size)
      }
      unsafe noteWrite(region.hostAddress, count: size)
    }
  }

  /// Returns the whole pages of a range to the host; they read as 0 afterwards. Partial pages stay.
  ///
  /// - Parameter start: an address in a region.
  /// - Returns: bytes returned to the host.
  func discard(_ start: UnsafeMutableRawPointer, count: Int) -> Int {
    let page = Int(sysconf(Int32(_SC_PAGESIZE)))
    let before = (0 &- Int(bitPattern: start)) & (page &- 1)
    guard count > before else { return 0 }
    let size = (count &- before) & ~(page &- 1)
    let first = unsafe start + before
    guard size > 0, unsafe madvise(first, size, Int32(MADV_DONTNEED)) == 0
    else { return 0 }
    unsafe noteWrite(first, count: size)
    return size
  }

  /// Bytes of the guest's memory were written by something other than the guest.
  package func noteWrite(_ start: UnsafeRawPointer, count: Int) { unsafe observer?(start, count) }

  /// Copies bytes in.
  ///
  /// - Returns: false if they do not fit; nothing is written then.
  package func write(_ bytes: ArraySlice<UInt8>, at address: UInt64) -> Bool {
    guard let target = unsafe host(address, count: bytes.count) else { return false }
    unsafe bytes.withUnsafeBytes { source in
      unsafe UnsafeMutableRawBufferPointer(start: target, count: source.count).copyMemory(
        from: source)
    }
    unsafe noteWrite(target, count: bytes.count)
    return true
  }

  /// Copies bytes in.
  ///
  /// - Returns: false if they do not fit; nothing is written then.
  package func write(_ bytes: [UInt8], at address: UInt64) -> Bool {
    write(bytes[...], at: address)
  }

  /// Zeroes bytes.
  ///
  /// - Returns: false if they are not in memory.
  package func clear(_ address: UInt64, count: Int) -> Bool {
    guard let target = unsafe host(address, count: count) else { return false }
    unsafe memset(target, 0, count)
    unsafe noteWrite(target, count: count)
    return true
  }

  /// Copies bytes out; nil if they are not in memory.
  package func read(_ address: UInt64, count: Int) -> [UInt8]? {
    guard let source = unsafe host(address, count: count) else { return nil }
    return unsafe [UInt8](UnsafeRawBufferPointer(start: source, count: count))
  }
}
