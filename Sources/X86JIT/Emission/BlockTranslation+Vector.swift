// SPDX-License-Identifier: Apache-2.0
//
// Vector and x87 instructions: emitted unchanged, on the same registers.
//
// From its first use in a block, a guest vector register lives in the host register of the same
// number. Dirty registers are written back to the CPU state before the code exits the translation
// or calls a handler. Registers stay loaded from block to block inside a translation. The
// out-of-line code of a missing access writes dirty registers back before the handler and reloads
// all of them after it.
//
// Legacy SSE instructions preserve the upper part of a register: if only they use a register, 16
// bytes of it are loaded and written back. VEX and EVEX instructions zero the upper part: registers
// that they write are held and written back whole.
//
// Many processors stall at each legacy SSE instruction behind VEX instructions, and the other way
// round, while the upper parts of registers 0 to 15 are in use (Intel SDM Volume 1, "Mixing AVX
// Code with SSE Code"). So translations that have used them execute VZEROUPPER at their exits and
// before handlers.

import X86
import X86CPU
import X86Decoder

/// A test of `vectorReady` that failed.
struct VectorEntry {
  var start: Label
  var back: Label
  /// What must be usable; if it is not, the interpreter executes the code.
  var usable: VectorReadiness
  /// Thunk that loads the missing state, if only loading was missing.
  var load: UInt?
  /// Where the interpreter continues, and how many instructions are counted that will not run.
  var code: Int
  var index: Int
  var uncounted: Int
}

extension BlockTranslation {
  // MARK: Start of the block

  /// Before the block counts its instructions: loads the state that they need.
  func enterVectors() {
    let needs = needs(from: 0)
    if needs == .none || vectors.ready.covers(needs) { return }
    makeGeneric()
    makeReady(0, counted: false)
  }

  /// Before instruction `n` of any kind: writes back the state that its code does not know.
  func prepareVectors(_ n: Int) {
    switch kinds[n] {
    case .handler:
      recordX87()
      releaseVectors()
      vectors = VectorCache()
    case .conditionalJump, .countedJump: recordX87()
    case .jump where instructions[n].operands[0].kind == .relative: recordX87()
    case .jump, .call, .ret, .systemJump:
      recordX87()
      releaseVectors()
      vectors.held = 0
      vectors.masksHeld = 0
    default: break
    }
  }

  /// Updates the x87 instruction pointer and opcode from the last instruction that sets them. They
  /// are exact at handlers and at block ends, not at every fault in between.
  func recordX87() {
    guard let n = vectors.x87Instruction else { return }
    let encoding = instructions[n].encoding
    a.load(.r15, .state(StateOffset.codePage))
    a.lea(.r15, .memory(.r15, Int32(offset(n))))
    a.store(.state(VectorOffset.x87Instruction), .r15)
    let opcode = Int32(encoding.opcode & 7) << 8 | Int32(encoding.modRM)
    a.store(.state(VectorOffset.x87Opcode), immediate: opcode)
    vectors.x87Instruction = nil
  }

  // MARK: Readiness

  /// The vector state that instructions need from `n` up to the next one left to a handler.
  func needs(from n: Int) -> VectorNeeds {
    var needs = VectorNeeds.none
    for index in n..<instructions.count {
      if kinds[index] == .handler { break }
      if kinds[index] == .vector { needs.formUnion(VectorNeeds(instructions[index])) }
    }
    return needs
  }

  /// Tests that the following instructions are usable and their state is loaded. No vector register
  /// is held. Clobbers flags.
  private func makeReady(_ n: Int, counted: Bool) {
    let needs = needs(from: n)
    vectors.ready = needs
    let uncounted = counted && countsInstructions ? instructions.count - n : 0
    if needs.x87 {
      require(.x87Loaded, .x87, thunks.vectors.loadX87, n, uncounted)
    }
    if needs.level > 0 {
      require(
        needs.levelBit, needs.usableBit, needs.isArithmetic ? thunks.vectors.loadMXCSR : nil, n,
        uncounted)
    }
  }

  private func require(
    _ bit: VectorReadiness, _ usable: VectorReadiness, _ load: UInt?, _ n: Int, _ uncounted: Int
  ) {
    let entry = VectorEntry(
      start: a.label(), back: a.label(), usable: usable, load: load, code: current,
      index: n,
      uncounted: uncounted)
    a.testByte(.state(VectorOffset.ready), UInt8(truncatingIfNeeded: bit.rawValue))
    a.jump(if: Self.equal, entry.start)
    a.bind(entry.back)
    vectorEntries.append(entry)
  }

  static let equal: UInt8 = 4

