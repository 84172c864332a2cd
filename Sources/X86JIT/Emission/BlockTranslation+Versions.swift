// SPDX-License-Identifier: Apache-2.0
//
// Edges between the blocks of a translation.
//
// A block passes its knowledge on to its successor: flags that are in host RFLAGS or that a recipe
// can recompute, vector registers that are loaded. So a block can have several versions, one for
// each such state at an incoming edge; a loop's second round runs in the version that its first
// round leads to. The generic version knows nothing: everything is in the CPU state. Translations
// are entered there, and edges fall back to it when a block has enough versions.
//
//     L: add rdx, rcx          generic: flags in the state
//        cmp rdx, 1000
//        jb L                  second version: recipe "cmp rdx, 1000", and again from there

import X86
import X86CPU
import X86Decoder

/// What the code at a block's start relies on.
struct EntryState {
  var flags = FlagState.inState
  var vectors = VectorCache()

  /// Code for this state is correct where `other` holds.
  func admits(_ other: EntryState) -> Bool {
    vectors == other.vectors && flags.admits(other.flags)
  }
}

extension BlockTranslation {
  struct Version {
    var code: Int
    var state: EntryState
    var label: Label
    var isEmitted = false
  }

  /// An out-of-line edge, with the knowledge at its start.
  struct Way {
    enum Kind { case edge, exit }
    var start: Label
    var kind: Kind
    /// Its target in the page.
    var offset: Int
    var code: Int
    var index: Int
    var state: EntryState
  }

  private static let maximumVersions = 3

  private var state: EntryState { EntryState(flags: flags.atEdge, vectors: vectors) }

  // MARK: Versions

  /// A version of the block at an offset of the page that fits the current state; a new one if
  /// there is room.
  private func version(at offset: Int) -> Int? {
    guard let code = codes.firstIndex(where: { $0.pageOffset == offset }) else { return nil }
    let state = state
    var count = 0
    var generic: Int?
    for n in versions.indices where versions[n].code == code {
      if versions[n].state.isGeneric { generic = n } else { count += 1 }
      if !versions[n].state.isGeneric || state.isGeneric, versions[n].state.admits(state) {
        return n
      }
    }
    if state.isGeneric || count < Self.maximumVersions - 1 { return newVersion(code, state) }
    return generic
  }

  /// The same; if no version fits, makes the current state generic.
  private func enterVersion(at offset: Int) -> Int? {
    guard let found = version(at: offset) else {
      guard let code = codes.firstIndex(where: { $0.pageOffset == offset }) else { return nil }
      makeGeneric()
      return newVersion(code, EntryState())
    }
    if versions[found].state.isGeneric { makeGeneric() }
    return found
  }

  private func newVersion(_ code: Int, _ state: EntryState) -> Int {
    versions.append(Version(code: code, state: state, label: a.label()))
    return versions.count - 1
  }

  /// Everything is in the state.
  func makeGeneric() {
    saveFlags()
    flags = .inState
    releaseVectors()
    vectors = VectorCache()
  }

  // MARK: Edges

  /// Continues at an offset of the page, possibly outside of it. The last code of a block or of an
  /// out-of-line edge.
  func edge(to offset: Int, from n: Int) {
    guard offset >= 0 && offset < Int(Page.size) else {
      makeGeneric()
      dispatch(to: offset)
      return
    }
    let isBackward = offset <= self.offset(n)
    if isBackward {
      if flags.recipe == nil { saveFlags() }
      a.arithmetic(.cmp, .state(StateOffset.request), immediate: 0)
      flags.host = []
    }
    if let known = version(at: offset), versions[known].state.isGeneric == state.isGeneric {
      if isBackward {
        a.jump(if: Self.equal, roundsLabel(known) ?? versions[known].label)
        leave(at: offset)
      } else {
        follow(known)
      }
      return
    }
    if isBackward { a.jump(if: Self.notEqual, way(.exit, offset, n)) }
    if let known = enterVersion(at: offset) { follow(known) } else { chain(offset) }
  }

