// SPDX-License-Identifier: Apache-2.0
//
// Integer instructions: the guest's opcode is emitted with the registers and the address that stand
// for its operands.

import X86
import X86CPU
import X86Decoder

extension BlockTranslation {
  /// Everything with a ModRM byte.
  func lowerModRM(_ n: Int) {
    let i = instructions[n]
    var fields = EncodingFields(i)
    var miss: Label?
    var rm = Place.memory(.r13)
    if let m = i.memoryOperand { (rm, miss) = access(n, i.operands[m]) }
    needFlags(n)
    var pool: [HostRegister] = i.memoryOperand == nil ? [.r13, .r14, .r15] : [.r14, .r15]
    let high = fields.hasHighByte
    if miss == nil && i.memoryOperand == nil, let place = statePlace(n, &fields) {
      let reg = fields.reg.map { register($0, i, high, &pool).rawValue } ?? fields.opcodeExtension
      emit(i, fields, reg: reg, rm: place)
      storeScratch(i)
      return noteFlags(n)
    }
    let reg = fields.reg.map { register($0, i, high, &pool).rawValue } ?? fields.opcodeExtension
    if let number = fields.rm { rm = .register(register(number, i, high, &pool)) }
    if miss == nil && i.memoryOperand == nil, i.operands[0].kind == .general {
      let isReg = i.mnemonic == .imul
      saveSource(n, isReg ? HostRegister(rawValue: reg) ?? .rax : rm.register ?? .rax)
    }
    if kinds[n] == .vex {
      let vvvv = fields.vvvv.map { register($0, i, false, &pool).rawValue } ?? 0
      // BLSI and its kin have their destination in vvvv and an opcode extension in reg.
      a.emitVEX(
        fields.form, prefix: i.encoding.mandatoryPrefix, reg: reg, vvvv: vvvv, rm: rm)
      appendImmediate(i)
    } else {
      emit(i, fields, reg: reg, rm: rm)
    }
    storeScratch(i)
    noteFlags(n)
    if let miss { endAccess(n, miss) }
  }

  private func emit(_ i: Instruction, _ fields: EncodingFields, reg: UInt8, rm: Place) {
    a.emit(fields.form, reg: reg, rm: rm)
    appendImmediate(i)
  }

  private func appendImmediate(_ i: Instruction) {
    if i.hostImmediateLength > 0 {
      a.append(UInt64(bitPattern: i.immediate), i.hostImmediateLength)
    }
  }

  // MARK: Registers in the state

  /// The place of a register that the state has, as ModRM.rm of the guest's own instruction in
  /// place of a scratch register: no load before it and no store behind it. The operands change
  /// places where the register is in ModRM.reg and the opcode has a form for that. Nil where the
  /// instruction does not take memory, or would do something else with it.
  private func statePlace(_ n: Int, _ fields: inout EncodingFields) -> Place? {
    let i = instructions[n]
    guard kinds[n] == .modRM, !fields.hasHighByte, let rm = fields.rm,
      Self.takesMemory(i, fields), !keepsSource(n)
    else { return nil }
    if RegisterMap.host(rm) == nil {
      if fields.reg == rm || !allowsPartial(i, register: rm) { return nil }
      return RegisterMap.place(rm)
    }
    guard let reg = fields.reg, RegisterMap.host(reg) == nil, let swapped = Self.swapped(i),
      allowsPartial(i, register: reg)
    else { return nil }
    fields.form.opcode = swapped
    (fields.reg, fields.rm) = (rm, reg)
    return RegisterMap.place(reg)
  }

  /// A recipe wants what the destination held before, in a register.
  private func keepsSource(_ n: Int) -> Bool {
    guard effects[n].touches, !liveAfter(n).isEmpty else { return false }
    let step = FlagRecipe.step(instructions[n])
    return step == .saved || step == .aside
  }

  /// A register of 32 bits that is written has zeros above them, which memory would not get.
  private func allowsPartial(_ i: Instruction, register: UInt8) -> Bool {
    for n in 0..<Int(i.operandCount)
    where i.operands[n].kind == .general && i.operands[n].number == register {
      if i.operands[n].access.contains(.write) && i.operands[n].size == 4 { return false }
    }
    return true
  }

  /// Instructions that do the same with a register and with memory.
  private static func takesMemory(_ i: Instruction, _ fields: EncodingFields) -> Bool {
    switch i.mnemonic {
    case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test, .mov, .inc, .dec, .neg, .not, .movzx,
      .movsx, .movsxd, .imul, .mul, .shl, .shr, .sar, .rol, .ror, .popcnt, .tzcnt, .lzcnt:
      !i.isShortForm
    // With a bit number in a register these reach beyond their memory operand.
    case .bt, .bts, .btr, .btc: fields.reg == nil
    default: i.condition != nil
    }
  }

