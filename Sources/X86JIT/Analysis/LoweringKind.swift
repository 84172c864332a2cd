// SPDX-License-Identifier: Apache-2.0
//
// How an instruction is translated. What is not here, or not in a form that can be emitted, is left
// to its interpreter handler.

import X86
import X86CPU
import X86Decoder

enum LoweringKind {
  /// The guest's opcode again, with host registers and a host address (see `lowerModRM`).
  case modRM
  /// The same, VEX-encoded.
  case vex
  /// Bytes without ModRM on the accumulator and RDX: `add al, imm`, CBW and CWD.
  case accumulator
  case lea, moveImmediate, bswap, push, pop, leave, nop
  case jump, conditionalJump, call, ret
  /// LOOP and its kin, JRCXZ (see `lowerCountedJump`).
  case countedJump
  /// System instructions in line (see `lowerSystem`), and those that end a block.
  case system, systemJump
  /// LFENCE, SFENCE, MFENCE as they stand.
  case fence
  case divide, bitString, compareExchange
  /// REP STOS and REP MOVS (see `lowerRepeatedString`).
  case repeatedString
  /// Vector and x87 instructions, on the same registers (see `lowerVector`).
  case vector
  case handler

  init(_ i: Instruction, host: HostFeatures) {
    self = Self.byRow(i)
    guard i.mode != .bits16, host.has(i.feature), Self.addressFits(i) else {
      self = .handler
      return
    }
    if self == .handler, VectorLowering.isNative(i, host) { self = .vector }
    if self == .modRM || self == .vex, !EncodingFields(i).isEncodable { self = .handler }
  }

  /// What the row says of the encoding decides, except for instructions with a lowering of their
  /// own.
  private static func byRow(_ i: Instruction) -> LoweringKind {
    if i.attributes.contains(.relocatable) {
      if i.prefixes.contains(.vex) { return .vex }
      return namesBit(i) ? bitString(i) : .modRM
    }
    return i.attributes.contains(.accumulator) ? .accumulator : byMnemonic(i)
  }

  /// BT and so on with a bit number in a register, which reaches beyond the memory operand.
  private static func namesBit(_ i: Instruction) -> Bool {
    switch i.mnemonic {
    case .bt, .bts, .btr, .btc: i.memoryOperand != nil && i.operands[1].kind == .general
    default: false
    }
  }

  private static func bitString(_ i: Instruction) -> LoweringKind {
    if i.mode == .bits32 && (i.segment == .fs || i.segment == .gs) { return .handler }
    return i.operandSize >= 4 && i.addressSize == i.mode.wordSize ? .bitString : .handler
  }

  private static func byMnemonic(_ i: Instruction) -> LoweringKind {
    switch i.mnemonic {
    case .mov: return move(i)
    case .div, .idiv: return i.operandSize >= 4 ? .divide : .handler
    // Stores without a temporal hint are the host's own, so nothing but a fence orders them; and
    // the guest's code is speculated in, which LFENCE is there to stop.
    case .lfence, .sfence, .mfence: return .fence
    case .prefetchw, .prefetchwt1, .prefetch, .cldemote: return .nop
    case .cmpxchg16b, .cmpxchg8b: return .compareExchange
    case .lea: return .lea
    case .stos, .movs: return isRepeatedString(i) ? .repeatedString : .handler
    case .bswap: return i.operandSize == 2 ? .handler : .bswap
    case .nop, .endbr64, .endbr32, .prefetcht0, .prefetcht1, .prefetcht2, .prefetchnta: return .nop
    default: return system(i)
    }
  }

  private static func system(_ i: Instruction) -> LoweringKind {
    switch i.mnemonic {
    case .cli, .sti, .swapgs, .cld, .std, .clac, .stac, .rdpkru, .rdtsc, .rdtscp:
      return .system
    case .movControl:
      let isFaultAddress = i.operands[1].kind == .control && i.operands[1].number == 2
      return isFaultAddress && i.operands[0].kind == .general ? .system : .handler
    case .pushf, .popf: return i.operandSize == i.mode.wordSize ? .system : .handler
    case .syscall: return i.mode == .bits64 ? .systemJump : .handler
    case .sysret: return i.operandSize == 8 ? .systemJump : .handler
    default: return control(i)
    }
  }

  /// The guest's flags pass it by, or it reads and writes them itself.
  var hasOwnFlags: Bool {
    switch self {
    case .handler, .system, .systemJump, .divide, .repeatedString: true
    default: false
    }
  }

  /// What may stand in the shadow of STI: nothing that looks at events, nor at the shadow.
  var isPlain: Bool {
    switch self {
    case .modRM, .vex, .accumulator, .lea, .moveImmediate, .bswap, .push, .pop, .leave, .nop: true
    default: false
    }
  }

  /// With 64-bit addresses and without a segment's base: host addresses then take the guest's
  /// places.
  private static func isRepeatedString(_ i: Instruction) -> Bool {
    i.mode == .bits64 && i.addressSize == 8 && i.segment != .fs && i.segment != .gs
      && !i.prefixes.isDisjoint(with: [.rep, .repne])
  }

  private static func move(_ i: Instruction) -> LoweringKind {
    if i.encoding.opcode & 0xF0 == 0xB0 { return .moveImmediate }
    return i.mode == .bits32 && i.memoryOperand != nil ? .modRM : .handler
  }

  private static func control(_ i: Instruction) -> LoweringKind {
    if i.isConditionalJump {
      return i.mode == .bits64 || i.operandSize == 4 ? .conditionalJump : .handler
    }
    if i.isCountedJump {
      // In 16 bits, a count or a target is a part of its register.
      let isWhole = i.mode == .bits64 || i.operandSize == 4
      return isWhole && i.addressSize >= 4 ? .countedJump : .handler
    }
    guard i.operandSize == i.mode.wordSize else { return .handler }
    switch i.mnemonic {
    case .push: return .push
    case .pop: return i.memoryOperand == nil ? .pop : .handler
    case .leave: return .leave
    case .jmp: return .jump
    case .call: return .call
    case .ret: return .ret
    default: return .handler
    }
  }

