// SPDX-License-Identifier: Apache-2.0
//
// Where the guest's arithmetic flags are while a block runs.
//
// They are known in up to three ways: in the host's flags, in the state, or by a recipe. A recipe
// makes the flags of instructions that have run once more, from registers that still hold what they
// held: CMP is executed again, ADD is undone and done again. It costs nothing until somebody looks,
// and nobody does at most memory accesses, which clobber the host's flags and may fault: only the
// way of the fault, out of line, has to have them.
//
//     add rax, rbx          host, recipe: sub rax, rbx; add rax, rbx
//     mov rcx, [rdx]        recipe alone; saved in the state out of line if the access misses
//     cmp rcx, 5            host, recipe: cmp rcx, 5
//
// Invariant: all flags are in the host's flags, or in the state, or there is a recipe.

import X86
import X86CPU
import X86Decoder

/// Instructions to execute again, in order, that give the flags.
struct FlagRecipe: Equatable {
  /// How one instruction is made again.
  enum Step {
    /// It changes nothing that it reads.
    case again
    /// Its flags say no more than the result does.
    case testResult
    /// Its opposite, then itself.
    case undone
    /// Itself, in a scratch register with what its destination held before: `flagSource`.
    case saved
    /// Itself with a scratch register as its destination.
    case aside
  }

  /// The instruction is one of a `BlockCode` that is being translated; a plain value, so that
  /// copies of what is known of flags cost nothing.
  struct Entry {
    var step = Step.again
    var instruction: UnsafePointer<Instruction>?
    var address: UInt64 = 0
  }

  mutating func append(_ entry: Entry) {
    steps[count] = entry
    count += 1
  }

  /// Whether the state has the flags that the steps keep.
  var usesState = false
  private(set) var steps = InlineArray<3, Entry>(repeating: Entry())
  private(set) var count = 0
  /// Guest registers that must not have changed.
  var inputs: UInt32 = 0

  static let maximumSteps = 3

  static func == (a: FlagRecipe, b: FlagRecipe) -> Bool {
    if a.usesState != b.usesState || a.count != b.count { return false }
    for n in 0..<a.count where a.steps[n].address != b.steps[n].address { return false }
    return true
  }

  /// Flags that the steps give without the state.
  var writes: FlagSet {
    var writes = FlagSet()
    for n in 0..<count {
      if let instruction = steps[n].instruction {
        writes.formUnion(FlagEffect(instruction.pointee).writes)
      }
    }
    return writes
  }

  /// The recipe of an instruction alone, whatever flags were before; nil where there is none.
  static func step(_ i: Instruction) -> Step? {
    guard i.memoryOperand == nil, i.operandCount > 0 else { return nil }
    let same =
      i.operandCount > 1 && i.operands[1].kind == .general
      && i.operands[0].parent == i.operands[1].parent
    switch i.mnemonic {
    case .cmp, .test, .bt: return .again
    case .and, .or, .xor: return i.operands[0].kind == .general ? .testResult : nil
    case .sub where same: return i.operands[0].number == i.operands[1].number ? .again : nil
    case .add, .sub: return same ? nil : .undone
    case .inc, .dec, .neg: return .undone
    case .rol, .ror: return shift(i) == nil || i.operandSize < 4 ? nil : .undone
    case .shl, .shr, .sar: return shift(i) == nil || i.operandSize < 4 ? nil : .saved
    case .imul where i.operandSize >= 4 && i.operandCount > 1:
      return i.encoding.map == .oneByte && !same ? .aside : .saved
    default: return nil
    }
  }

  /// The count of a shift by a constant other than 0.
  private static func shift(_ i: Instruction) -> Int? {
    let last = i.operands[Int(i.operandCount) - 1]
    guard last.kind == .immediate else { return nil }
    let count = i.encoding.immediateLength > 0 ? Int(i.immediate) : 1
    return count & (i.operandSize == 8 ? 63 : 31) == 0 ? nil : count
  }

  /// Whether the instruction keeps flags that the recipe must have had before.
  static func extends(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .inc, .dec, .bt, .rol, .ror: true
    default: false
    }
  }
}

struct FlagState {
  /// The flags of the host that are the guest's.
  var host = FlagSet()
  var inState = true
  var recipe: FlagRecipe?

  static var inState: FlagState { FlagState() }

  var isInHost: Bool { host == .all }
}

extension Operand {
  /// The register of a general operand; of AH to BH the one that it is part of.
  var parent: UInt8 { number >= 16 ? number - 16 : number }
}

