// SPDX-License-Identifier: Apache-2.0
//
// Bytes to `Instruction`.
//
// One pass from left to right over a small state on the stack: prefixes, opcode, the row of the
// opcode table that matches all of them, ModRM with displacement, operands with immediates. Nothing
// is allocated. Encodings without a row are #UD; checks that need other state (CPUID, CR0.EM,
// privilege, whether VEX is enabled) are made at execution.
//
//     let bytes: [UInt8] = [0x48, 0x01, 0xD8]
//     try bytes.withUnsafeBytes { try Decoder.decode($0, mode: .bits64) }  // add rax, rbx

import X86

/// Bytes to `Instruction`.
public enum Decoder {
  /// The maximum length of an instruction.
  public static let maximumLength = 15

  /// Decodes the instruction at the start of `bytes`.
  ///
  /// - Parameters:
  ///   - bytes: The instruction's bytes and whatever follows them; at least one.
  ///   - mode: The current code segment's mode.
  /// - Throws: `.truncated` if `bytes` end inside the instruction, `.tooLong` if it has more
  ///   than 15 bytes, `.invalidOpcode` if it is invalid.
  public static func decode(
    _ bytes: UnsafeRawBufferPointer, mode: CodeMode
  ) throws(DecodeError) -> Instruction {
    guard let start = bytes.baseAddress else { throw .truncated }
    var state = unsafe DecodeState(start, count: bytes.count, mode: mode)
    try state.readPrefixes()
    try state.readOpcode()
    try state.readRow()
    try state.readOperands()
    state.out.length = UInt8(truncatingIfNeeded: state.position)
    return state.out
  }

  /// Builds the opcode table now instead of at the first `decode`: about a millisecond.
  public static func prepare() { _ = OpcodeTable.shared.rowCount }

  /// Invalid rows of the opcode maps: none, unless one is misspelt.
  public static var tableErrors: [String] { OpcodeTable.shared.errors }
}

/// The state of a decoding pass. Safe: each read follows a comparison of `position` with `count`,
/// and the state lives no longer than the call that got the bytes.
@safe struct DecodeState {
  let start: UnsafeRawPointer
  let count: Int
  var position = 0
  var out: Instruction
  let is64: Bool

  /// Number space of the opcode, see `OpcodeSpace`.
  var space = OpcodeSpace.legacy
  var opcode: UInt8 = 0
  /// Mandatory prefix as VEX.pp numbers it: none, 66, F3, F2.
  var mandatory = 0
  /// REX.W or VEX.W, if the mode has it.
  var w = false
  /// VEX.L or EVEX.L'L.
  var vectorBits: UInt32 = 0
  var rexByte: UInt8 = 0
  /// Register extensions, in place for addition: 8 (and 16).
  var extendReg: UInt8 = 0
  var extendIndex: UInt8 = 0
  var extendBase: UInt8 = 0
  /// EVEX: R' and X as bit 4 of the ModRM.reg and ModRM.rm vector registers; V' of the index.
  var highReg: UInt8 = 0
  var highRM: UInt8 = 0
  var highIndex: UInt8 = 0
  /// vvvv before the mode limits it: 0 if the instruction does not use it.
  var unusedVVVV: UInt8 = 0
  var overridden = false
  /// The unit of disp8 in bytes.
  var displacementUnit: UInt8 = 1
  var flags: RowFlags = []
  /// The row, once `readRow` has found it.
  var row: UnsafePointer<OpcodeRow>

  init(_ start: UnsafeRawPointer, count: Int, mode: CodeMode) {
    unsafe self.start = start
    self.count = count < Decoder.maximumLength ? count : Decoder.maximumLength
    is64 = mode == .bits64
    unsafe row = OpcodeTable.shared.rows
    out = Instruction(mnemonic: .invalid, mode: mode)
  }

  @inline(__always)
  mutating func byte() throws(DecodeError) -> UInt8 {
    guard position < count else { throw failure }
    let value = unsafe start.load(fromByteOffset: position, as: UInt8.self)
    position &+= 1
    return value
  }

  /// The next byte, not consumed.
  @inline(__always)
  func peek() throws(DecodeError) -> UInt8 {
    guard position < count else { throw failure }
    return unsafe start.load(fromByteOffset: position, as: UInt8.self)
  }

  /// Little-endian, sign-extended.
  @inline(__always)
  mutating func signed<T: FixedWidthInteger & SignedInteger & BitwiseCopyable>(
    _ type: T.Type
  ) throws(DecodeError) -> Int64 {
    let size = MemoryLayout<T>.size
    guard position &+ size <= count else { throw failure }
    let value = unsafe start.loadUnaligned(fromByteOffset: position, as: type)
    position &+= size
    return Int64(truncatingIfNeeded: value)
  }

  var failure: DecodeError { count == Decoder.maximumLength ? .tooLong : .truncated }
}
