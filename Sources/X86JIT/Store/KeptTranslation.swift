// SPDX-License-Identifier: Apache-2.0
//
// A translation as it is kept: code that runs nowhere yet, with what has to be filled in where it
// is placed, and the guest's bytes that it is of.
//
//     header | blocks | sites | links | faults | relocations | guest's bytes | code
//
// Positions are from the code's `start`: what comes before, the linear page, is made anew. What
// else differs from place to place and from run to run is listed:
// - relocations: displacements to shared code. The record has the target's offset from the start of
//   the code memory in their place.
// - sites: numbers of instructions left to handlers, from 0; micro-ops by block and number.
// - links: jumps to other translations of the page. In the record they leave to the run loop.
// - the counter of entries, in the first instruction.

import Host
import X86
import X86CPU

struct KeptTranslation: ~Escapable {
  enum Kind: UInt8 { case block = 0, region = 1 }

  struct Header {
    /// Of everything behind it.
    var checksum: UInt64 = 0
    /// What the translation is found by.
    var name: UInt64 = 0
    var codeLength: UInt16 = 0
    var modeKey: UInt16 = 0
    var kind: UInt8 = 0
    var blockCount: UInt8 = 0
    var siteCount: UInt16 = 0
    var linkCount: UInt16 = 0
    var faultCount: UInt16 = 0
    var relocationCount: UInt16 = 0
    /// Of the guest's bytes.
    var textLength: UInt16 = 0
  }

  struct Block {
    var pageOffset: UInt16
    var length: UInt16
    var count: UInt16
    private var padding: UInt16 = 0
    /// Bit n: the processor does not have instruction n.
    var undefined: UInt64

    init(_ block: BlockPointer) {
      pageOffset = UInt16(truncatingIfNeeded: block.pointee.host & Page.offsetMask)
      length = block.pointee.length
      count = block.pointee.count
      undefined = Self.undefined(block)
    }

    static func undefined(_ block: BlockPointer) -> UInt64 {
      var bits: UInt64 = 0
      for n in 0..<Int(block.pointee.count) where block.pointee.ops[n].isUndefined {
        bits |= 1 &<< UInt64(n)
      }
      return bits
    }
  }

  struct Site {
    /// Of the number.
    var position: UInt16
    /// Where to go on; 0 behind the call.
    var back: UInt16
    var block: UInt8
    var op: UInt8
    private var padding: UInt16 = 0
    var information: UInt32

    init(position: UInt16, back: UInt16, block: UInt8, op: UInt8, information: UInt32) {
      self.position = position
      self.back = back
      self.block = block
      self.op = op
      self.information = information
    }
  }

  /// A displacement and the target's offset in the page; or an access and where its faults go.
  struct Pair {
    var position: UInt16
    var target: UInt16
  }

  /// Code of a translation that is kept.
  static let mostCode = 48 << 10
  /// Bytes of a record at most.
  static let mostBytes = 1 << 18

  let header: Header
  let blocks: Span<Block>
  let sites: Span<Site>
  let links: Span<Pair>
  let faults: Span<Pair>
  let relocations: Span<UInt16>
  /// The guest's bytes of all blocks, one after the other.
  let text: RawSpan
  let code: RawSpan

  /// Nil where the bytes are not the record of that name.
  ///
  /// - Parameter bytes: at a multiple of 8.
  @_lifetime(copy bytes)
  init?(_ bytes: RawSpan, name: UInt64) {
    guard bytes.byteCount >= MemoryLayout<Header>.size else { return nil }
    header = bytes.unsafeLoad(as: Header.self)
    let checked = bytes.extracting(8...)
    guard header.name == name, header.checksum == ContentHash.of(checked),
      let parts = Parts(header, bytes.byteCount)
    else { return nil }
    blocks = bytes.extracting(parts.blocks)._unsafeView(as: Block.self)
    sites = bytes.extracting(parts.sites)._unsafeView(as: Site.self)
    links = bytes.extracting(parts.links)._unsafeView(as: Pair.self)
    faults = bytes.extracting(parts.faults)._unsafeView(as: Pair.self)
    relocations = bytes.extracting(parts.relocations)._unsafeView(as: UInt16.self)
    text = bytes.extracting(parts.text)
    code = bytes.extracting(parts.code)
    guard isSound else { return nil }
  }