extension Instruction {
  /// General registers that a lowered instruction may change, as bits.
  var changedRegisters: UInt32 {
    var changed: UInt32 = 0
    for n in 0..<Int(operandCount)
    where operands[n].kind == .general && operands[n].access.contains(.write) {
      changed |= 1 << UInt32(operands[n].parent)
    }
    switch mnemonic {
    case .mul, .imul, .cwd, .cdq, .cqo, .cbw, .cwde, .cdqe, .mulx, .div, .idiv, .rdtsc,
      .rdpkru, .cmpxchg8b, .cmpxchg16b:
      changed |= 0b101
    case .cmpxchg, .xadd, .lahf: changed |= 1
    case .loop, .loope, .loopne: changed |= 1 << 1
    case .rdtscp: changed |= 0b111
    case .push, .pop, .call, .ret, .pushf, .popf: changed |= 1 << 4
    case .stos, .movs: changed |= 1 << 1 | 1 << 6 | 1 << 7
    case .leave: changed |= 1 << 4 | 1 << 5
    default: break
    }
    return changed
  }

  /// Registers that a recipe's step looks at. A destination that is not one is that of `saved` and
  /// `aside`, which may change.
  fileprivate func recipeInputs(_ step: FlagRecipe.Step) -> UInt32 {
    var result: UInt32 = 0
    let isAside = step == .saved || step == .aside
    for n in 0..<Int(operandCount) where operands[n].kind == .general {
      if isAside && (n == 0 || operands[n].parent == operands[0].parent) { continue }
      result |= 1 << UInt32(operands[n].parent)
    }
    return result
  }
}

extension BlockTranslation {
  // MARK: Saving and needing

  /// The flags are in the state as well, for whoever looks there.
  func saveFlags() {
    if flags.inState { return }
    if !flags.isInHost { executeRecipe() }
    a.saveFlags(.state(StateOffset.hostFlags), temporary: .r14)
    flags.inState = true
  }

  /// The host's flags are about to be clobbered by the access of instruction `n`, which may look at
  /// the guest's where it misses.
  func clobberFlags(_ n: Int) {
    if flags.recipe == nil || losesRecipe(n) { saveFlags() }
    flags.host = []
    flagsAtAccess = flags
  }

  /// Before something that needs them in the state and clobbers the host's.
  func leaveFlags() {
    saveFlags()
    flags = .inState
    flagsAtAccess = flags
  }

  /// The host's flags hold what instruction `n` reads or passes on.
  func needFlags(_ n: Int) {
    let effect = effects[n]
    var needed = effect.reads
    if effect.touches && !extendsRecipe(n) {
      let kept = liveAfter(n).subtracting(effect.writes)
      // There may be no recipe afterwards.
      if !kept.isEmpty { needed = .all }
    }
    if flags.host.isSuperset(of: needed) { return }
    if let recipe = flags.recipe, !recipe.usesState || recipe.writes.isSuperset(of: needed) {
      executeSteps(recipe)
      flags.host = recipe.usesState ? recipe.writes : .all
    } else if flags.inState {
      a.restoreFlags(.state(StateOffset.hostFlags), temporary: .r14)
      flags.host = .all
    } else {
      executeRecipe()
    }
  }

  // MARK: Recipes

  /// Before instruction `n`, which may change what the recipe needs.
  func keepFlags(_ n: Int) {
    if !flags.inState && !flags.isInHost && losesRecipe(n) { saveFlags() }
  }

  /// Whether flags that someone looks at after `n` are those before it, and the recipe is not one
  /// any more.
  private func losesRecipe(_ n: Int) -> Bool {
    guard let recipe = flags.recipe, recipe.inputs & instructions[n].changedRegisters != 0 else {
      return false
    }
    if effects[n].touches && (effects[n].writes == .all || extendsRecipe(n)) { return false }
    return !liveAfter(n).isEmpty
  }

  /// After the guest's instruction has been emitted.
  func noteFlags(_ n: Int) {
    guard effects[n].touches else { return }
    if liveAfter(n).isEmpty {
      flags = .inState
      return
    }
    let recipe = recipe(after: n)
    flags.host = recipe == nil ? .all : flags.host.union(effects[n].writes)
    flags.inState = false
    flags.recipe = recipe
  }

  /// After instruction `n`: a recipe whose registers have changed is none.
  func dropRecipe(_ n: Int) {
    guard !effects[n].touches, let recipe = flags.recipe,
      recipe.inputs & instructions[n].changedRegisters != 0
    else { return }
    flags.recipe = nil
  }

  /// Whether `n` becomes one more step of the recipe.
  private func extendsRecipe(_ n: Int) -> Bool {
    let i = instructions[n]
    guard FlagRecipe.extends(i), FlagRecipe.step(i) != nil else { return false }
    if let recipe = flags.recipe, recipe.count < FlagRecipe.maximumSteps,
      recipe.inputs & i.changedRegisters == 0
    {
      return true
    }
    return flags.inState
  }