  /// The opcode with ModRM.reg and ModRM.rm in each other's places; nil where there is none.
  private static func swapped(_ i: Instruction) -> UInt8? {
    guard i.encoding.map == .oneByte else { return nil }
    switch i.encoding.opcode {
    case 0x00...0x3F, 0x88...0x8B: return i.encoding.opcode ^ 2
    case 0x84, 0x85: return i.encoding.opcode
    default: return nil
    }
  }

  /// The host register that stands for a guest register in the current instruction: its own, or a
  /// scratch register, loaded if the instruction looks at it. With AH to BH, encodings are the
  /// guest's.
  func register(
    _ guest: UInt8, _ i: Instruction, _ high: Bool, _ pool: inout [HostRegister]
  ) -> HostRegister {
    if high { return HostRegister(rawValue: guest) ?? .rax }
    if let host = RegisterMap.host(guest) { return host }
    if let known = scratch.first(where: { $0.guest == guest }) { return known.host }
    let host = pool.removeLast()
    scratch.append((guest, host))
    let use = use(of: guest, i)
    if use.access.contains(.read) || use.size < 4 { a.load(host, RegisterMap.place(guest)) }
    return host
  }

  /// How the instruction accesses a register, and how much of it at least.
  private func use(of guest: UInt8, _ i: Instruction) -> (access: Operand.Access, size: UInt8) {
    var access: Operand.Access = []
    var size: UInt8 = 8
    for n in 0..<Int(i.operandCount)
    where i.operands[n].kind == .general && i.operands[n].number == guest {
      access.formUnion(i.operands[n].access)
      size = min(size, i.operands[n].size)
    }
    return (access, size)
  }

  /// Puts written scratch registers back.
  func storeScratch(_ i: Instruction) {
    for entry in scratch where use(of: entry.guest, i).access.contains(.write) {
      a.store(RegisterMap.place(entry.guest), entry.host)
    }
  }

  /// `op rAX, imm`, CBW, CWD and their kin.
  func lowerAccumulator(_ n: Int) {
    let i = instructions[n]
    needFlags(n)
    if i.operandSize == 2 { a.byte(0x66) }
    if i.operandSize == 8 { a.byte(0x48) }
    a.byte(i.encoding.opcode)
    a.append(UInt64(bitPattern: i.immediate), Int(i.encoding.immediateLength))
    noteFlags(n)
  }

  func lowerLEA(_ n: Int) {
    let i = instructions[n]
    let guest = i.operands[0].number
    let place = guestAddress(n)
    let host = RegisterMap.host(guest)
    let target = host ?? .r15
    if i.operandSize == 2 {
      if host == nil { a.load(target, RegisterMap.place(guest)) }
      var form = Form(0x8D)
      form.operandSize16 = true
      a.emit(form, reg: target.rawValue, rm: place)
    } else if i.operandSize == 4 || i.addressSize == 4 {
      a.lea32(target, place)
    } else {
      a.lea(target, place)
    }
    if host == nil { a.store(RegisterMap.place(guest), target) }
  }

  func lowerMoveImmediate(_ n: Int) {
    let i = instructions[n]
    let operand = i.operands[0]
    let value = UInt64(bitPattern: i.immediate)
    switch i.operandSize {
    case 8, 4:
      let whole = i.operandSize == 4 ? value & 0xFFFF_FFFF : value
      if let host = RegisterMap.host(operand.number) {
        a.move(host, immediate: whole)
      } else {
        a.move(.r15, immediate: whole)
        a.store(RegisterMap.place(operand.number), .r15)
      }
    case 2:
      var form = Form(0xC7)
      form.operandSize16 = true
      a.emit(form, reg: 0, rm: wholePlace(operand.number))
      a.append(value, 2)
    default:
      var form = Form(0xC6)
      form.forceREX = operand.number < 16 && operand.number >= 4
      let place =
        operand.number >= 16
        ? Place.register(HostRegister(rawValue: operand.number - 12) ?? .rax)
        : wholePlace(operand.number)
      a.emit(form, reg: 0, rm: place)
      a.append(value, 1)
    }
  }

  /// A guest register as an operand, in its host register or in the state.
  private func wholePlace(_ guest: UInt8) -> Place {
    RegisterMap.host(guest).map { .register($0) } ?? RegisterMap.place(guest)
  }

  func lowerByteSwap(_ n: Int) {
    let i = instructions[n]
    let guest = i.operands[0].number
    let host = RegisterMap.host(guest)
    let target = host ?? .r15
    if host == nil { a.load(target, RegisterMap.place(guest)) }
    let rex: UInt8 = (i.operandSize == 8 ? 8 : 0) | target.rawValue >> 3
    if rex != 0 { a.byte(0x40 | rex) }
    a.emit(0x0F, 0xC8 | target.rawValue & 7)
    if host == nil { a.store(RegisterMap.place(guest), target) }
  }
}
