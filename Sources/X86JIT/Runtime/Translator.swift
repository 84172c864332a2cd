// SPDX-License-Identifier: Apache-2.0
//
// The second tier of the software processor: hot blocks of 64-bit code, and of 32-bit code in flat
// segments, as host code.
//
// Guest and host have the same instruction set, so a translation is mostly the guest's own
// instructions with a TLB check for each memory operand (see BlockTranslation). Each physical CPU
// has its own translator and code, which only the thread that runs the CPU uses.
//
//     let translator = try Translator.install(on: cpu)   // from now on hot blocks are translated
//     translator.statistics.blocks
//
// Invariants:
// - A block's `native` is 0 or the start of code equivalent to its micro-ops.
// - Code is never freed piecemeal. Jumps into a page come only from the same page, and a page's
//   blocks are dropped together. A jump cache entry may still lead to a dropped block's code, which
//   then looks the page's current code up (`retire`). When the memory is full, or the block cache
//   is emptied, all code is dropped.

import Host
import SystemPackage
import X86
import X86CPU
import X86Decoder

package final class Translator: BlockTranslator {
  /// Figures since installation.
  package struct Statistics: Sendable, Equatable {
    /// Blocks translated, and their code's bytes.
    package var blocks: UInt64 = 0
    package var codeBytes: UInt64 = 0
    package var instructions: UInt64 = 0
    /// Blocks that only the interpreter can execute.
    package var refused: UInt64 = 0
    /// How often all code was dropped.
    package var resets: UInt64 = 0
    /// Translations of several blocks together.
    package var regions: UInt64 = 0
    /// Blocks and regions that were translated in an earlier run (`TranslationStore`); they are not
    /// among those above.
    package var recalled: UInt64 = 0
    package var recalledRegions: UInt64 = 0

    package init() {}

    package mutating func add(_ other: Statistics) {
      blocks &+= other.blocks
      codeBytes &+= other.codeBytes
      instructions &+= other.instructions
      refused &+= other.refused
      resets &+= other.resets
      regions &+= other.regions
      recalled &+= other.recalled
      recalledRegions &+= other.recalledRegions
    }
  }

  final class Code {
    let memory: CodeMemory
    init(size: Int) throws(Errno) { memory = try CodeMemory(size: size) }
  }

  struct Site {
    var position: Int
    var modeKey: UInt16
  }

  /// Room that translations reserve for entries.
  static let entryReserve = 4096

  package internal(set) var statistics = Statistics()
  let cache: BlockCache
  let code: Code
  let thunks: Thunks
  /// Emits the translations.
  let work: BlockTranslation
  let hotEntries: Int32
  let guardsSpeculation: Bool
  let countsInstructions: Bool
  private var verifies = false
  private let host = HostFeatures.current
  var used: Int
  /// Position of the first translation, behind the thunks.
  private let firstCode: Int
  /// Positions for code; beyond, the memory counts as full.
  var room: Range<Int>
  private let codeBytes: Int
  /// End of the part in huge pages; the largest number if there are none.
  private var collapsed = 0
  /// `BlockCache.flushes` that the code belongs to.
  var generation: UInt64
  /// Unlinked jumps, by the host address of their target.
  var waiting: [UInt64: [Site]] = [:]
  /// Entries of translations for linear pages.
  private let entries: EntryTable
  var entryAssembler = Assembler(origin: 0)
  /// There was no room for an entry.
  var isFull = false
  /// Entry counters allocated since all code was dropped.
  var counters = 0
  private let handlerCounts: UnsafeMutablePointer<UInt64>
  var faultSites = FaultSiteTable()
  var handlerSites = HandlerSiteTable()
  unowned(unsafe) let processor: PhysicalCPU
  /// Translations of earlier runs; nil where none are kept.
  let store: TranslationStore?
  /// Bytes of a block.
  let text = UnsafeMutableRawPointer.allocate(byteCount: textBytes, alignment: 16)
  /// Logs every translation.
  let log: TranslationLog?

  /// Gives a CPU a translator.
  ///
  /// - Parameters:
  ///   - threshold: see `TranslatorTuning`, as for the next three.
  ///   - countsInstructions: translated code counts in `CPUState.retired`, too.
  ///   - log: logs every translation.
  ///   - measures: translated code counts how it is entered, and the run loop takes times
  ///     (`TierCounts`).
  ///   - verifies: verifies accesses that skip the TLB check (`AccessVerification`).
  ///   - store: translations of earlier runs. They are neither logged nor verified, so it is not
  ///     used with either of these.
  /// - Returns: nil where the host lacks an instruction that translated code needs (BMI2).
  /// - Throws: where memory cannot be mapped.
  @discardableResult
  package static func install(
    on cpu: PhysicalCPU, threshold: UInt32 = TranslatorTuning.standard.threshold,
    hotEntries: Int32 = TranslatorTuning.standard.hotEntries,
    codeBytes: Int = TranslatorTuning.standard.codeBytes,
    guardsSpeculation: Bool = TranslatorTuning.standard.guardsSpeculation,
    countsInstructions: Bool = true, log: TranslationLog? = nil, measures: Bool = false,
    verifies: Bool = false, store: TranslationStore? = nil
  ) throws(Errno) -> Translator? {
    guard HostFeatures.current.has(.bmi2) else { return nil }
    let translator = try Translator(
      cpu, hotEntries: max(hotEntries, 1), codeBytes: max(codeBytes, 1 << 15), log,
      guardsSpeculation: guardsSpeculation, countsInstructions: countsInstructions,
      measures: measures, store: log == nil && !verifies ? store : nil)
    translator.verifies = verifies
    cpu.translator = translator
    cpu.blocks.initialHeat = max(threshold, 1)
    cpu.blocks.forgetNative()
    let state = cpu.cpu.s
    let enter = UnsafeRawPointer(bitPattern: translator.thunks.enter).unsafelyUnwrapped
    state.pointee.native.enter = unsafeBitCast(enter, to: type(of: state.pointee.native.enter))
    state.pointee.native.isMeasured = measures
    if verifies { state.pointee.native.verification.area = translator.makeVectorArea() }
    state.pointee.native.handlerCounts = translator.handlerCounts
    return translator
  }

  private init(
    _ cpu: PhysicalCPU, hotEntries: Int32, codeBytes: Int, _ log: TranslationLog?,
    guardsSpeculation: Bool, countsInstructions: Bool, measures: Bool, store: TranslationStore?
  ) throws(Errno) {
    self.hotEntries = hotEntries
    processor = cpu
    self.log = log
    self.store = store
    cache = cpu.blocks
    self.codeBytes = codeBytes
    // A later look-up by address must not find other code there.
    code = try Code(size: log == nil ? codeBytes : max(codeBytes, Self.loggedBytes))
    entries = try EntryTable()
    self.guardsSpeculation = guardsSpeculation
    self.countsInstructions = countsInstructions
    thunks = Thunks(
      origin: UInt(bitPattern: code.memory.executable), guardsSpeculation: guardsSpeculation,
      counts: measures)
    work = BlockTranslation(thunks: thunks, cache: cache, host: host)
    code.memory.writable.copyMemory(from: thunks.code, byteCount: thunks.code.count)
    firstCode = (thunks.code.count + 63) & ~63
    used = firstCode
    room = used..<codeBytes
    generation = cache.flushes
    handlerCounts = .allocate(capacity: 4096)
    handlerCounts.initialize(repeating: 0, count: 4096)
    log?.note(thunks, processor: cpu.number)
  }

  /// Results of `verifies`.
  package var verification: AccessVerification { processor.cpu.s.pointee.native.verification }
  private var vectorArea: UnsafeMutableRawPointer?

  private func makeVectorArea() -> UInt64 {
    let area = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
    area.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
    vectorArea = area
    return UInt64(UInt(bitPattern: area))
  }

  deinit {
    vectorArea?.deallocate()
    handlerCounts.deallocate()
    text.deallocate()
    faultSites.deallocate()
    handlerSites.deallocate()
  }

  /// How the guest's code was run.
  package var tiers: TierCounts { processor.cpu.s.pointee.native.counts }

  /// How often handlers executed each instruction, most frequent first.
  package var handlerUse: [(mnemonic: Mnemonic, count: UInt64)] {
    Mnemonic.allCases
      .map { ($0, handlerCounts[Int($0.rawValue)]) }
      .filter { $0.1 > 0 }
      .sorted { $0.1 > $1.1 }
  }

  package func translate(_ block: BlockPointer) {
    if generation != cache.flushes { reset() }
    // Dropped code may be in the store again; else the store was asked when the block was decoded.
    if statistics.resets > 0, recallDecoded(block) { return }
    guard mayTranslate(block), begin(block) else {
      statistics.refused += 1
      return
    }
    let heat = CPU.heatOffset(counters)
    counters &+= 1
    setHeat(heat, hotEntries)
    translate(heat: heat)
    if place() { keep(.block) }
    block.pointee.isCounted = block.pointee.native != 0
  }

  func mayTranslate(_ block: BlockPointer) -> Bool {
    (block.mode == .bits64 || block.pointee.modeKey & ModeKey.flat != 0)
      && block.pointee.count > 0
  }

  /// Begins the translation of a single block.
  private func begin(_ block: BlockPointer) -> Bool {
    work.memory.removeAll()
    return work.memory.append(block, host: host)
  }

  /// Translates a hot block again, as a region with its hot successors.
  package func optimize(_ block: BlockPointer) {
    if generation != cache.flushes { return }
    let old = block.pointee.native
    if recallRegion(block) { return replace(old, of: block) }
    if block.pointee.hasKeptRegion {
      // Its other blocks may become hot.
      block.pointee.hasKeptRegion = false
      if block.pointee.isCounted { return setHeat(heat(of: block), hotEntries) }
    }
    work.memory.findRegion(block, in: cache, host: host)
    let resets = statistics.resets
    if work.memory.codeCount > 0 {
      translate(heat: nil)
      if place() { keep(.region) }
    }
    let new = block.pointee.native
    if resets != statistics.resets { return }
    if new == old { return stopCounting(block) }
    statistics.regions += 1
    replace(old, of: block)
  }

  /// Replaces a block's own code by a region.
  private func replace(_ old: UInt, of block: BlockPointer) {
    block.pointee.isCounted = false
    let new = block.pointee.native
    // Jumps to the old code continue to the new.
    let offset = Int(old - UInt(bitPattern: self.code.memory.executable))
    let distance = Int32(truncatingIfNeeded: Int(bitPattern: new &- (old + 5)))
    code.memory.writable.storeBytes(of: 0xE9, toByteOffset: offset, as: UInt8.self)
    code.memory.writable.storeBytes(of: distance, toByteOffset: offset + 1, as: Int32.self)
  }

  /// Patches a block's entry counter out, if it gets no better code.
  private func stopCounting(_ block: BlockPointer) {
    if !block.pointee.isCounted { return }
    block.pointee.isCounted = false
    let offset = Int(block.pointee.native - UInt(bitPattern: code.memory.executable))
    let start = code.memory.writable + offset
    start.storeBytes(of: 0xEB, as: UInt8.self)  // jmp short
    start.storeBytes(of: UInt8(BlockTranslation.countBytes - 2), toByteOffset: 1, as: UInt8.self)
  }

  package func entry(of block: BlockPointer, page: UInt64) -> UInt {
    let target = block.pointee.native
    let known = entries.find(code: target, page: page)
    if known != 0 { return known }
    let start = UInt(bitPattern: code.memory.executable) + UInt(used)
    entryAssembler.begin(origin: start)
    entryAssembler.move(.r13, immediate: page)
    entryAssembler.store(.state(StateOffset.codePage), .r13)
    entryAssembler.jump(to: target)
    if used + entryAssembler.position > room.upperBound {
      isFull = true
      return 0
    }
    entryAssembler.copy(to: code.memory.writable + used)
    used += (entryAssembler.position + 15) & ~15
    entries.add(code: target, page: page, start: start)
    return start
  }

  package func retire(_ block: BlockPointer) {
    let place = Int(bitPattern: block.pointee.native &- UInt(bitPattern: code.memory.executable))
    guard place >= 0, place + Self.retiredBytes <= code.memory.size else { return }
    let next = block.pointee.native + UInt(Self.retiredBytes)
    let distance = Int32(truncatingIfNeeded: Int(bitPattern: thunks.stale &- next))
    let offset = UInt32(truncatingIfNeeded: block.pointee.host & Page.offsetMask)
    let start = code.memory.writable + place
    // mov r13d, offset; jmp stale
    start.storeBytes(of: 0xBD41, as: UInt16.self)
    start.storeBytes(of: offset, toByteOffset: 2, as: UInt32.self)
    start.storeBytes(of: 0xE9, toByteOffset: 6, as: UInt8.self)
    start.storeBytes(of: distance, toByteOffset: 7, as: Int32.self)
  }

  /// Bytes of code that `retire` writes.
  static let retiredBytes = 11

  /// Whether the first bytes are there, and no jump among them waits for its target. A block's own
  /// translation counts entries in them; a region that is a lone jump has neither, and its block
  /// keeps the code that it has.
  private var canRetire: Bool {
    let end = work.start + Self.retiredBytes
    return work.a.position >= end && work.links.allSatisfy { $0.position >= end }
  }

  func setHeat(_ offset: Int, _ value: Int32) {
    (processor.cpu.raw + offset).storeBytes(of: value, as: Int32.self)
  }

  /// Copies the translation to the code memory and makes it its first block's; false: it is
  /// left out.
  private func place() -> Bool {
    let translation = work
    let block = translation.codes[0].block
    let size = translation.a.position
    if size + Self.entryReserve > codeBytes - firstCode {
      // Dropping what is there would not make room for it.
      statistics.refused += 1
      return false
    }
    if !canRetire {
      statistics.refused += 1
      return false
    }
    if isFull || used + size + Self.entryReserve > room.upperBound {
      // Retried when it is hot again.
      reset()
      return false
    }
    collapsePages(upTo: used + size)
    translation.a.copy(to: code.memory.writable + used)
    let entry = UInt(bitPattern: code.memory.executable) + UInt(used)
    let start = entry + UInt(translation.start)
    for link in translation.links {
      addLink(at: used + link.position, to: link.target, block.pointee.modeKey)
    }
    faultSites.append(translation, at: used)
    noteFaultSites()
    handlerSites.append(translation, at: entry)
    processor.cpu.s.pointee.native.handlerSites = handlerSites.sites.base
    used = (used + size + 15) & ~15
    block.pointee.native = start
    block.pointee.nativeEntry = entry
    block.pointee.nativePage = translation.linearPage
    connect(block, start)
    statistics.blocks += 1
    statistics.codeBytes += UInt64(size)
    for code in translation.codes { statistics.instructions += UInt64(code.instructions.count) }
    log?.note(translation, at: processor.cpu.s.pointee.rip, processor: processor.number)
    return true
  }

  /// Links the jump whose displacement is at a position to the block's translation, now or when
  /// there is one.
  func addLink(at position: Int, to target: UInt64, _ modeKey: UInt16) {
    if store != nil, let found = cache.find(host: target, modeKey: modeKey),
      found.pointee.native != 0, found.pointee.secondPage == 0
    {
      connect(position, found.pointee.native)
    } else {
      waiting[target, default: []].append(Site(position: position, modeKey: modeKey))
    }
  }

  private func connect(_ position: Int, _ target: UInt) {
    let next = UInt(bitPattern: code.memory.executable) + UInt(position + 4)
    let distance = Int32(truncatingIfNeeded: Int(bitPattern: target &- next))
    code.memory.writable.storeBytes(of: distance, toByteOffset: position, as: Int32.self)
  }

  /// Has code up to a position in huge pages: each is made as the first code gets there, so that a
  /// small guest has few.
  func collapsePages(upTo end: Int) {
    while end > collapsed {
      let next = collapsed + Mapping.hugePageSize
      collapsed = code.memory.collapse(collapsed..<next) ? next : .max
    }
  }

  /// Translates the blocks in `work.memory`.
  private func translate(heat: Int?) {
    work.begin(
      linearPage: processor.cpu.s.pointee.rip & Page.mask,
      origin: UInt(bitPattern: code.memory.executable) + UInt(used))
    work.heat = heat
    work.guardsAccesses = GuardedCall.isPrepared
    work.guardsSpeculation = guardsSpeculation
    work.countsInstructions = countsInstructions
    work.verifies = verifies
    work.keepsLinks = store != nil
    work.counter = log?.makeCounter()
    work.keepsMarks = log != nil
    work.firstSite = handlerSites.sites.count
    work.translate()
  }

  /// Links the jumps that wait for this block.
  func connect(_ block: BlockPointer, _ start: UInt) {
    guard block.pointee.secondPage == 0, let sites = waiting[block.pointee.host] else { return }
    for site in sites where site.modeKey == block.pointee.modeKey {
      connect(site.position, start)
    }
    waiting[block.pointee.host] = sites.filter { $0.modeKey != block.pointee.modeKey }
  }

  /// Code memory where translations are logged; jumps reach all of it.
  private static let loggedBytes = 1 << 30

  /// Drops all code. New code starts at the beginning, or behind the old as long as there is room.
  private func reset() {
    cache.forgetNative()
    waiting.removeAll(keepingCapacity: true)
    entries.removeAll()
    isFull = false
    let next = (used + 63) & ~63
    room = next + codeBytes <= code.memory.size ? next..<next + codeBytes : firstCode..<codeBytes
    used = room.lowerBound
    generation = cache.flushes
    counters = 0
    statistics.resets += 1
    faultSites.removeAll()
    noteFaultSites()
    handlerSites.removeAll()
  }

  /// Publishes it to signal handlers.
  func noteFaultSites() {
    processor.cpu.s.pointee.native.faultSites = NativeFaultSites(
      start: UInt(bitPattern: code.memory.executable), size: UInt(code.memory.size),
      sites: faultSites.sites.base, count: faultSites.sites.count)
  }
}
