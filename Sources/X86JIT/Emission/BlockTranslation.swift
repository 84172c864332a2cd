// SPDX-License-Identifier: Apache-2.0
//
// The translation of one block, or of several that lead to each other (BlockCode.region).
//
// Flags. The guest's arithmetic flags stay in host RFLAGS from the instruction that writes them to
// those that read them; FlagState keeps them alive across code that clobbers host RFLAGS. Handlers,
// memory accesses (which may fault) and the block's successors read all flags. At entries and exits
// of the translation the flags are in the CPU state.
//
// Faults. When a memory operand misses the TLB, the instruction has had no effect yet: out-of-line
// code calls its handler for the whole instruction and returns to the fast code behind it. So
// faults, MMIO, code pages and page crossings need no code of their own.

import X86
import X86CPU
import X86Decoder

/// A patchable jump to another block's translation, and its target.
struct BlockLink {
  /// Of the 32-bit displacement, from the start of the code.
  var position: Int
  /// Host address of the target.
  var target: UInt64
}

/// One object makes all translations of a CPU, one after the other, and reuses its buffers.
final class BlockTranslation {
  /// An access whose page is not the remembered one.
  struct PageWay {
    var look: Label
    var back: Label
    var page: RememberedPage
    var size: Int
    var write: Bool
    var miss: Label
  }

  struct HandlerSite {
    var op: MicroOpPointer
    var information: UInt32
    /// Where execution continues; nil: behind the call.
    var back: Label?
    /// Of the number, four bytes.
    var position: Int
    /// Which block of the translation, and which of its instructions.
    var code: Int
    var index: Int
  }

  struct OutOfLine {
    var start: Label
    var back: Label
    var code: Int
    var index: Int
    /// The flags before the instruction and after it.
    var flagsBefore: FlagState
    var flagsAfter: FlagState
    /// Vector registers before and after the instruction.
    var before: VectorCache
    var after: VectorCache
  }

  var a: Assembler
  /// The purpose of each stretch of code, in order of position.
  private(set) var marks: [CodeMark] = []
  /// A log lists the code.
  var keepsMarks = false
  /// Counts executions, for `--stats`.
  var counter: UInt?
  let thunks: Thunks
  let cache: BlockCache
  let memory = TranslationMemory()
  /// The block whose code is being emitted.
  private(set) var current = 0
  /// Out-of-line edges and versions not yet emitted (see BlockTranslation+Versions).
  var versions: [Version] = []
  var ways: [Way] = []
  var segments: [SlowSegment] = []
  /// Segments that begin in the current version and have not ended yet.
  var openSegments: [Int] = []
  /// In a slow segment: groups are off from this instruction of the block on.
  var slowFrom: Int?
  /// The group whose host address is in R13.
  var heldGroup: Int?
  /// Loop rounds without TLB checks: the possible ones by block, those not yet emitted, and the
  /// current one.
  private(set) var loopRounds: [(code: Int, rounds: LoopRounds)] = []
  var roundsWays: [RoundsWay] = []
  var rounds: (plan: LoopRounds, registers: RoundsRegisters)?
  /// The version that is being emitted.
  var emitted: Int?
  /// The version to emit next, where code falls through to it.
  var next: Int?
  /// Whether a version may follow here without a jump.
  var isInline = true
  /// The linear page of the blocks. The translation also serves other linear pages, without the
  /// check before `start`.
  private(set) var linearPage: UInt64 = 0
  /// Where the code for any linear page begins, from the start.
  private(set) var start = 0
  /// Offset of the entry counter (it counts down) in the CPU state; nil: entries are not counted.
  var heat: Int?
  /// Emit small code rather than fast code: the block is not hot, or will be retranslated when hot.
  private(set) var isCompact = false
  /// Instructions left to handlers, and the number of the first.
  private(set) var handlerSites: [HandlerSite] = []
  var firstSite = 0
  var flags = FlagState.inState
  /// Their state where the current instruction's access can miss.
  var flagsAtAccess = FlagState.inState
  var outOfLine: [OutOfLine] = []
  var pageWays: [PageWay] = []
  /// Memory may vanish after a TLB hit, as a client's can (`GuardedCall`).
  var guardsAccesses = false
  /// An access that the host executes speculatively after a failed check has a harmless address
  /// (`TranslatorTuning`).
  var guardsSpeculation = true
  /// `CPUState.retired` is exact at each instruction that the interpreter or a handler executes.
  var countsInstructions = true
  /// All jumps to other translations can be unpatched, because the store keeps the translation
  /// (TranslationStore).
  var keepsLinks = false
  /// Verifies accesses that skip the TLB check (`AccessVerification`).
  var verifies = false
  /// In order of position.
  var faultSites: [FaultSite] = []
  var faultWays: [FaultWay] = []
  /// How many pages the accesses of loops cache.
  private(set) var loopPageCount = 0
  var exits: [(label: Label, offset: Int)] = []
  var links: [BlockLink] = []
  var unresolved: [UnresolvedWay] = []
  /// Scratch registers of the current instruction that hold guest registers.
  var scratch: [(guest: UInt8, host: HostRegister)] = []
  let host: HostFeatures
  private(set) var plan = VectorPlan()
  var vectors = VectorCache()
  var hotEntry: Label?
  var vectorEntries: [VectorEntry] = []
  var leavingHandlers: [(start: Label, code: Int, index: Int, cache: VectorCache)] = []

