// SPDX-License-Identifier: Apache-2.0
//
// Loops of one block whose addresses advance by loop invariants. The number of rounds that stay in
// the pages of their accesses is computed in advance, so these rounds need no TLB check:
//
//     L: movaps xmm1, [r10 + rbx*4]      host: movaps xmm1, [r15 + rbx*4]
//        addps  xmm1, [rdi + rbx*4]            addps  xmm1, [rsi + rbx*4]
//        add    rbx, 4                         add    rbx, 4
//        cmp    rbx, 128                       cmp    rbx, 128
//        jne    L                              je     out; add r13, 5; jne L
//
// R15 is R10 plus the difference between the page's host and linear addresses, and RSI (which the
// loop does not use) is that of RDI; R13 counts instructions up to 0. Such a round cannot fault or
// exit the translation, and at most 4096 rounds run between two polls of `request`.

import X86
import X86CPU
import X86Decoder

struct LoopRounds {
  /// A page that a checking round looks up, and how its address advances.
  struct Walk {
    /// The instruction with the check.
    var leader: Int
    var page: RememberedPage
    var key: AccessPlan.Key
    /// Of the first byte, relative to what the key stands for.
    var low: Int64
    var size: Int
    var step: AccessPlan.Step
    var alignmentMask: UInt8
    /// Of aligned bytes, from the first.
    var alignedAt: Int64
  }

  /// The value of a host register: the difference between host and linear addresses in a page, plus
  /// the invariant parts of an address.
  struct Base: Equatable {
    enum Part: Equatable {
      case none, codePage
      case register(UInt8, scale: UInt8)
    }
    var page: RememberedPage
    var part: Part
  }

  /// A memory operand: what it adds to the base.
  struct Operand {
    var base: Int
    var register: UInt8?
    var scale: UInt8 = 0
    var displacement: Int64
  }

  private(set) var walks: [Walk] = []
  private(set) var bases: [Base] = []
  /// By instruction.
  private(set) var operands: [Int: Operand] = [:]
  /// Flags that are live after each instruction of such a round.
  private(set) var liveAfter: [FlagSet] = []
  /// General registers that the block names, as bits.
  private(set) var named: UInt32 = 0

  /// Rounds where no address advances.
  static let roundsInPlace: Int32 = 256
  /// The fewest rounds that are worth it.
  static let fewestRounds: Int32 = 3
  static let longestStep: Int64 = 1024
  private static let mostInstructions = 64

  /// Nil: the block is no such loop. The accesses' cached pages are known.
  init?(_ code: BlockCode) {
    guard code.mode == .bits64, code.isLoopAlone, code.instructions.count <= Self.mostInstructions
    else { return nil }
    for (i, kind) in zip(code.instructions, code.kinds) {
      guard Self.isPlain(i, kind) else { return nil }
      named |= i.namedRegisters
    }
    var changed: UInt32 = 0
    for i in code.instructions { changed |= i.changedRegisters }
    for n in code.instructions.indices where code.instructions[n].accessesOperand {
      guard addWalk(code, n), addOperand(code, n, changed) else { return nil }
    }
    guard bases.count <= 4 else { return nil }
    liveAfter = Self.liveness(code)
  }

  /// General registers whose values at a round's start form its addresses, and those by whose
  /// values the addresses advance.
  var addressRegisters: [UInt8] {
    var registers: Set<UInt8> = []
    for walk in walks {
      for part in [walk.key.base, walk.key.index] where part >= 0 && part < 16 {
        registers.insert(UInt8(part))
      }
      if case .register(let step) = walk.step { registers.insert(step) }
    }
    return registers.sorted()
  }

  // MARK: What is allowed

  private static func isPlain(_ i: Instruction, _ kind: LoweringKind) -> Bool {
    switch kind {
    case .modRM, .vex, .accumulator, .moveImmediate, .bswap, .nop, .conditionalJump: break
    case .lea: if i.base == Instruction.ripRegister { return false }
    case .vector:
      if VectorNeeds(i).x87 || i.mnemonic == .vzeroupper || i.mnemonic == .fldcw { return false }
    default: return false
    }
    for n in 0..<Int(i.operandCount) where i.operands[n].kind == .general {
      if RegisterMap.host(i.operands[n].parent) == nil { return false }
    }
    if kind == .lea {
      for register in [i.base, i.index] where register < 16 && RegisterMap.host(register) == nil {
        return false
      }
    }
    return true
  }

  private static func liveness(_ code: BlockCode) -> [FlagSet] {
    var result = Array(repeating: FlagSet.all, count: code.instructions.count)
    var live = FlagSet.all
    for n in code.instructions.indices.reversed() {
      result[n] = live
      live = live.subtracting(code.effects[n].writes).union(code.effects[n].reads)
    }
    return result
  }

