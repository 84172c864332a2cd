// SPDX-License-Identifier: Apache-2.0
//
// What translation knows of a decoded block's instructions, and which blocks are translated
// together: a block and the hot ones of its page that jumps and falling through lead to (a region).

import Host
import X86
import X86CPU
import X86Decoder

struct BlockCode {
  let block: BlockPointer
  let mode: CodeMode
  /// Offset of the block in its page.
  let pageOffset: Int
  let instructions: UnsafeBufferPointer<Instruction>
  let kinds: UnsafeBufferPointer<LoweringKind>
  let effects: UnsafeBufferPointer<FlagEffect>
  /// Flags that are looked at after each instruction.
  let liveAfter: UnsafeBufferPointer<FlagSet>
  /// The remembered page of each instruction's access, or -1 (see `LoopAccess`).
  let loopPages: UnsafeMutablePointer<Int8>
  private(set) var accesses: AccessPlan

  /// Nil where the block's bytes are not what they were when it was decoded.
  init?(_ block: BlockPointer, host: HostFeatures, memory: TranslationMemory) {
    let count = Int(block.pointee.count)
    guard let start = memory.reserve(count) else { return nil }
    let instructions = UnsafeMutableBufferPointer(
      start: memory.instructions + start, count: count)
    guard Self.decode(block, instructions, memory) else { return nil }
    self.block = block
    mode = block.mode
    pageOffset = Int(block.pointee.host & Page.offsetMask)
    self.instructions = UnsafeBufferPointer(instructions)
    let kinds = UnsafeMutableBufferPointer(start: memory.kinds + start, count: count)
    let effects = UnsafeMutableBufferPointer(start: memory.effects + start, count: count)
    let liveAfter = UnsafeMutableBufferPointer(start: memory.liveAfter + start, count: count)
    self.kinds = UnsafeBufferPointer(kinds)
    self.effects = UnsafeBufferPointer(effects)
    self.liveAfter = UnsafeBufferPointer(liveAfter)
    loopPages = memory.loopPages + start
    accesses = AccessPlan(memory, start)
    Self.findKinds(self.instructions, kinds, block.pointee.ops, host)
    for n in 0..<count {
      effects[n] = kinds[n].hasOwnFlags ? .none : FlagEffect(instructions[n])
      loopPages[n] = -1
    }
    findLiveness(liveAfter)
    accesses.find(self, memory)
  }

  private static func decode(
    _ block: BlockPointer, _ result: UnsafeMutableBufferPointer<Instruction>,
    _ memory: TranslationMemory
  ) -> Bool {
    if block.pointee.secondPage != 0 {
      guard let instruction = decodeCrossing(block, memory.bytes) else { return false }
      result.initializeElement(at: 0, to: instruction)
      return true
    }
    let length = Int(block.pointee.length)
    guard copy(block.pointee.host, length, to: memory.bytes) else { return false }
    let bytes = UnsafeRawBufferPointer(start: memory.bytes, count: length)
    guard CodeSignature.of(bytes) == block.pointee.signature else { return false }
    var offset = 0
    for n in result.indices {
      let rest = UnsafeRawBufferPointer(rebasing: bytes[offset...])
      guard let decoded = try? Decoder.decode(rest, mode: block.mode),
        decoded.length == block.pointee.ops[n].length
      else { return false }
      result.initializeElement(at: n, to: decoded)
      offset += Int(decoded.length)
    }
    return true
  }

  /// Code as it is now; false where it has gone.
  private static func copy(
    _ address: UInt64, _ count: Int, to bytes: UnsafeMutableRawPointer
  ) -> Bool {
    GuardedCopy.copy(
      from: UnsafeRawPointer(bitPattern: UInt(address)), to: bytes, count: count)
  }

  /// The one instruction of a block that lies across two pages.
  private static func decodeCrossing(
    _ block: BlockPointer, _ bytes: UnsafeMutableRawPointer
  ) -> Instruction? {
    let count = Int(Page.size - block.pointee.host & Page.offsetMask)
    guard count < 16, copy(block.pointee.host, count, to: bytes),
      copy(block.pointee.secondPage, 16, to: bytes + count)
    else { return nil }
    let length = Int(block.pointee.length)
    let all = UnsafeRawBufferPointer(start: bytes, count: count + 16)
    let own = UnsafeRawBufferPointer(rebasing: all.prefix(length))
    guard CodeSignature.of(own) == block.pointee.signature else { return nil }
    return try? Decoder.decode(all, mode: block.mode)
  }

