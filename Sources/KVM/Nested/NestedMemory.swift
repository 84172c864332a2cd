// SPDX-License-Identifier: Apache-2.0
//
// L2's memory where L1 uses nested tables, as far as it is the same with both vendors. The vendor
// walks L1's tables (`SVM/NestedSVM+Memory.swift`, `VMX/NestedVMX+Memory.swift`); what they allow
// is then L1's access to its memory, and a leaf of the shadow tables.

import X86

/// The shadow tables of one vCPU.
struct ShadowSet {
  private static let most = 8

  /// The last is that of the L2 that runs.
  private var tables: [ShadowTables] = []

  var current: ShadowTables? { tables.last }

  /// Makes the tables of a source the current ones.
  ///
  /// - Returns: true if they are new; they may be at the address of older ones.
  mutating func use(
    _ source: ShadowTables.Source, _ format: NestedTableFormat, _ memory: MachineMemory
  ) -> Bool {
    if current?.source == source { return false }
    if let index = tables.firstIndex(where: { $0.source == source }) {
      tables.append(tables.remove(at: index))
      return false
    }
    if tables.count >= Self.most { tables.removeFirst() }
    tables.append(ShadowTables(source, format, memory))
    return true
  }

  func clear(where isStale: (ShadowTables.Source) -> Bool = { _ in true }) {
    for tables in tables where isStale(tables.source) { tables.clear() }
  }

  mutating func removeAll() { tables = [] }
}

extension VirtualCPU {
  /// Maps an address of L2 that L1's tables allow.
  ///
  /// - Parameters:
  ///   - address: L2's.
  ///   - physical: L1's.
  ///   - leaf: rights and size that L1's tables give.
  func mapNested(
    _ address: UInt64, _ physical: UInt64, _ leaf: NestedLeaf, isWrite: Bool,
    _ shadow: ShadowTables?
  ) -> Disposition {
    var disposition = Disposition.resume
    switch memory.map(physical, writing: isWrite) {
    case .mapped, .waits: break
    case .dirtied(let slot, let page): disposition = noteDirty(slot: slot, page: page)
    case .fault: return hostFault()
    case .none: return emulateNested(physical)
    }
    guard let shadow else { return disposition }
    memory.withLeaf(of: physical) { own in
      let joined = leaf.joined(own, physical, shadow.format)
      if !shadow.put(joined, at: address) { backend.invalidateNestedMappings() }
    }
    return disposition
  }

  /// A device of the machine that L1 passes on, or read-only memory.
  private func emulateNested(_ physical: UInt64) -> Disposition {
    guard let event = events.interrupted else { return emulateInstruction() }
    return undeliverable(event, at: physical)
  }

  /// Sets flags in an entry of L1's tables.
  ///
  /// - Returns: false if the entry has changed since it was read.
  func markNestedEntry(_ entry: UInt64, _ flags: UInt64, at place: UInt64) -> Bool {
    if entry & flags == flags { return true }
    var isSame = false
    let isThere = writeMemory(place, count: 8) { bytes in
      isSame = bytes.compareExchange(entry | flags, expected: entry)
    }
    // Tables in read-only memory stay as they are.
    return isSame || !isThere
  }
}

extension NestedLeaf {
  /// A leaf of the smaller size, with the rights that both give.
  ///
  /// - Parameters:
  ///   - own: the machine's leaf of `physical`.
  ///   - physical: L1's address.
  fileprivate func joined(
    _ own: NestedLeaf, _ physical: UInt64, _ format: NestedTableFormat
  ) -> NestedLeaf {
    let level = min(self.level, own.level)
    let place = own.entry & EPTEntry.addressMask & ~own.offsetMask | physical & own.offsetMask
    var joined = NestedLeaf(entry: 0, level: level)
    joined.entry = place & ~joined.offsetMask & EPTEntry.addressMask
    joined.entry |= own.entry & entry & EPTEntry.rightsMask | format.shadowFlags
    // SVM's; a bit that EPT's leaves here have as 0.
    joined.entry |= (own.entry | entry) & PageTableEntry.executeDisable
    if level > 0 { joined.entry |= EPTEntry.pageSize }
    return joined
  }
}
