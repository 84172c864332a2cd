// SPDX-License-Identifier: Apache-2.0
//
// Accesses that share a TLB check (see AccessGroups). If the check fails, because the bytes are in
// two pages or an access needs its handler, an out-of-line copy executes the instructions up to the
// group's last, with a check for each access. Behind it both paths join with the same knowledge.

import X86
import X86CPU
import X86Decoder

/// An out-of-line copy of some instructions, without the groups that begin in it.
struct SlowSegment {
  var start: Label
  var code: Int
  var first: Int
  var last: Int
  var state: EntryState
  /// Where it joins the fast code, and the knowledge there. Nil at the block's end.
  var back: (label: Label, state: EntryState)?
}

extension BlockTranslation {
  /// A memory operand as a host register plus a constant, and the target of a miss, unless the
  /// group's copy handles it. Clobbers flags, R13 to R15.
  func access(_ n: Int, _ operand: Operand) -> (place: Place, miss: Label?) {
    if let rounds {
      let place = place(n, rounds)
      verify(n, operand, at: place)
      noteOwnFaults(n)
      return (place, nil)
    }
    if let g = group(n) {
      if isLeader(n, g) {
        clobberFlags(n)
        linearAddress(n, plus: distance(n, g))
      }
      let place = member(n, g)
      verify(n, operand, at: place)
      return (place, nil)
    }
    let miss = missLabel()
    accessOperand(n, operand, miss)
    return (.memory(.r13), miss)
  }

  /// The same for a word at a distance from the stack pointer.
  func accessStack(_ n: Int, _ displacement: Int) -> (place: Place, miss: Label?) {
    let g = group(n)
    if let g, !isLeader(n, g) {
      let place = member(n, g)
      verifyStack(displacement, write: displacement < 0, at: place)
      return (place, nil)
    }
    clobberFlags(n)
    let offset = displacement + (g.map { distance(n, $0) } ?? 0)
    leaWord(.r13, .memory(RegisterMap.stackPointer, Int32(truncatingIfNeeded: offset)))
    if let g { return (member(n, g), nil) }
    let miss = missLabel()
    translateStackAddress(size: wordSize, miss)
    return (.memory(.r13), miss)
  }

  /// The group of an instruction's access in the current code.
  func group(_ n: Int) -> Int? {
    let g = accessGroup[n]
    if g < 0 { return nil }
    if let slowFrom, groups[g].leader >= slowFrom { return nil }
    return g
  }

  private func isLeader(_ n: Int, _ g: Int) -> Bool { groups[g].leader == n }

  /// From the access of `n` to the group's first byte.
  private func distance(_ n: Int, _ g: Int) -> Int {
    Int(groups[g].low &- relative[n])
  }

  /// The place of the access of `n`. Of the first member the linear address of the group's first
  /// byte is in R13.
  private func member(_ n: Int, _ g: Int) -> Place {
    let home = Place.state(StateOffset.groupAddress(g))
    if isLeader(n, g) {
      look(n, groups[g])
      a.store(home, .r13)
    } else {
      if heldGroup != g { a.load(.r13, home) }
      noteOwnFaults(n)
    }
    heldGroup = g
    return .memory(.r13, Int32(truncatingIfNeeded: -distance(n, g)))
  }

  /// R13 = host address of the group whose linear address it is.
  private func look(_ n: Int, _ group: AccessGroup) {
    let slow = segment(from: n, group)
    if group.alignmentMask != 0 {
      var tested = HostRegister.r13
      let offset = group.alignedAt &- group.low
      if offset & Int64(group.alignmentMask) != 0 {
        a.lea(.r15, .memory(.r13, Int32(truncatingIfNeeded: offset)))
        tested = .r15
      }
      a.testByte(.register(tested), group.alignmentMask)
      a.jump(if: Self.notEqual, slow)
    }
    if group.isStack {
      translateStackAddress(size: group.size, slow)
    } else {
      translateAddress(size: group.size, write: group.writes, slow, for: n)
    }
  }

  /// A copy for a failed check of `n`. It ends where no group that begins in it is open.
  private func segment(from n: Int, _ group: AccessGroup) -> Label {
    var last = group.last
    var next = n + 1
    while next <= last {
      let g = accessGroup[next]
      if g >= 0 { last = max(last, groups[g].last) }
      next += 1
    }
    let label = a.label()
    segments.append(
      SlowSegment(
        start: label, code: current, first: n, last: last,
        state: EntryState(flags: flagsAtAccess, vectors: vectors)))
    openSegments.append(segments.count - 1)
    return label
  }

  /// After instruction `n` of a version.
  func closeSegments(_ n: Int) {
    if openSegments.isEmpty || n == instructions.count - 1 { return }
    for segment in openSegments where segments[segment].last == n {
      let label = a.label()
      a.bind(label)
      segments[segment].back = (label, EntryState(flags: flags, vectors: vectors))
      heldGroup = nil
    }
    openSegments.removeAll { segments[$0].last == n }
  }

  func emit(_ segment: SlowSegment) {
    select(segment.code)
    flags = segment.state.flags
    vectors = segment.state.vectors
    heldGroup = nil
    slowFrom = segment.first
    a.bind(segment.start)
    for n in segment.first...segment.last {
      scratch.removeAll(keepingCapacity: true)
      mark(.miss(offset(n)))
      lower(n)
    }
    if let back = segment.back {
      matchFlags(back.state.flags)
      a.jump(back.label)
    } else {
      finishLast()
    }
    slowFrom = nil
  }

  /// The fast code's knowledge of flags where the copy joins it.
  private func matchFlags(_ wanted: FlagState) {
    if wanted.inState { saveFlags() }
    if flags.host.isSuperset(of: wanted.host) { return }
    if flags.inState {
      a.restoreFlags(.state(StateOffset.hostFlags), temporary: .r14)
    } else {
      executeRecipe()
    }
  }
}