  /// Continues with a version: by falling through, if possible.
  private func follow(_ version: Int) {
    if isInline && next == nil && !versions[version].isEmitted {
      next = version
    } else {
      a.jump(versions[version].label)
    }
  }

  /// Exits to another translation, or to the run loop while there is none.
  private func chain(_ offset: Int) {
    makeGeneric()
    let page = block.pointee.host & Page.mask
    if BlockCode.crosses(page, offset, mode) {
      // Which page is its second depends on the address space.
      dispatch(to: offset)
      return
    }
    link(offset)
  }

  /// With everything in the CPU state: exits to the translation at an offset of the page, or to the
  /// run loop while there is none; on a condition, if there is one.
  private func link(_ offset: Int, if condition: UInt8? = nil) {
    let target = block.pointee.host & Page.mask | UInt64(offset)
    if !keepsLinks, let found = cache.find(host: target, modeKey: block.pointee.modeKey),
      found.pointee.native != 0
    {
      if let condition {
        a.jump(if: condition, to: found.pointee.native)
      } else {
        a.jump(to: found.pointee.native)
      }
      return
    }
    let exit = exitLabel(offset)
    if let condition { a.jump(if: condition, exit) } else { a.jump(exit) }
    links.append(BlockLink(position: a.position - 4, target: target))
  }

  /// A forward jump leads to another translation of this page.
  private func leadsOut(_ offset: Int, from n: Int) -> Bool {
    offset > self.offset(n) && offset < Int(Page.size)
      && !codes.contains { $0.pageOffset == offset }
      && !BlockCode.crosses(block.pointee.host & Page.mask, offset, mode)
  }

  /// Exits to the run loop.
  private func leave(at offset: Int) {
    makeGeneric()
    a.jump(exitLabel(offset))
  }

  /// The target of a conditional jump to an offset.
  private func wayLabel(to offset: Int, from n: Int) -> Label {
    if offset > self.offset(n), offset < Int(Page.size), let known = version(at: offset),
      versions[known].state.isGeneric == state.isGeneric
    {
      return versions[known].label
    }
    return way(.edge, offset, n)
  }

  private func way(_ kind: Way.Kind, _ offset: Int, _ n: Int) -> Label {
    let label = a.label()
    ways.append(
      Way(
        start: label, kind: kind, offset: offset, code: current, index: n,
        state: EntryState(flags: flags, vectors: vectors)))
    return label
  }

  /// The edge that stays in the translation comes last; of two, the one to a loop's head.
  func lowerConditionalJump(_ n: Int) {
    guard let condition = instructions[n].condition else { return }
    needFlags(n)
    let taken = target(n)
    let isLoop = isLoop(n)
    let other = isLoop ? nextOffset(n) : taken
    let last = isLoop ? taken : nextOffset(n)
    let isGeneric = flags.inState && vectors.dirty == 0 && vectors.masksDirty == 0
    if leadsOut(other, from: n), !vectors.usesUpper,
      isGeneric || !codes.contains(where: { $0.pageOffset == last })
    {
      // Both edges need everything in the CPU state: write it back once, before the jump.
      saveFlags()
      spillVectors()
      link(other, if: isLoop ? condition ^ 1 : condition)
      edge(to: last, from: n)
      return
    }
    a.jump(if: isLoop ? condition ^ 1 : condition, wayLabel(to: other, from: n))
    edge(to: last, from: n)
  }

  /// A jump leads to the head of a loop of this translation.
  private func isLoop(_ n: Int) -> Bool {
    let taken = target(n)
    return taken >= 0 && taken <= offset(n) && codes.contains { $0.pageOffset == taken }
  }