  /// Where the parts of a record are.
  private struct Parts {
    var blocks, sites, links, faults, relocations, text, code: Range<Int>

    /// Nil where the record is too short for them.
    init?(_ header: Header, _ size: Int) {
      var end = MemoryLayout<Header>.size
      func take(_ bytes: Int) -> Range<Int> {
        defer { end += bytes }
        return end..<end + bytes
      }
      blocks = take(Int(header.blockCount) * MemoryLayout<Block>.stride)
      sites = take(Int(header.siteCount) * MemoryLayout<Site>.stride)
      links = take(Int(header.linkCount) * MemoryLayout<Pair>.stride)
      faults = take(Int(header.faultCount) * MemoryLayout<Pair>.stride)
      relocations = take(Int(header.relocationCount) * MemoryLayout<UInt16>.stride)
      text = take(Int(header.textLength))
      code = take(Int(header.codeLength))
      if end > size { return nil }
    }
  }

  /// Every number is one of what it numbers: nothing is written outside of the code.
  private var isSound: Bool {
    let room = code.byteCount
    func fits(_ position: UInt16) -> Bool { Int(position) + 4 <= room }
    guard room <= Self.mostCode, !blocks.isEmpty, room >= Translator.retiredBytes else {
      return false
    }
    var length = 0
    for n in blocks.indices {
      length += Int(blocks[n].length)
      if blocks[n].pageOffset >= UInt16(Page.size) { return false }
    }
    guard length == text.byteCount else { return false }
    for n in sites.indices {
      let site = sites[n]
      guard fits(site.position), Int(site.back) < room, Int(site.block) < blocks.count,
        UInt16(site.op) < blocks[Int(site.block)].count
      else { return false }
    }
    for n in relocations.indices where !fits(relocations[n]) { return false }
    for n in links.indices {
      guard fits(links[n].position), Int(links[n].position) >= Translator.retiredBytes,
        links[n].target < UInt16(Page.size)
      else { return false }
    }
    for n in faults.indices {
      guard Int(faults[n].position) < room, Int(faults[n].target) < room else { return false }
    }
    return true
  }

  // MARK: Names

  /// What a translation is found by: the bytes of its first block, mode and place in the page.
  ///
  /// - Parameter variant: of regions, which begin with the same block and go on with others.
  static func name(
    _ bytes: RawSpan, offset: UInt64, modeKey: UInt16, kind: Kind, variant: Int = 0
  ) -> UInt64 {
    let seed =
      offset | UInt64(modeKey) << 16 | UInt64(kind.rawValue) << 32 | UInt64(variant) << 36
      | 1 << 40
    let name = ContentHash.of(bytes, seed: seed &* 0xA24B_AED4_963E_E407)
    return name == 0 ? 1 : name
  }

  /// Regions with the same first block: pages with the same code in different surroundings, and
  /// those of a kernel whose addresses differ from boot to boot.
  static let variants = 4
}

// MARK: Making one

extension BlockTranslation {
  /// The translation can be kept: no number is too large for its field.
  private var canBeKept: Bool {
    let length = a.position - start
    let text = codes.reduce(0) { $0 + Int($1.block.pointee.length) }
    // Of each, a record has 16 bytes or less.
    let parts =
      codes.count + handlerSites.count + links.count + faultSites.count + a.externals.count
    return length <= KeptTranslation.mostCode && text < 1 << 16
      && parts * 16 + length + text + 256 <= KeptTranslation.mostBytes
      && codes.allSatisfy { $0.block.pointee.secondPage == 0 }
  }

