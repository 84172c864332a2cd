// SPDX-License-Identifier: Apache-2.0
//
// Reads the text of the opcode maps. A line is one of
//
//     # comment
//     @ FEATURE ATTRIBUTES : CONDITIONS : OPERANDS : NAME
//     ROW | ROW | ROW
//
// `@` sets the common part of the rows after it; the parts after each colon may be omitted. NAME
// has a `*` for the row's own mnemonic (`v*ps`). A row is
//
//     OPCODE.CONDITION... MNEMONIC OPERANDS ATTRIBUTES ?FEATURE
//
// OPCODE is two hex digits, with `+` for all eight registers in the low bits, with `c` for all 16
// conditions (the mnemonic is then a stem), with `/5` for a reg field, `/5r` or `/5m` for its
// register or memory form, `/r` or `/m` for those alone, `/5r2` for one rm. Conditions: mandatory
// prefix `np 66 f3 f2` (none given: any; `n6`: np or 66), `w0 w1`, vector length `l0 l1 l2`, mode
// `x32 x64`, operand size `o16 o32 o64`, `b0` no REX.B. Operands: `=` written, `+` read and
// written, else read; then a letter for the method and one for the width as in `OperandMethod` and
// `OperandWidth`; `-` for none. A row without operands has the section's. Attributes are the words
// of `OpcodeTable+Words.swift`, and `fw` and `fr` with the letters of the flags that are written
// and read (FlagSet); a row's letters replace its section's.
//
//     @ base lock fw
//     80/7 cmp Eb,Ic | 80/0 add +Eb,Ic | 90+ xchg +Zv,+%av | 70c j Jb

/// The bytes of one map.
private typealias Text = [UInt8]
private typealias Slice = Range<Int>

/// The contents of `@` lines and rows, as one value.
private struct RowTraits {
  var feature: Feature = .base
  var attributes: Instruction.Attributes = []
  var flags: RowFlags = []
  var conditionMask: UInt32 = 0
  var condition: UInt32 = 0
  /// The allowed mandatory prefixes, a bit for each number.
  var prefixes: UInt8 = 0xF
  var operands: [OperandSpec] = []
  var flagsRead: FlagSet = []
  var flagsWritten: FlagSet = []
  var unaligned = false

  mutating func require(_ mask: UInt32, _ value: UInt32) {
    conditionMask |= mask
    condition = (condition & ~mask) | (value & mask)
  }
}

struct OpcodeTableBuilder {
  var rows: [OpcodeRow] = []
  var errors: [String] = []
  /// For each row: space << 8 | opcode, and its mandatory prefixes.
  private var places: [(Int, UInt8)] = []
  private let words = WordTable()
  private var section = RowTraits()
  private var namePrefix: [UInt8] = []
  private var nameSuffix: [UInt8] = []
  private var space = 0

  init() {
    rows.reserveCapacity(3000)
    places.reserveCapacity(3000)
  }

  mutating func add(_ text: StaticString, space: Int) {
    self.space = space
    section = RowTraits()
    let bytes = text.utf8
    for line in split(bytes, 0..<bytes.count, at: 10) {
      guard let first = line.first else { continue }
      switch bytes[first] {
      case UInt8(ascii: "#"): break
      case UInt8(ascii: "@"): readSection(bytes, (first + 1)..<line.upperBound)
      default: for row in split(bytes, line, at: UInt8(ascii: "|")) { readRow(bytes, row) }
      }
    }
  }

  private mutating func fail(_ text: Text, _ range: Slice) {
    errors.append(String(decoding: text[range], as: UTF8.self))
  }
}

// MARK: Sections and rows

extension OpcodeTableBuilder {
  private mutating func readSection(_ text: Text, _ range: Slice) {
    var traits = RowTraits()
    defer { section = traits }
    namePrefix = []
    nameSuffix = []
    for (index, part) in split(text, range, at: UInt8(ascii: ":")).enumerated() {
      for word in split(text, part, at: 32) {
        switch index {
        case 0: readTrait(text, word, isFeature: word.lowerBound == part.lowerBound, &traits)
        case 1: readCondition(text, word, &traits)
        case 2: readOperands(text, word, &traits)
        default: readName(text, word)
        }
      }
    }
  }

  private mutating func readName(_ text: Text, _ word: Slice) {
    guard let star = word.first(where: { text[$0] == UInt8(ascii: "*") }) else {
      return fail(text, word)
    }
    namePrefix = Array(text[word.lowerBound..<star])
    nameSuffix = Array(text[(star + 1)..<word.upperBound])
  }