  /// The displacement fits an instruction, with room for a page's offset where it is relative. In
  /// 32-bit code an address has 32 bits, and code is not written.
  private static func addressFits(_ i: Instruction) -> Bool {
    guard let m = i.memoryOperand else { return true }
    if i.mode == .bits32 {
      return i.addressSize == 4 && (i.segment != .cs || i.operands[m].access == .read)
    }
    let limit = Int64(Int32.max) - 16384
    return i.displacement <= limit && i.displacement >= -limit || i.base != Instruction.ripRegister
  }

  /// Whether the instruction accesses memory, so that it may fault.
  static func accessesMemory(_ i: Instruction, _ kind: LoweringKind) -> Bool {
    switch kind {
    case .push, .pop, .leave, .call, .ret, .handler, .system, .systemJump, .divide, .bitString,
      .compareExchange, .repeatedString:
      true
    case .jump: i.operands[0].kind != .relative
    case .lea, .nop, .fence: false
    default: i.memoryOperand != nil
    }
  }
}

/// The register fields of an encoding as guest register numbers.
struct EncodingFields {
  /// ModRM.reg where it names a register; nil where it is part of the opcode.
  var reg: UInt8?
  /// The reg field as it stands.
  var opcodeExtension: UInt8
  /// ModRM.rm where it is a register.
  var rm: UInt8?
  var vvvv: UInt8?
  /// A byte register 4 to 7 that needs REX, one that is AH to BH.
  var needsREX = false
  var hasHighByte = false
  /// RSP is an operand: its host register needs REX.
  private var hasStackPointer = false
  var form: Form

  init(_ i: Instruction) {
    let e = i.encoding
    form = Form(e.opcode, map: Form.Map(rawValue: e.map.rawValue) ?? .one)
    opcodeExtension = e.modRM >> 3 & 7
    let number = opcodeExtension | (e.rex & 4) << 1
    reg = i.attributes.contains(.namesReg) ? number : nil
    rm = i.memoryOperand == nil ? e.modRM & 7 | (e.rex & 1) << 3 : nil
    if i.isShortForm { setShortForm(e.opcode) }
    // 64-bit code does not have this other number of 80.
    if e.map == .oneByte && e.opcode == 0x82 { form.opcode = 0x80 }
    if i.prefixes.contains(.vex) {
      form.wide = i.operandSize == 8
      if i.mnemonic != .rorx { vvvv = e.vvvv }
    } else {
      setPrefixes(i)
    }
    for n in 0..<Int(i.operandCount) where i.operands[n].kind == .general {
      let number = i.operands[n].number
      if number == 4 { hasStackPointer = true }
      if i.operands[n].size > 1 { continue }
      if number >= 16 { hasHighByte = true } else if number >= 4 { needsREX = true }
    }
    form.forceREX = needsREX
  }

  private mutating func setShortForm(_ opcode: UInt8) {
    if opcode & 0xF0 == 0x40 {
      form.opcode = 0xFF
      (reg, opcodeExtension, rm) = (nil, opcode >> 3 & 1, opcode & 7)
    } else {
      // A0 to A3 are 8A, 8B, 88, 89.
      form.opcode = 0x8A ^ (opcode & 3)
      reg = 0
    }
  }

  private mutating func setPrefixes(_ i: Instruction) {
    let isByte = i.condition != nil && i.encoding.opcode & 0xF0 == 0x90
    form.wide = i.operandSize == 8 && !isByte
    form.operandSize16 =
      i.operandSize == 2 && !isByte || i.attributes.contains(.requires66)
    form.lock = i.prefixes.contains(.lock)
    if i.attributes.contains(.requiresF3) { form.repeatPrefix = 0xF3 }
  }

  /// AH to BH cannot stand beside anything that needs a REX prefix.
  var isEncodable: Bool {
    if !hasHighByte { return true }
    guard let rm, !needsREX, !hasStackPointer, !form.wide else { return false }
    // Numbers 4 to 7 are bytes here, or word and larger registers with the same encoding.
    let registers = [rm, reg ?? 0]
    return registers.allSatisfy { $0 < 8 }
  }
}

extension Instruction {
  /// A form of 32-bit code that is emitted with a ModRM byte that it has not: `inc r`, `dec r`, MOV
  /// between the accumulator and the place at an offset.
  var isShortForm: Bool {
    if mode != .bits32 || encoding.hasModRM { return false }
    switch mnemonic {
    case .inc, .dec: return true
    case .mov: return memoryOperand != nil
    default: return false
    }
  }

  /// Bytes of the immediate that stand in the host's form.
  var hostImmediateLength: Int { isShortForm ? 0 : Int(encoding.immediateLength) }
}

extension Instruction {
  /// An instruction that its handler executes and before which all stores have to be seen: it
  /// serializes, or reaches devices (SDM volume 3, "Strengthening or Weakening the Memory-Ordering
  /// Model").
  var ordersStores: Bool {
    switch mnemonic {
    case .cpuid, .iret, .rsm, .serialize, .in, .out, .ins, .outs, .vmcall, .vmmcall, .hlt,
      .mwait, .xchg:
      true
    default: attributes.contains(.privileged) || prefixes.contains(.lock)
    }
  }
}

extension CodeMode {
  /// Bytes of an address, a stack slot and a near return address.
  var wordSize: UInt8 { self == .bits64 ? 8 : 4 }
}
