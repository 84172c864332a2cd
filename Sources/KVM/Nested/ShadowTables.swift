// SPDX-License-Identifier: Apache-2.0
//
// Nested tables of a guest's guest (L2): the guest's (L1's) nested tables and our own in one, from
// L2's guest-physical addresses to addresses of this process. A leaf is made when L2 first touches
// an address, with the rights that both sides give and the size that both have.
//
// They are a cache like a TLB: L1 may change its tables as long as it then invalidates what a
// processor may have cached, and that clears these (`SVM/NestedSVM+Memory.swift`). What our own
// tables lose, these lose in the same moment (`ShadowList`).

import Synchronization
import X86
import X86CPU

/// Sendable: the tables are in a mutex, the rest never changes.
final class ShadowTables: @unchecked Sendable {
  /// The tables of L1 that these are made from, and its address space.
  struct Source: Equatable {
    var root: UInt64
    /// L1's ASID or VPID of L2.
    var space: UInt64
  }

  /// Limit of tables for one L2, 64 MiB; at the limit all are dropped.
  private static let mostTables = 16384

  let source: Source
  let format: NestedTableFormat
  let root: UInt64
  private let tables: Mutex<NestedPageTables>

  init(_ source: Source, _ format: NestedTableFormat, _ memory: MachineMemory) {
    (self.source, self.format) = (source, format)
    let tables = NestedPageTables(format)
    root = tables.root
    self.tables = Mutex(tables)
    memory.claim(root)
    memory.shadows.add(self)
  }

  deinit { GuestSpaces.shared.remove(root) }

  func clear(keepingTables: Bool = false) {
    tables.withLock { $0.clear(keepingTables: keepingTables) }
  }

  /// - Returns: false if all tables were dropped, of which processors may have translations.
  func put(_ leaf: NestedLeaf, at address: UInt64) -> Bool {
    tables.withLock { tables in
      let isFull = tables.tableCount >= Self.mostTables
      if isFull { tables.clear() }
      tables.put(leaf, at: address)
      return !isFull
    }
  }
}

/// The shadow tables that are made of one machine's memory.
final class ShadowList: Sendable {
  private struct Reference { weak var tables: ShadowTables? }
  private let list = Mutex<[Reference]>([])

  func add(_ tables: ShadowTables) {
    list.withLock { list in
      list.removeAll { $0.tables == nil }
      list.append(Reference(tables: tables))
    }
  }

  func clear(keepingTables: Bool) {
    for tables in list.withLock({ $0.compactMap(\.tables) }) {
      tables.clear(keepingTables: keepingTables)
    }
  }
}
