// SPDX-License-Identifier: Apache-2.0
//
// The opcode table in the decoder's format.
//
// The maps are text in `Opcodes/`, which the first decode converts once to:
//
//     heads    one for each (map, opcode, mandatory prefix): which rows may match, whether a ModRM
//              byte follows; a head whose rows differ in ModRM leads to 16 more heads, one for
//              each (register or memory form, reg field)
//     lists    row numbers; each head has a range of it, in the order of the text
//     rows     one for each row of the text (and each register or condition of `+` and `c` rows)
//
// The first row in the range whose condition matches is the instruction; none is #UD. The buffers
// are never freed and never written after they are built, so sharing them is safe.

/// How an operand is encoded; the letters are those of the text.
enum OperandMethod: UInt8 {
  case none = 0
  /// `G` ModRM.reg, `E` ModRM.rm register or memory, `R` ModRM.rm register, `B` VEX.vvvv,
  /// `Z` low opcode bits: general registers.
  case regGeneral, rmGeneral, rmGeneralOnly, vvvvGeneral, opcodeGeneral
  /// `M` ModRM.rm memory.
  case memory
  /// `V` ModRM.reg, `W` ModRM.rm, `H` VEX.vvvv, `L` immediate bits 7:4: vector registers.
  case regVector, rmVector, vvvvVector, immediateVector
  /// `P` ModRM.reg, `Q` ModRM.rm: MMX registers.
  case regMMX, rmMMX
  /// `k` ModRM.reg, `j` ModRM.rm, `h` VEX.vvvv: mask registers.
  case regMask, rmMask, vvvvMask
  /// `S`, `C`, `D` ModRM.reg: segment, control, debug register.
  case regSegment, regControl, regDebug
  /// `T` ST(ModRM.rm), `%st` ST(0).
  case rmX87, topX87
  /// `I`, `N`, `J`, `A`, `O`: immediate, second immediate, displacement, far pointer, offset.
  case immediate, immediate2, relative, farPointer, offset
  /// `X` DS:rSI, `Y` ES:rDI.
  case stringSource, stringDestination
  /// `%ab`, `%cb`, `%dw`: rAX, rCX, rDX; `%es` to `%gs`; `%1`: the constant 1; `%x0`: XMM0.
  case accumulator, counter, data, fixedSegment, one, vector0
}

/// How wide an operand is; the letters are those of the text. See `Decoder.width`.
enum OperandWidth: UInt8 {
  case none = 0
  /// `b` 1, `w` 2, `d` 4, `q` 8, `t` 10, `o` 16, `u` 32, `l` 64 bytes.
  case byte, word, double, quad, ten, octo, double16, line
  /// `x`, `h`, `f`, `e`: the vector length, its half, quarter, eighth; `k`: 8 of 16, else whole.
  case vector, half, quarter, eighth, duplicate
  /// `v` operand size; `z` the same but at most 4; `y` the same but at least 4; `n` 8 in 64-bit
  /// mode and else 4; `g` address size.
  case operandSize, atMost4, atLeast4, native, addressSize
  /// `s` descriptor-table register, `p` far pointer, `a` two operands, `i` and `j` x87 environment
  /// and state; of immediates: `c` a byte to sign-extend, `s` the same to the operand size.
  case table, far, pair, environment, state, signedByte, extendedByte
}

struct OperandSpec {
  var method: OperandMethod = .none
  var width: OperandWidth = .none
  var access: Operand.Access = []
  /// For `fixedSegment`: the segment.
  var number: UInt8 = 0
}

/// A row's flags that only the decoder needs.
struct RowFlags: OptionSet {
  var rawValue: UInt32
  init(rawValue: UInt32) { self.rawValue = rawValue }
  /// Operand size 8 in 64-bit mode: unless 66 makes it 2; always.
  static let default64 = Self(rawValue: 1 << 0)
  static let force64 = Self(rawValue: 1 << 1)
  /// Operand size at most 4; 1; 8 or 4 by mode.
  static let atMost4 = Self(rawValue: 1 << 2)
  static let byteSize = Self(rawValue: 1 << 3)
  static let native = Self(rawValue: 1 << 4)
  /// ModRM.rm is a register for any ModRM.mod.
  static let registerOnly = Self(rawValue: 1 << 5)
  /// EVEX masking is allowed, zeroing too, masking is required.
  static let mask = Self(rawValue: 1 << 6)
  static let zeroing = Self(rawValue: 1 << 7)
  static let maskRequired = Self(rawValue: 1 << 8)
  /// EVEX.b: broadcast of 4- or 8-byte elements, rounding control, suppression of exceptions.
  static let broadcast4 = Self(rawValue: 1 << 9)
  static let broadcast8 = Self(rawValue: 1 << 10)
  static let rounding = Self(rawValue: 1 << 11)
  static let suppress = Self(rawValue: 1 << 12)
  /// The index is a vector register: as long as the vector length, or half of it.
  static let vsib = Self(rawValue: 1 << 13)
  static let vsibHalf = Self(rawValue: 1 << 14)
  /// 256-bit form needs AVX2.
  static let integer256 = Self(rawValue: 1 << 15)
  /// VEX.vvvv is an operand.
  static let usesVVVV = Self(rawValue: 1 << 16)
  static let hasModRM = Self(rawValue: 1 << 17)
  /// Scalar: the vector length bits are ignored.
  static let scalar = Self(rawValue: 1 << 18)
  /// Gather and scatter: the vector registers must differ (VEX: all three; EVEX: two).
  static let distinct = Self(rawValue: 1 << 19)
  /// EVEX: no 128-bit form.
  static let not128 = Self(rawValue: 1 << 20)
  /// Unit N of disp8*N if it is not the memory operand's size: in bits 24 to 31.
  static let displacementShift: UInt32 = 24
}

