// SPDX-License-Identifier: Apache-2.0
//
// Where the guest's arithmetic flags are while a block runs.
//
// They are in up to three places: in host RFLAGS, in the CPU state, or in a recipe. A recipe
// recomputes the flags of executed instructions from registers that still have their values: it
// executes CMP again, undoes ADD and does it again. It costs nothing until the flags are read. Most
// memory accesses clobber host RFLAGS and may fault, but only the out-of-line path of a fault reads
// the flags.
//
//     add rax, rbx          host, recipe: sub rax, rbx; add rax, rbx
//     mov rcx, [rdx]        recipe alone; saved in the state out of line if the access misses
//     cmp rcx, 5            host, recipe: cmp rcx, 5
//
// Invariant: all flags are in host RFLAGS, or in the CPU state, or there is a recipe.

import X86
import X86CPU
import X86Decoder

/// Instructions that recompute the flags, in order.
struct FlagRecipe: Equatable {
  /// How an instruction is executed again.
  enum Step {
    /// It writes nothing that it reads.
    case again
    /// Its flags follow from its result.
    case testResult
    /// Its inverse, then itself.
    case undone
    /// Itself, in a scratch register with the destination's old value: `flagSource`.
    case saved
    /// Itself with a scratch register as its destination.
    case aside
  }

  /// The instruction is one of a `BlockCode` that is being translated; a plain value, so that
  /// copies of flag states cost nothing.
  struct Entry {
    var step = Step.again
    var instruction: UnsafePointer<Instruction>?
    var address: UInt64 = 0
  }

  mutating func append(_ entry: Entry) {
    steps[count] = entry
    count += 1
  }

  /// The CPU state has the flags that the steps preserve.
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

  /// Flags that the steps compute without the CPU state.
  var writes: FlagSet {
    var writes = FlagSet()
    for n in 0..<count {
      if let instruction = steps[n].instruction {
        writes.formUnion(FlagEffect(instruction.pointee).writes)
      }
    }
    return writes
  }

  /// The recipe of one instruction, for any previous flags; nil: there is none.
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

  /// The instruction preserves flags that the recipe has to have.
  static func extends(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .inc, .dec, .bt, .rol, .ror: true
    default: false
    }
  }
}

struct FlagState {
  /// The guest flags that are in host RFLAGS.
  var host = FlagSet()
  var inState = true
  var recipe: FlagRecipe?

  static var inState: FlagState { FlagState() }

  var isInHost: Bool { host == .all }
}

extension Operand {
  /// The register of a general operand; for AH to BH the full register.
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

  /// Registers that a recipe's step reads. Not the destination of `saved` and `aside`, which may
  /// change.
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

  /// Also saves the flags to the CPU state.
  func saveFlags() {
    if flags.inState { return }
    if !flags.isInHost { executeRecipe() }
    a.saveFlags(.state(StateOffset.hostFlags), temporary: .r14)
    flags.inState = true
  }

  /// Before the access of instruction `n` clobbers host RFLAGS; a miss may read the guest's flags.
  func clobberFlags(_ n: Int) {
    if flags.recipe == nil || losesRecipe(n) { saveFlags() }
    flags.host = []
    flagsAtAccess = flags
  }

  /// Before code that reads the flags in the CPU state and clobbers host RFLAGS.
  func leaveFlags() {
    saveFlags()
    flags = .inState
    flagsAtAccess = flags
  }

  /// Loads the flags that instruction `n` reads or preserves to host RFLAGS.
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

  /// Flags that are live after `n` are those before it, and `n` breaks the recipe.
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

  /// After instruction `n`: drops a recipe whose registers have changed.
  func dropRecipe(_ n: Int) {
    guard !effects[n].touches, let recipe = flags.recipe,
      recipe.inputs & instructions[n].changedRegisters != 0
    else { return }
    flags.recipe = nil
  }

  /// `n` can become a step of the recipe.
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

  /// Recomputes all guest flags in host RFLAGS. Clobbers R14 and R15.
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

  /// The instruction on registers alone, or its inverse. Loads guest registers without a host
  /// register to R14 and R15 and does not store them: nothing has changed at the end.
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