  /// Whether the instruction at an offset of a host page goes on in the next page.
  static func crosses(_ page: UInt64, _ offset: Int, _ mode: CodeMode) -> Bool {
    let room = Int(Page.size) - offset
    guard room < 15 else { return false }
    return withUnsafeTemporaryAllocation(byteCount: 16, alignment: 16) { buffer in
      guard let start = buffer.baseAddress,
        copy(page + UInt64(offset), room, to: start)
      else { return false }
      do throws(DecodeError) {
        _ = try Decoder.decode(UnsafeRawBufferPointer(start: start, count: room), mode: mode)
        return false
      } catch {
        return error == .truncated
      }
    }
  }

  private static func findKinds(
    _ instructions: UnsafeBufferPointer<Instruction>,
    _ kinds: UnsafeMutableBufferPointer<LoweringKind>, _ ops: MicroOpPointer, _ host: HostFeatures
  ) {
    for n in kinds.indices {
      kinds[n] = ops[n].isUndefined ? .handler : LoweringKind(instructions[n], host: host)
    }
    for n in kinds.indices where instructions[n].mnemonic == .sti {
      if n + 1 == kinds.count || !kinds[n + 1].isPlain { kinds[n] = .handler }
    }
  }

  private func findLiveness(_ liveAfter: UnsafeMutableBufferPointer<FlagSet>) {
    var live = FlagSet.all
    let tests = VectorPlan.tests(kinds)
    for n in effects.indices.reversed() {
      liveAfter[n] = live
      live = live.subtracting(effects[n].writes).union(effects[n].reads)
      let accesses = LoweringKind.accessesMemory(instructions[n], kinds[n])
      if accesses || tests &>> UInt64(n) & 1 != 0 { live = .all }
    }
  }

  /// Offset of an instruction in the page.
  func offset(_ n: Int) -> Int { pageOffset + Int(block.pointee.ops[n].offset) }

  func nextOffset(_ n: Int) -> Int { offset(n) + Int(instructions[n].length) }

  /// Where a relative jump or call leads to, as an offset of the page. What stands in `immediate`
  /// may be any number: it wraps, as RIP does.
  func target(_ n: Int) -> Int {
    nextOffset(n) &+ Int(truncatingIfNeeded: instructions[n].immediate)
  }

  // MARK: Successors

  /// Offsets of the successors that the last instruction names; they may lie outside of the page.
  var successors: Successors {
    let last = instructions.count - 1
    let next = nextOffset(last)
    switch kinds[last] {
    case .conditionalJump, .countedJump: return Successors(next, target(last))
    case .jump where instructions[last].operands[0].kind == .relative:
      return Successors(target(last))
    case .jump, .call, .ret, .systemJump: return Successors()
    default:
      return instructions[last].attributes.isDisjoint(with: [.branch, .serializes])
        ? Successors(next) : Successors()
    }
  }

  struct Successors {
    private(set) var first: Int?
    private(set) var second: Int?

    init(_ first: Int? = nil, _ second: Int? = nil) {
      self.first = first
      self.second = second
    }

    subscript(_ n: Int) -> Int? { n == 0 ? first : second }
    static let most = 2

    func contains(_ offset: Int) -> Bool { first == offset || second == offset }
  }

  static let maximumBlocks = 16
  static let maximumInstructions = 160
}

extension TranslationMemory {
  /// A hot block and those that are translated with it, itself first: none where it cannot be.
  func findRegion(_ head: BlockPointer, in cache: BlockCache, host: HostFeatures) {
    removeAll()
    guard head.pointee.secondPage == 0, append(head, host: host) else { return }
    var seen = OffsetSet()
    seen.insert(codes[0].pageOffset)
    var count = codes[0].instructions.count
    var n = 0
    while n < codeCount {
      let successors = codes[n].successors
      for which in 0..<BlockCode.Successors.most {
        guard let offset = successors[which], offset >= 0, offset < Int(Page.size),
          seen.insert(offset)
        else { continue }
        let address = head.pointee.host & Page.mask | UInt64(offset)
        guard codeCount < BlockCode.maximumBlocks,
          let block = cache.find(host: address, modeKey: head.pointee.modeKey),
          block.pointee.native != 0, block.pointee.secondPage == 0,
          count + Int(block.pointee.count) <= BlockCode.maximumInstructions,
          append(block, host: host)
        else { continue }
        count += Int(block.pointee.count)
      }
      n += 1
    }
  }
}

/// Offsets of a page.
private struct OffsetSet {
  private var words = InlineArray<64, UInt64>(repeating: 0)

  /// False where it was there.
  @discardableResult
  mutating func insert(_ offset: Int) -> Bool {
    let (word, bit) = (offset >> 6, UInt64(1) &<< UInt64(offset & 63))
    if words[word] & bit != 0 { return false }
    words[word] |= bit
    return true
  }
}

extension BlockPointer {
  /// The code's mode.
  var mode: CodeMode {
    CodeMode(rawValue: UInt8(truncatingIfNeeded: pointee.modeKey & ModeKey.codeMode)) ?? .bits16
  }
}
