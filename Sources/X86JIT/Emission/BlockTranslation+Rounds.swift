// SPDX-License-Identifier: Apache-2.0
//
// The code of loop rounds without TLB checks (see LoopRounds). The checking version of the loop's
// block jumps there from its end; the rounds return to it when a page is unknown or left:
//
//     rounds:  how many stay in the pages; fewer than three: to the version
//              retired += rounds * instructions; R13 = -that
//              host addresses into registers
//     head:    the block
//              jcc out
//              add r13, instructions; jne head
//              registers back; to the version
//     out:     retired += R13 + instructions; registers back; on to the next block
//
// At the end of a round the guest's state is the version's, so both look the same to all other
// code.

import X86
import X86CPU
import X86Decoder

/// Rounds not yet emitted.
struct RoundsWay {
  var start: Label
  var version: Int
}

/// Host registers that hold the bases of memory operands, and which of them are guest registers.
struct RoundsRegisters {
  var bases: [HostRegister] = []
  var borrowed: [UInt8] = []

  /// Nil: the block leaves too few registers.
  init?(_ plan: LoopRounds) {
    var free: [UInt8] = RegisterMap.mapped.filter {
      plan.named >> UInt32($0) & 1 == 0 && RegisterMap.host($0) != RegisterMap.stackPointer
    }
    for n in plan.bases.indices {
      if n == 0 {
        bases.append(.r15)
      } else if let guest = free.popLast(), let host = RegisterMap.host(guest) {
        bases.append(host)
        borrowed.append(guest)
      } else {
        return nil
      }
    }
  }
}

extension BlockTranslation {
  /// Counts instructions up to 0.
  private static let counter = HostRegister.r13

  /// The target for further rounds of the current version, if it leads to itself.
  func roundsLabel(_ version: Int) -> Label? {
    guard emitted == version, let plan = loopRounds(of: current), RoundsRegisters(plan) != nil,
      versions[version].state.flags.usesMappedRegisters,
      versions[version].state.vectors.ready.covers(needs(from: 0))
    else { return nil }
    let label = a.label()
    roundsWays.append(RoundsWay(start: label, version: version))
    return label
  }

  /// A memory operand in a round without checks.
  func place(_ n: Int, _ rounds: (plan: LoopRounds, registers: RoundsRegisters)) -> Place {
    guard let operand = rounds.plan.operands[n] else { return .memory(.r13) }
    let base = rounds.registers.bases[operand.base]
    let displacement = Int32(truncatingIfNeeded: operand.displacement)
    guard let guest = operand.register, let register = RegisterMap.host(guest) else {
      return .memory(base, displacement)
    }
    return .memory(base, index: register, scale: operand.scale, displacement)
  }

  func emit(_ way: RoundsWay) {
    let version = versions[way.version]
    select(version.code)
    guard let plan = loopRounds(of: current), let registers = RoundsRegisters(plan) else { return }
    flags = version.state.flags
    vectors = version.state.vectors
    a.bind(way.start)
    mark(.entry)
    emitRoundCount(plan, version.label)
    emitBases(plan, registers)
    guardBases(plan, registers)
    let head = a.label()
    // Once for all rounds: a count in each would cost more than the round.
    if thunks.counts {
      a.arithmetic(.add, .state(StateOffset.translations), immediate: 1)
    }
    a.bind(head)
    if guardsSpeculation {
      // After the last round, by the flags of the count.
      for (n, register) in registers.bases.enumerated() {
        a.move(if: Self.equal, register, .state(StateOffset.harmlessBase(n)))
      }
    }
    countRound()
    rounds = (plan, registers)
    let last = instructions.count - 1
    for n in 0..<last {
      scratch.removeAll(keepingCapacity: true)
      mark(.instruction(offset(n)))
      lower(n)
    }
    mark(.instruction(offset(last)))
    emitRoundEnd(head, version, registers)
  }

  // MARK: How many

