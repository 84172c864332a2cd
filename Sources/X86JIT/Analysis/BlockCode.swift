// SPDX-License-Identifier: Apache-2.0
//
// What translation knows of a decoded block's instructions, and which blocks are translated together:
// a block and the hot ones of its page that jumps and falling through lead to (a region).

import Host
import X86
import X86CPU
import X86Decoder

/// What is known of a block's instructions, side by side; `BlockCode` keeps it alive.
private final class InstructionTables {
  let instructions: UnsafeMutableBufferPointer<Instruction>
  let kinds: UnsafeMutableBufferPointer<LoweringKind>
  let effects: UnsafeMutableBufferPointer<FlagEffect>
  let liveAfter: UnsafeMutableBufferPointer<FlagSet>

  init(_ count: Int) {
    instructions = .allocate(capacity: count)
    kinds = .allocate(capacity: count)
    kinds.initialize(repeating: .handler)
    effects = .allocate(capacity: count)
    effects.initialize(repeating: .none)
    liveAfter = .allocate(capacity: count)
    liveAfter.initialize(repeating: .all)
  }

  deinit {
    instructions.deallocate()
    kinds.deallocate()
    effects.deallocate()
    liveAfter.deallocate()
  }
}

struct BlockCode {
  private let tables: InstructionTables
  let block: BlockPointer
  let mode: CodeMode
  /// Offset of the block in its page.
  let pageOffset: Int
  let instructions: UnsafeBufferPointer<Instruction>
  let kinds: UnsafeBufferPointer<LoweringKind>
  let effects: UnsafeBufferPointer<FlagEffect>
  /// Flags that are looked at after each instruction.
  let liveAfter: UnsafeBufferPointer<FlagSet>
  private(set) var accesses = AccessPlan()

  /// Nil where the block's bytes are not what they were when it was decoded.
  init?(_ block: BlockPointer, host: HostFeatures) {
    let tables = InstructionTables(Int(block.pointee.count))
    guard Self.decode(block, tables.instructions) else { return nil }
    self.tables = tables
    self.block = block
    mode = block.mode
    pageOffset = Int(block.pointee.host & Page.offsetMask)
    instructions = UnsafeBufferPointer(tables.instructions)
    kinds = UnsafeBufferPointer(tables.kinds)
    effects = UnsafeBufferPointer(tables.effects)
    liveAfter = UnsafeBufferPointer(tables.liveAfter)
    Self.findKinds(tables, block.pointee.ops, host)
    for n in kinds.indices where kinds[n] != .handler {
      tables.effects[n] = FlagEffect(instructions[n])
    }
    Self.findLiveness(tables)
    accesses = AccessPlan(self)
  }

  private static func decode(
    _ block: BlockPointer, _ result: UnsafeMutableBufferPointer<Instruction>
  ) -> Bool {
    if block.pointee.secondPage != 0 {
      guard let instruction = decodeCrossing(block) else { return false }
      result.initializeElement(at: 0, to: instruction)
      return true
    }
    guard let bytes = copy(block.pointee.host, Int(block.pointee.length)),
      bytes.withUnsafeBytes({ CodeSignature.of($0) }) == block.pointee.signature
    else { return false }
    return bytes.withUnsafeBytes { bytes in
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
  }

  /// Code as it is now; nil where it has gone.
  private static func copy(_ address: UInt64, _ count: Int) -> [UInt8]? {
    var isThere = false
    let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
      isThere = GuardedCopy.copy(
        from: UnsafeRawPointer(bitPattern: UInt(address)), to: buffer.baseAddress, count: count)
      initialized = isThere ? count : 0
    }
    return isThere ? bytes : nil
  }

  /// The one instruction of a block that lies across two pages.
  private static func decodeCrossing(_ block: BlockPointer) -> Instruction? {
    let count = Int(Page.size - block.pointee.host & Page.offsetMask)
    guard count < 16, let first = copy(block.pointee.host, count),
      let second = copy(block.pointee.secondPage, 16)
    else { return nil }
    let length = Int(block.pointee.length)
    return (first + second).withUnsafeBytes { bytes in
      let own = UnsafeRawBufferPointer(rebasing: bytes.prefix(length))
      guard CodeSignature.of(own) == block.pointee.signature else { return nil }
      return try? Decoder.decode(bytes, mode: block.mode)
    }
  }