  func emitVectorEntries() {
    for entry in vectorEntries {
      select(entry.code)
      a.bind(entry.start)
      if let load = entry.load {
        let unusable = a.label()
        a.testByte(
          .state(VectorOffset.ready), UInt8(truncatingIfNeeded: entry.usable.rawValue))
        a.jump(if: Self.equal, unusable)
        a.call(load)
        a.jump(entry.back)
        a.bind(unusable)
      }
      if entry.uncounted > 0 {
        a.arithmetic(
          .sub, .state(StateOffset.retired), immediate: Int32(entry.uncounted))
      }
      a.load(.r13, .state(StateOffset.codePage))
      a.lea(.r13, .memory(.r13, Int32(offset(entry.index))))
      a.jump(to: thunks.interpret)
    }
  }

  // MARK: Registers

  private func load(_ number: UInt8) {
    let width = plan.loadWidth(number)
    a.vectorMove(number, width: width, .load, offset: VectorOffset.vector(number))
    if width > 16 && number < 16 { vectors.usesUpper = true }
  }

  private func store(_ number: UInt8) {
    a.vectorMove(
      number, width: plan.width[Int(number)], .store, offset: VectorOffset.vector(number))
  }

  private func moveMask(_ number: UInt8, _ direction: Assembler.Direction) {
    a.maskMove(
      number, wide: host.hasWideMasks, direction, offset: VectorOffset.mask(number))
  }

  private func hold(_ number: UInt8, _ loads: Bool) {
    if vectors.held >> UInt32(number) & 1 != 0 { return }
    vectors.held |= 1 << UInt32(number)
    if loads { load(number) }
  }

  private func holdMask(_ number: UInt8, _ loads: Bool) {
    if vectors.masksHeld >> number & 1 != 0 { return }
    vectors.masksHeld |= 1 << number
    if loads { moveMask(number, .load) }
  }

  /// Writes dirty registers back. Preserves flags.
  func spillVectors() {
    storeVectors(vectors)
    vectors.dirty = 0
    vectors.masksDirty = 0
  }

  private func storeVectors(_ cache: VectorCache) {
    for number in 0..<32 as Range<UInt8> where cache.dirty >> UInt32(number) & 1 != 0 {
      store(number)
    }
    for number in 0..<8 as Range<UInt8> where cache.masksDirty >> number & 1 != 0 {
      moveMask(number, .store)
    }
  }

  /// The same, and frees all registers. Preserves flags.
  func releaseVectors() {
    spillVectors()
    if vectors.usesUpper { a.zeroUpper() }
    vectors.usesUpper = false
  }

  /// The same in out-of-line code.
  func releaseVectors(_ cache: VectorCache) {
    storeVectors(cache)
    if cache.usesUpper { a.zeroUpper() }
  }

  /// In out-of-line code, around the handler of an instruction whose access missed.
  func leaveVectors(_ way: OutOfLine) { releaseVectors(way.before) }

  func reenterVectors(_ way: OutOfLine) {
    let ready = way.after.ready
    if ready.x87 {
      a.call(thunks.vectors.loadX87)
    } else if ready.isArithmetic {
      a.call(thunks.vectors.loadMXCSR)
    }
    for number in 0..<32 as Range<UInt8> where way.after.held >> UInt32(number) & 1 != 0 {
      load(number)
    }
    for number in 0..<8 as Range<UInt8> where way.after.masksHeld >> number & 1 != 0 {
      moveMask(number, .load)
    }
  }

  /// Loads the operands of an instruction into host registers.
  private func holdOperands(_ i: Instruction, _ operands: [Operand]) {
    let isLegacy = i.prefixes.isDisjoint(with: [.vex, .evex])
    let isZeroing = VectorLowering.isZeroing(i)
    for operand in operands {
      if operand.kind == .mask { holdMask(operand.number, true) }
      guard operand.kind == .vector else { continue }
      var isNew = isZeroing
      if operand.access == .write {
        isNew = isLegacy ? VectorLowering.writesWhole(i) : i.encoding.evexMask == 0
      }
      if isLegacy && plan.width[Int(operand.number)] != 16 { isNew = false }
      hold(operand.number, !isNew)
    }
  }

  private func noteWrites(_ operands: [Operand]) {
    for operand in operands where operand.access.contains(.write) {
      if operand.kind == .mask { vectors.masksDirty |= 1 << operand.number }
      guard operand.kind == .vector else { continue }
      vectors.dirty |= 1 << UInt32(operand.number)
    }
  }

  // MARK: Instructions

