// SPDX-License-Identifier: Apache-2.0
//
// Translations of earlier runs (Store/): kept when they are made, and placed instead of being made.
//
// A new block whose translation is known has it before it runs for the first time. Its region, if
// that is known too, follows after a few entries, when the region's other blocks are there.
//
// What is placed is what `translate` would make of the same bytes: the bytes that a block was
// decoded from are compared with the record's, so that a name that two codes share does no harm.

import Glibc
import Host
import X86
import X86CPU

extension Translator {
  /// Entries of a recalled translation before its region is looked for.
  private static let recalledEntries: Int32 = 16

  private var codeStart: UInt { UInt(bitPattern: code.memory.executable) }

  // MARK: Keeping

  /// Keeps what was just placed.
  func keep(_ kind: KeptTranslation.Kind) {
    guard let store, work.guardsAccesses == store.options.guardsAccesses else { return }
    let block = work.codes[0].block
    guard block.pointee.secondPage == 0, let text = translatedText(block, kind) else { return }
    for variant in 0..<(kind == .block ? 1 : KeptTranslation.variants) {
      let name = name(of: block, text, kind, variant)
      if store.contains(name) { continue }
      return store.add(name) { work.keep(as: name, kind, memory: codeStart, into: $0) }
    }
  }

  /// The bytes of what was translated last: of a block alone they are still there.
  private func translatedText(
    _ block: BlockPointer, _ kind: KeptTranslation.Kind
  ) -> UnsafeRawBufferPointer? {
    if kind == .region { return readText(block) }
    return UnsafeRawBufferPointer(
      start: work.memory.bytes, count: Int(block.pointee.length))
  }

  /// A block's bytes as they are now; nil where they have gone.
  private func readText(_ block: BlockPointer) -> UnsafeRawBufferPointer? {
    let count = Int(block.pointee.length)
    guard count <= Self.textBytes,
      GuardedCopy.copy(
        from: UnsafeRawPointer(bitPattern: UInt(block.pointee.host)), to: text, count: count)
    else { return nil }
    return UnsafeRawBufferPointer(start: text, count: count)
  }

  /// Of the longest block.
  static let textBytes = 1024

  private func name(
    of block: BlockPointer, _ bytes: UnsafeRawBufferPointer, _ kind: KeptTranslation.Kind,
    _ variant: Int = 0
  ) -> UInt64 {
    KeptTranslation.name(
      bytes.bytes, offset: block.pointee.host & Page.offsetMask, modeKey: block.pointee.modeKey,
      kind: kind, variant: variant)
  }

  // MARK: Recalling

  package func recall(_ block: BlockPointer, page: UInt64, bytes: UnsafeRawBufferPointer) {
    guard let store, generation == cache.flushes, mayTranslate(block),
      GuardedCall.isPrepared == store.options.guardsAccesses
    else { return }
    let length = Int(block.pointee.length)
    guard length <= bytes.count else { return }
    let text = UnsafeRawBufferPointer(rebasing: bytes[..<length])
    let isThere = store.with(name(of: block, text, .block)) { kept in
      kept.header.kind == KeptTranslation.Kind.block.rawValue && kept.blocks.count == 1
        && isEqual(kept.text, text.bytes) && fits(kept.blocks[0], block)
        && install(kept, [block], page: page)
    }
    if !isThere { return }
    statistics.recalled += 1
    block.pointee.isCounted = true
    if store.contains(name(of: block, text, .region)) {
      block.pointee.hasKeptRegion = true
      setHeat(heat(of: block), min(Self.recalledEntries, hotEntries))
    }
  }

  /// The same for a block that was decoded before, and is hot again after all code was dropped.
  func recallDecoded(_ block: BlockPointer) -> Bool {
    guard store != nil, block.pointee.secondPage == 0, let text = readText(block),
      CodeSignature.of(text) == block.pointee.signature
    else { return false }
    recall(block, page: processor.cpu.s.pointee.rip & Page.mask, bytes: text)
    return block.pointee.native != 0
  }

  /// Gives a block its kept region if all blocks of that are there; its own code stays where it is.
  func recallRegion(_ head: BlockPointer) -> Bool {
    guard let store, let text = readText(head) else { return false }
    for variant in 0..<KeptTranslation.variants {
      let name = name(of: head, text, .region, variant)
      if !store.contains(name) { return false }
      let isThere = store.with(name) { kept in
        guard kept.header.kind == KeptTranslation.Kind.region.rawValue,
          let blocks = findBlocks(of: kept, head)
        else { return false }
        return install(kept, blocks, page: processor.cpu.s.pointee.rip & Page.mask)
      }
      if isThere {
        statistics.recalledRegions += 1
        return true
      }
    }
    return false
  }

