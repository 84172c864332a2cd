// SPDX-License-Identifier: Apache-2.0
//
// The words of the opcode maps' text, looked up by hash.

struct RowTrait {
  var attributes: Instruction.Attributes = []
  var flags: RowFlags = []
}

struct RowCondition {
  var prefixes: UInt8 = 0
  var mask: UInt32 = 0
  var value: UInt32 = 0
}

struct WordTable {
  private var mnemonics: [UInt64: Mnemonic] = [:]
  private var features: [UInt64: Feature] = [:]
  private var traits: [UInt64: RowTrait] = [:]
  private var conditions: [UInt64: RowCondition] = [:]
  private var fixedOperands: [UInt64: OperandSpec] = [:]

  /// Cancels a section's `al`.
  static let unaligned = hash("una".utf8)

  init() {
    mnemonics.reserveCapacity(Mnemonic.allCases.count)
    for mnemonic in Mnemonic.allCases { mnemonics[Self.hash("\(mnemonic)".utf8)] = mnemonic }
    for feature in Feature.allCases { features[Self.hash("\(feature)".utf8)] = feature }
    for (name, trait) in Self.traitWords { traits[Self.hash(name.utf8)] = trait }
    for (name, condition) in Self.conditionWords { conditions[Self.hash(name.utf8)] = condition }
    for (name, spec) in Self.fixedWords { fixedOperands[Self.hash(name.utf8)] = spec }
  }

  func mnemonic(_ hash: UInt64) -> Mnemonic? { mnemonics[hash] }
  func feature(_ hash: UInt64) -> Feature? { features[hash] }
  func trait(_ hash: UInt64) -> RowTrait? { traits[hash] }
  func condition(_ hash: UInt64) -> RowCondition? { conditions[hash] }
  func fixed(_ hash: UInt64) -> OperandSpec? { fixedOperands[hash] }

  /// FNV-1a.
  static func hash(_ bytes: some Sequence<UInt8>, after: UInt64 = 0xCBF2_9CE4_8422_2325) -> UInt64 {
    var hash = after
    for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
    return hash
  }

  private static let traitWords: [(String, RowTrait)] = [
    ("br", RowTrait(attributes: .branch)),
    ("priv", RowTrait(attributes: .privileged)),
    ("lock", RowTrait(attributes: .lockable)),
    ("ser", RowTrait(attributes: .serializes)),
    ("vec", RowTrait(attributes: .vector)),
    ("fp", RowTrait(attributes: .floatingPoint)),
    ("al", RowTrait(attributes: .aligned)),
    ("x87", RowTrait(attributes: [.x87, .vector])),
    ("nw", RowTrait(attributes: .nonWaiting)),
    ("mmx", RowTrait(attributes: [.mmx, .vector])),
    ("str", RowTrait(attributes: .string)),
    ("count", RowTrait(attributes: .countDecides)),
    ("mr", RowTrait(attributes: .relocatable)),
    ("ax", RowTrait(attributes: .accumulator)),
    ("noora", RowTrait(attributes: .notForOracle)),
    ("avx", RowTrait(attributes: .avx)),
    ("d64", RowTrait(attributes: .default64, flags: .default64)),
    ("f64", RowTrait(attributes: .default64, flags: .force64)),
    ("z32", RowTrait(flags: .atMost4)),
    ("o1", RowTrait(flags: .byteSize)),
    ("native", RowTrait(flags: .native)),
    ("rmreg", RowTrait(flags: .registerOnly)),
    ("k", RowTrait(flags: .mask)),
    ("kz", RowTrait(flags: [.mask, .zeroing])),
    ("kreq", RowTrait(flags: [.mask, .maskRequired])),
    ("b4", RowTrait(flags: .broadcast4)),
    ("b8", RowTrait(flags: .broadcast8)),
    ("er", RowTrait(flags: .rounding)),
    ("sae", RowTrait(flags: .suppress)),
    ("vsibx", RowTrait(attributes: .vsib, flags: [.vsib, .distinct])),
    ("vsibh", RowTrait(attributes: .vsib, flags: [.vsibHalf, .distinct])),
    ("i256", RowTrait(flags: .integer256)),
    ("sc", RowTrait(flags: .scalar)),
    ("l12", RowTrait(flags: .not128)),
  ]

