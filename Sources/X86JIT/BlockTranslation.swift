// SPDX-License-Identifier: Apache-2.0
//
// The translation of one block.
//
// Flags. The guest's arithmetic flags stay in the host's from the instruction that makes them to
// those that read them; FlagState says how they outlive what clobbers the host's. A handler, a memory
// access (which may fault) and the end of the block look at all of them. At the block's edges they
// are in the state.
//
// Faults. Nothing of an instruction has happened when its memory operand misses the TLB: the whole
// instruction is then left to its handler, out of line, and the code after it goes on. So faults,
// MMIO, code pages and page crossings need no code of their own.

import X86
import X86CPU
import X86Decoder

/// A jump that can be sent to another block's translation, and where it leads.
struct BlockLink {
  /// Of the 32-bit displacement, from the start of the code.
  var position: Int
  /// Host address of the target.
  var target: UInt64
}

struct BlockTranslation {
  /// A stack access whose page is not the remembered one.
  struct StackWay {
    var look: Label
    var back: Label
    var size: Int
    var miss: Label
  }

  struct OutOfLine {
    var start: Label
    var back: Label
    var index: Int
    /// The flags before the instruction and after it.
    var flagsBefore: FlagState
    var flagsAfter: FlagState
    /// Vector registers before and after the instruction.
    var before: VectorCache
    var after: VectorCache
  }

  var a: Assembler
  /// What the code from here on is for, in order of position.
  private(set) var marks: [CodeMark] = []
  /// Counts executions, where someone asked for them.
  var counter: UInt?
  let thunks: Thunks
  let cache: BlockCache
  let block: BlockPointer
  /// Offset of the block in its page.
  let pageOffset: Int
  let instructions: [Instruction]
  let kinds: [LoweringKind]
  let effects: [FlagEffect]
  /// Flags that are looked at after each instruction.
  let liveAfter: [FlagSet]
  var flags = FlagState.inState
  /// What they were where the current instruction's access can miss.
  var flagsAtAccess = FlagState.inState
  var outOfLine: [OutOfLine] = []
  var stackWays: [StackWay] = []
  var exits: [(label: Label, offset: Int)] = []
  var links: [BlockLink] = []
  var unresolved: [UnresolvedWay] = []
  /// Scratch registers of the current instruction that hold guest registers.
  var scratch: [(guest: UInt8, host: HostRegister)] = []
  let entry: Label
  let host: HostFeatures
  let plan: VectorPlan
  var vectors = VectorCache()
  var vectorEntries: [VectorEntry] = []
  var leavingHandlers: [(start: Label, index: Int, cache: VectorCache)] = []
  /// The block branches to `loopHead` with its vector registers in place.
  var keepsVectors = false
  var loopHead: Label

  /// Nil where the block's bytes are not what they were when it was decoded.
  init?(
    _ block: BlockPointer, origin: UInt, thunks: Thunks, cache: BlockCache, host: HostFeatures
  ) {
    self.block = block
    self.thunks = thunks
    self.cache = cache
    pageOffset = Int(block.pointee.host & Page.offsetMask)
    guard let instructions = Self.decode(block) else { return nil }
    self.instructions = instructions
    let ops = block.pointee.ops
    kinds = Self.kinds(instructions, ops, host)
    effects = zip(instructions, kinds).map { $1 == .handler ? .none : FlagEffect($0) }
    liveAfter = Self.liveness(instructions, kinds, effects)
    self.host = host
    plan = VectorPlan(instructions, kinds, host: host)
    a = Assembler(origin: origin)
    entry = a.label()
    loopHead = entry
  }

  private static func kinds(
    _ instructions: [Instruction], _ ops: MicroOpPointer, _ host: HostFeatures
  ) -> [LoweringKind] {
    var kinds = instructions.indices.map {
      ops[$0].isUndefined ? .handler : LoweringKind(instructions[$0], host: host)
    }
    for n in kinds.indices where instructions[n].mnemonic == .sti {
      if n + 1 == kinds.count || !kinds[n + 1].isPlain { kinds[n] = .handler }
    }
    return kinds
  }

  private static func decode(_ block: BlockPointer) -> [Instruction]? {
    let bytes = UnsafeRawPointer(bitPattern: UInt(block.pointee.host)).unsafelyUnwrapped
    var result: [Instruction] = []
    var offset = 0
    let room = Int(Page.size - block.pointee.host & Page.offsetMask)
    for n in 0..<Int(block.pointee.count) {
      let rest = UnsafeRawBufferPointer(start: bytes + offset, count: room - offset)
      guard offset < room, let instruction = try? Decoder.decode(rest, mode: .bits64),
        instruction.length == block.pointee.ops[n].length
      else { return nil }
      result.append(instruction)
      offset += Int(instruction.length)
    }
    return result
  }

  private static func liveness(
    _ instructions: [Instruction], _ kinds: [LoweringKind], _ effects: [FlagEffect]
  ) -> [FlagSet] {
    var result = Array(repeating: FlagSet.all, count: instructions.count)
    var live = FlagSet.all
    let tests = VectorPlan.tests(kinds)
    for n in instructions.indices.reversed() {
      result[n] = live
      live = live.subtracting(effects[n].writes).union(effects[n].reads)
      let accesses = LoweringKind.accessesMemory(instructions[n], kinds[n])
      if accesses || tests.contains(n) { live = .all }
    }
    return result
  }

