// SPDX-License-Identifier: Apache-2.0
//
// How the tables of handlers are made from the rows of the opcode table.
//
// Translated code calls handlers, so they are C function pointers, which Swift does not make of
// generic code: each size of each form of each instruction needs a line that names it. A family
// says what such a line looks like and which function means which mnemonic; the rows say which
// sizes, which places of memory and which LOCKs there are (`OpcodeForms`).

import X86Decoder

/// Instructions whose handlers differ only in a name.
struct HandlerFamily {
  /// One argument of the rule: its label and the call, in which `OP`, `WIDTH` and `SIGNED` are
  /// replaced.
  struct Part {
    var label: String
    var call: String
    var need: Need = .always

    init(_ label: String, _ need: Need, _ call: String) {
      (self.label, self.need, self.call) = (label, need, call)
    }
  }

  /// Where a part is needed.
  enum Need {
    case always, register, load, store, locked, absoluteLoad, absoluteStore

    func isMet(_ forms: OpcodeForms) -> Bool {
      switch self {
      case .always: true
      case .register: forms.memory.contains(.none)
      case .load: forms.memory.contains(.later)
      case .store: forms.memory.contains(.first)
      case .locked: forms.isLockable
      case .absoluteLoad: forms.absolute.contains(.later)
      case .absoluteStore: forms.absolute.contains(.first)
      }
    }
  }

  /// What the parts are arguments of.
  enum Shape {
    /// A rule with a `WidthHandlers` for each part.
    case rule(String)
    /// A rule with one handler for each part.
    case single(String)
    /// A constant for each part, for a rule that is written by hand.
    case constants
    /// A rule with two dictionaries, by the size of the source: registers, memory.
    case bySource(String)
    /// The rule with one `WidthHandlers`.
    case widths
  }

  var name: String
  /// In `Sources/X86CPU/Interpreter`.
  var file: String
  var shape: Shape
  var parts: [Part]
  /// Mnemonics in the order in which they are written, and what `OP` is.
  var members: KeyValuePairs<Mnemonic, String>
  var operandCounts: ClosedRange<UInt8> = 0...4
  /// Sizes are those of operand 1.
  var isBySource = false
}

extension HandlerFamily {
  static let all = arithmetic + bits + conditions + shifts + strings + multiplication + moves

  private static func forms(_ call: String) -> [Part] {
    [
      Part("register", .register, "\(call), memory: false"),
      Part("load", .load, "\(call), memory: true"), Part("store", .store, "\(call), memory: true"),
    ]
  }

  private static let arithmetic = [
    HandlerFamily(
      name: "binary", file: "Arithmetic+Table", shape: .rule("rule"),
      parts: [
        Part("register", .register, "binaryR(OP.self, WIDTH.self"),
        Part("load", .load, "binaryL(OP.self, WIDTH.self"),
        Part("store", .store, "binaryS(OP.self, WIDTH.self"),
        Part("locked", .locked, "binaryLocked(OP.self, WIDTH.self"),
      ],
      members: [
        .add: "Add", .or: "Or", .adc: "AddWithCarry", .sbb: "SubtractWithBorrow", .and: "And",
        .sub: "Subtract", .xor: "Xor", .inc: "Increment", .dec: "Decrement", .neg: "Negate",
        .not: "Not",
      ]),
    HandlerFamily(
      name: "compare", file: "Arithmetic+Table", shape: .rule(".forms"),
      parts: [
        Part("register", .register, "compareR(OP.self, WIDTH.self"),
        Part("load", .load, "compareL(OP.self, WIDTH.self"),
        Part("store", .store, "compareS(OP.self, WIDTH.self"),
      ], members: [.cmp: "Compare", .test: "And"]),
    HandlerFamily(
      name: "exchange and add, compare and exchange", file: "AtomicInstructions",
      shape: .rule(".forms"),
      parts: [
        Part("register", .register, "OPR(WIDTH.self"), Part("load", .load, "OPL(WIDTH.self"),
        Part("store", .store, "OPM(WIDTH.self"),
      ], members: [.xadd: "exchangeAdd", .cmpxchg: "compareExchange"]),
  ]