/// The state of an encoding for selecting rows, as bits.
enum Condition {
  static let modRM: UInt32 = 0xFF
  static let reg: UInt32 = 0x38
  static let rm: UInt32 = 0x07
  static let register: UInt32 = 1 << 8
  static let w: UInt32 = 1 << 9
  static let length: UInt32 = 3 << 10
  static let lengthShift: UInt32 = 10
  static let mode64: UInt32 = 1 << 12
  /// Operand size 2, 4, 8 as 0, 1, 2.
  static let size: UInt32 = 3 << 13
  static let sizeShift: UInt32 = 13
  static let rexB: UInt32 = 1 << 15
}

struct OpcodeRow {
  var mnemonic: Mnemonic = .invalid
  var feature: Feature = .base
  var operandCount: UInt8 = 0
  var operands: (OperandSpec, OperandSpec, OperandSpec, OperandSpec) = (
    OperandSpec(), OperandSpec(), OperandSpec(), OperandSpec()
  )
  /// The row matches if `state & conditionMask == condition`.
  var conditionMask: UInt32 = 0
  var condition: UInt32 = 0
  var flags: RowFlags = []
  var attributes: Instruction.Attributes = []
  var flagsRead: FlagSet = []
  var flagsWritten: FlagSet = []
}

/// A range of candidate rows.
struct OpcodeHead {
  var start: UInt16 = 0
  var count: UInt8 = 0
  var flags: UInt8 = 0
  static let hasModRM: UInt8 = 1
  /// `start` is the first of 16 heads instead.
  static let group: UInt8 = 2
}

/// Number spaces of opcodes: legacy maps, then VEX, then EVEX.
enum OpcodeSpace {
  static let legacy = 0
  static let vex = 4
  static let evex = 8
  static let count = 12
  /// Mandatory prefixes in the order that VEX.pp numbers them.
  static let prefixes = 4
}

/// Safe to use and to share: its buffers are never freed, nor written after they are built, and it
/// creates the indices into them itself.
@safe struct OpcodeTable: @unchecked Sendable {
  let heads: UnsafePointer<OpcodeHead>
  let lists: UnsafePointer<UInt16>
  let rows: UnsafePointer<OpcodeRow>
  let rowCount: Int
  /// Invalid lines of the text: none, unless a row is misspelt.
  let errors: [String]

  static let shared = OpcodeTable()

  static func headIndex(space: Int, opcode: UInt8, prefix: Int) -> Int {
    ((space &<< 8) | Int(opcode)) &<< 2 | prefix
  }

  static let texts: [(Int, StaticString)] = [
    (0, OpcodeText.oneByte), (0, OpcodeText.x87),
    (1, OpcodeText.twoByte), (1, OpcodeText.mmx), (1, OpcodeText.sse),
    (2, OpcodeText.threeByteGeneral), (2, OpcodeText.sse0F38), (3, OpcodeText.sse0F3A),
    (4 + 1, OpcodeText.vex0F), (4 + 1, OpcodeText.maskRegisters),
    (4 + 2, OpcodeText.vexGeneral), (4 + 2, OpcodeText.vex0F38), (4 + 2, OpcodeText.vexFMA),
    (4 + 3, OpcodeText.vexGeneral3A), (4 + 3, OpcodeText.vex0F3A),
    (4 + 3, OpcodeText.maskShifts),
    (8 + 1, OpcodeText.evex0F), (8 + 2, OpcodeText.evex0F38), (8 + 2, OpcodeText.evexFMA),
    (8 + 3, OpcodeText.evex0F3A),
  ]

  private init() {
    var builder = OpcodeTableBuilder()
    for (space, text) in Self.texts { builder.add(text, space: space) }
    unsafe (heads, lists) = builder.finish()
    let copy = UnsafeMutablePointer<OpcodeRow>.allocate(capacity: builder.rows.count)
    unsafe copy.initialize(from: builder.rows, count: builder.rows.count)
    unsafe rows = UnsafePointer(copy)
    rowCount = builder.rows.count
    errors = builder.errors
  }
}
