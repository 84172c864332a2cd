// SPDX-License-Identifier: Apache-2.0
//
// The forms of a mnemonic with general operands, from all rows of the opcode table: the forms for
// which a processor needs code. Tables of handlers are generated from it.

package struct OpcodeForms: Sendable {
  /// The position of an instruction's memory operand; `none` if all operands can be registers or
  /// immediates.
  package enum Memory: Sendable { case none, first, later }

  /// Operand sizes in bytes.
  package private(set) var sizes: Set<UInt8> = []
  /// Sizes in bytes of operand 1.
  package private(set) var sourceSizes: Set<UInt8> = []
  package private(set) var memory: Set<Memory> = []
  package private(set) var isLockable = false
  /// Absolute addresses (MOV with opcodes A0 to A3): to the accumulator, from it.
  package private(set) var absolute: Set<Memory> = []

  /// - Parameters:
  ///   - mnemonic: its rows are collected; without rows everything is empty.
  ///   - operandCounts: how many operands the rows may have.
  package init(of mnemonic: Mnemonic, operandCounts: ClosedRange<UInt8> = 0...4) {
    let table = OpcodeTable.shared
    for n in 0..<table.rowCount {
      let row = unsafe table.rows[n]
      if row.mnemonic == mnemonic, operandCounts.contains(row.operandCount) { add(row) }
    }
  }

  private mutating func add(_ row: OpcodeRow) {
    let operands = [row.operands.0, row.operands.1, row.operands.2, row.operands.3]
    guard operands.allSatisfy(\.isGeneral) else { return }
    if row.flags.contains(.byteSize) {
      sizes.insert(1)
    } else if let width = operands.first(where: { !$0.width.sizes.isEmpty })?.width {
      sizes.formUnion(width.sizes)
    }
    sourceSizes.formUnion(operands[1].width.sizes)
    if row.attributes.contains(.lockable) { isLockable = true }
    if let offset = operands.firstIndex(where: { $0.method == .offset }) {
      absolute.insert(offset == 0 ? .first : .later)
    } else {
      addPlaces(operands)
    }
  }

  private mutating func addPlaces(_ operands: [OperandSpec]) {
    let place = operands.firstIndex { $0.method == .rmGeneral || $0.method == .memory }
    if let place { memory.insert(place == 0 ? .first : .later) }
    if place.map({ operands[$0].method != .memory }) ?? true { memory.insert(.none) }
  }
}

extension OperandSpec {
  /// A general register, memory, or a constant.
  fileprivate var isGeneral: Bool {
    switch method {
    case .regVector, .rmVector, .vvvvVector, .immediateVector, .regMMX, .rmMMX, .regMask, .rmMask,
      .vvvvMask, .regSegment, .regControl, .regDebug, .rmX87, .topX87, .fixedSegment, .vector0,
      .farPointer:
      false
    default: true
    }
  }
}

extension OperandWidth {
  /// In bytes; empty if it does not determine the size of the instruction.
  fileprivate var sizes: Set<UInt8> {
    switch self {
    case .byte: [1]
    case .word: [2]
    case .double: [4]
    case .quad: [8]
    case .operandSize: [2, 4, 8]
    case .atMost4: [2, 4]
    case .atLeast4: [4, 8]
    default: []
    }
  }
}