  init(thunks: Thunks, cache: BlockCache, host: HostFeatures) {
    self.thunks = thunks
    self.cache = cache
    self.host = host
    a = Assembler(origin: 0)
  }

  /// Begins the translation of the blocks in `memory`, for a linear page and a place of its code.
  func begin(linearPage: UInt64, origin: UInt) {
    a.begin(origin: origin)
    self.linearPage = linearPage
    forgetTranslation()
    loopPageCount = LoopAccess.findPages(codes)
    for n in codes.indices {
      if let rounds = LoopRounds(codes[n]) { loopRounds.append((n, rounds)) }
    }
    plan = VectorPlan(codes, host: host)
  }

  /// Resets the state of the previous translation.
  private func forgetTranslation() {
    marks.removeAll(keepingCapacity: true)
    versions.removeAll(keepingCapacity: true)
    ways.removeAll(keepingCapacity: true)
    segments.removeAll(keepingCapacity: true)
    openSegments.removeAll(keepingCapacity: true)
    loopRounds.removeAll(keepingCapacity: true)
    roundsWays.removeAll(keepingCapacity: true)
    handlerSites.removeAll(keepingCapacity: true)
    outOfLine.removeAll(keepingCapacity: true)
    pageWays.removeAll(keepingCapacity: true)
    faultSites.removeAll(keepingCapacity: true)
    faultWays.removeAll(keepingCapacity: true)
    exits.removeAll(keepingCapacity: true)
    links.removeAll(keepingCapacity: true)
    unresolved.removeAll(keepingCapacity: true)
    scratch.removeAll(keepingCapacity: true)
    vectorEntries.removeAll(keepingCapacity: true)
    leavingHandlers.removeAll(keepingCapacity: true)
    (current, start, isInline, isCompact) = (0, 0, true, false)
    (slowFrom, heldGroup, rounds, emitted, next, hotEntry) = (nil, nil, nil, nil, nil, nil)
    (flags, flagsAtAccess, vectors) = (.inState, .inState, VectorCache())
  }

  // MARK: The current block

  /// The blocks, that which is entered first.
  var codes: UnsafeBufferPointer<BlockCode> {
    UnsafeBufferPointer(start: memory.codes, count: memory.codeCount)
  }

  /// The rounds without TLB checks of a block.
  func loopRounds(of code: Int) -> LoopRounds? {
    loopRounds.first { $0.code == code }?.rounds
  }

  /// Makes another block the current one.
  func select(_ code: Int) { current = code }

  private var code: UnsafeMutablePointer<BlockCode> { memory.codes + current }
  var block: BlockPointer { code.pointee.block }
  var pageOffset: Int { code.pointee.pageOffset }
  var mode: CodeMode { code.pointee.mode }
  var instructions: UnsafeBufferPointer<Instruction> { code.pointee.instructions }
  var kinds: UnsafeBufferPointer<LoweringKind> { code.pointee.kinds }
  var effects: UnsafeBufferPointer<FlagEffect> { code.pointee.effects }
  var groups: UnsafeMutablePointer<AccessGroup> { code.pointee.accesses.groups }
  /// The group of each instruction's access, or -1.
  var accessGroup: UnsafeMutablePointer<Int> { code.pointee.accesses.group }
  var relative: UnsafeMutablePointer<Int64> { code.pointee.accesses.relative }
  var loopPages: UnsafeMutablePointer<Int8> { code.pointee.loopPages }

  /// Flags that are live after an instruction.
  func liveAfter(_ n: Int) -> FlagSet {
    rounds == nil ? code.pointee.liveAfter[n] : rounds?.plan.liveAfter[n] ?? .all
  }

  // MARK: Words

  /// Addresses have 64 bits; else 32, and address arithmetic wraps at 4 GiB.
  var isWide: Bool { codes[0].mode == .bits64 }