  /// R13 = minus the instructions of the rounds that stay in their pages, which are counted as
  /// retired; or a jump to `other` if they are few.
  private func emitRoundCount(_ plan: LoopRounds, _ other: Label) {
    var isFirst = true
    for (n, walk) in plan.walks.enumerated() {
      emitPageOffset(walk, other, isFirst: n == 0)
      switch walk.step {
      case .by(0): continue
      case .by(let step): emitRoundsLeft(walk.size, step)
      case .register(let guest): emitRoundsLeft(walk.size, by: guest, other)
      }
      if isFirst {
        a.move(Self.counter, .r14)
      } else {
        a.arithmetic(.cmp, .r14, .register(Self.counter))
        a.moveIfBelow(Self.counter, .r14)
      }
      isFirst = false
    }
    if isFirst {
      a.move(Self.counter, immediate: UInt64(LoopRounds.roundsInPlace))
    } else {
      a.arithmetic(.cmp, .register(Self.counter), immediate: LoopRounds.fewestRounds - 1)
      a.jump(if: Self.below, other)
    }
    let count = Int32(instructions.count)
    a.multiply(Self.counter, Self.counter, -count)
    a.lea(Self.counter, .memory(Self.counter, -count))
    if !countsInstructions { return }
    a.load(.r14, .state(StateOffset.retired))
    a.arithmetic(.sub, .r14, .register(Self.counter))
    a.store(.state(StateOffset.retired), .r14)
  }

  static let below: UInt8 = 2

  /// R14 = offset in the page of a walk's first byte in the next round. Clobbers R15.
  private func emitPageOffset(
    _ walk: LoopRounds.Walk, _ other: Label, isFirst: Bool
  ) {
    var place = Place.memory(nil, Int32(truncatingIfNeeded: walk.low))
    if walk.key.base == -2 {
      a.load(.r14, .state(StateOffset.codePage))
      place.base = .r14
    } else if walk.key.base >= 0 {
      place.base = roundRegister(UInt8(walk.key.base), .r14)
    }
    if walk.key.index >= 0 {
      place.index = roundRegister(UInt8(walk.key.index), .r15)
      place.scale = walk.key.scale
    }
    a.lea(.r14, place)
    if walk.alignmentMask != 0 {
      var tested = HostRegister.r14
      if walk.alignedAt & Int64(walk.alignmentMask) != 0 {
        a.lea(.r15, .memory(.r14, Int32(truncatingIfNeeded: walk.alignedAt)))
        tested = .r15
      }
      a.testByte(.register(tested), walk.alignmentMask)
      a.jump(if: Self.notEqual, other)
    }
    a.arithmetic(.add, .r14, .state(walk.page.addend))
    a.arithmetic(.sub, .r14, .state(walk.page.start))
    a.arithmetic(.cmp, .register(.r14), immediate: Int32(4097 - walk.size))
    a.jump(if: Self.notBelow, other)
    if guardsSpeculation { a.arithmetic(.sbb, .r15, .register(.r15)) }
    a.arithmetic(.cmp, .state(walk.page.limit), immediate: 0)
    a.jump(if: Self.equal, other)
    guard guardsSpeculation else { return }
    a.move(if: Self.equal, .r15, .state(StateOffset.zero))
    keepMask(isFirst: isFirst)
  }

  /// R15 = all ones if the check held, also under speculation.
  private func keepMask(isFirst: Bool) {
    if !isFirst { a.arithmetic(.and, .r15, .state(StateOffset.roundsMask)) }
    a.store(.state(StateOffset.roundsMask), .r15)
  }

  private func roundRegister(_ guest: UInt8, _ scratch: HostRegister) -> HostRegister {
    if let host = RegisterMap.host(guest) { return host }
    a.load(scratch, RegisterMap.place(guest))
    return scratch
  }

  /// R14 = rounds after the next, or fewer, from the offset in the page in R14.
  private func emitRoundsLeft(_ size: Int, _ step: Int64) {
    if step > 0 { emitRoom(size) }
    let step = step.magnitude
    if step & (step - 1) == 0 {
      if step > 1 { a.shiftRight(.r14, UInt8(step.trailingZeroBitCount)) }
    } else {
      a.multiply(.r14, .r14, Int32(65536 / step))
      a.shiftRight(.r14, 16)
    }
  }

  /// The same for steps by a register's value; jumps to `other` if it is below 1 or large.
  private func emitRoundsLeft(_ size: Int, by guest: UInt8, _ other: Label) {
    let step = roundRegister(guest, .r15)
    a.lea(.r15, .memory(step, -1))
    a.arithmetic(.cmp, .register(.r15), immediate: Int32(LoopRounds.longestStep))
    a.jump(if: Self.notBelow, other)
    if guardsSpeculation {
      a.arithmetic(.sbb, .r15, .register(.r15))
      keepMask(isFirst: false)
    }
    emitRoom(size)
    a.store(.state(StateOffset.temporary0), .rax)
    a.store(.state(StateOffset.temporary1), .rdx)
    a.move(.r15, roundRegister(guest, .r15))
    a.move(.rax, .r14)
    a.move(.rdx, immediate: 0)
    a.divide32(.r15)
    a.move(.r14, .rax)
    a.load(.rax, .state(StateOffset.temporary0))
    a.load(.rdx, .state(StateOffset.temporary1))
  }