  private mutating func readRow(_ text: Text, _ range: Slice) {
    let parts = split(text, range, at: 32)
    guard parts.count >= 2 else { return fail(text, range) }
    var traits = section
    var rest = parts.dropFirst(2)
    if let operands = rest.first, isOperands(text, operands) {
      readOperands(text, operands, &traits)
      rest = rest.dropFirst()
    }
    for word in rest {
      if text[word.lowerBound] == UInt8(ascii: "?") {
        readTrait(text, (word.lowerBound + 1)..<word.upperBound, isFeature: true, &traits)
      } else {
        readTrait(text, word, isFeature: false, &traits)
      }
    }
    let opcode = parts[0]
    guard opcode.count >= 2, let high = hex(text[opcode.lowerBound]),
      let low = hex(text[opcode.lowerBound + 1])
    else { return fail(text, range) }
    var repeats: UInt8 = 1
    for word in split(text, (opcode.lowerBound + 2)..<opcode.upperBound, at: UInt8(ascii: ".")) {
      switch text[word.lowerBound] {
      case UInt8(ascii: "+"): repeats = 8
      case UInt8(ascii: "c") where word.count == 1: repeats = 16
      case UInt8(ascii: "/"): readModRM(text, word, &traits)
      default: readCondition(text, word, &traits)
      }
    }
    appendRows(text, parts[1], opcode: high << 4 | low, repeats: repeats, traits)
  }

  private mutating func appendRows(
    _ text: Text, _ name: Slice, opcode: UInt8, repeats: UInt8, _ traits: RowTraits
  ) {
    for index in 0..<repeats {
      var hash = WordTable.hash(namePrefix)
      hash = WordTable.hash(text[name], after: hash)
      hash = WordTable.hash(nameSuffix, after: hash)
      if repeats == 16 { hash = WordTable.hash(conditionNames[Int(index)].utf8, after: hash) }
      guard let mnemonic = words.mnemonic(hash) else { return fail(text, name) }
      var row = finished(traits)
      row.mnemonic = mnemonic
      if repeats == 16 {
        row.flagsRead = FlagSet(condition: index)
        row.attributes.insert(.readsFlags)
      }
      rows.append(row)
      places.append((space << 8 | Int(opcode + index), traits.prefixes))
    }
  }

  /// The row for traits, with everything derived from the operands.
  private func finished(_ traits: RowTraits) -> OpcodeRow {
    var row = OpcodeRow()
    row.feature = traits.feature
    row.attributes = traits.attributes
    row.flags = traits.flags
    row.flagsRead = traits.flagsRead
    row.flagsWritten = traits.flagsWritten
    row.conditionMask = traits.conditionMask
    row.condition = traits.condition
    row.operandCount = UInt8(traits.operands.count)
    var hasAligned = false
    for (index, spec) in traits.operands.enumerated() {
      unsafe withUnsafeMutableBytes(of: &row.operands) {
        unsafe $0.bindMemory(to: OperandSpec.self)[index] = spec
      }
      switch spec.method {
      case .vvvvGeneral, .vvvvVector, .vvvvMask: row.flags.formUnion([.usesVVVV, .hasModRM])
      case .rmVector, .memory, .rmGeneral:
        row.flags.insert(.hasModRM)
        hasAligned = [.octo, .vector, .double16].contains(spec.width)
      default: if spec.method.isModRM { row.flags.insert(.hasModRM) }
      }
      if spec.method == .regGeneral { row.attributes.insert(.namesReg) }
    }
    if traits.prefixes == 1 << 1 { row.attributes.insert(.requires66) }
    if traits.prefixes == 1 << 2 { row.attributes.insert(.requiresF3) }
    let first = traits.operands.first ?? OperandSpec()
    let writesMemory =
      first.access.contains(.write) && [.rmGeneral, .memory].contains(first.method)
    if !writesMemory { row.attributes.remove(.lockable) }
    if !hasAligned || traits.unaligned { row.attributes.remove(.aligned) }
    if first.width == .byte, first.method != .immediate, first.method != .relative {
      row.flags.insert(.byteSize)
    }
    if traits.conditionMask & (Condition.modRM | Condition.register) != 0 {
      row.flags.insert(.hasModRM)
    }
    return row
  }
}

// MARK: Words