  private static let bits = [
    HandlerFamily(
      name: "bit tests", file: "BitInstructions+Table", shape: .rule("bitRule"),
      parts: [
        Part("register", .register, "bitR(WIDTH.self, .OP"),
        Part("memory", .store, "bitM(WIDTH.self, .OP, string: false, locked: false"),
        Part("string", .store, "bitM(WIDTH.self, .OP, string: true, locked: false"),
        Part("locked", .locked, "bitM(WIDTH.self, .OP, string: false, locked: true"),
        Part("lockedString", .locked, "bitM(WIDTH.self, .OP, string: true, locked: true"),
      ], members: [.bt: "test", .bts: "set", .btr: "reset", .btc: "complement"]),
    HandlerFamily(
      name: "scans", file: "BitInstructions+Table", shape: .rule(".forms"),
      parts: forms("unaryBits(OP.self, WIDTH.self"),
      members: [
        .bsf: "BitScanForward", .bsr: "BitScanReverse", .lzcnt: "LeadingZeroCount",
        .tzcnt: "TrailingZeroCount", .popcnt: "PopulationCount", .blsi: "LowestSetBit",
        .blsmsk: "MaskToLowestSetBit", .blsr: "ResetLowestSetBit",
      ]),
    HandlerFamily(
      name: "masks whose memory is last", file: "BitInstructions+Table", shape: .rule(".forms"),
      parts: forms("binaryBitsLast(OP.self, WIDTH.self"),
      members: [.andn: "AndNot", .pdep: "DepositBits", .pext: "ExtractBits"]),
    HandlerFamily(
      name: "masks whose memory is in the middle", file: "BitInstructions+Table",
      shape: .rule(".forms"), parts: forms("binaryBitsMiddle(OP.self, WIDTH.self"),
      members: [.bextr: "ExtractField", .bzhi: "ZeroHighBits"]),
    HandlerFamily(
      name: "CRC", file: "BitInstructions+Table", shape: .constants,
      parts: [
        Part("register", .register, "crc(WIDTH.self, memory: false"),
        Part("memory", .load, "crc(WIDTH.self, memory: true"),
      ], members: [.crc32: ""], isBySource: true),
  ]

  private static let conditions = [
    HandlerFamily(
      name: "jumps", file: "ConditionalInstructions", shape: .single("jumpRule"),
      parts: [
        Part("", .always, "jump64(Conditions.OP.self"),
        Part("", .always, "jumpLegacy(Conditions.OP.self"),
      ],
      members: [
        .jo: "Overflow", .jno: "NotOverflow", .jb: "Below", .jnb: "NotBelow", .jz: "Zero",
        .jnz: "NotZero", .jbe: "BelowOrEqual", .jnbe: "NotBelowOrEqual", .js: "Sign",
        .jns: "NotSign", .jp: "Parity", .jnp: "NotParity", .jl: "Less", .jnl: "NotLess",
        .jle: "LessOrEqual", .jnle: "NotLessOrEqual",
      ]),
    HandlerFamily(
      name: "sets", file: "ConditionalInstructions", shape: .single("setRule"),
      parts: [
        Part("", .register, "set(Conditions.OP.self"),
        Part("", .store, "setMemory(Conditions.OP.self"),
      ],
      members: [
        .seto: "Overflow", .setno: "NotOverflow", .setb: "Below", .setnb: "NotBelow",
        .setz: "Zero", .setnz: "NotZero", .setbe: "BelowOrEqual", .setnbe: "NotBelowOrEqual",
        .sets: "Sign", .setns: "NotSign", .setp: "Parity", .setnp: "NotParity", .setl: "Less",
        .setnl: "NotLess", .setle: "LessOrEqual", .setnle: "NotLessOrEqual",
      ]),
    HandlerFamily(
      name: "moves", file: "ConditionalInstructions", shape: .rule(".forms"),
      parts: [
        Part("register", .register, "move(Conditions.OP.self, WIDTH.self"),
        Part("load", .load, "moveLoad(Conditions.OP.self, WIDTH.self"),
        Part("store", .store, "moveStore(Conditions.OP.self, WIDTH.self"),
      ],
      members: [
        .cmovo: "Overflow", .cmovno: "NotOverflow", .cmovb: "Below", .cmovnb: "NotBelow",
        .cmovz: "Zero", .cmovnz: "NotZero", .cmovbe: "BelowOrEqual", .cmovnbe: "NotBelowOrEqual",
        .cmovs: "Sign", .cmovns: "NotSign", .cmovp: "Parity", .cmovnp: "NotParity",
        .cmovl: "Less", .cmovnl: "NotLess", .cmovle: "LessOrEqual", .cmovnle: "NotLessOrEqual",
      ]),
  ]

  private static let shifts = [
    HandlerFamily(
      name: "shifts", file: "ShiftRotate", shape: .rule(".forms"),
      parts: [
        Part("register", .register, "binaryR(OP.self, WIDTH.self"),
        Part("load", .load, "binaryL(OP.self, WIDTH.self"),
        Part("store", .store, "binaryS(OP.self, WIDTH.self"),
      ],
      members: [
        .rol: "RotateLeft", .ror: "RotateRight", .rcl: "RotateCarryLeft",
        .rcr: "RotateCarryRight", .shl: "ShiftLeft", .shr: "ShiftRight",
        .sar: "ShiftArithmeticRight",
      ]),
    HandlerFamily(
      name: "double shifts", file: "ShiftRotate", shape: .rule("doubleRule"),
      parts: [
        Part("register", .register, "doubleShiftR(WIDTH.self, left: OP, byCL: false"),
        Part("registerCL", .register, "doubleShiftR(WIDTH.self, left: OP, byCL: true"),
        Part("memory", .store, "doubleShiftS(WIDTH.self, left: OP, byCL: false"),
        Part("memoryCL", .store, "doubleShiftS(WIDTH.self, left: OP, byCL: true"),
      ], members: [.shld: "true", .shrd: "false"]),
    HandlerFamily(
      name: "shifts without flags", file: "ShiftRotate", shape: .rule(".forms"),
      parts: forms("flaglessShift(WIDTH.self, .OP"),
      members: [
        .shlx: "left", .shrx: "right", .sarx: "arithmeticRight", .rorx: "rotateRight",
      ]),
  ]

