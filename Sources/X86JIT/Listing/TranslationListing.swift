// SPDX-License-Identifier: Apache-2.0
//
// One translation as text: each instruction of the guest, and under it the host code made for it.
//
//     guest:0xffffffff81000000: 2 instructions, 5 bytes -> 80 bytes at 0x7f5a00001000, CPU 0
//     entry
//           0  48 83 44 24 58 02             add QWORD PTR [rsp+0x58],0x2  ; retired
//     ffffffff81000000  01 c8               add eax,ecx
//           6  01 c8                         add eax,ecx
//
// Host code is addressed from the translation's start. RSP is in the CPU's state, whose fields are
// named; jumps that leave the translation have the name of what they lead to.

import X86
import X86CPU
import X86Decoder

struct TranslationListing {
  private let translation: BlockTranslation
  private let linearPage: UInt64
  private let names: [UInt: String]

  /// - Parameters:
  ///   - linear: the block's linear address.
  ///   - names: of addresses that code jumps to.
  init(_ translation: BlockTranslation, linear: UInt64, names: [UInt: String]) {
    self.translation = translation
    linearPage = linear & Page.mask
    self.names = names
  }

  func summary(_ linear: UInt64) -> TranslationSummary {
    let parts = ranges.map { (part: $0.part, hostInstructions: count($0.start, $0.end)) }
    return TranslationSummary(linear: linear, parts: parts)
  }

  private var ranges: [(part: CodeMark.Part, start: Int, end: Int)] {
    let marks = translation.marks
    return marks.indices.map { n in
      let end = n + 1 < marks.count ? marks[n + 1].position : translation.a.bytes.count
      return (marks[n].part, marks[n].position, end)
    }
  }

  /// Instructions in a range; what cannot be decoded counts as one.
  private func count(_ start: Int, _ end: Int) -> Int {
    var (position, count) = (start, 0)
    while position < end {
      let rest = translation.a.bytes[position..<end]
      let instruction = rest.withUnsafeBytes { try? Decoder.decode($0, mode: .bits64) }
      position += instruction.map { Int($0.length) } ?? end - position
      count += 1
    }
    return count
  }

  func text(name: String, processor: Int) -> String {
    let block = translation.codes[0].block.pointee
    let origin = String(translation.a.origin, radix: 16)
    var lines = [
      "\(name): \(block.count) instructions, \(block.length) bytes -> "
        + "\(translation.a.bytes.count) bytes at 0x\(origin), CPU \(processor)"
    ]
    for (part, start, end) in ranges {
      switch part {
      case .instruction(let offset): lines.append(guestLine(offset))
      case _ where end == start: continue
      case .entry: lines.append("entry")
      case .end: lines.append("end")
      case .stackWays: lines.append("stack in another page")
      case .unresolved: lines.append("target not in the table")
      case .miss(let offset): lines.append("miss of " + hex(linearPage | UInt64(offset)))
      case .faults: lines.append("memory gone")
      case .vectorWays: lines.append("vector state not loaded")
      case .exits: lines.append("exits")
      }
      hostLines(start, end, &lines)
    }
    return lines.joined(separator: "\n") + "\n\n"
  }

  private func guestLine(_ offset: Int) -> String {
    let address = linearPage | UInt64(offset)
    guard let instruction = translation.instruction(at: offset) else { return hex(address) }
    let host = UInt(translation.block.pointee.host & Page.mask) + UInt(offset)
    let bytes = UnsafeRawBufferPointer(
      start: UnsafeRawPointer(bitPattern: host),
      count: min(Int(instruction.length), Int(Page.size) - offset))
    return hex(address) + "  " + padded(Self.bytes(Array(bytes)), 22)
      + Disassembler.text(instruction, at: address)
  }

  // MARK: Host code

  private func hostLines(_ start: Int, _ end: Int, _ lines: inout [String]) {
    var position = start
    while position < end {
      let rest = translation.a.bytes[position..<end]
      guard let i = rest.withUnsafeBytes({ try? Decoder.decode($0, mode: .bits64) }) else {
        lines.append("\(offset(position))  " + Self.bytes(Array(rest)) + "  (not decoded)")
        return
      }
      let next = position + Int(i.length)
      let bytes = Self.bytes(Array(translation.a.bytes[position..<next]))
      lines.append("\(offset(position))  " + padded(bytes, 30) + hostText(i, position))
      position = next
    }
  }

  private func hostText(_ instruction: Instruction, _ position: Int) -> String {
    let isBranch =
      instruction.operandCount == 1 && instruction.operands[0].kind == .relative
    if isBranch {
      let target = position + Int(instruction.length) + Int(instruction.immediate)
      if target < 0 || target >= translation.a.bytes.count {
        let address = translation.a.origin &+ UInt(bitPattern: target)
        return Disassembler.name(instruction) + " " + (names[address] ?? hex(UInt64(address)))
      }
    }
    let text = Disassembler.text(instruction, at: UInt64(position))
    guard instruction.base == GeneralRegister.rsp.rawValue,
      instruction.index == Instruction.noRegister,
      let field = Self.fields[Int(instruction.displacement) &+ Place.stateBias]
    else { return text }
    return text + "  ; " + field
  }

  /// Names of the state's fields that translated code uses, by their offset.
  private static let fields: [Int: String] = {
    var fields: [Int: String] = [
      StateOffset.rip: "rip", StateOffset.tlb: "tlb", StateOffset.tlbContext: "tlbContext",
      StateOffset.request: "request", StateOffset.retired: "retired", StateOffset.slow: "slow",
      StateOffset.blockContext: "blockContext", StateOffset.codePage: "codePage",
      StateOffset.hostFlags: "hostFlags", StateOffset.jumps: "jumps",
      StateOffset.stackPage: "stackPage", StateOffset.stackAddend: "stackAddend",
      StateOffset.stackLimit: "stackLimit",
      StateOffset.temporary0: "temporary0", StateOffset.temporary1: "temporary1",
      StateOffset.translations: "translations", StateOffset.lookups: "lookups",
      VectorOffset.ready: "vectorReady", VectorOffset.x87Instruction: "x87Instruction",
      VectorOffset.x87Data: "x87Data", VectorOffset.x87Opcode: "x87Opcode",
    ]
    for number in 0..<NativeState.accessPageCount {
      let page = RememberedPage(access: number)
      fields[page.start] = "page \(number)"
      fields[page.addend] = "addend \(number)"
      fields[page.limit] = "limit \(number)"
    }
    for number in 0..<NativeState.groupCount {
      fields[StateOffset.groupAddress(number)] = "group \(number)"
    }
    fields[StateOffset.flagSource] = "flagSource"
    for number in 12..<16 { fields[number * 8] = "guest r\(number)" }
    for number in 0..<32 as Range<UInt8> { fields[VectorOffset.vector(number)] = "zmm\(number)" }
    for number in 0..<8 as Range<UInt8> { fields[VectorOffset.mask(number)] = "k\(number)" }
    for register in SegmentRegister.allCases {
      let offset = MemoryLayout<SegmentState>.offset(of: \.base)!
      let place = Int(register.rawValue) * MemoryLayout<SegmentState>.stride + offset
      fields[StateOffset.segments + place] = "\(register) base"
    }
    return fields
  }()

  // MARK: Text

  private func hex(_ value: UInt64) -> String { String(value, radix: 16) }

  private func offset(_ position: Int) -> String {
    let text = String(position, radix: 16)
    return String(repeating: " ", count: max(0, 8 - text.count)) + text
  }

  private static func bytes(_ bytes: [UInt8]) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
  }

  private func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(1, width - text.count))
  }
}
