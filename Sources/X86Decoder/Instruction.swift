// SPDX-License-Identifier: Apache-2.0
//
// The decoded form of an instruction.
//
// An `Instruction` is a plain value: everything that the encoding says, nothing that depends on the
// processor's state. Sizes are effective sizes in bytes: prefixes, REX.W and the mode are already
// applied, so users need not check prefixes.
//
//     48 01 44 8B 10        add [rbx + rcx*4 + 0x10], rax
//
//     mnemonic .add, length 5, operandSize 8, addressSize 8, segment .ds
//     operands[0] = memory, 8 bytes, read and written
//     operands[1] = general register 0, 8 bytes, read
//     base 3, index 1, scale 2, displacement 0x10

import X86

/// The current code segment's mode, for decoding.
public enum CodeMode: UInt8, Sendable {
  case bits16 = 0
  case bits32 = 1
  case bits64 = 2
}

/// One operand.
public struct Operand: Sendable, Hashable {
  public enum Kind: UInt8, Sendable {
    case none
    /// A general register; `number` 0 to 15. 1-byte registers 4 to 7 without REX are AH, CH, DH
    /// and BH, which have numbers 16 to 19.
    case general
    case segment
    case control
    case debug
    /// x87 stack register ST(i).
    case x87
    case mmx
    /// A vector register of `size` bytes (16, 32 or 64); `number` 0 to 31.
    case vector
    /// An AVX-512 mask register.
    case mask
    /// Memory at `segment:[base + index << scale + displacement]`, which are fields of the
    /// instruction. For a string instruction `number` is the general register that points to it, 6
    /// (rSI, in `segment`) or 7 (rDI, in ES). For a gather or scatter `number` is the size in bytes
    /// of the index vector register.
    case memory
    /// An immediate in `Instruction.immediate`. Byte immediates that select or count (shifts,
    /// ports, vector controls) are zero-extended, all others sign-extended.
    case immediate
    /// A second immediate in `Instruction.immediate2` (ENTER, EXTRQ, INSERTQ).
    case immediate2
    /// A branch displacement in `Instruction.immediate`, sign-extended to 64 bits.
    case relative
    /// A far pointer: offset in `immediate`, selector in `immediate2`.
    case farPointer
  }
  public var kind: Kind
  public var number: UInt8
  /// In bytes. For a memory operand the size of the access (0 if there is none, as for LEA, or if
  /// it is more than 255 bytes or depends on state, as for FXSAVE and XSAVE).
  public var size: UInt8
  public var access: Access

  public struct Access: OptionSet, Sendable, Hashable {
    public var rawValue: UInt8
    @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
    public static let read = Self(rawValue: 1)
    public static let write = Self(rawValue: 2)
  }

  @inlinable public init(
    _ kind: Kind = .none, number: UInt8 = 0, size: UInt8 = 0, access: Access = []
  ) {
    self.kind = kind
    self.number = number
    self.size = size
    self.access = access
  }
}

/// A decoded instruction.
public struct Instruction: Sendable {
  public var mnemonic: Mnemonic
  /// In bytes, 1 to 15.
  public var length: UInt8 = 0
  /// Effective operand size in bytes: 1, 2, 4 or 8 (1 for the byte forms).
  public var operandSize: UInt8 = 0
  /// Effective address size in bytes: 2, 4 or 8.
  public var addressSize: UInt8 = 0
  public var mode: CodeMode
  /// Explicit and implicit register operands in the manual's order; `.none` from `operandCount`.
  public var operands: InlineArray<4, Operand> = .init(repeating: Operand())
  public var operandCount: UInt8 = 0

