// SPDX-License-Identifier: Apache-2.0
//
// Statistics of the TLB and the block cache, for `--stats`.

/// How often a TLB was flushed.
struct TLBCounts: Sendable {
  /// New contexts: flushes of an address space or of everything, and unknown address spaces.
  var contexts: UInt64 = 0
  /// Flushes of one page.
  var pageFlushes: UInt64 = 0
  /// How often contexts ran out and all entries were wiped.
  var wipes: UInt64 = 0
}

/// Statistics of a physical CPU's TLB and block cache since it was created.
package struct CacheStatistics: Sendable {
  package var tlbFills: UInt64 = 0
  package var addressSpaceFlushes: UInt64 = 0
  package var pageFlushes: UInt64 = 0
  package var tlbWipes: UInt64 = 0
  package var blocksBuilt: UInt64 = 0
  /// Blocks dropped because their page was written.
  package var blocksDropped: UInt64 = 0
  /// How often the full block cache was dropped.
  package var blockCacheFlushes: UInt64 = 0

  package init() {}

  package mutating func add(_ other: CacheStatistics) {
    tlbFills &+= other.tlbFills
    addressSpaceFlushes &+= other.addressSpaceFlushes
    pageFlushes &+= other.pageFlushes
    tlbWipes &+= other.tlbWipes
    blocksBuilt &+= other.blocksBuilt
    blocksDropped &+= other.blocksDropped
    blockCacheFlushes &+= other.blockCacheFlushes
  }
}

extension PhysicalCPU {
  /// Exact while no guest runs here.
  package var cacheStatistics: CacheStatistics {
    var statistics = CacheStatistics()
    statistics.tlbFills = cpu.s.pointee.tlbFills
    statistics.addressSpaceFlushes = tlbCounts.contexts
    statistics.pageFlushes = tlbCounts.pageFlushes
    statistics.tlbWipes = tlbCounts.wipes
    statistics.blocksBuilt = blocks.built
    statistics.blocksDropped = blocks.invalidated
    statistics.blockCacheFlushes = blocks.flushes
    return statistics
  }
}