  /// Bytes of an address, a stack slot and a return address.
  var wordSize: Int { Int(codes[0].mode.wordSize) }

  func leaWord(_ to: HostRegister, _ from: Place) {
    if isWide { a.lea(to, from) } else { a.lea32(to, from) }
  }

  func loadWord(_ to: HostRegister, _ from: Place) {
    if isWide { a.load(to, from) } else { a.load32(to, from) }
  }

  func storeWord(_ to: Place, _ from: HostRegister) {
    if isWide { a.store(to, from) } else { a.store32(to, from) }
  }

  /// Adds words and bytes to the stack pointer.
  func moveStackPointer(words: Int, bytes: Int32 = 0) {
    let sp = RegisterMap.stackPointer
    leaWord(sp, .memory(sp, Int32(words * wordSize) + bytes))
  }

  // MARK: Positions

  /// Offset of an instruction in the page.
  func offset(_ n: Int) -> Int { code.pointee.offset(n) }

  func nextOffset(_ n: Int) -> Int { code.pointee.nextOffset(n) }

  func target(_ n: Int) -> Int { code.pointee.target(n) }

  /// The instruction at an offset of the page.
  func instruction(at offset: Int) -> Instruction? {
    for code in codes {
      for n in code.instructions.indices where code.offset(n) == offset {
        return code.instructions[n]
      }
    }
    return nil
  }

  // MARK: The whole

  func translate() {
    // A loop's back edge skips the entry counter.
    isCompact = heat != nil && !codes[0].successors.contains(pageOffset)
    a.move(.r13, immediate: linearPage)
    a.store(.state(StateOffset.codePage), .r13)
    start = a.position
    countEntry()
    forgetPages()
    emitVersions()
    mark(.stackWays)
    emitPageWays()
    mark(.unresolved)
    emitUnresolved()
    emitOutOfLine()
    mark(.faults)
    emitFaultWays()
    mark(.vectorWays)
    emitVectorEntries()
    emitLeavingHandlers()
    mark(.exits)
    emitExits()
    a.resolve()
  }

  /// A single block's translation counts its entries, so that it is retranslated as a region when
  /// hot.
  private func countEntry() {
    guard let heat else { return }
    mark(.entry)
    let hot = a.label()
    a.arithmetic(.sub, .state(heat), immediate: 1, wide: false)
    a.jump(if: Self.sign, hot)
    assert(a.position == start + Self.countBytes)
    hotEntry = hot
  }

  /// Bytes of the entry counter's code.
  static let countBytes = 14

  static let sign: UInt8 = 8

  /// Forgets the pages that other code cached.
  private func forgetPages() {
    for page in 0..<loopPageCount {
      a.store(.state(RememberedPage(access: page).limit), immediate: 0)
    }
  }

  /// Names the purpose of the code that follows, for listings.
  func mark(_ part: CodeMark.Part) {
    if keepsMarks { marks.append(CodeMark(position: a.position, part: part)) }
  }

  func lower(_ n: Int) {
    prepareVectors(n)
    keepFlags(n)
    defer {
      dropRecipe(n)
      if !keepsHeldGroup(n) { heldGroup = nil }
    }
    switch kinds[n] {
    case .vector: lowerVector(n)
    case .modRM, .vex: lowerModRM(n)
    case .accumulator: lowerAccumulator(n)
    case .lea: lowerLEA(n)
    case .moveImmediate: lowerMoveImmediate(n)
    case .bswap: lowerByteSwap(n)
    case .push: lowerPush(n)
    case .pop: lowerPop(n)
    case .leave: lowerLeave(n)
    case .nop: break
    case .fence: lowerFence(n)
    case .jump: lowerJump(n)
    case .conditionalJump: lowerConditionalJump(n)
    case .countedJump: lowerCountedJump(n)
    case .call: lowerCall(n)
    case .ret: lowerReturn(n)
    case .system: lowerSystem(n)
    case .systemJump: lowerSystemJump(n)
    case .divide: lowerDivide(n)
    case .bitString: lowerBitString(n)
    case .compareExchange: lowerCompareExchange(n)
    case .repeatedString: lowerRepeatedString(n)
    case .handler: leaveToHandler(n)
    }
    if n > 0 && instructions[n - 1].mnemonic == .sti && kinds[n - 1] == .system { endShadow() }
  }