  // MARK: Accesses

  /// The page of the access of `n`, found by its group's first instruction or by itself.
  private mutating func addWalk(_ code: BlockCode, _ n: Int) -> Bool {
    let plan = code.accesses
    let group = plan.group[n] < 0 ? nil : plan.groups[plan.group[n]]
    let leader = group?.leader ?? n
    if walks.contains(where: { $0.leader == leader }) { return true }
    let i = code.instructions[n]
    guard let key = plan.keys[n], let step = plan.step(of: key), let memory = i.memoryOperand
    else { return false }
    let operand = i.operands[memory]
    let isStack = group?.isStack ?? (i.base == GeneralRegister.rsp.rawValue)
    var page = RememberedPage.stack
    if !isStack {
      let known = code.loopPages[leader]
      if known < 0 { return false }
      page = RememberedPage(access: Int(known))
    }
    let alignment = i.attributes.contains(.aligned) ? operand.size - 1 : 0
    let mask = group?.alignmentMask ?? alignment
    guard step.allows(alignmentMask: mask) else { return false }
    let low = group?.low ?? plan.relative[n]
    guard low == Int64(Int32(truncatingIfNeeded: low)) else { return false }
    walks.append(
      Walk(
        leader: leader, page: page, key: key, low: low,
        size: group?.size ?? Int(operand.size), step: step, alignmentMask: mask,
        alignedAt: group.map { $0.alignedAt &- $0.low } ?? 0))
    return true
  }

  /// The operand of `n` by what of its address changes in the block.
  private mutating func addOperand(_ code: BlockCode, _ n: Int, _ changed: UInt32) -> Bool {
    let i = code.instructions[n]
    let plan = code.accesses
    let leader = plan.group[n] < 0 ? n : plan.groups[plan.group[n]].leader
    guard let page = walks.first(where: { $0.leader == leader })?.page else { return false }
    func changes(_ register: UInt8) -> Bool { changed >> UInt32(register) & 1 != 0 }
    var operand = Operand(base: 0, displacement: i.displacement)
    var part = Base.Part.none
    let hasIndex = i.index != Instruction.noRegister
    if i.base == Instruction.ripRegister {
      part = .codePage
      operand.displacement &+= Int64(code.nextOffset(n))
    } else if i.base == Instruction.noRegister {
      if hasIndex { (operand.register, operand.scale) = (i.index, i.scale) }
    } else if !changes(i.base) {
      part = .register(i.base, scale: 0)
      if hasIndex { (operand.register, operand.scale) = (i.index, i.scale) }
    } else {
      operand.register = i.base
      if hasIndex {
        if changes(i.index) { return false }
        part = .register(i.index, scale: i.scale)
      }
    }
    guard operand.register.map({ RegisterMap.host($0) != nil }) ?? true,
      operand.displacement == Int64(Int32(truncatingIfNeeded: operand.displacement))
    else { return false }
    let base = Base(page: page, part: part)
    operand.base = bases.firstIndex(of: base) ?? bases.count
    if operand.base == bases.count { bases.append(base) }
    operands[n] = operand
    return true
  }
}

extension AccessPlan.Step {
  /// Rounds are worth counting, and an aligned access stays aligned.
  fileprivate func allows(alignmentMask: UInt8) -> Bool {
    switch self {
    case .by(let step):
      step.magnitude <= LoopRounds.longestStep.magnitude && step & Int64(alignmentMask) == 0
    case .register: alignmentMask == 0
    }
  }
}

extension BlockCode {
  /// Its last instruction jumps to its first on a condition.
  fileprivate var isLoopAlone: Bool {
    let last = instructions.count - 1
    return kinds[last] == .conditionalJump && target(last) == pageOffset
  }
}

extension Instruction {
  fileprivate var accessesOperand: Bool {
    guard memoryOperand != nil, mnemonic != .lea else { return false }
    switch mnemonic {
    case .nop, .prefetcht0, .prefetcht1, .prefetcht2, .prefetchnta, .prefetchw, .prefetchwt1,
      .prefetch, .cldemote:
      return false
    default: return true
    }
  }

  /// General registers that the instruction reads, changes or addresses with, as bits.
  fileprivate var namedRegisters: UInt32 {
    var registers = changedRegisters
    for n in 0..<Int(operandCount) where operands[n].kind == .general {
      registers |= 1 << UInt32(operands[n].parent)
    }
    for register in [base, index] where register < 16 { registers |= 1 << UInt32(register) }
    // Shifts by CL, and those whose operands are not encoded.
    return registers | 0b111
  }
}