  /// Segment of the memory operand, override applied; also the source segment of MOVS, LODS, CMPS,
  /// OUTS and XLAT. In 64-bit mode only FS and GS have a base.
  public var segment: SegmentRegister = .ds
  /// Base register, 0 to 15; `noRegister`, or `ripRegister` for RIP-relative.
  public var base: UInt8 = Self.noRegister
  /// Index register, 0 to 15 (for VSIB a vector register 0 to 31), or `noRegister`.
  public var index: UInt8 = Self.noRegister
  /// Log 2 of the scale: 0 to 3.
  public var scale: UInt8 = 0
  /// Sign-extended displacement; for the MOV moffs forms the whole (zero-extended) offset.
  public var displacement: Int64 = 0
  /// Immediate, extended to the operand's size by the instruction's rule (and sign-extended to 64).
  public var immediate: Int64 = 0
  public var immediate2: UInt16 = 0

  public var prefixes: Prefixes = []
  public var attributes: Attributes = []
  public var feature: Feature = .base
  /// Arithmetic flags that the result depends on.
  public var flagsRead: FlagSet = []
  /// Arithmetic flags that are always written with a value independent of the old one. Flags that
  /// the manuals leave undefined count, unless processors keep them. See `countDecides`.
  public var flagsWritten: FlagSet = []
  public var encoding: Encoding = Encoding()

  public static let noRegister: UInt8 = 0xFF
  public static let ripRegister: UInt8 = 0xFE

  @inlinable public init(mnemonic: Mnemonic, mode: CodeMode) {
    self.mnemonic = mnemonic
    self.mode = mode
  }