  /// Whether the instruction at an offset of a host page goes on in the next page.
  static func crosses(_ page: UInt64, _ offset: Int, _ mode: CodeMode) -> Bool {
    let room = Int(Page.size) - offset
    guard room < 15, let bytes = copy(page + UInt64(offset), room) else { return false }
    return bytes.withUnsafeBytes { buffer in
      do throws(DecodeError) {
        _ = try Decoder.decode(buffer, mode: mode)
        return false
      } catch {
        return error == .truncated
      }
    }
  }

  private static func findKinds(
    _ tables: InstructionTables, _ ops: MicroOpPointer, _ host: HostFeatures
  ) {
    let (instructions, kinds) = (tables.instructions, tables.kinds)
    for n in kinds.indices where !ops[n].isUndefined {
      kinds[n] = LoweringKind(instructions[n], host: host)
    }
    for n in kinds.indices where instructions[n].mnemonic == .sti {
      if n + 1 == kinds.count || !kinds[n + 1].isPlain { kinds[n] = .handler }
    }
  }

  private static func findLiveness(_ tables: InstructionTables) {
    let effects = tables.effects
    var live = FlagSet.all
    let tests = VectorPlan.tests(UnsafeBufferPointer(tables.kinds))
    for n in effects.indices.reversed() {
      tables.liveAfter[n] = live
      live = live.subtracting(effects[n].writes).union(effects[n].reads)
      let accesses = LoweringKind.accessesMemory(tables.instructions[n], tables.kinds[n])
      if accesses || tests &>> UInt64(n) & 1 != 0 { live = .all }
    }
  }

  /// Offset of an instruction in the page.
  func offset(_ n: Int) -> Int { pageOffset + Int(block.pointee.ops[n].offset) }

  func nextOffset(_ n: Int) -> Int { offset(n) + Int(instructions[n].length) }

  /// Where a relative jump or call leads to, as an offset of the page. What stands in `immediate` may be
  /// any number: it wraps, as RIP does.
  func target(_ n: Int) -> Int {
    nextOffset(n) &+ Int(truncatingIfNeeded: instructions[n].immediate)
  }

  // MARK: Successors

  /// Offsets of the successors that the last instruction names; they may lie outside of the page.
  var successors: [Int] {
    let last = instructions.count - 1
    let next = nextOffset(last)
    switch kinds[last] {
    case .conditionalJump, .countedJump: return [next, target(last)]
    case .jump where instructions[last].operands[0].kind == .relative: return [target(last)]
    case .jump, .call, .ret, .systemJump: return []
    default:
      return instructions[last].attributes.isDisjoint(with: [.branch, .serializes]) ? [next] : []
    }
  }

  private static let maximumBlocks = 16
  private static let maximumInstructions = 160

  /// A hot block and those that are translated with it, itself first.
  static func region(_ head: BlockPointer, in cache: BlockCache, host: HostFeatures) -> [BlockCode]
  {
    guard head.pointee.secondPage == 0, let first = BlockCode(head, host: host) else { return [] }
    var region = [first]
    var seen: Set<Int> = [first.pageOffset]
    var count = first.instructions.count
    var n = 0
    while n < region.count {
      for offset in region[n].successors
      where offset >= 0 && offset < Int(Page.size) && seen.insert(offset).inserted {
        let address = head.pointee.host & Page.mask | UInt64(offset)
        guard region.count < maximumBlocks,
          let block = cache.find(host: address, modeKey: head.pointee.modeKey),
          block.pointee.native != 0, block.pointee.secondPage == 0,
          count + Int(block.pointee.count) <= maximumInstructions,
          let code = BlockCode(block, host: host)
        else { continue }
        region.append(code)
        count += code.instructions.count
      }
      n += 1
    }
    return region
  }
}

extension BlockPointer {
  /// The code's mode.
  var mode: CodeMode {
    CodeMode(rawValue: UInt8(truncatingIfNeeded: pointee.modeKey & ModeKey.codeMode)) ?? .bits16
  }
}
