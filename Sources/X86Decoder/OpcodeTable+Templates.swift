// SPDX-License-Identifier: Apache-2.0
//
// The rows of the opcode table for code that generates instructions instead of decoding them: tests
// that need every row once find the rows and their fixed bits here.

/// The common part of the encodings of one row of the opcode table.
package struct RowTemplate: Sendable {
  /// Position in the table, as returned by `Decoder.decodeWithRow`.
  package let index: Int
  package let mnemonic: Mnemonic
  package let feature: Feature
  package let attributes: Instruction.Attributes
  package let flagsRead: FlagSet
  package let flagsWritten: FlagSet
  package enum Space: Sendable { case legacy, vex, evex }
  package let space: Space
  /// 0: one byte, 1: 0F, 2: 0F 38, 3: 0F 3A.
  package let map: Int
  package let opcode: UInt8
  /// Allowed mandatory prefixes: a bit for each of none, 66, F3, F2.
  package let prefixes: UInt8
  package let hasModRM: Bool
  /// ModRM bits that the row fixes.
  package let modRMMask: UInt8
  package let modRM: UInt8
  /// Register form (true), memory form (false), either.
  package let isRegisterForm: Bool?
  package let w: Bool?
  /// VEX.L or EVEX.L'L.
  package let length: UInt8?
  package let is64Bit: Bool?
  /// Operand size 2, 4 or 8.
  package let operandSize: UInt8?
  package let rexB: Bool?
  package let usesVVVV: Bool
  package let needsMask: Bool
  package let allowsMask: Bool
  package let allowsZeroing: Bool
  package let allowsBroadcast: Bool
  package let allowsRounding: Bool
  package let hasVectorIndex: Bool
}

extension Decoder {
  /// All rows that any opcode leads to.
  package static var rowTemplates: [RowTemplate] {
    var places: [Int: (Int, UInt8)] = [:]
    let table = OpcodeTable.shared
    for place in 0..<(OpcodeSpace.count << 8) {
      for prefix in 0..<OpcodeSpace.prefixes {
        for row in table.rows(headIndex: place << 2 | prefix) {
          places[row, default: (place, 0)].1 |= 1 << UInt8(prefix)
        }
      }
    }
    return places.keys.sorted().compactMap { row in
      places[row].map { unsafe RowTemplate(row, table.rows[row], place: $0.0, prefixes: $0.1) }
    }
  }

  /// `decode` that also returns the row.
  package static func decodeWithRow(
    _ bytes: UnsafeRawBufferPointer, mode: CodeMode
  ) throws(DecodeError) -> (Instruction, row: Int) {
    guard let start = bytes.baseAddress else { throw .truncated }
    var state = unsafe DecodeState(start, count: bytes.count, mode: mode)
    try state.readPrefixes()
    try state.readOpcode()
    try state.readRow()
    try state.readOperands()
    state.out.length = UInt8(truncatingIfNeeded: state.position)
    return unsafe (state.out, state.row - OpcodeTable.shared.rows)
  }
}

extension OpcodeTable {
  /// Rows that one head leads to, directly or through its group.
  fileprivate func rows(headIndex: Int) -> Set<Int> {
    let head = unsafe heads[headIndex]
    var stretches = [head]
    if head.flags & OpcodeHead.group != 0 {
      stretches = (0..<16).map { unsafe heads[Int(head.start) + $0] }
    }
    var found: Set<Int> = []
    for stretch in stretches {
      for n in 0..<Int(stretch.count) { unsafe found.insert(Int(lists[Int(stretch.start) + n])) }
    }
    return found
  }
}

extension RowTemplate {
  fileprivate init(_ index: Int, _ row: OpcodeRow, place: Int, prefixes: UInt8) {
    self.index = index
    mnemonic = row.mnemonic
    feature = row.feature
    attributes = row.attributes
    flagsRead = row.flagsRead
    flagsWritten = row.flagsWritten
    let number = place >> 8
    space = number >= OpcodeSpace.evex ? .evex : number >= OpcodeSpace.vex ? .vex : .legacy
    map = number & 3
    opcode = UInt8(place & 0xFF)
    self.prefixes = prefixes
    hasModRM = row.flags.contains(.hasModRM)
    modRMMask = UInt8(truncatingIfNeeded: row.conditionMask & Condition.modRM)
    modRM = UInt8(truncatingIfNeeded: row.condition & Condition.modRM)
    func flag(_ bit: UInt32) -> Bool? {
      row.conditionMask & bit == 0 ? nil : row.condition & bit != 0
    }
    isRegisterForm = row.flags.contains(.registerOnly) ? true : flag(Condition.register)
    w = flag(Condition.w)
    is64Bit = flag(Condition.mode64)
    rexB = flag(Condition.rexB)
    length =
      row.conditionMask & Condition.length == 0
      ? nil : UInt8(truncatingIfNeeded: row.condition >> Condition.lengthShift & 3)
    operandSize =
      row.conditionMask & Condition.size == 0
      ? nil : 2 << UInt8(truncatingIfNeeded: row.condition >> Condition.sizeShift & 3)
    usesVVVV = row.flags.contains(.usesVVVV)
    needsMask = row.flags.contains(.maskRequired)
    allowsMask = row.flags.contains(.mask) || needsMask
    allowsZeroing = row.flags.contains(.zeroing)
    allowsBroadcast = !row.flags.isDisjoint(with: [.broadcast4, .broadcast8])
    allowsRounding = !row.flags.isDisjoint(with: [.rounding, .suppress])
    hasVectorIndex = !row.flags.isDisjoint(with: [.vsib, .vsibHalf])
  }
}
