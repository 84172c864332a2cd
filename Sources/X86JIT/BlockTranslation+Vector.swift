// SPDX-License-Identifier: Apache-2.0
//
// SSE and AVX instructions. Vector registers have the guest's numbers. They are loaded from the state
// where an instruction needs them, stay in the host's registers until something clobbers those, and
// each write is stored at once; so the state is always whole, and whoever clobbers need not save.
//
// Whether control registers allow such instructions is looked at once for each class and block; what
// changes them ends a block. Floating-point instructions run with the guest's MXCSR, which differs
// from the program's at most in its flags: it is loaded where `mxcsrIsLive` is 0 and put back by
// whoever leaves translated code. With any other control bits the handlers execute, and translated
// code is left after each.

import X86
import X86CPU
import X86Decoder

/// What is known about the vector unit at a point of a block.
struct VectorKnowledge {
  /// Bytes of each register that agree with the state: 0, 16 or 64.
  var valid = InlineArray<16, UInt8>(repeating: 0)
  var sseIsEnabled = false
  var avxIsEnabled = false
  var mxcsrIsLoaded = false

  /// The host's registers and MXCSR have been used by others.
  mutating func forgetRegisters() {
    valid = InlineArray(repeating: 0)
    mxcsrIsLoaded = false
  }
}

enum VectorOffset {
  static let registers = CPU.vectorOffset + MemoryLayout<VectorState>.offset(of: \.zmm)!
  static let mxcsr = CPU.vectorOffset + MemoryLayout<VectorState>.offset(of: \.fx)! + 24
  static let isLive = MemoryLayout<CPUState>.offset(of: \.native)!
    + MemoryLayout<NativeState>.offset(of: \.mxcsrIsLive)!
  static let cr0 = MemoryLayout<CPUState>.offset(of: \.cr0)!
  static let cr4 = MemoryLayout<CPUState>.offset(of: \.cr4)!
  static let xcr0 = MemoryLayout<CPUState>.offset(of: \.xcr0)!

  static func register(_ number: UInt8) -> Place { .state(registers + Int(number) * 64) }
}

extension LoweringKind {
  /// Whether a vector instruction can be executed in line.
  static func isInlineVector(_ i: Instruction, _ host: HostFeatures) -> Bool {
    guard i.attributes.contains(.vector), host.has(i), !i.usesMMX,
      i.attributes.isDisjoint(with: [.x87, .mmx, .vsib]), !i.prefixes.contains(.evex),
      i.encoding.hasModRM, i.encoding.immediateLength <= 1, !excluded.contains(i.mnemonic)
    else { return false }
    for n in 0..<Int(i.operandCount) {
      let operand = i.operands[n]
      switch operand.kind {
      case .vector, .immediate: break
      case .general: if operand.number >= 16 { return false }
      case .memory:
        if operand.size == 0 || operand.size > 32 { return false }
        let isWritten = operand.access.contains(.write)
        if isWritten && i.attributes.contains(.floatingPoint) { return false }
      default: return false
      }
    }
    return true
  }

  /// What has operands that are not named, or is not a matter of registers alone.
  private static let excluded: Set<Mnemonic> = [
    .ldmxcsr, .vldmxcsr, .stmxcsr, .vstmxcsr, .vzeroupper, .vzeroall, .maskmovdqu, .vmaskmovdqu,
    .maskmovq, .vmaskmovps, .vmaskmovpd, .vpmaskmovd, .vpmaskmovq, .pcmpestri, .pcmpestrm,
    .pcmpistri, .pcmpistrm, .vpcmpestri, .vpcmpestrm, .vpcmpistri, .vpcmpistrm, .extrq, .insertq,
  ]
}

extension BlockTranslation {
  mutating func lowerVector(_ n: Int) {
    let i = instructions[n]
    let isVEX = i.prefixes.contains(.vex)
    let leave = a.label()
    let miss = missLabel()
    checkEnabled(n, isVEX, leave)
    if i.attributes.contains(.floatingPoint) { loadMXCSR(n, leave) }
    var rm = Place.memory(.r13)
    if let m = i.memoryOperand { accessVector(n, i.operands[m], miss) }
    needFlags(n)
    let operands = i.hostOperands
    for operand in operands { loadVector(operand.number, whole: isVEX) }
    let e = i.encoding
    var reg = e.modRM >> 3 & 7 | (e.rex & 4) << 1
    let number = e.modRM & 7 | (e.rex & 1) << 3
    if i.memoryOperand == nil { rm = .register(HostRegister(rawValue: number) ?? .rax) }
    var pool: [HostRegister] = [.r14, .r15]
    if i.hasGeneralOperand {
      if i.namesGeneralInReg {
        reg = register(reg, i, false, &pool).rawValue
      } else if i.memoryOperand == nil {
        rm = .register(register(number, i, false, &pool))
      }
    }
    emitVector(i, reg, rm)
    for operand in operands where operand.access.contains(.write) {
      storeVector(operand.number, whole: isVEX)
    }
    storeScratch(i)
    noteFlags(n)
    outOfLine.append(
      OutOfLine(start: leave, back: leave, index: n, restoresFlags: false, leaves: true))
    endAccess(n, miss)
  }