  // MARK: Positions

  /// Offset of an instruction in the page.
  func offset(_ n: Int) -> Int { pageOffset + Int(block.pointee.ops[n].offset) }

  func nextOffset(_ n: Int) -> Int { offset(n) + Int(instructions[n].length) }

  // MARK: The block

  mutating func translate() {
    a.bind(entry)
    mark(.entry)
    enterVectors()
    if let counter { a.count(at: counter) }
    a.arithmetic(.add, .state(StateOffset.retired), immediate: Int32(instructions.count))
    for n in instructions.indices {
      scratch.removeAll(keepingCapacity: true)
      mark(.instruction(offset(n)))
      lower(n)
    }
    mark(.end)
    finishLast()
    mark(.stackWays)
    emitStackWays()
    emitUnresolved()
    emitOutOfLine()
    mark(.vectorWays)
    emitVectorEntries()
    emitLeavingHandlers()
    mark(.exits)
    emitExits()
    a.resolve()
  }

  /// Says what the code that follows is for.
  mutating func mark(_ part: CodeMark.Part) {
    marks.append(CodeMark(position: a.position, part: part))
  }

  private mutating func lower(_ n: Int) {
    prepareVectors(n)
    keepFlags(n)
    defer { dropRecipe(n) }
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
    case .jump: lowerJump(n)
    case .conditionalJump where keepsVectors: lowerLoopJump(n)
    case .conditionalJump: lowerConditionalJump(n)
    case .call: lowerCall(n)
    case .ret: lowerReturn(n)
    case .system: lowerSystem(n)
    case .systemJump: lowerSystemJump(n)
    case .divide: lowerDivide(n)
    case .bitString: lowerBitString(n)
    case .handler: leaveToHandler(n)
    }
    if n > 0 && instructions[n - 1].mnemonic == .sti && kinds[n - 1] == .system { endShadow() }
  }

  /// The way on from a block that its last instruction did not end with a jump of its own.
  private mutating func finishLast() {
    let last = instructions.count - 1
    switch kinds[last] {
    case .jump, .conditionalJump, .call, .ret, .systemJump: return
    default: break
    }
    saveFlags()
    recordX87()
    spillVectors()
    if instructions[last].attributes.isDisjoint(with: [.branch, .serializes]) {
      edge(to: nextOffset(last), from: last)
    } else {
      edgeAfterSystemInstruction(to: nextOffset(last))
    }
  }

  // MARK: Handlers

  mutating func leaveToHandler(_ n: Int) {
    leaveFlags()
    callHandler(n)
    flags = .inState
  }

  /// Code that has the handler execute instruction `n` and goes on after it.
  mutating func callHandler(_ n: Int) {
    let op = block.pointee.ops + n
    a.move(.r13, immediate: UInt64(UInt(bitPattern: op)))
    a.move(.r14, immediate: UInt64(information(n).rawValue))
    a.call(thunks.handler)
  }

  private func information(_ n: Int) -> HandlerInformation {
    let i = instructions[n]
    let effect = effects[n]
    var reads = effect.touches || !effect.reads.isEmpty
    var writes = effect.touches
    if kinds[n] == .handler || kinds[n] == .system || kinds[n] == .systemJump {
      let system = !i.attributes.isDisjoint(with: [.branch, .serializes, .privileged])
      writes = system || i.attributes.contains(.writesFlags) || i.writesHostFlags
      reads = writes || i.attributes.contains(.readsFlags)
    }
    return HandlerInformation(
      blockOffset: pageOffset, remaining: instructions.count - 1 - n, reads: reads, writes: writes,
      mnemonic: i.mnemonic, isHandler: kinds[n] == .handler && Self.mayChangeVectors(i))
  }

  /// Whether the instruction may change what vector instructions may do.
  private static func mayChangeVectors(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .movControl, .clts, .lmsw, .rsm: return true
    default: return i.feature != .base || i.attributes.contains(.vector)
    }
  }

  /// Where an access that misses jumps to; `endAccess` makes it the out-of-line way.
  mutating func missLabel() -> Label { a.label() }

  /// After the inline code of `n`: where its out-of-line way comes back.
  mutating func endAccess(_ n: Int, _ miss: Label, _ before: VectorCache? = nil) {
    let back = a.label()
    a.bind(back)
    outOfLine.append(
      OutOfLine(
        start: miss, back: back, index: n, flagsBefore: flagsAtAccess, flagsAfter: flags,
        before: before ?? vectors, after: vectors))
  }

  private mutating func emitOutOfLine() {
    for way in outOfLine {
      mark(.miss(offset(way.index)))
      a.bind(way.start)
      flags = way.flagsBefore
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

  private mutating func emitExits() {
    for exit in exits {
      a.bind(exit.label)
      a.load(.r13, .state(StateOffset.codePage))
      if exit.offset != 0 {
        a.lea(.r13, .memory(.r13, Int32(truncatingIfNeeded: exit.offset)))
      }
      a.jump(to: thunks.exitAt)
    }
  }
}