extension OpcodeTableBuilder {
  private mutating func readTrait(
    _ text: Text, _ word: Slice, isFeature: Bool, _ traits: inout RowTraits
  ) {
    let hash = WordTable.hash(text[word])
    if isFeature {
      guard let feature = words.feature(hash) else { return fail(text, word) }
      traits.feature = feature
    } else if let trait = words.trait(hash) {
      traits.attributes.formUnion(trait.attributes)
      traits.flags.formUnion(trait.flags)
    } else if let (direction, flags) = flags(text, word) {
      traits.attributes.insert(direction)
      if direction == .writesFlags { traits.flagsWritten = flags } else { traits.flagsRead = flags }
    } else if text[word.lowerBound] == UInt8(ascii: "n"), word.count == 2,
      let bytes = hex(text[word.lowerBound + 1])
    {
      traits.flags.formUnion(RowFlags(rawValue: UInt32(bytes) << RowFlags.displacementShift))
    } else if hash == WordTable.unaligned {
      traits.unaligned = true
    } else {
      fail(text, word)
    }
  }

  /// `fw`, `fr`: all flags; with letters: those.
  private func flags(_ text: Text, _ word: Slice) -> (Instruction.Attributes, FlagSet)? {
    guard word.count >= 2, text[word.lowerBound] == UInt8(ascii: "f") else { return nil }
    let direction: Instruction.Attributes
    switch text[word.lowerBound + 1] {
    case UInt8(ascii: "w"): direction = .writesFlags
    case UInt8(ascii: "r"): direction = .readsFlags
    default: return nil
    }
    var flags: FlagSet = word.count == 2 ? .all : []
    for letter in text[word].dropFirst(2) {
      guard let flag = FlagSet(letter: letter) else { return nil }
      flags.insert(flag)
    }
    return (direction, flags)
  }

  private mutating func readCondition(_ text: Text, _ word: Slice, _ traits: inout RowTraits) {
    for part in split(text, word, at: UInt8(ascii: ".")) {
      guard let condition = words.condition(WordTable.hash(text[part])) else {
        fail(text, word)
        return
      }
      if condition.prefixes != 0 { traits.prefixes = condition.prefixes }
      traits.require(condition.mask, condition.value)
    }
  }

  /// `/5r2`: reg field, register or memory form, rm field; each may be omitted.
  private func readModRM(_ text: Text, _ word: Slice, _ traits: inout RowTraits) {
    var seenForm = false
    for position in word.dropFirst() {
      switch text[position] {
      case UInt8(ascii: "r"):
        traits.require(Condition.register, Condition.register)
        seenForm = true
      case UInt8(ascii: "m"):
        traits.require(Condition.register, 0)
        seenForm = true
      case let digit:
        let value = UInt32((digit &- UInt8(ascii: "0")) & 7)
        if seenForm {
          traits.require(Condition.rm, value)
        } else {
          traits.require(Condition.reg, value << 3)
        }
      }
    }
  }

  /// Operands begin with an access mark, `%`, `-` or a capital, or are mask operands (`kw`, `jb`).
  private func isOperands(_ text: Text, _ word: Slice) -> Bool {
    let first = text[word.lowerBound]
    switch first {
    case UInt8(ascii: "="), UInt8(ascii: "+"), UInt8(ascii: "%"), UInt8(ascii: "-"): return true
    case UInt8(ascii: "k"), UInt8(ascii: "j"):
      return word.count > 2 && text[word.lowerBound + 2] == UInt8(ascii: ",")
    default: return first >= UInt8(ascii: "A") && first <= UInt8(ascii: "Z")
    }
  }

  private mutating func readOperands(_ text: Text, _ word: Slice, _ traits: inout RowTraits) {
    traits.operands = []
    if word.count == 1, text[word.lowerBound] == UInt8(ascii: "-") { return }
    for operand in split(text, word, at: UInt8(ascii: ",")) {
      guard let spec = readOperand(text, operand) else { return fail(text, word) }
      traits.operands.append(spec)
    }
    if traits.operands.count > 4 { fail(text, word) }
  }

