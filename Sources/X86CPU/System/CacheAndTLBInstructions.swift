// SPDX-License-Identifier: Apache-2.0
//
// Caches, fences and TLB: INVD, WBINVD, INVLPG, INVPCID, CLFLUSH and its variants, prefetches,
// fences, SERIALIZE. The processor's caches are the host's, which are coherent, so cache control
// only checks and exits.

import Synchronization
import X86
import X86Decoder

enum CacheAndTLBInstructions {
  static func register(_ t: inout LoweringTable) {
    t[.invd] = .single({ system($0, $1, CacheAndTLBInstructions.invd) })
    t[.wbinvd] = .single({ system($0, $1, CacheAndTLBInstructions.wbinvd) })
    t[.wbnoinvd] = .single({ system($0, $1, CacheAndTLBInstructions.wbinvd) })
    t[.invlpg] = .single({ system($0, $1, CacheAndTLBInstructions.invlpg) })
    t[.invpcid] = OperandSummary.rule({ system($0, $1, CacheAndTLBInstructions.invpcid) })
    for flush in [Mnemonic.clflush, .clflushopt, .clwb] {
      t[flush] = .single({ system($0, $1, CacheAndTLBInstructions.cacheLine) })
    }
    let hints: [Mnemonic] = [
      .cldemote, .prefetch, .prefetchw, .prefetchwt1, .prefetchnta, .prefetcht0, .prefetcht1,
      .prefetcht2, .lfence,
    ]
    // The interpreter executes in order, and the host does not reorder loads.
    for hint in hints { t[hint] = .single({ _, _ in Step.next }) }
    // SFENCE is a host fence, too: it orders non-temporal stores.
    for fence in [Mnemonic.mfence, .sfence] {
      t[fence] = .single({ _, _ in
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        return Step.next
      })
    }
    t[.serialize] = .single({ system($0, $1, CacheAndTLBInstructions.serialize) })
  }

  static func invd(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    if c.intercepts(.invd) { throw c.exit(.invd, i) }
    return Step.next
  }

  static func wbinvd(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    if c.intercepts(.wbinvd) { throw c.exit(.wbinvd, i) }
    return Step.next
  }

  static func serialize(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return c.reload(i)
  }

  /// CLFLUSH, CLFLUSHOPT, CLWB: only the faults of a load of one byte. During emulation not even
  /// those: a device must not see a read.
  static func cacheLine(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    if c.s.pointee.emulation != nil { return Step.next }
    let address = try c.linearAddress(i, size: 1, .execute)
    _ = try c.load(address, as: UInt8.self)
    return Step.next
  }

  static func invlpg(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requirePrivilege()
    let address = c.uncheckedLinearAddress(i)
    if c.intercepts(.invlpg) { throw c.exit(.invlpg, i, value: address) }
    c.flushPage(address)
    return c.reload(i)
  }

  // MARK: INVPCID

  /// Types of INVPCID.
  private enum InvalidationType {
    static let address: UInt64 = 0
    static let context: UInt64 = 1
    static let all: UInt64 = 2
    static let allButGlobal: UInt64 = 3
  }

  static func invpcid(_ c: CPU, _ i: MicroOpPointer) throws(GuestException) -> Int32 {
    try c.requireEnabled(.invpcid)
    try c.requirePrivilege()
    if c.intercepts(.invpcid) { throw c.exitWithOperands(.invpcid, i) }
    let operand = c.read(i.pointee.dst, as: UInt64.self)
    let type = c.is64Bit ? operand : operand & 0xFFFF_FFFF
    let place = try c.linearAddress(i, size: 16)
    let pcid: UInt64 = try c.load(place)
    let address: UInt64 = try c.load(place &+ 8)
    guard type <= InvalidationType.allButGlobal else { throw .generalProtection }
    if type <= InvalidationType.context {
      if pcid >> 12 != 0 { throw .generalProtection }
      if pcid != 0 && c.s.pointee.cr4 & CR4.pcide.rawValue == 0 { throw .generalProtection }
    }
    if type == InvalidationType.address && !c.isCanonicalBase(address) {
      throw .generalProtection
    }
    let isCurrent = pcid == c.s.pointee.cr3 & 0xFFF || c.s.pointee.cr4 & CR4.pcide.rawValue == 0
    switch type {
    case InvalidationType.address where isCurrent: c.flushPage(address)
    case InvalidationType.context where isCurrent: c.flushAddressSpace(keepGlobal: true)
    // For another address space, drop all of it.
    case InvalidationType.address, InvalidationType.context: c.owner.forgetContext(ofPCID: pcid)
    default: c.flushAllAddressSpaces(keepGlobal: type == InvalidationType.allButGlobal)
    }
    return c.reload(i)
  }
}
