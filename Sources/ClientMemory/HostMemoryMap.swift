// SPDX-License-Identifier: Apache-2.0
//
// A client's mappings in this process, and their rights, from /proc/self/maps. A guest gets what is
// mapped; its access to anything else gives the client EFAULT, and no signal.
//
//     guard let area = map.area(at: host), area.isWritable else { EFAULT }
//
// Areas are cached until a mapping changes. Code that changes one calls `changed` afterwards; an
// area is valid while its generation equals `generation`. Of unreported changes (by raw system
// calls), unmapping is detected late, mapping at once.

import CHost
import Host
import Synchronization
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

package final class HostMemoryMap: Sendable {
  init() {}

  /// Readable memory without holes.
  package struct Area: Sendable {
    package var range: Range<UInt64>
    package var isWritable: Bool
    /// Others may read and write it through mappings of their own.
    package var isShared = false
    /// The mapped file; nil for anonymous memory.
    var file: File?
    /// It has been checked against the file's length.
    var isTrimmed = false
    package var generation: UInt64 = 0

    /// If the client changes nothing.
    package static let everything = Area(range: 0..<(.max), isWritable: true)
  }

  package struct File: Equatable, Sendable {
    var device: UInt64
    var node: UInt64
  }

  private struct State: Sendable {
    /// In the order of their addresses.
    var areas: [Area] = []
    var generation: UInt64 = 0

    func index(of address: UInt64) -> Int? {
      var low = 0
      var high = areas.count
      while low < high {
        let middle = (low + high) / 2
        if areas[middle].range.upperBound > address { high = middle } else { low = middle + 1 }
      }
      return low < areas.count && areas[low].range.contains(address) ? low : nil
    }
  }

  private let state = Mutex(State())
  private let changes = Atomic<UInt64>(1)

  package var generation: UInt64 { changes.load(ordering: .sequentiallyConsistent) }

  /// A mapping of this process changed.
  package func changed() { changes.add(1, ordering: .sequentiallyConsistent) }

  /// The area of an address; nil if it is not readable. May fault in a page of a file, or one that
  /// the client supplies.
  ///
  /// - Parameter anew: ignore cached areas.
  package func area(at address: UInt64, anew: Bool = false) -> Area? {
    let now = generation
    guard var found = untrimmed(at: address, now, anew: anew) else { return nil }
    if found.file == nil || found.isTrimmed { return found }
    found.range = Self.trim(found.range)
    found.isTrimmed = true
    if found.range.contains(address) {
      state.withLock { state in
        if state.generation == now, let index = state.index(of: address) {
          state.areas[index] = found
        }
      }
      return found
    }
    return nil
  }

  private func untrimmed(at address: UInt64, _ now: UInt64, anew: Bool) -> Area? {
    state.withLock { state in
      if anew || state.generation != now {
        state.areas = Self.read(now)
        state.generation = now
      }
      return state.index(of: address).map { state.areas[$0] }
    }
  }

  /// Bytes from an address to the end of its mapping; 0 if there is none.
  package func mappingSize(at address: UInt) -> UInt {
    let area = untrimmed(at: UInt64(address), generation, anew: true)
    return area.map { UInt($0.range.upperBound) - address } ?? 0
  }

  /// Whether others may write to the memory at an address through other mappings.
  package func isShared(at address: UInt64) -> Bool {
    untrimmed(at: address, generation, anew: false)?.isShared ?? true
  }

  /// Whether an open file is mapped in one of the ranges, according to cached areas.
  package func maps(_ file: File, in ranges: [Range<UInt>]) -> Bool {
    state.withLock { state in
      state.areas.contains { area in
        area.file == file
          && ranges.contains { range in
            area.range.overlaps(UInt64(range.lowerBound)..<UInt64(range.upperBound))
          }
      }
    }
  }

  // MARK: The end of a file

  /// The part of a mapping within its file: pages beyond are not readable.
  private static func trim(_ range: Range<UInt64>) -> Range<UInt64> {
    var low = range.lowerBound >> pageShift
    var high = range.upperBound >> pageShift
    // Pages below `low` are present; `high` and beyond are not, or it is the end.
    if high > low, isThere(high - 1) { return range }
    while low < high {
      let middle = (low + high) / 2
      if isThere(middle) { low = middle + 1 } else { high = middle }
    }
    return range.lowerBound..<max(low << pageShift, range.lowerBound)
  }

  private static let pageShift: UInt64 = 12
  private static let populateRead: Int32 = 22  // MADV_POPULATE_READ

  private static func isThere(_ page: UInt64) -> Bool {
    let address = unsafe UnsafeMutableRawPointer(bitPattern: UInt(page << pageShift))
    if unsafe madvise(address, 1 << pageShift, populateRead) == 0 { return true }
    if errno != EINVAL { return false }
    // Before kernel 5.14.
    var byte: UInt8 = 0
    return unsafe GuardedCopy.copy(from: address, to: &byte, count: 1)
  }

  // MARK: /proc/self/maps

  private static func read(_ generation: UInt64) -> [Area] {
    guard let bytes = try? contentsOfFile("/proc/self/maps") else { return [] }
    var areas: [Area] = []
    for line in bytes.split(separator: UInt8(ascii: "\n")) {
      guard var area = area(line) else { continue }
      area.generation = generation
      if let last = areas.last, last.range.upperBound == area.range.lowerBound,
        last.isWritable == area.isWritable, last.isShared == area.isShared, last.file == nil,
        area.file == nil
      {
        areas[areas.count - 1].range = last.range.lowerBound..<area.range.upperBound
      } else {
        areas.append(area)
      }
    }
    return areas
  }

  /// `7f0000000000-7f0000001000 rw-p 00000000 00:01 1234   /memfd:ram (deleted)`; nil if not
  /// readable.
  private static func area(_ line: ArraySlice<UInt8>) -> Area? {
    var rest = line
    guard let start = number(&rest, until: UInt8(ascii: "-"), radix: 16),
      let end = number(&rest, until: UInt8(ascii: " "), radix: 16), start < end,
      rest.first == UInt8(ascii: "r")
    else { return nil }
    let isWritable = rest.dropFirst().first == UInt8(ascii: "w")
    let isShared = rest.dropFirst(3).first == UInt8(ascii: "s")
    rest = rest.dropFirst(5)
    guard number(&rest, until: UInt8(ascii: " "), radix: 16) != nil,
      let major = number(&rest, until: UInt8(ascii: ":"), radix: 16),
      let minor = number(&rest, until: UInt8(ascii: " "), radix: 16),
      let node = number(&rest, until: UInt8(ascii: " "), radix: 10)
    else { return nil }
    let file = File(device: major << 32 | minor, node: node)
    return Area(
      range: start..<end, isWritable: isWritable, isShared: isShared, file: node == 0 ? nil : file)
  }

  private static func number(
    _ text: inout ArraySlice<UInt8>, until end: UInt8, radix: UInt64
  ) -> UInt64? {
    var value: UInt64 = 0
    while let digit = text.popFirst() {
      if digit == end { return value }
      let letter = digit | 0x20
      let number = digit <= UInt8(ascii: "9") ? digit &- UInt8(ascii: "0") : letter &- 87
      guard UInt64(number) < radix else { return nil }
      value = value &* radix &+ UInt64(number)
    }
    return value
  }
}

extension HostMemoryMap.File {
  /// The file that a descriptor is open on.
  package init?(_ descriptor: Int32) {
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else { return nil }
    let device = UInt64(status.st_dev)
    // makedev(3): 12 bits of major number at 8, 20 of minor at 0 and 20.
    self.device = (device >> 8 & 0xFFF) << 32 | device & 0xFF | device >> 12 & 0xFFF_FF00
    node = UInt64(status.st_ino)
  }
}