  /// The code of `n` preserves R13, or its group's.
  private func keepsHeldGroup(_ n: Int) -> Bool {
    switch kinds[n] {
    case .modRM, .vex: group(n) != nil || instructions[n].memoryOperand == nil && scratch.count < 3
    case .vector:
      group(n) != nil || instructions[n].memoryOperand == nil && instructions[n].mnemonic != .fldcw
    case .push, .pop: group(n) != nil
    case .moveImmediate, .accumulator, .nop, .bswap, .fence: true
    default: false
    }
  }

  /// The fall-through edge of a block whose last instruction is no jump.
  func finishLast() {
    let last = instructions.count - 1
    switch kinds[last] {
    case .jump, .conditionalJump, .countedJump, .call, .ret, .systemJump: return
    default: break
    }
    recordX87()
    if instructions[last].attributes.isDisjoint(with: [.branch, .serializes]) {
      edge(to: nextOffset(last), from: last)
    } else {
      makeGeneric()
      edgeAfterSystemInstruction(to: nextOffset(last))
    }
  }

  // MARK: Handlers

  func leaveToHandler(_ n: Int) {
    leaveFlags()
    callHandler(n)
    flags = .inState
  }

  /// Calls the handler of instruction `n`, then continues after it.
  func callHandler(_ n: Int) {
    // Serializing instructions and I/O also wait for non-temporal stores.
    if instructions[n].ordersStores { a.storeFence() }
    noteSite(n, back: nil)
    a.call(thunks.handler)
  }

  /// R14 = handler site number of `n`. Preserves flags.
  private func noteSite(_ n: Int, back: Label?) {
    a.move(.r14, immediate: UInt64(firstSite + handlerSites.count))
    handlerSites.append(
      HandlerSite(
        op: block.pointee.ops + n, information: information(n).rawValue, back: back,
        position: a.position - 4, code: current, index: n))
  }

  private func information(_ n: Int) -> HandlerInformation {
    let i = instructions[n]
    let effect = effects[n]
    var reads = effect.touches || !effect.reads.isEmpty
    var writes = effect.touches
    if kinds[n] == .handler || kinds[n] == .system || kinds[n] == .systemJump {
      let system = !i.attributes.isDisjoint(with: [.branch, .serializes, .privileged])
      writes = system || i.attributes.contains(.writesFlags)
      reads = writes || i.attributes.contains(.readsFlags)
    }
    return HandlerInformation(
      blockOffset: pageOffset, remaining: countsInstructions ? instructions.count - 1 - n : 0,
      reads: reads, writes: writes,
      mnemonic: i.mnemonic, isHandler: kinds[n] == .handler && Self.mayChangeVectors(i))
  }

  /// The instruction may change which vector instructions are usable.
  private static func mayChangeVectors(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .movControl, .clts, .lmsw, .rsm: return true
    default: return i.feature != .base || i.attributes.contains(.vector)
    }
  }

  /// The target of an access that misses; `endAccess` binds it to the out-of-line code.
  func missLabel() -> Label { a.label() }

  /// After the inline code of `n`: where its out-of-line code returns.
  func endAccess(_ n: Int, _ miss: Label, _ before: VectorCache? = nil) {
    let back = a.label()
    a.bind(back)
    outOfLine.append(
      OutOfLine(
        start: miss, back: back, code: current, index: n, flagsBefore: flagsAtAccess,
        flagsAfter: flags,
        before: before ?? vectors, after: vectors))
  }

  private func emitOutOfLine() {
    for way in outOfLine {
      mark(.miss(offset(way.index)))
      a.bind(way.start)
      select(way.code)
      flags = way.flagsBefore
      if way.flagsAfter.host.isEmpty && !way.after.needsReload {
        leaveToHandler(way)
        continue
      }
      saveFlags()
      leaveVectors(way)
      callHandler(way.index)
      reenterVectors(way)
      if !way.flagsAfter.host.isEmpty {
        a.restoreFlags(.state(StateOffset.hostFlags), temporary: .r14)
      }
      a.jump(way.back)
    }
  }

  /// Nothing follows the handler call.
  private func leaveToHandler(_ way: OutOfLine) {
    let savesFlags = !flags.inState
    if savesFlags && !flags.isInHost { executeRecipe() }
    leaveVectors(way)
    if instructions[way.index].ordersStores { a.storeFence() }
    noteSite(way.index, back: way.back)
    a.jump(to: savesFlags ? thunks.handlerJumpFlags : thunks.handlerJump)
  }

  private func emitExits() {
    if let hotEntry {
      select(0)
      a.bind(hotEntry)
      pageRelative(.r13, pageOffset)
      a.jump(to: thunks.hot)
    }
    for exit in exits {
      a.bind(exit.label)
      jump(to: exit.offset, isWide ? thunks.exitRelative : thunks.exitAt)
    }
  }
}