  /// R14 = bytes that an access can advance in its page, from its offset in R14.
  private func emitRoom(_ size: Int) {
    a.negate(.r14)
    a.lea(.r14, .memory(.r14, Int32(4096 - size)))
  }

  /// Counts the round, for `--stats`. No guest flag is in host RFLAGS.
  private func countRound() {
    if let counter, current == 0 {
      a.move(.r14, immediate: UInt64(counter))
      a.arithmetic(.add, .memory(.r14), immediate: 1)
    }
  }

  // MARK: Registers

  private func emitBases(_ plan: LoopRounds, _ registers: RoundsRegisters) {
    for guest in registers.borrowed {
      if let host = RegisterMap.host(guest) {
        a.store(.state(StateOffset.lentRegister(guest)), host)
      }
    }
    for (base, register) in zip(plan.bases, registers.bases) {
      a.load(register, .state(base.page.addend))
      switch base.part {
      case .none: break
      case .codePage: a.arithmetic(.add, register, .state(StateOffset.codePage))
      case .register(let guest, let scale):
        let part = roundRegister(guest, .r14)
        a.lea(register, .memory(register, index: part, scale: scale))
      }
    }
  }

  /// If the host speculates that the pages are known, no part of an address is the guest's.
  /// Clobbers R14; the flags are those of "not zero".
  private func guardBases(_ plan: LoopRounds, _ registers: RoundsRegisters) {
    guard guardsSpeculation else { return }
    a.load(.r14, .state(StateOffset.roundsMask))
    a.test(.r14)
    for register in registers.bases {
      a.move(if: Self.equal, register, .state(StateOffset.harmless))
    }
    for guest in plan.addressRegisters {
      guard let register = RegisterMap.host(guest) else { continue }
      a.move(if: Self.equal, register, .state(StateOffset.zero))
    }
    for (n, register) in registers.bases.enumerated() {
      a.move(.r14, immediate: 0 &- NativeState.harmlessDistance)
      a.lea(.r14, .memory(.r14, index: register))
      a.store(.state(StateOffset.harmlessBase(n)), .r14)
    }
  }

  func giveBack(_ registers: RoundsRegisters) {
    for guest in registers.borrowed {
      if let host = RegisterMap.host(guest) {
        a.load(host, .state(StateOffset.lentRegister(guest)))
      }
    }
  }

  // MARK: The end

  private func emitRoundEnd(
    _ head: Label, _ version: Version, _ registers: RoundsRegisters
  ) {
    let last = instructions.count - 1
    let count = Int32(instructions.count)
    let out = a.label()
    guard let condition = instructions[last].condition else { return }
    scratch.removeAll(keepingCapacity: true)
    keepFlags(last)
    needFlags(last)
    a.jump(if: condition ^ 1, out)
    let leaving = (flags, vectors)
    if flags.recipe == nil { saveFlags() }
    flags.host = []
    a.arithmetic(.add, .register(Self.counter), immediate: count)
    if version.state.admits(EntryState(flags: flags.atEdge, vectors: vectors)) {
      a.jump(if: Self.notEqual, head)
      giveBack(registers)
      a.jump(version.label)
    } else {
      uncountRounds(0)
      giveBack(registers)
      rounds = nil
      edge(to: pageOffset, from: last)
    }
    rounds = nil
    (flags, vectors) = leaving
    a.bind(out)
    mark(.end)
    uncountRounds(count)
    giveBack(registers)
    edge(to: nextOffset(last), from: last)
  }

  /// Subtracts the rounds that were counted and have not run. Preserves flags.
  func uncountRounds(_ finished: Int32) {
    if !countsInstructions { return }
    a.load(.r14, .state(StateOffset.retired))
    a.lea(.r14, .memory(.r14, index: Self.counter, finished))
    a.store(.state(StateOffset.retired), .r14)
  }
}

extension FlagState {
  /// In memory, or made of registers that need no scratch register.
  fileprivate var usesMappedRegisters: Bool {
    guard host.isEmpty else { return false }
    let mapped = RegisterMap.mapped.reduce(0 as UInt32) { $0 | 1 << UInt32($1) }
    return recipe.map { $0.inputs & ~mapped == 0 } ?? true
  }
}