  private static let strings = [
    HandlerFamily(
      name: "strings", file: "StringInstructions", shape: .rule("repeatRule"),
      parts: [
        Part("once", .always, "execute(OP.self, WIDTH.self, .once"),
        Part("equal", .always, "execute(OP.self, WIDTH.self, .always"),
        Part("notEqual", .always, "execute(OP.self, WIDTH.self, .always"),
      ], members: [.movs: "MoveString", .stos: "StoreString", .lods: "LoadString"]),
    HandlerFamily(
      name: "comparing strings", file: "StringInstructions", shape: .rule("repeatRule"),
      parts: [
        Part("once", .always, "execute(OP.self, WIDTH.self, .once"),
        Part("equal", .always, "execute(OP.self, WIDTH.self, .whileEqual"),
        Part("notEqual", .always, "execute(OP.self, WIDTH.self, .whileNotEqual"),
      ], members: [.cmps: "CompareString", .scas: "ScanString"]),
  ]

  private static let multiplication = [
    HandlerFamily(
      name: "of the accumulator", file: "MultiplyDivide", shape: .rule(".forms"),
      parts: forms("wide(WIDTH.self, SIGNED.self, .OP"),
      members: [.mul: "multiply", .div: "divide", .idiv: "signedDivide"]),
    HandlerFamily(
      name: "signed, of the accumulator", file: "MultiplyDivide", shape: .constants,
      parts: [
        Part("wideRegister", .register, "wide(WIDTH.self, SIGNED.self, .OP, memory: false"),
        Part("wideMemory", .store, "wide(WIDTH.self, SIGNED.self, .OP, memory: true"),
      ], members: [.imul: "signedMultiply"], operandCounts: 1...1),
    HandlerFamily(
      name: "signed, of a register", file: "MultiplyDivide", shape: .constants,
      parts: [
        Part("register", .register, "OP(WIDTH.self, SIGNED.self, memory: false, immediate: false"),
        Part("memory", .load, "OP(WIDTH.self, SIGNED.self, memory: true, immediate: false"),
        Part(
          "registerImmediate", .register,
          "OP(WIDTH.self, SIGNED.self, memory: false, immediate: true"),
        Part("memoryImmediate", .load, "OP(WIDTH.self, SIGNED.self, memory: true, immediate: true"),
      ], members: [.imul: "multiplyTruncated"], operandCounts: 2...3),
    HandlerFamily(
      name: "with some of the flags", file: "MultiplyDivide", shape: .rule(".forms"),
      parts: forms("OP"),
      members: [
        .mulx: "multiplyFlagless(WIDTH.self", .adox: "addCarryFlag(WIDTH.self, overflowFlag: true",
      ]),
  ]

  private static let moves = [
    HandlerFamily(
      name: "MOV", file: "DataMovement", shape: .constants,
      parts: [
        Part("register", .register, "moveR(WIDTH.self"), Part("load", .load, "moveL(WIDTH.self"),
        Part("store", .store, "moveS(WIDTH.self"),
        Part("absoluteLoad", .absoluteLoad, "moveAbsolute(WIDTH.self, store: false"),
        Part("absoluteStore", .absoluteStore, "moveAbsolute(WIDTH.self, store: true"),
      ], members: [.mov: ""]),
    HandlerFamily(
      name: "LEA", file: "DataMovement", shape: .widths,
      parts: [Part("", .load, "loadAddress(WIDTH.self")], members: [.lea: ""]),
    HandlerFamily(
      name: "extending moves", file: "DataMovement", shape: .bySource("extendRule"),
      parts: [
        Part("", .register, "extendR(OPSOURCE.self, WIDTH.self"),
        Part("", .load, "extendL(OPSOURCE.self, USOURCE.self, WIDTH.self"),
      ], members: [.movzx: "U", .movsx: "", .movsxd: ""]),
    HandlerFamily(
      name: "XCHG", file: "DataMovement", shape: .constants,
      parts: [
        Part("register", .register, "exchangeR(WIDTH.self"),
        Part("memory", .store, "exchangeM(WIDTH.self"),
      ], members: [.xchg: ""]),
    HandlerFamily(
      name: "MOVBE", file: "DataMovement", shape: .rule(".forms"),
      parts: [
        Part("register", .register, "swap(WIDTH.self"), Part("load", .load, "swapLoad(WIDTH.self"),
        Part("store", .store, "swapStore(WIDTH.self"),
      ], members: [.movbe: ""]),
  ]
}