  func lowerVector(_ n: Int) {
    let i = instructions[n]
    if vectors.ready == .none {
      leaveFlags()
      makeReady(n, counted: true)
    }
    if i.mnemonic == .vzeroupper { return lowerZeroUpper(n) }
    if i.mnemonic == .fldcw { return lowerLoadControlWord(n) }
    let operands = i.hostOperands
    holdOperands(i, operands)
    let before = vectors
    var place = Place.memory(.r13)
    var miss: Label?
    if let m = i.memoryOperand { (place, miss) = accessVector(n, i.operands[m]) }
    needFlags(n)
    emitVector(i, place)
    noteWrites(operands)
    if i.encoding.vectorLength > 16 && !i.prefixes.isDisjoint(with: [.vex, .evex]) {
      vectors.usesUpper = true
    }
    if i.attributes.contains(.x87) && !i.isX87Control { vectors.x87Instruction = n }
    noteFlags(n)
    if let miss { endAccess(n, miss, before) }
  }

  private func accessVector(
    _ n: Int, _ operand: Operand
  ) -> (place: Place, miss: Label?) {
    if rounds != nil || group(n) != nil { return access(n, operand) }
    return (.memory(.r13), accessVectorOperand(n, operand))
  }

  /// R13 = host address of the operand, which is aligned as it must be.
  private func accessVectorOperand(_ n: Int, _ operand: Operand) -> Label {
    let i = instructions[n]
    let miss = missLabel()
    clobberFlags(n)
    linearAddress(n, miss)
    if i.attributes.contains(.x87) && !i.isX87Control {
      a.store(.state(VectorOffset.x87Data), .r13)
    }
    if i.attributes.contains(.aligned) && operand.size > 1 {
      a.testByte(.register(.r13), operand.size - 1)
      a.jump(if: Self.notEqual, miss)
    }
    translateOperand(n, operand, miss)
    return miss
  }

  private func emitVector(_ i: Instruction, _ place: Place = .memory(.r13)) {
    var places = HostPlaces(address: (place.base ?? .r13).rawValue)
    places.index = place.index?.rawValue
    places.scale = place.scale
    places.displacement = place.displacement
    let general = i.attributes.contains(.x87) ? nil : i.generalOperand
    var scratch: HostRegister?
    if let general {
      if let host = RegisterMap.host(general.number) {
        places.general = host.rawValue
      } else {
        scratch = .r15
        places.general = HostRegister.r15.rawValue
        a.load(.r15, RegisterMap.place(general.number))
      }
    }
    for byte in i.hostCode(places) { a.byte(byte) }
    if let general, let scratch, general.access.contains(.write) {
      a.store(RegisterMap.place(general.number), scratch)
    }
  }

  /// FLDCW of a word that masks every exception, on which the rest of the block relies. It reads
  /// the word once: another CPU may change it after the test, and an unmasked exception would be
  /// raised in this program.
  private func lowerLoadControlWord(_ n: Int) {
    let i = instructions[n]
    leaveFlags()
    let special = accessVectorOperand(n, i.operands[0])
    a.emit(Form(0xB7, map: .two), reg: HostRegister.r14.rawValue, rm: .memory(.r13))
    var word = Form(0x89)
    word.operandSize16 = true
    let copy = Place.state(VectorOffset.scratch)
    a.emit(word, reg: HostRegister.r14.rawValue, rm: copy)
    let masks: Int32 = 0x3F
    a.arithmetic(.and, .register(.r14), immediate: masks, wide: false)
    a.arithmetic(.cmp, .register(.r14), immediate: masks, wide: false)
    a.jump(if: Self.notEqual, special)
    a.emit(Form(0xD9), reg: 5, rm: copy)
    leavingHandlers.append((special, current, n, vectors))
  }

  /// Instructions after whose handlers the run loop reads the state again.
  func emitLeavingHandlers() {
    for (start, code, n, cache) in leavingHandlers {
      select(code)
      a.bind(start)
      releaseVectors(cache)
      callHandler(n)
      if countsInstructions, instructions.count - 1 > n {
        a.arithmetic(
          .sub, .state(StateOffset.retired), immediate: Int32(instructions.count - 1 - n))
      }
      a.load(.r13, .state(StateOffset.codePage))
      a.lea(.r13, .memory(.r13, Int32(nextOffset(n))))
      a.jump(to: thunks.exitAt)
    }
  }

  /// VZEROUPPER also changes registers that are not loaded.
  private func lowerZeroUpper(_ n: Int) {
    clobberFlags(n)
    spillVectors()
    let scratch: UInt32 = 1 << 31
    a.call(thunks.vectors.zeroUpper)
    a.zeroUpper()
    vectors.usesUpper = false
    if vectors.held & scratch != 0 { load(31) }
  }
}
