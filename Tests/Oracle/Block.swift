// SPDX-License-Identifier: Apache-2.0
//
// A random block: instructions and labels, and the bytes that they make at an address. Any of the
// instructions may be left out, which is how a failing block is made small.
//
// Nothing looks at undefined flags: where an instruction would, a CMP that defines them comes
// before it.

import X86
import X86Decoder

struct BlockItem {
  enum Content {
    case code(bytes: [UInt8], instruction: Instruction, reference: Reference)
    /// Where branches to this label go. `anyFlags`: it is reached from behind, or by a return.
    case label(Int, anyFlags: Bool)
  }

  /// A displacement that depends on where things lie.
  enum Reference {
    case none
    /// RIP-relative to an address.
    case data(position: Int, target: UInt64)
    /// RIP-relative or a branch, to a label; 1 or 4 bytes.
    case label(position: Int, size: Int, label: Int)
  }

  var content: Content
  /// CMP of two registers, for when flags must be defined before the instruction.
  var compare: [UInt8] = []
  /// Instructions that go together: one loads what the other needs.
  var group = 0
  var isLeftOut = false
}

/// A block's bytes at an address.
struct AssembledBlock {
  struct Line {
    var offset: Int
    var instruction: Instruction
    /// Flags that may be undefined before it.
    var undefined: UInt64
  }

  var address: UInt64
  var bytes: [UInt8] = []
  var lines: [Line] = []
  /// Flags that may be undefined at the landing pad.
  var undefinedAtEnd: UInt64 = 0

  var end: UInt64 { address + UInt64(bytes.count) }

  /// A repeated string instruction may be entered more than once.
  var hasStrings: Bool { lines.contains { $0.instruction.attributes.contains(.string) } }

  /// The instruction at an address, with what is undefined before it; nil where none begins there.
  func line(at rip: UInt64) -> Line? { lines.first { UInt64($0.offset) == rip &- address } }

  var text: [String] {
    lines.map { line in
      let place = address + UInt64(line.offset)
      let code = bytes[line.offset..<(line.offset + Int(line.instruction.length))]
      let hex = code.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
      return "  \(String(place, radix: 16)): \(Disassembler.text(line.instruction, at: place))"
        + "  [\(hex)]"
    }
  }
}

struct Block {
  var items: [BlockItem] = []

  var usesVectorState: Bool {
    items.contains { item in
      if case .code(_, let i, _) = item.content {
        i.usesVectorState && !item.isLeftOut
      } else {
        false
      }
    }
  }

  /// Groups of instructions that are not left out, from the last to the first.
  var groups: [Int] {
    var result: [Int] = []
    for item in items.reversed() where !item.isLeftOut && item.group != 0 {
      if !result.contains(item.group) { result.append(item.group) }
    }
    return result
  }

  mutating func leaveOut(group: Int, _ isLeftOut: Bool = true) {
    for n in items.indices where items[n].group == group { items[n].isLeftOut = isLeftOut }
  }

  /// Nil where a short branch would not reach its label, or the block is too long.
  func assembled(at address: UInt64) -> AssembledBlock? {
    var assembler = BlockAssembler(address)
    for item in items where !item.isLeftOut { assembler.append(item) }
    return assembler.finish()
  }
}

private struct BlockAssembler {
  private var result: AssembledBlock
  private var labels: [Int: Int] = [:]
  private var sites: [(position: Int, size: Int, end: Int, label: Int)] = []
  /// Undefined flags here; nil where nothing comes from above.
  private var undefined: UInt64? = 0
  /// The same at labels, from the branches to them.
  private var undefinedAtLabel: [Int: UInt64] = [:]

  init(_ address: UInt64) { result = AssembledBlock(address: address) }

  mutating func append(_ item: BlockItem) {
    switch item.content {
    case .label(let label, let anyFlags):
      labels[label] = result.bytes.count
      let branches = undefinedAtLabel[label]
      undefined = anyFlags ? FlagFlow.all : undefined.map { $0 | (branches ?? 0) } ?? branches
    case .code(let bytes, let instruction, let reference):
      let before = undefined ?? FlagFlow.all
      if before & FlagFlow.reads(instruction) != 0 { define(item.compare) }
      append(bytes, instruction, reference)
    }
  }

  private mutating func define(_ compare: [UInt8]) {
    let decoded = compare.withUnsafeBytes { try? Decoder.decode($0, mode: .bits64) }
    guard let decoded else { return }
    append(compare, decoded, .none)
  }

  private mutating func append(
    _ bytes: [UInt8], _ instruction: Instruction, _ reference: BlockItem.Reference
  ) {
    let start = result.bytes.count
    let before = undefined ?? FlagFlow.all
    result.lines.append(
      AssembledBlock.Line(offset: start, instruction: instruction, undefined: before))
    result.bytes += bytes
    let after = FlagFlow.undefined(after: instruction, before)
    undefined = after
    switch reference {
    case .none: break
    case .data(let position, let target):
      let next = result.address + UInt64(result.bytes.count)
      set(start + position, 4, Int64(bitPattern: target &- next))
    case .label(let position, let size, let label):
      sites.append((start + position, size, result.bytes.count, label))
      undefinedAtLabel[label, default: 0] |= after
    }
    // LEA of a label is no branch.
    if !instruction.attributes.contains(.branch) { return }
    switch instruction.mnemonic {
    case .jmp, .ret, .call: undefined = nil
    default: break
    }
  }

  private mutating func set(_ position: Int, _ size: Int, _ value: Int64) {
    for n in 0..<size {
      result.bytes[position + n] = UInt8(truncatingIfNeeded: value >> Int64(n * 8))
    }
  }

  mutating func finish() -> AssembledBlock? {
    for site in sites {
      guard let target = labels[site.label] else { return nil }
      let distance = target - site.end
      if site.size == 1 && (distance > 127 || distance < -128) { return nil }
      set(site.position, site.size, Int64(distance))
    }
    result.undefinedAtEnd = undefined ?? FlagFlow.all
    guard result.bytes.count + Layout.padSize <= Layout.blockSize else { return nil }
    // Displacements are known only now.
    for n in result.lines.indices {
      let code = result.bytes[result.lines[n].offset...]
      let again = code.withUnsafeBytes { try? Decoder.decode($0, mode: .bits64) }
      if let again { result.lines[n].instruction = again }
    }
    return result
  }
}