  private static let conditionWords: [(String, RowCondition)] = [
    ("np", RowCondition(prefixes: 1)),
    ("66", RowCondition(prefixes: 2)),
    ("n6", RowCondition(prefixes: 3)),
    ("f3", RowCondition(prefixes: 4)),
    ("f2", RowCondition(prefixes: 8)),
    ("w0", RowCondition(mask: Condition.w, value: 0)),
    ("w1", RowCondition(mask: Condition.w, value: Condition.w)),
    ("l0", RowCondition(mask: Condition.length, value: 0)),
    ("l1", RowCondition(mask: Condition.length, value: 1 << Condition.lengthShift)),
    ("l2", RowCondition(mask: Condition.length, value: 2 << Condition.lengthShift)),
    ("x32", RowCondition(mask: Condition.mode64, value: 0)),
    ("x64", RowCondition(mask: Condition.mode64, value: Condition.mode64)),
    ("o16", RowCondition(mask: Condition.size, value: 0)),
    ("o32", RowCondition(mask: Condition.size, value: 1 << Condition.sizeShift)),
    ("o64", RowCondition(mask: Condition.size, value: 2 << Condition.sizeShift)),
    ("b0", RowCondition(mask: Condition.rexB, value: 0)),
    ("r", RowCondition(mask: Condition.register, value: Condition.register)),
    ("m", RowCondition(mask: Condition.register, value: 0)),
  ]

  private static let fixedWords: [(String, OperandSpec)] = [
    ("%ab", OperandSpec(method: .accumulator, width: .byte)),
    ("%aw", OperandSpec(method: .accumulator, width: .word)),
    ("%av", OperandSpec(method: .accumulator, width: .operandSize)),
    ("%az", OperandSpec(method: .accumulator, width: .atMost4)),
    ("%cb", OperandSpec(method: .counter, width: .byte)),
    ("%dw", OperandSpec(method: .data, width: .word)),
    ("%1", OperandSpec(method: .one, width: .byte)),
    ("%x0", OperandSpec(method: .vector0, width: .octo)),
    ("%st", OperandSpec(method: .topX87, width: .ten)),
    ("%es", OperandSpec(method: .fixedSegment, width: .word, number: 0)),
    ("%cs", OperandSpec(method: .fixedSegment, width: .word, number: 1)),
    ("%ss", OperandSpec(method: .fixedSegment, width: .word, number: 2)),
    ("%ds", OperandSpec(method: .fixedSegment, width: .word, number: 3)),
    ("%fs", OperandSpec(method: .fixedSegment, width: .word, number: 4)),
    ("%gs", OperandSpec(method: .fixedSegment, width: .word, number: 5)),
  ]
}

extension OperandMethod {
  init?(letter: UInt8) {
    switch Unicode.Scalar(letter) {
    case "G": self = .regGeneral
    case "E": self = .rmGeneral
    case "R": self = .rmGeneralOnly
    case "B": self = .vvvvGeneral
    case "Z": self = .opcodeGeneral
    case "M": self = .memory
    case "V": self = .regVector
    case "W": self = .rmVector
    case "H": self = .vvvvVector
    case "L": self = .immediateVector
    case "P": self = .regMMX
    case "Q": self = .rmMMX
    case "k": self = .regMask
    case "j": self = .rmMask
    case "h": self = .vvvvMask
    case "S": self = .regSegment
    case "C": self = .regControl
    case "D": self = .regDebug
    case "T": self = .rmX87
    case "I": self = .immediate
    case "N": self = .immediate2
    case "J": self = .relative
    case "A": self = .farPointer
    case "O": self = .offset
    case "X": self = .stringSource
    case "Y": self = .stringDestination
    default: return nil
    }
  }

  /// Whether the operand is in the ModRM byte.
  var isModRM: Bool {
    switch self {
    case .regGeneral, .rmGeneral, .rmGeneralOnly, .memory, .regVector, .rmVector, .regMMX, .rmMMX,
      .regMask, .rmMask, .regSegment, .regControl, .regDebug, .rmX87:
      true
    default: false
    }
  }
}

extension OperandWidth {
  init?(letter: UInt8, of method: OperandMethod) {
    switch Unicode.Scalar(letter) {
    case "0": self = .none
    case "b": self = .byte
    case "w": self = .word
    case "d": self = .double
    case "q": self = .quad
    case "t": self = .ten
    case "o": self = .octo
    case "u": self = .double16
    case "l": self = .line
    case "x": self = .vector
    case "h": self = .half
    case "f": self = .quarter
    case "e": self = .eighth
    case "k": self = .duplicate
    case "v": self = .operandSize
    case "z": self = .atMost4
    case "y": self = .atLeast4
    case "n": self = .native
    case "g": self = .addressSize
    case "s": self = method == .immediate ? .extendedByte : .table
    case "c": self = .signedByte
    case "p": self = .far
    case "a": self = .pair
    case "i": self = .environment
    case "j": self = .state
    default: return nil
    }
  }
}
