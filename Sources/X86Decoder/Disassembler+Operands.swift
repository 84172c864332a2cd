// SPDX-License-Identifier: Apache-2.0
//
// Operands as text: registers, memory, immediates. The syntax is that of Intel's manuals, in lower
// case.

import X86

extension Disassembler {
  static func text(
    _ index: Int, of instruction: Instruction, at address: UInt64
  ) -> String {
    let operand = instruction.operands[index]
    switch operand.kind {
    case .none: return ""
    case .general: return generalName(operand.number, size: operand.size)
    case .segment: return segmentNames[Int(operand.number & 7)]
    case .control: return "cr\(operand.number)"
    case .debug: return "dr\(operand.number)"
    case .x87: return x87Name(index, of: instruction)
    case .mmx: return "mm\(operand.number)"
    case .vector: return vectorName(operand.number, size: operand.size)
    case .mask: return "k\(operand.number)"
    case .memory: return memory(operand, of: instruction)
    case .immediate where instruction.isShiftByOne: return "1"
    case .immediate: return hex(UInt64(bitPattern: instruction.immediate), size: operand.size)
    case .immediate2: return hex(UInt64(instruction.immediate2), size: 2)
    case .relative:
      let next = address &+ UInt64(instruction.length)
      let target = next &+ UInt64(bitPattern: instruction.immediate)
      return hex(target, size: instruction.operandSize)
    case .farPointer:
      let selector = hex(UInt64(instruction.immediate2), size: 2)
      return selector + ":" + hex(UInt64(bitPattern: instruction.immediate), size: 4)
    }
  }

  /// Implied ST(0) is `st`; ST(i) from ModRM always has its number.
  private static func x87Name(_ index: Int, of instruction: Instruction) -> String {
    let opcode = instruction.encoding.opcode
    let implied = opcode == 0xDC || opcode == 0xDE ? 1 : 0
    if instruction.operandCount == 2 && index == implied { return "st" }
    return "st(\(instruction.operands[index].number))"
  }

  private static func hex(_ value: UInt64, size: UInt8) -> String {
    let bits = UInt64(min(size, 8)) * 8
    let mask: UInt64 = bits == 0 || bits == 64 ? .max : (1 << bits) - 1
    return "0x" + String(value & mask, radix: 16)
  }

  static func generalName(_ number: UInt8, size: UInt8) -> String {
    if number >= 16 { return highByteNames[Int(number & 3)] }
    let index = Int(number & 15)
    guard index < 8 else {
      return "r\(index)" + (size == 1 ? "b" : size == 2 ? "w" : size == 4 ? "d" : "")
    }
    switch size {
    case 1: return byteNames[index]
    case 2: return wordNames[index]
    case 4: return "e" + wordNames[index]
    default: return "r" + wordNames[index]
    }
  }

  private static func vectorName(_ number: UInt8, size: UInt8) -> String {
    (size == 64 ? "zmm" : size == 32 ? "ymm" : "xmm") + "\(number)"
  }

  // MARK: Memory

  private static func memory(_ operand: Operand, of instruction: Instruction) -> String {
    var width = pointerNames[Int(operand.size)] ?? ""
    guard !instruction.attributes.contains(.string) else {
      let register = generalName(operand.number, size: instruction.addressSize)
      let segment = operand.number == 7 ? "es" : segmentNames[Int(instruction.segment.rawValue)]
      return "\(width)\(segment):[\(register)]"
    }
    if instruction.isOffsetMove { width = "" }
    if instruction.attributes.contains(.broadcast) {
      width = operand.size == 8 ? "QWORD BCST " : "DWORD BCST "
    }
    return width + segmentPrefix(instruction) + address(instruction)
  }

  private static func segmentPrefix(_ instruction: Instruction) -> String {
    let isAbsolute =
      instruction.base == Instruction.noRegister
      && instruction.index == Instruction.noRegister
    let usesStack = instruction.base == 4 || instruction.base == 5
    let usual: SegmentRegister = usesStack ? .ss : .ds
    guard instruction.segment != usual || isAbsolute else { return "" }
    return segmentNames[Int(instruction.segment.rawValue)] + ":"
  }

  private static func address(_ instruction: Instruction) -> String {
    var text = ""
    if instruction.base == Instruction.ripRegister {
      text = instruction.addressSize == 8 ? "rip" : "eip"
    } else if instruction.base != Instruction.noRegister {
      text = generalName(instruction.base, size: instruction.addressSize)
    }
    if instruction.index != Instruction.noRegister {
      let isVector = instruction.attributes.contains(.vsib)
      let name =
        isVector
        ? vectorName(instruction.index, size: instruction.vectorIndexSize)
        : generalName(instruction.index, size: instruction.addressSize)
      text += (text.isEmpty ? "" : "+") + name
      if instruction.addressSize != 2 { text += "*\(1 << Int(instruction.scale & 3))" }
    }
    let offset = instruction.displacement
    if text.isEmpty { return hex(UInt64(bitPattern: offset), size: instruction.addressSize) }
    guard offset != 0 || hasDisplacement(instruction) else { return "[\(text)]" }
    if instruction.base == Instruction.ripRegister {
      return "[\(text)+0x" + String(UInt64(bitPattern: offset), radix: 16) + "]"
    }
    let magnitude = "0x" + String(offset.magnitude, radix: 16)
    return "[\(text)\(offset < 0 ? "-" : "+")\(magnitude)]"
  }

  private static func hasDisplacement(_ instruction: Instruction) -> Bool {
    let mod = instruction.encoding.modRM >> 6
    return mod == 1 || mod == 2 || instruction.base == Instruction.ripRegister
      || instruction.base == Instruction.noRegister
  }

  // MARK: Names

  private static let byteNames = ["al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"]
  private static let highByteNames = ["ah", "ch", "dh", "bh"]
  private static let wordNames = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"]
  private static let segmentNames = ["es", "cs", "ss", "ds", "fs", "gs", "?", "?"]
  private static let pointerNames: [Int: String] = [
    1: "BYTE PTR ", 2: "WORD PTR ", 4: "DWORD PTR ", 6: "FWORD PTR ", 8: "QWORD PTR ",
    10: "TBYTE PTR ", 16: "XMMWORD PTR ", 32: "YMMWORD PTR ", 64: "ZMMWORD PTR ",
  ]
}

extension Instruction {
  /// Bytes of the vector register that is the index of a gather or scatter.
  public var vectorIndexSize: UInt8 {
    for index in 0..<Int(operandCount) where operands[index].kind == .memory {
      return operands[index].number
    }
    return 0
  }

  /// MOV with an offset and no ModRM.
  var isOffsetMove: Bool {
    encoding.map == .oneByte && encoding.opcode & 0xFC == 0xA0
  }

  /// D0 to D3 without CL.
  var isShiftByOne: Bool {
    encoding.map == .oneByte && encoding.opcode & 0xFE == 0xD0
  }
}
