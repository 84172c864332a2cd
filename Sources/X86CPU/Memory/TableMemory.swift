// SPDX-License-Identifier: Apache-2.0
//
// Memory of a CPU's tables, zeros at first. They are looked at in no order, so that from 4 KiB
// pages each look costs the host a walk of its own tables, twice as many steps where the host is a
// guest itself. So they lie together, in huge pages where the host gives them.

import Host
import SystemPackage

final class TableMemory {
  /// More than all tables of a CPU take.
  private static let size = 6 << 20
  private let memory: Mapping
  private var used = 0

  /// - Parameter hugePages: not for CPUs that live a moment and touch little of their tables.
  init(hugePages: Bool) throws(Errno) {
    memory = try Mapping(anonymous: Self.size, hugePages: hugePages)
  }

  /// Room for so many values, from a cache line's start on.
  func take<T>(_ count: Int, of type: T.Type) throws(Errno) -> UnsafeMutablePointer<T> {
    let bytes = (count * MemoryLayout<T>.stride + 63) & ~63
    guard used + bytes <= memory.size else { throw .noMemory }
    defer { used += bytes }
    return (memory.address + used).bindMemory(to: T.self, capacity: count)
  }
}
