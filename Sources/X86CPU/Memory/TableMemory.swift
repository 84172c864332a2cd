// SPDX-License-Identifier: Apache-2.0
//
// Memory of a CPU's tables, zeroed. Accesses are random, so with 4 KiB pages each would cost the
// host a page walk, twice as long if the host is a guest itself. So the tables share huge pages if
// the host provides them.

import Host
import SystemPackage

final class TableMemory {
  /// More than all tables of a CPU need.
  private static let size = 6 << 20
  private let memory: Mapping
  private var used = 0

  /// - Parameter hugePages: false for CPUs that live briefly and touch little of their tables.
  init(hugePages: Bool) throws(Errno) {
    memory = try Mapping(anonymous: Self.size, hugePages: hugePages)
  }

  /// Allocates zeroed values, aligned to a cache line.
  func take<T>(_ count: Int, of type: T.Type) throws(Errno) -> UnsafeMutablePointer<T> {
    let bytes = (count * MemoryLayout<T>.stride + 63) & ~63
    guard used + bytes <= memory.size else { throw .noMemory }
    defer { used += bytes }
    return (memory.address + used).bindMemory(to: T.self, capacity: count)
  }
}
