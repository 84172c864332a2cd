// SPDX-License-Identifier: Apache-2.0
//
// A guest's part of a crash report, collected in a signal handler: it only reads, takes no lock,
// and finds the state in the middle of any operation.

import Host
import X86

extension PhysicalCPU {
  /// Registers this CPU with crash reports.
  func announceToCrashReports() {
    CrashRecords.describer = describer
    crashRecord.pointee = CrashRecord()
    crashRecord.pointee.state = UInt(bitPattern: cpu.raw)
  }

  func withdrawFromCrashReports() { crashRecord.pointee.state = 0 }
}

/// The maximum length of a translation.
private let longestTranslation: UInt = 64 << 10

private let describer: CrashRecords.Describer = { state, counter, memory in
  let place = memory.assumingMemoryBound(to: GuestPlace.self)
  guard let raw = UnsafeMutableRawPointer(bitPattern: state) else { return }
  let cpu = CPU(raw)
  let s = cpu.s
  place.pointee.rip = s.pointee.rip
  place.pointee.blockRIP = s.pointee.blockRIP
  place.pointee.cs = s.pointee.segments[1].selector
  place.pointee.csBase = s.pointee.segments[1].base
  place.pointee.cpl = s.pointee.cpl
  place.pointee.cr0 = s.pointee.cr0
  place.pointee.cr3 = s.pointee.cr3
  place.pointee.cr4 = s.pointee.cr4
  place.pointee.efer = s.pointee.efer
  describeTranslation(cpu, counter, place)
  place.pointee.bytes = hostAddress(cpu, linear: s.pointee.rip &+ s.pointee.segments[1].base)
}

/// The host address of guest code at a linear address, if code was executed from there; else 0.
private func hostAddress(_ cpu: CPU, linear: UInt64) -> UInt {
  let s = cpu.s
  let jump = s.pointee.jumpCache + Int((linear ^ linear >> 12) & BlockCache.jumpCacheMask)
  if jump.pointee.linear == linear, let block = jump.pointee.block {
    return UInt(block.pointee.host)
  }
  for index in 0...Int(PhysicalCPU.executePagesMask) {
    let page = s.pointee.executePages + index
    if page.pointee.host != 0, page.pointee.tag != .max,
      page.pointee.tag & Page.mask == linear & Page.mask
    {
      return UInt(page.pointee.host & Page.mask | linear & ~Page.mask)
    }
  }
  return 0
}

/// Finds the block whose translation is the last to begin before the program counter.
private func describeTranslation(
  _ cpu: CPU, _ counter: UInt, _ place: UnsafeMutablePointer<GuestPlace>
) {
  guard cpu.s.pointee.native.enter != nil else { return }
  let known = cpu.s.pointee.native.faultSites.contains(counter)
  var distance = longestTranslation
  var found: BlockPointer?
  let cache = cpu.owner.blocks
  for index in 0..<cache.usedBlocks {
    let block = cache.blocks + index
    let away = counter &- block.pointee.native
    if block.pointee.native != 0, away < distance { (distance, found) = (away, block) }
  }
  guard known || found != nil else { return }
  place.pointee.isTranslated = true
  guard let found else { return }
  place.pointee.translation = found.pointee.native
  place.pointee.translatedBytes = UInt(found.pointee.host)
  place.pointee.translatedLinear =
    cpu.s.pointee.codePage & Page.mask | found.pointee.host & ~Page.mask
}