  private func readOperand(_ text: Text, _ operand: Slice) -> OperandSpec? {
    var word = operand
    var access: Operand.Access = .read
    switch text[word.lowerBound] {
    case UInt8(ascii: "="): access = .write
    case UInt8(ascii: "+"): access = [.read, .write]
    default: word = (word.lowerBound - 1)..<word.upperBound
    }
    word = (word.lowerBound + 1)..<word.upperBound
    guard let first = word.first else { return nil }
    if text[first] == UInt8(ascii: "%") {
      guard var spec = words.fixed(WordTable.hash(text[word])) else { return nil }
      spec.access = access
      return spec
    }
    guard let method = OperandMethod(letter: text[first]) else { return nil }
    var width = OperandWidth.none
    if word.count > 1 {
      guard let letter = OperandWidth(letter: text[first + 1], of: method) else { return nil }
      width = letter
    }
    if method == .memory && width == .none && access == .read { access = [] }
    return OperandSpec(method: method, width: width, access: access)
  }
}

// MARK: The dense look-up

extension OpcodeTableBuilder {
  /// Heads and lists over all rows; the caller owns both permanently.
  func finish() -> (UnsafePointer<OpcodeHead>, UnsafePointer<UInt16>) {
    let dense = OpcodeSpace.count << 10
    var chains = [[UInt16]](repeating: [], count: dense)
    for (row, (place, prefixes)) in places.enumerated() {
      for prefix in 0..<OpcodeSpace.prefixes where prefixes >> UInt8(prefix) & 1 != 0 {
        chains[place << 2 | prefix].append(UInt16(row))
      }
    }
    var heads = [OpcodeHead](repeating: OpcodeHead(), count: dense)
    var lists: [UInt16] = []
    var groups: [[UInt16]: UInt16] = [:]
    for index in 0..<dense where !chains[index].isEmpty {
      heads[index] = head(of: chains[index], &heads, &lists, &groups)
      let opcodeRows = (0..<4).contains { chains[index & ~3 | $0].contains(where: needsModRM) }
      if opcodeRows { heads[index].flags |= OpcodeHead.hasModRM }
    }
    return unsafe (UnsafePointer(permanent(heads)), UnsafePointer(permanent(lists)))
  }

  private func needsModRM(_ row: UInt16) -> Bool { rows[Int(row)].flags.contains(.hasModRM) }

  private func head(
    of chain: [UInt16], _ heads: inout [OpcodeHead], _ lists: inout [UInt16],
    _ groups: inout [[UInt16]: UInt16]
  ) -> OpcodeHead {
    let selector = Condition.register | Condition.reg
    guard chain.contains(where: { rows[Int($0)].conditionMask & selector != 0 }) else {
      return stretch(chain, &lists)
    }
    if let known = groups[chain] { return OpcodeHead(start: known, flags: OpcodeHead.group) }
    let first = UInt16(heads.count)
    for index: UInt32 in 0..<16 {
      let state = (index & 8 != 0 ? Condition.register : 0) | (index & 7) << 3
      let matching = chain.filter {
        let row = rows[Int($0)]
        return (state ^ row.condition) & row.conditionMask & selector == 0
      }
      heads.append(stretch(matching, &lists))
    }
    groups[chain] = first
    return OpcodeHead(start: first, flags: OpcodeHead.group)
  }

  private func stretch(_ chain: [UInt16], _ lists: inout [UInt16]) -> OpcodeHead {
    let start = UInt16(lists.count)
    lists.append(contentsOf: chain)
    return OpcodeHead(start: start, count: UInt8(chain.count))
  }

  private func permanent<T>(_ array: [T]) -> UnsafeMutablePointer<T> {
    let copy = UnsafeMutablePointer<T>.allocate(capacity: max(array.count, 1))
    unsafe copy.initialize(from: array, count: array.count)
    return unsafe copy
  }
}

let conditionNames: [StaticString] = [
  "o", "no", "b", "nb", "z", "nz", "be", "nbe", "s", "ns", "p", "np", "l", "nl", "le", "nle",
]

extension StaticString {
  fileprivate var utf8: [UInt8] { withUTF8Buffer { unsafe Array($0) } }
}

private func hex(_ byte: UInt8) -> UInt8? {
  switch byte {
  case 0x30...0x39: byte &- 0x30
  case 0x41...0x46: byte &- 0x37
  default: nil
  }
}

/// The non-empty parts of `range` between separators, without spaces around them.
private func split(_ text: Text, _ range: Slice, at separator: UInt8) -> [Slice] {
  var parts: [Slice] = []
  var start = range.lowerBound
  for position in range.lowerBound...range.upperBound {
    guard position == range.upperBound || text[position] == separator else { continue }
    var low = start
    var high = position
    while low < high, text[low] == 32 { low += 1 }
    while low < high, text[high - 1] == 32 { high -= 1 }
    if low < high { parts.append(low..<high) }
    start = position + 1
  }
  return parts
}