  private mutating func emitVector(_ i: Instruction, _ reg: UInt8, _ rm: Place) {
    let e = i.encoding
    var form = Form(e.opcode, map: Form.Map(rawValue: e.map.rawValue) ?? .two)
    if i.prefixes.contains(.vex) {
      form.wide = e.vexW || e.rex & 8 != 0
      a.emitVEX(
        form, prefix: e.mandatoryPrefix, reg: reg, vvvv: e.vvvv, rm: rm,
        is256: e.vectorLength == 32)
    } else {
      form.wide = e.rex & 8 != 0
      form.operandSize16 = e.mandatoryPrefix == 1
      form.repeatPrefix = e.mandatoryPrefix == 2 ? 0xF3 : e.mandatoryPrefix == 3 ? 0xF2 : 0
      a.emit(form, reg: reg, rm: rm)
    }
    if e.immediateLength > 0 { a.byte(UInt8(truncatingIfNeeded: i.immediate)) }
  }

  // MARK: Conditions

  /// Leaves where CR0, CR4 or XCR0 do not allow the instruction.
  private mutating func checkEnabled(_ n: Int, _ isVEX: Bool, _ leave: Label) {
    if isVEX ? vectors.avxIsEnabled : vectors.sseIsEnabled { return }
    clobberFlags(n)
    let blocked = isVEX ? CR0.ts.rawValue : CR0.ts.rawValue | CR0.em.rawValue
    a.test(.state(VectorOffset.cr0), immediate: Int32(blocked))
    a.jump(if: Self.notEqual, leave)
    let enabled = isVEX ? CR4.osxsave.rawValue : CR4.osfxsr.rawValue
    a.test(.state(VectorOffset.cr4), immediate: Int32(enabled))
    a.jump(if: 4, leave)
    if isVEX {
      let components: XCR0 = [.sse, .avx]
      a.load(.r14, .state(VectorOffset.xcr0))
      a.arithmetic(.and, .register(.r14), immediate: Int32(components.rawValue))
      a.arithmetic(.cmp, .register(.r14), immediate: Int32(components.rawValue))
      a.jump(if: Self.notEqual, leave)
      vectors.avxIsEnabled = true
    } else {
      vectors.sseIsEnabled = true
    }
  }

  /// The host's MXCSR becomes the guest's, if that has the program's control bits.
  private mutating func loadMXCSR(_ n: Int, _ leave: Label) {
    if vectors.mxcsrIsLoaded { return }
    clobberFlags(n)
    let loaded = a.label()
    a.arithmetic(.cmp, .state(VectorOffset.isLive), immediate: 0)
    a.jump(if: Self.notEqual, loaded)
    a.emit(Form(0x8B), reg: HostRegister.r14.rawValue, rm: .state(VectorOffset.mxcsr))
    a.arithmetic(.and, .register(.r14), immediate: -64, wide: false)
    a.arithmetic(.cmp, .register(.r14), immediate: 0x1F80, wide: false)
    a.jump(if: Self.notEqual, leave)
    emitLoadMXCSR()
    a.bind(loaded)
    vectors.mxcsrIsLoaded = true
  }

  private mutating func emitLoadMXCSR() {
    a.emit(Form(0xAE, map: .two), reg: 2, rm: .state(VectorOffset.mxcsr))
    a.store(.state(VectorOffset.isLive), immediate: 1)
  }

  private mutating func accessVector(_ n: Int, _ operand: Operand, _ miss: Label) {
    clobberFlags(n)
    linearAddress(n)
    if instructions[n].attributes.contains(.aligned) && operand.size > 1 {
      a.test(.register(.r13), immediate: Int32(operand.size) - 1)
      a.jump(if: Self.notEqual, miss)
    }
    translateAddress(size: Int(operand.size), write: operand.access.contains(.write), miss)
  }

  // MARK: Registers

  /// Loads a register unless it agrees with the state: all of it, or 16 bytes.
  private mutating func loadVector(_ number: UInt8, whole: Bool) {
    let need: UInt8 = whole ? 64 : 16
    if vectors.valid[Int(number)] >= need { return }
    moveVector(number, whole: whole, store: false)
    vectors.valid[Int(number)] = need
  }

  private mutating func storeVector(_ number: UInt8, whole: Bool) {
    moveVector(number, whole: whole, store: true)
    vectors.valid[Int(number)] = max(vectors.valid[Int(number)], whole ? 64 : 16)
  }

  private mutating func moveVector(_ number: UInt8, whole: Bool, store: Bool) {
    let opcode: UInt8 = store ? 0x11 : 0x10
    let place = VectorOffset.register(number)
    if !whole {
      a.emit(Form(opcode, map: .two), reg: number, rm: place)
    } else if hasAVX512 {
      a.moveWhole(opcode, number, place)
    } else {
      a.emitVEX(
        Form(opcode, map: .two), prefix: 0, reg: number, vvvv: 0, rm: place, is256: true)
    }
  }

  /// After a handler ran out of line: what the code it returns to relies on.
  mutating func restoreVectors(_ known: VectorKnowledge) {
    for number in 0..<16 where known.valid[number] > 0 {
      moveVector(UInt8(number), whole: known.valid[number] == 64, store: false)
    }
    if known.mxcsrIsLoaded { emitLoadMXCSR() }
  }
}

extension Instruction {
  fileprivate var hasGeneralOperand: Bool {
    for n in 0..<Int(operandCount) where operands[n].kind == .general { return true }
    return false
  }

  /// MOVMSKPS, CVTSD2SI, PMOVMSKB, PEXTRW: the general register is in ModRM.reg.
  fileprivate var namesGeneralInReg: Bool {
    encoding.map == .map0F && [0x2C, 0x2D, 0x50, 0xC5, 0xD7].contains(encoding.opcode)
  }
}
