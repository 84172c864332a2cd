// SPDX-License-Identifier: Apache-2.0
//
// Decoded basic blocks of one CPU, found by host address and mode.
//
// A block is a run of micro-ops from one page, ended by a branch, by an instruction that changes
// the decoding mode, by the page's end or by a size limit. An instruction that crosses a page is a
// block of its own and belongs to both pages. Blocks are allocated from two arenas, for micro-ops
// and descriptors; when either is full, all blocks are dropped. Micro-ops of dropped blocks are
// reused for blocks of the same length: blocks are built only while no block runs that could be
// among the dropped ones.
//
// Blocks are found through the jump cache, by linear address and `CPUState.blockContext` (address
// space, mode, privilege), and on a miss in a hash by host address and mode, after translating RIP.
//
// When a page with code is written, its blocks are removed from the hash, and each of their
// micro-ops becomes `staleBlock`, which exits the block: so the running block, too, stops after the
// writing instruction.

import Glibc
import Host
import SystemPackage
import X86
import X86Decoder

package struct Block {
  /// Host address of the first byte.
  package var host: UInt64
  /// Host page of the second page's bytes; 0 if the block is in one page.
  package var secondPage: UInt64
  package var ops: MicroOpPointer
  package var modeKey: UInt16
  /// Instructions; an end marker follows unless the last is a branch.
  package var count: UInt16
  /// Length in bytes.
  package var length: UInt16
  package var isValid: Bool
  /// The last instruction is a branch; no other one is.
  package var endsInBranch: Bool
  /// Next block in the hash chain and in the page's list; -1 ends them.
  var nextInHash: Int32
  var nextInPage: Int32
  /// Executions until the block is offered to the translator.
  package var heat: UInt32 = 0
  /// Whether the translation counts its entries.
  package var isCounted = false
  /// The translator has better code for it from an earlier run (`BlockTranslator.optimize`).
  package var hasKeptRegion = false
  /// Where the block's translation starts; 0 without one.
  package var native: UInt = 0
  /// Its entry code for a linear page (`BlockTranslator.entry`), or 0.
  package var nativeEntry: UInt = 0
  package var nativePage: UInt64 = 0
  /// Of the bytes that it was decoded from; see `CodeSignature`.
  package var signature = 0
}

package typealias BlockPointer = UnsafeMutablePointer<Block>

package struct JumpCacheEntry {
  package var linear: UInt64
  package var context: UInt64
  package var block: BlockPointer?
  /// Makes the stride a power of two.
  var padding: UInt64 = 0
}

