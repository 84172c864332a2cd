// SPDX-License-Identifier: Apache-2.0
//
// The guest's physical memory as the VMM sees it: one host mapping, of which the part below the
// hole under 4 GiB and the part above 4 GiB are two ranges of guest-physical addresses. Every
// access is checked against the ranges.

import Host
import SystemPackage

/// The memory of a machine. Guest and VMM share it; the owner of the machine keeps it alive.
package final class GuestMemory: Sendable {
  /// A range of guest-physical addresses and the host memory behind it.
  package struct Region: @unchecked Sendable {
    package let guestAddress: UInt64
    package let size: UInt64
    package let hostAddress: UnsafeMutableRawPointer
    /// The first address after the range.
    package var end: UInt64 { guestAddress + size }
  }

  private let mapping: Mapping
  /// In ascending order.
  package let regions: [Region]
  /// Bytes in all regions.
  package let size: Int

  /// Maps zeroed memory, on huge pages where the host gives them.
  ///
  /// - Parameter size: bytes, a multiple of 4096, within the limits of `GuestMap`.
  package init(size: Int) throws(Errno) {
    let mapping = try Mapping(anonymous: size, hugePages: true, guards: true)
    let low = min(UInt64(size), GuestMap.memoryHole)
    var regions = [Region(guestAddress: 0, size: low, hostAddress: mapping.address)]
    if UInt64(size) > low {
      regions.append(
        Region(
          guestAddress: GuestMap.fourGiB, size: UInt64(size) - low,
          hostAddress: mapping.address + Int(low)))
    }
    self.mapping = mapping
    self.regions = regions
    self.size = size
  }

  /// The end of the memory below 4 GiB.
  package var lowEnd: UInt64 { regions[0].end }

  /// The host address of a range; nil unless all of it lies in one region.
  package func host(_ address: UInt64, count: Int) -> UnsafeMutableRawPointer? {
    guard count >= 0 else { return nil }
    for region in regions where address >= region.guestAddress && address <= region.end {
      guard UInt64(count) <= region.end - address else { return nil }
      return region.hostAddress + Int(address - region.guestAddress)
    }
    return nil
  }

  /// Copies bytes in.
  ///
  /// - Returns: false when they do not fit; nothing is written then.
  package func write(_ bytes: ArraySlice<UInt8>, at address: UInt64) -> Bool {
    guard let target = host(address, count: bytes.count) else { return false }
    bytes.withUnsafeBytes { source in
      UnsafeMutableRawBufferPointer(start: target, count: source.count).copyMemory(from: source)
    }
    return true
  }

  /// Copies bytes in.
  ///
  /// - Returns: false when they do not fit; nothing is written then.
  package func write(_ bytes: [UInt8], at address: UInt64) -> Bool {
    write(bytes[...], at: address)
  }

  /// Copies bytes out; nil when they do not lie in memory.
  package func read(_ address: UInt64, count: Int) -> [UInt8]? {
    guard let source = host(address, count: count) else { return nil }
    return [UInt8](UnsafeRawBufferPointer(start: source, count: count))
  }
}