  /// Writes the record of what was just translated, for a code memory that begins at `memory`.
  ///
  /// - Parameter room: for `KeptTranslation.mostBytes`.
  /// - Returns: its size, a multiple of 8; nil where it cannot be kept.
  func keep(
    as name: UInt64, _ kind: KeptTranslation.Kind, memory: UInt,
    into room: UnsafeMutableRawPointer
  ) -> Int? {
    guard canBeKept else { return nil }
    var header = KeptTranslation.Header()
    header.name = name
    header.kind = kind.rawValue
    header.modeKey = block.pointee.modeKey
    header.codeLength = UInt16(a.position - start)
    header.blockCount = UInt8(codes.count)
    header.siteCount = UInt16(handlerSites.count)
    header.linkCount = UInt16(links.count)
    header.faultCount = UInt16(faultSites.count)
    header.relocationCount = UInt16(a.externals.count)
    var writer = RecordWriter(base: room, position: MemoryLayout<KeptTranslation.Header>.size)
    for code in codes { writer.put(KeptTranslation.Block(code.block)) }
    for site in handlerSites { writer.put(kept(site)) }
    for link in links {
      writer.put(
        KeptTranslation.Pair(
          position: UInt16(link.position - start),
          target: UInt16(truncatingIfNeeded: link.target & Page.offsetMask)))
    }
    for site in faultSites {
      writer.put(
        KeptTranslation.Pair(
          position: UInt16(site.position - start),
          target: UInt16(a.position(of: site.target) - start)))
    }
    for position in a.externals { writer.put(UInt16(position - start)) }
    guard let text = kind == .block ? putOwnText(&writer) : putText(&writer) else { return nil }
    header.textLength = text
    putCode(&writer, memory)
    writer.pad()
    room.storeBytes(of: header, as: KeptTranslation.Header.self)
    let checked = RawSpan(_unsafeStart: room + 8, byteCount: writer.position - 8)
    room.storeBytes(of: ContentHash.of(checked), as: UInt64.self)
    return writer.position
  }

  private func kept(_ site: HandlerSite) -> KeptTranslation.Site {
    KeptTranslation.Site(
      position: UInt16(site.position - start),
      back: site.back.map { UInt16(a.position(of: $0) - start) } ?? 0,
      block: UInt8(site.code), op: UInt8(site.index), information: site.information)
  }

  /// The guest's bytes of a block alone, which were read for its translation.
  private func putOwnText(_ writer: inout RecordWriter) -> UInt16? {
    let length = Int(block.pointee.length)
    (writer.base + writer.position).copyMemory(from: memory.bytes, byteCount: length)
    writer.position += length
    return UInt16(exactly: length)
  }

  /// The guest's bytes; nil where they are not those that were translated any more.
  private func putText(_ writer: inout RecordWriter) -> UInt16? {
    let first = writer.position
    for code in codes {
      let length = Int(code.block.pointee.length)
      let place = writer.base + writer.position
      let source = UnsafeRawPointer(bitPattern: UInt(code.block.pointee.host))
      guard GuardedCopy.copy(from: source, to: place, count: length),
        CodeSignature.of(UnsafeRawBufferPointer(start: place, count: length))
          == code.block.pointee.signature
      else { return nil }
      writer.position += length
    }
    return UInt16(exactly: writer.position - first)
  }

  private func putCode(_ writer: inout RecordWriter, _ memory: UInt) {
    let place = writer.base + writer.position
    a.withBytes { bytes in
      let code = UnsafeRawBufferPointer(rebasing: bytes[start...])
      if let source = code.baseAddress { place.copyMemory(from: source, byteCount: code.count) }
    }
    for position in a.externals {
      let field = place + (position - start)
      let distance = UInt(bitPattern: Int(field.loadUnaligned(as: Int32.self)))
      let target = a.origin &+ UInt(position) &+ 4 &+ distance
      field.storeBytes(of: UInt32(truncatingIfNeeded: target &- memory), as: UInt32.self)
    }
    writer.position += a.position - start
  }
}

private struct RecordWriter {
  let base: UnsafeMutableRawPointer
  var position: Int

  mutating func put<T>(_ value: T) {
    (base + position).storeBytes(of: value, as: T.self)
    position += MemoryLayout<T>.stride
  }

  /// To a multiple of 8, with zeroes.
  mutating func pad() {
    while position & 7 != 0 { put(0 as UInt8) }
  }
}