  /// Prefixes present in the bytes.
  public struct Prefixes: OptionSet, Sendable, Hashable {
    public var rawValue: UInt16
    @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }
    public static let operandSize = Self(rawValue: 1 << 0)  // 66
    public static let addressSize = Self(rawValue: 1 << 1)  // 67
    public static let lock = Self(rawValue: 1 << 2)  // F0
    public static let repne = Self(rawValue: 1 << 3)  // F2
    public static let rep = Self(rawValue: 1 << 4)  // F3
    public static let segmentOverride = Self(rawValue: 1 << 5)
    public static let rex = Self(rawValue: 1 << 6)
    public static let rexW = Self(rawValue: 1 << 7)
    public static let vex = Self(rawValue: 1 << 8)
    public static let evex = Self(rawValue: 1 << 9)
  }

  /// Properties of a row of the opcode table other than operands.
  public struct Attributes: OptionSet, Sendable, Hashable {
    public var rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Ends a basic block: execution may not continue at the next instruction.
    public static let branch = Self(rawValue: 1 << 0)
    /// #GP(0) unless CPL is 0.
    public static let privileged = Self(rawValue: 1 << 1)
    /// LOCK is allowed with a memory destination (elsewhere LOCK is #UD).
    public static let lockable = Self(rawValue: 1 << 2)
    /// Changes processor state that decoded blocks depend on, or may exit guest code: ends a block.
    public static let serializes = Self(rawValue: 1 << 3)
    /// x87, MMX, SSE, AVX and AVX-512: executed by the host (see X86CPU/Vector).
    public static let vector = Self(rawValue: 1 << 4)
    /// Reads or writes MXCSR: SSE and AVX floating-point arithmetic.
    public static let floatingPoint = Self(rawValue: 1 << 5)
    /// Memory operand must be aligned to its size (#GP(0)), as for legacy SSE and MOVAPS.
    public static let aligned = Self(rawValue: 1 << 6)
    /// x87 instruction (waits for pending exceptions unless `nonWaiting`).
    public static let x87 = Self(rawValue: 1 << 7)
    public static let nonWaiting = Self(rawValue: 1 << 8)
    /// Uses MMX registers.
    public static let mmx = Self(rawValue: 1 << 9)
    /// Memory is addressed by vector elements (gather, scatter).
    public static let vsib = Self(rawValue: 1 << 10)
    /// Near branch, PUSH or POP whose operand size is 64 bits in 64-bit mode.
    public static let default64 = Self(rawValue: 1 << 11)
    /// A string instruction that REP repeats.
    public static let string = Self(rawValue: 1 << 12)
    /// Writes arithmetic flags (any of them).
    public static let writesFlags = Self(rawValue: 1 << 13)
    /// Reads arithmetic flags (any of them).
    public static let readsFlags = Self(rawValue: 1 << 14)
    /// EVEX with embedded broadcast of the memory operand (operand size is then one element).
    public static let broadcast = Self(rawValue: 1 << 15)
    /// Cannot run unprivileged on the host, or its result depends on the host (CPUID, RDTSC, system
    /// calls, port I/O): the oracle skips it.
    public static let notForOracle = Self(rawValue: 1 << 16)
    /// EVEX on 16- or 32-byte vectors: needs AVX512VL besides the feature.
    public static let vectorLength = Self(rawValue: 1 << 17)
    /// EVEX or VEX arithmetic with the b bit and a register operand: static rounding, or
    /// suppressed exceptions.
    public static let embeddedRounding = Self(rawValue: 1 << 18)
    public static let suppressExceptions = Self(rawValue: 1 << 19)
    /// A shift or rotation: a count of 0 changes nothing.
    public static let countDecides = Self(rawValue: 1 << 21)
    /// ModRM.reg is an operand; otherwise it is part of the opcode.
    public static let namesReg = Self(rawValue: 1 << 22)
    /// Works equally with other registers and another address in ModRM (and VEX.vvvv), if implicit
    /// registers stay the same.
    public static let relocatable = Self(rawValue: 1 << 23)
    /// Uses only rAX and rDX, and has no ModRM.
    public static let accumulator = Self(rawValue: 1 << 24)
    /// The prefix is part of the opcode: 66, F3.
    public static let requires66 = Self(rawValue: 1 << 25)
    public static let requiresF3 = Self(rawValue: 1 << 26)
    /// VEX or EVEX: needs XCR0 to enable the state (and protected mode).
    public static let avx = Self(rawValue: 1 << 20)
  }

  /// Positions of the parts of the encoding, for re-encoding (X86CPU/Vector, X86JIT).
  public struct Encoding: Sendable, Hashable {
    public enum Map: UInt8, Sendable {
      case oneByte = 0
      case map0F = 1
      case map0F38 = 2
      case map0F3A = 3
      case map5 = 5
      case map6 = 6
    }
    public var map: Map = .oneByte
    public var opcode: UInt8 = 0
    public var hasModRM = false
    public var modRM: UInt8 = 0
    /// Offset of the first byte of REX, VEX or EVEX (or of the opcode if there is none).
    public var prefixLength: UInt8 = 0
    /// Offset of the opcode byte (after the escapes or the VEX or EVEX bytes).
    public var opcodeOffset: UInt8 = 0
    /// Size of the immediate bytes at the end of the instruction.
    public var immediateLength: UInt8 = 0
    /// REX: its byte, or 0. VEX and EVEX: W, R, X, B, R', V' in positive logic.
    public var rex: UInt8 = 0
    public var vexW = false
    /// VEX or EVEX vvvv with V', in positive logic: 0 to 31.
    public var vvvv: UInt8 = 0
    /// Vector length in bytes (16, 32, 64), of VEX and EVEX and 16 for legacy SSE.
    public var vectorLength: UInt8 = 0
    /// EVEX: mask register (0: none), zeroing, broadcast or rounding (the b bit).
    public var evexMask: UInt8 = 0
    public var evexZeroing = false
    public var evexB = false
    /// Mandatory prefix as VEX.pp numbers it: none, 66, F3, F2 (for legacy opcodes the effective
    /// one).
    public var mandatoryPrefix: UInt8 = 0
    /// VEX.L or EVEX.L'L unchanged: the static rounding mode with `embeddedRounding`.
    public var lengthBits: UInt8 = 0
    /// EVEX broadcast: how many bytes the repeated elements fill; else 0.
    public var broadcastWidth: UInt8 = 0
  }
}

/// Why bytes cannot be decoded.
public enum DecodeError: Error, Sendable, Hashable {
  /// More bytes are needed than were given (a page boundary; the caller fetches and retries).
  case truncated
  /// #UD.
  case invalidOpcode
  /// Longer than 15 bytes: #GP(0).
  case tooLong
}