  /// The blocks of a kept region; nil where one is not there, or is another.
  private func findBlocks(of kept: KeptTranslation, _ head: BlockPointer) -> [BlockPointer]? {
    var position = 0
    var blocks: [BlockPointer] = []
    for n in kept.blocks.indices {
      let expected = kept.blocks[n]
      let address = head.pointee.host & Page.mask | UInt64(expected.pageOffset)
      guard let block = cache.find(host: address, modeKey: head.pointee.modeKey),
        block.pointee.secondPage == 0, fits(expected, block)
      else { return nil }
      let end = position + Int(expected.length)
      guard let text = kept.text.part(position..<end),
        text.withUnsafeBytes(CodeSignature.of) == block.pointee.signature
      else { return nil }
      position = end
      blocks.append(block)
    }
    return blocks.first == head ? blocks : nil
  }

  private func isEqual(_ one: RawSpan, _ other: RawSpan) -> Bool {
    one.withUnsafeBytes { one in
      other.withUnsafeBytes { other in
        guard one.count == other.count, let p = one.baseAddress, let q = other.baseAddress else {
          return false
        }
        return memcmp(p, q, one.count) == 0
      }
    }
  }

  private func fits(_ kept: KeptTranslation.Block, _ block: BlockPointer) -> Bool {
    UInt64(kept.pageOffset) == block.pointee.host & Page.offsetMask
      && kept.length == block.pointee.length && kept.count == block.pointee.count
      && kept.undefined == KeptTranslation.Block.undefined(block)
  }

  // MARK: Placing

  /// Places a kept translation of blocks and makes it the first one's. Never drops code, as it may
  /// be called below some.
  private func install(_ kept: KeptTranslation, _ blocks: [BlockPointer], page: UInt64) -> Bool {
    let block = blocks[0]
    entryAssembler.begin(origin: codeStart + UInt(used))
    entryAssembler.move(.r13, immediate: page)
    entryAssembler.store(.state(StateOffset.codePage), .r13)
    let size = entryAssembler.position + kept.code.byteCount
    guard !isFull, kept.header.modeKey == block.pointee.modeKey,
      kept.header.kind == KeptTranslation.Kind.region.rawValue || Self.countsEntries(kept.code),
      used + size + Self.entryReserve <= room.upperBound
    else { return false }
    collapsePages(upTo: used + size)
    let start = used + entryAssembler.position
    entryAssembler.copy(to: code.memory.writable + used)
    let place = code.memory.writable + start
    var target = MutableRawSpan(_unsafeStart: place, byteCount: kept.code.byteCount)
    target.copy(from: kept.code)
    relocate(kept, start)
    handlerSites.append(kept, { blocks[Int($0)].pointee.ops }, at: codeStart + UInt(start))
    processor.cpu.s.pointee.native.handlerSites = handlerSites.sites.base
    faultSites.append(kept, at: start)
    noteFaultSites()
    for n in kept.links.indices {
      let link = kept.links[n]
      addLink(
        at: start + Int(link.position),
        to: block.pointee.host & Page.mask | UInt64(link.target), block.pointee.modeKey)
    }
    block.pointee.native = codeStart + UInt(start)
    block.pointee.nativeEntry = codeStart + UInt(used)
    block.pointee.nativePage = page
    used = (used + size + 15) & ~15
    if kept.header.kind == KeptTranslation.Kind.block.rawValue { addHeat(block) }
    connect(block, block.pointee.native)
    return true
  }

  private func relocate(_ kept: KeptTranslation, _ start: Int) {
    let place = code.memory.writable + start
    var target = MutableRawSpan(_unsafeStart: place, byteCount: kept.code.byteCount)
    for n in kept.relocations.indices {
      let position = Int(kept.relocations[n])
      let offset = Int(kept.code.load(UInt32.self, at: position) ?? 0)
      let distance = offset - (start + position + 4)
      target.storeBytes(
        of: Int32(truncatingIfNeeded: distance), toByteOffset: position, as: Int32.self)
    }
    let first = handlerSites.sites.count
    for n in kept.sites.indices {
      target.storeBytes(
        of: UInt32(truncatingIfNeeded: first + n), toByteOffset: Int(kept.sites[n].position),
        as: UInt32.self)
    }
  }

  // MARK: Heat

  /// `sub dword [rsp + disp32], 1`: what a block's translation counts its entries by.
  private static func countsEntries(_ code: RawSpan) -> Bool {
    code.byteCount > BlockTranslation.countBytes && code.starts(with: [0x83, 0xAC, 0x24])
  }

  private static let heatPosition = 3

  /// Gives a recalled translation a counter.
  private func addHeat(_ block: BlockPointer) {
    let heat = CPU.heatOffset(counters)
    counters &+= 1
    setHeat(heat, hotEntries)
    let place = Int(bitPattern: block.pointee.native &- codeStart) + Self.heatPosition
    code.memory.writable.storeBytes(
      of: Int32(truncatingIfNeeded: heat - Place.stateBias), toByteOffset: place, as: Int32.self)
  }

  /// Offset of the counter of a translation that counts its entries.
  func heat(of block: BlockPointer) -> Int {
    let place = Int(bitPattern: block.pointee.native &- codeStart) + Self.heatPosition
    return Int(code.memory.writable.loadUnaligned(fromByteOffset: place, as: Int32.self))
      + Place.stateBias
  }
}