  /// LOOP, LOOPE, LOOPNE and JRCXZ, which preserve flags: the host's JRCXZ tests the count.
  func lowerCountedJump(_ n: Int) {
    needFlags(n)
    let counts = instructions[n].mnemonic != .jcxz
    if counts {
      let less = Place.memory(.rcx, -1)
      if instructions[n].addressSize == 8 { a.lea(.rcx, less) } else { a.lea32(.rcx, less) }
      // The flags are also in host RFLAGS or the CPU state: `keepFlags`.
      dropRecipe(n)
    }
    let taken = target(n)
    let isLoop = isLoop(n)
    let way = wayLabel(to: isLoop ? nextOffset(n) : taken, from: n)
    let short = instructions[n].addressSize == 4
    switch (instructions[n].mnemonic, isLoop) {
    case (.loope, true), (.loopne, true):
      a.jump(ifCountIsZero: true, short: short, way)
      a.jump(if: instructions[n].mnemonic == .loope ? Self.notEqual : Self.equal, way)
    case (.loope, false), (.loopne, false):
      let on = a.label()
      a.jump(ifCountIsZero: true, short: short, on)
      a.jump(if: instructions[n].mnemonic == .loope ? Self.equal : Self.notEqual, way)
      a.bind(on)
    default: a.jump(ifCountIsZero: counts == isLoop, short: short, way)
    }
    edge(to: isLoop ? taken : nextOffset(n), from: n)
  }

  // MARK: Emission

  /// Emits all versions and edges, including those that are added meanwhile.
  func emitVersions() {
    next = newVersion(0, EntryState())
    while true {
      isInline = true
      if let version = next ?? versions.lastIndex(where: { !$0.isEmitted }) {
        next = nil
        emitted = version
        emit(version)
        emitted = nil
      } else if let way = ways.popLast() {
        isInline = false
        emit(way)
      } else if let way = roundsWays.popLast() {
        isInline = false
        emit(way)
      } else if let segment = segments.popLast() {
        isInline = false
        emit(segment)
      } else {
        return
      }
    }
  }

  private func emit(_ version: Int) {
    versions[version].isEmitted = true
    select(versions[version].code)
    flags = versions[version].state.flags
    vectors = versions[version].state.vectors
    a.bind(versions[version].label)
    mark(.entry)
    enterVectors()
    if let counter, current == 0 { a.count(at: counter) }
    countInstructions()
    heldGroup = nil
    openSegments.removeAll(keepingCapacity: true)
    for n in instructions.indices {
      scratch.removeAll(keepingCapacity: true)
      mark(.instruction(offset(n)))
      lower(n)
      closeSegments(n)
    }
    mark(.end)
    finishLast()
  }

  /// Adds the block's instructions to those retired; preserves flags in host RFLAGS.
  private func countInstructions() {
    if thunks.counts { a.count(at: .state(StateOffset.translations)) }
    if !countsInstructions { return }
    if flags.host.isEmpty {
      a.arithmetic(.add, .state(StateOffset.retired), immediate: Int32(instructions.count))
    } else {
      a.load(.r13, .state(StateOffset.retired))
      a.lea(.r13, .memory(.r13, Int32(instructions.count)))
      a.store(.state(StateOffset.retired), .r13)
    }
  }

  private func emit(_ way: Way) {
    select(way.code)
    flags = way.state.flags
    vectors = way.state.vectors
    a.bind(way.start)
    mark(.end)
    switch way.kind {
    case .edge: edge(to: way.offset, from: way.index)
    case .exit: leave(at: way.offset)
    }
  }
}

extension EntryState {
  var isGeneric: Bool { flags.isGeneric && vectors == VectorCache() }
}

extension FlagState {
  /// In the CPU state, and nowhere else.
  var isGeneric: Bool { inState && host.isEmpty }

  /// What is worth a version of its own.
  var atEdge: FlagState {
    var result = self
    if inState { result.recipe = nil }
    return result
  }

  func admits(_ other: FlagState) -> Bool {
    if !other.host.isSuperset(of: host) || inState && !other.inState { return false }
    guard let recipe else { return true }
    return other.recipe.map { $0 == recipe } ?? false
  }
}