package final class BlockCache {
  static let maximumInstructions = 48
  package static let jumpCacheMask: UInt64 = 16383
  /// Maximum of buckets: chains stay short unless there are many more blocks.
  private static let mostBuckets = 1 << 18

  let opCapacity: Int
  let blockCapacity: Int
  let ops: MicroOpPointer
  let blocks: BlockPointer
  let hash: UnsafeMutablePointer<Int32>
  private let hashMask: UInt64
  let jumpCache: UnsafeMutablePointer<JumpCacheEntry>
  private var opCount = 0
  private var blockCount = 0
  /// How many of `blocks` are used, including dropped ones.
  var usedBlocks: Int { blockCount }
  /// Free micro-op ranges of dropped blocks, by their length with the end marker.
  private var freeOps = [[MicroOpPointer]](
    repeating: [], count: BlockCache.maximumInstructions + 2)
  /// First block of each host page with code.
  private var pages: [UInt64: Int32] = [:]
  /// How often all blocks were dropped; how many were built, and dropped with their page.
  package private(set) var flushes: UInt64 = 0
  package private(set) var built: UInt64 = 0
  package private(set) var invalidated: UInt64 = 0
  /// By host page; kept if clients may write undetected (PhysicalCPU+Comparison).
  var copies: [UInt64: CodeCopy] = [:]
  /// Whether any of them may have bytes.
  var hasCopies = false
  /// Called after all translations are dropped, before anything runs again.
  var nativeDropped: () -> Void = {}
  /// Called for each dropped block with a translation.
  var nativeRetired: (BlockPointer) -> Void = { _ in }
  /// Heat of a new block. Without a translator it is 0 and wraps: it expires after 2^32 executions.
  package var initialHeat: UInt32 = 0

  private let opMemory: Mapping
  private let blockMemory: Mapping
  /// The memory of the CPU's tables.
  private let tables: TableMemory

  /// - Parameters:
  ///   - opCapacity: micro-ops (64 bytes each) that the cache holds.
  ///   - tables: memory for the look-up tables; it lives as long as the cache.
  ///   - hugePages: see `TableMemory`.
  init(opCapacity: Int, tables: TableMemory, hugePages: Bool) throws(Errno) {
    self.opCapacity = opCapacity
    self.tables = tables
    blockCapacity = opCapacity / 4
    opMemory = try Mapping(
      anonymous: opCapacity * MemoryLayout<MicroOp>.stride, hugePages: hugePages)
    ops = opMemory.address.bindMemory(to: MicroOp.self, capacity: opCapacity)
    blockMemory = try Mapping(
      anonymous: blockCapacity * MemoryLayout<Block>.stride, hugePages: hugePages)
    blocks = blockMemory.address.bindMemory(to: Block.self, capacity: blockCapacity)
    var buckets = 1024
    while buckets < blockCapacity, buckets < Self.mostBuckets { buckets *= 2 }
    hashMask = UInt64(buckets - 1)
    hash = try tables.take(buckets, of: Int32.self)
    hash.initialize(repeating: -1, count: buckets)
    jumpCache = try tables.take(Int(Self.jumpCacheMask) + 1, of: JumpCacheEntry.self)
    jumpCache.initialize(
      repeating: JumpCacheEntry(linear: 0, context: .max, block: nil),
      count: Int(Self.jumpCacheMask) + 1)
  }

  deinit { dropCopies() }

  @inline(__always) private func bucket(_ host: UInt64, _ modeKey: UInt16) -> Int {
    Int((host ^ host >> 14 ^ UInt64(modeKey) << 9) & hashMask)
  }

  /// Drops all translations.
  package func forgetNative() {
    nativeDropped()
    for n in 0..<blockCount {
      blocks[n].native = 0
      blocks[n].nativeEntry = 0
      blocks[n].heat = initialHeat
    }
  }

  /// The valid block that starts at a host address in a mode.
  package func find(host: UInt64, modeKey: UInt16) -> BlockPointer? {
    var index = hash[bucket(host, modeKey)]
    while index >= 0 {
      let block = blocks + Int(index)
      if block.pointee.host == host && block.pointee.modeKey == modeKey { return block }
      index = block.pointee.nextInHash
    }
    return nil
  }

  /// Makes room for one more block of maximum length: drops all blocks if necessary.
  func makeRoom() {
    if opCount + Self.maximumInstructions + 1 > opCapacity || blockCount + 1 > blockCapacity {
      dropAll()
    }
  }

  /// The address for the next block's micro-ops.
  var nextOps: MicroOpPointer { ops + opCount }

  /// Adds the block whose micro-ops were written to `nextOps`.
  func add(_ block: Block, opsUsed: Int) -> BlockPointer {
    let index = Int32(blockCount)
    let pointer = blocks + blockCount
    pointer.initialize(to: block)
    if let place = freeOps[opsUsed].popLast() {
      Self.move(block.ops, to: place, opsUsed)
      pointer.pointee.ops = place
    } else {
      opCount += opsUsed
    }
    pointer.pointee.heat = initialHeat
    let bucket = bucket(block.host, block.modeKey)
    pointer.pointee.nextInHash = hash[bucket]
    hash[bucket] = index
    let page = block.host & Page.mask
    pointer.pointee.nextInPage = pages[page] ?? -1
    pages[page] = index
    if block.secondPage != 0 { crossing[block.secondPage, default: []].append(index) }
    blockCount += 1
    built += 1
    return pointer
  }

  /// Moves micro-ops; operands may point into the micro-op itself.
  private static func move(_ ops: MicroOpPointer, to place: MicroOpPointer, _ count: Int) {
    for n in 0..<count {
      var op = ops[n]
      let (old, new) = (UnsafeMutableRawPointer(ops + n), UnsafeMutableRawPointer(place + n))
      func moved(_ pointer: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer {
        let offset = UInt(bitPattern: pointer) &- UInt(bitPattern: old)
        return offset < UInt(MemoryLayout<MicroOp>.stride) ? new + Int(offset) : pointer
      }
      op.dst = moved(op.dst)
      op.src = moved(op.src)
      op.base = moved(UnsafeMutableRawPointer(op.base)).assumingMemoryBound(to: UInt64.self)
      op.index = moved(UnsafeMutableRawPointer(op.index)).assumingMemoryBound(to: UInt64.self)
      place[n] = op
    }
  }

  /// Blocks whose instruction ends in this page.
  private var crossing: [UInt64: [Int32]] = [:]

  package func dropAll() {
    giveBack()
    opCount = 0
    blockCount = 0
    for n in freeOps.indices { freeOps[n].removeAll(keepingCapacity: true) }
    pages.removeAll(keepingCapacity: true)
    crossing.removeAll(keepingCapacity: true)
    hash.update(repeating: -1, count: Int(hashMask) + 1)
    jumpCache.update(
      repeating: JumpCacheEntry(linear: 0, context: .max, block: nil),
      count: Int(Self.jumpCacheMask) + 1)
    dropCopies()
    flushes += 1
    nativeDropped()
  }

  /// Returns used memory to the host. Untouched pages cost nothing, so the arenas may be larger
  /// than most guests need.
  private func giveBack() {
    let pages = UInt(4096)
    func give(_ start: UnsafeMutableRawPointer, _ bytes: Int) {
      let first = (UInt(bitPattern: start) + pages - 1) & ~(pages - 1)
      let end = (UInt(bitPattern: start) + UInt(bytes)) & ~(pages - 1)
      if end > first {
        madvise(UnsafeMutableRawPointer(bitPattern: first), Int(end - first), MADV_DONTNEED)
      }
    }
    give(ops, opCount * MemoryLayout<MicroOp>.stride)
    give(blocks, blockCount * MemoryLayout<Block>.stride)
  }

  /// Drops the code of one host page, possibly with the running block.
  func drop(page: UInt64) {
    dropCopy(page)
    var index = pages.removeValue(forKey: page) ?? -1
    while index >= 0 {
      let next = blocks[Int(index)].nextInPage
      invalidate(index)
      index = next
    }
    for index in crossing.removeValue(forKey: page) ?? [] { invalidate(index) }
  }

  /// Drops the code of every host page, like `drop`.
  func dropEveryPage() {
    for page in Array(pages.keys) + Array(crossing.keys) { drop(page: page) }
  }

  private func invalidate(_ index: Int32) {
    let block = blocks + Int(index)
    if !block.pointee.isValid { return }
    block.pointee.isValid = false
    if block.pointee.native != 0 { nativeRetired(block) }
    block.pointee.native = 0
    block.pointee.nativeEntry = 0
    invalidated += 1
    let count = Int(block.pointee.count)
    for n in 0..<count { block.pointee.ops[n].handler = staleBlock }
    freeOps[count + 1].append(block.pointee.ops)
    // Remove it from the hash; its handlers and `isValid` make it unreachable through the jump
    // cache.
    let bucket = bucket(block.pointee.host, block.pointee.modeKey)
    if hash[bucket] == index {
      hash[bucket] = block.pointee.nextInHash
      return
    }
    var previous = hash[bucket]
    while previous >= 0 {
      let candidate = blocks + Int(previous)
      if candidate.pointee.nextInHash == index {
        candidate.pointee.nextInHash = block.pointee.nextInHash
        return
      }
      previous = candidate.pointee.nextInHash
    }
  }
}

/// The handler of dropped blocks' micro-ops: exits the block before the instruction. The jump cache
/// may still lead here; the run loop checks `isValid` after `stale`.
let staleBlock: Handler = { c, i in
  let c = CPU(c)
  c.s.pointee.rip = c.currentRIP(Handlers.op(i))
  return Step.stale
}

/// The end marker after a block's last instruction that is not a branch.
let endOfBlock: Handler = { c, i in
  let c = CPU(c)
  c.s.pointee.rip = c.currentRIP(Handlers.op(i))
  return Step.endOfBlock
}