  private func recipe(after n: Int) -> FlagRecipe? {
    let i = instructions[n]
    guard let step = FlagRecipe.step(i) else { return nil }
    var result = FlagRecipe()
    if FlagRecipe.extends(i) {
      guard extendsRecipe(n) else { return nil }
      if let recipe = flags.recipe, recipe.count < FlagRecipe.maximumSteps,
        recipe.inputs & i.changedRegisters == 0
      {
        result = recipe
      } else {
        result.usesState = true
      }
    }
    let address = block.pointee.host & Page.mask | UInt64(offset(n))
    let instruction = instructions.baseAddress.map { $0 + n }
    result.append(FlagRecipe.Entry(step: step, instruction: instruction, address: address))
    result.inputs |= i.recipeInputs(step)
    return result
  }

  /// Gives the host all flags of the guest. Clobbers R14 and R15.
  func executeRecipe() {
    guard let recipe = flags.recipe else { return }
    if recipe.usesState {
      a.restoreFlags(.state(StateOffset.hostFlags), temporary: .r14)
    }
    executeSteps(recipe)
    flags.host = .all
  }

  private func executeSteps(_ recipe: FlagRecipe) {
    let saved = scratch
    for n in 0..<recipe.count {
      guard let instruction = recipe.steps[n].instruction else { continue }
      scratch.removeAll(keepingCapacity: true)
      execute(recipe.steps[n].step, instruction.pointee)
    }
    scratch = saved
  }

  private func execute(_ step: FlagRecipe.Step, _ i: Instruction) {
    switch step {
    case .again: emitAgain(i)
    case .undone:
      emitAgain(i, opposite: true)
      emitAgain(i)
    case .testResult: emitTest(i)
    case .saved, .aside: emitAside(i, step)
    }
  }

  /// The instruction with R14 for its destination. Its other operand may be the same register.
  private func emitAside(_ i: Instruction, _ step: FlagRecipe.Step) {
    let fields = EncodingFields(i)
    if step == .saved { a.load(.r14, .state(StateOffset.flagSource)) }
    var pool: [HostRegister] = [.r15]
    let destination = HostRegister.r14
    let isShift = i.mnemonic != .imul
    var rm = destination
    if !isShift, let number = fields.rm, number != i.operands[0].number {
      rm = recipeRegister(number, false, &pool)
    }
    a.emit(
      fields.form, reg: isShift ? fields.opcodeExtension : destination.rawValue,
      rm: .register(rm))
    a.append(UInt64(bitPattern: i.immediate), Int(i.encoding.immediateLength))
  }

  /// Before instruction `n` is emitted with its destination in a host register.
  func saveSource(_ n: Int, _ destination: HostRegister) {
    guard effects[n].touches, !liveAfter(n).isEmpty, FlagRecipe.step(instructions[n]) == .saved
    else { return }
    a.store(.state(StateOffset.flagSource), destination)
  }

  /// The instruction on registers alone, or the one that undoes it. Registers that the state has
  /// are loaded to R14 and R15 and not stored: nothing has changed at the end.
  private func emitAgain(_ i: Instruction, opposite: Bool = false) {
    guard i.encoding.hasModRM || i.isShortForm else {
      if i.operandSize == 2 { a.byte(0x66) }
      if i.operandSize == 8 { a.byte(0x48) }
      a.byte(opposite ? i.encoding.opcode ^ 0x28 : i.encoding.opcode)
      a.append(UInt64(bitPattern: i.immediate), Int(i.encoding.immediateLength))
      return
    }
    var fields = EncodingFields(i)
    var pool: [HostRegister] = [.r14, .r15]
    let high = fields.hasHighByte
    var reg = fields.opcodeExtension
    if let number = fields.reg { reg = recipeRegister(number, high, &pool).rawValue }
    let rm = recipeRegister(fields.rm ?? 0, high, &pool)
    if opposite && i.mnemonic != .neg {
      switch i.encoding.opcode {
      case 0x00...0x3F: fields.form.opcode ^= 0x28
      case 0x80...0x83: reg ^= 5
      default: reg ^= 1
      }
    }
    a.emit(fields.form, reg: reg, rm: .register(rm))
    a.append(UInt64(bitPattern: i.immediate), Int(i.encoding.immediateLength))
  }

  private func emitTest(_ i: Instruction) {
    let result = i.operands[0]
    var form = Form(result.size == 1 ? 0x84 : 0x85)
    form.wide = result.size == 8
    form.operandSize16 = result.size == 2
    form.forceREX = result.size == 1 && result.number >= 4 && result.number < 16
    var pool: [HostRegister] = [.r14, .r15]
    let isHigh = result.number >= 16
    let register = recipeRegister(isHigh ? result.number - 12 : result.number, isHigh, &pool)
    a.emit(form, reg: register.rawValue, rm: .register(register))
  }

  private func recipeRegister(
    _ guest: UInt8, _ high: Bool, _ pool: inout [HostRegister]
  ) -> HostRegister {
    if high { return HostRegister(rawValue: guest) ?? .rax }
    if let host = RegisterMap.host(guest) { return host }
    if let known = scratch.first(where: { $0.guest == guest }) { return known.host }
    let host = pool.removeLast()
    scratch.append((guest, host))
    a.load(host, RegisterMap.place(guest))
    return host
  }
}
