// SPDX-License-Identifier: Apache-2.0
//
// From decoded instruction to micro-op. `Lowering.lower` fills in the operands by kind (see
// MicroOp) and selects the handler by the rule that the instruction's family registered.
//
// A family is a caseless enum with a `register` function, listed in `Lowering.families`:
//
//     enum Logic {
//       static func register(_ t: inout LoweringTable) {
//         t[.and] = .forms(
//           register: .init({ and_r8($0, $1) }, ...), load: ..., store: ...)
//       }
//     }

import X86
import X86Decoder

/// Handlers by operand size; nil where the instruction has no such size.
package struct WidthHandlers {
  package var byte: Handler?
  package var word: Handler?
  package var dword: Handler?
  package var qword: Handler?

  package init(
    _ byte: Handler? = nil, _ word: Handler? = nil, _ dword: Handler? = nil, _ qword: Handler? = nil
  ) {
    self.byte = byte
    self.word = word
    self.dword = dword
    self.qword = qword
  }

  package subscript(size: UInt8) -> Handler? {
    switch size {
    case 1: byte
    case 2: word
    case 4: dword
    case 8: qword
    default: nil
    }
  }
}

/// How an instruction's handler is selected.
package enum LoweringRule {
  /// #UD.
  case undefined
  /// One handler for every form.
  case single(Handler)
  /// By operand size.
  case widths(WidthHandlers)
  /// By operand size and memory operand: none (`register`; operand 1 may be an immediate), operand
  /// 1 (`load`), or operand 0 (`store`).
  case forms(register: WidthHandlers, load: WidthHandlers, store: WidthHandlers)
  /// A function that selects the handler and may change the micro-op's fields. Nil is #UD.
  case custom((Instruction, MicroOpPointer, CPU) -> Handler?)
}

/// The rules of all instructions, by mnemonic.
package struct LoweringTable {
  private var rules: [LoweringRule]

  package init() {
    rules = Array(repeating: .undefined, count: Mnemonic.allCases.count)
  }

  package subscript(mnemonic: Mnemonic) -> LoweringRule {
    get { rules[Int(mnemonic.rawValue)] }
    set { rules[Int(mnemonic.rawValue)] = newValue }
  }
}

package enum Lowering {
  /// Built once; read-only afterwards.
  nonisolated(unsafe) package static let table: LoweringTable = {
    var table = LoweringTable()
    for register in families { register(&table) }
    return table
  }()

  /// Every instruction family.
  private static let families: [@Sendable (inout LoweringTable) -> Void] = [
    { Arithmetic.register(&$0) },
    { ConditionalInstructions.register(&$0) },
    { DataMovement.register(&$0) },
    { StackInstructions.register(&$0) },
    { NearTransfer.register(&$0) },
    { ShiftRotate.register(&$0) },
    { MultiplyDivide.register(&$0) },
    { BitInstructions.register(&$0) },
    { StringInstructions.register(&$0) },
    { DecimalAdjust.register(&$0) },
    { AtomicInstructions.register(&$0) },
    { SegmentInstructions.register(&$0) },
    { ProtectionKeyInstructions.register(&$0) },
    { FarTransfer.register(&$0) },
    { InterruptInstructions.register(&$0) },
    { FlagInstructions.register(&$0) },
    { FastSystemCalls.register(&$0) },
    { ControlRegisterInstructions.register(&$0) },
    { DescriptorTableInstructions.register(&$0) },
    { MSRInstructions.register(&$0) },
    { CPUIDInstruction.register(&$0) },
    { PortInstructions.register(&$0) },
    { CacheAndTLBInstructions.register(&$0) },
    { HaltAndMonitor.register(&$0) },
    { VMXInstructions.register(&$0) },
    { SVMInstructions.register(&$0) },
    { VectorInstructions.register(&$0) },
    { ExtendedStateInstructions.register(&$0) },
  ]

  /// Lowers `instruction` into `op`, which must not move afterwards (`src` may point into it).
  /// `offset` is the instruction's offset from the start of its block.
  package static func lower(
    _ instruction: Instruction, offset: UInt16, into op: MicroOpPointer, for c: CPU
  ) {
    op.initialize(to: blank(instruction, offset, c))
    lowerOperands(instruction, op, c)
    if instruction.memoryOperand != nil || instruction.attributes.contains(.string) {
      lowerAddress(instruction, op, c)
    }
    guard CPUIDModel.offers(instruction.feature, c.owner.silicon) else { return }
    if let handler = handler(instruction, op, c) { op.pointee.handler = handler }
  }

  private static func blank(_ i: Instruction, _ offset: UInt16, _ c: CPU) -> MicroOp {
    let zero = (c.raw + CPU.zeroOffset).assumingMemoryBound(to: UInt64.self)
    return MicroOp(
      handler: undefinedOpcode, dst: c.raw + CPU.zeroOffset, src: c.raw + CPU.zeroOffset,
      base: zero, index: zero, immediate: UInt64(bitPattern: i.immediate), displacement: 0,
      segmentBaseOffset: UInt16(CPU.zeroOffset), offset: offset, length: i.length, scale: 0,
      addressFlags: 0, segment: i.segment.rawValue, operandSize: i.operandSize,
      addressSize: i.addressSize, register0: i.operands[0].number, register1: i.operands[1].number)
  }

  private static func handler(_ i: Instruction, _ op: MicroOpPointer, _ c: CPU) -> Handler? {
    switch table[i.mnemonic] {
    case .undefined: return nil
    case .single(let handler): return handler
    case .widths(let widths): return widths[i.operandSize]
    case .forms(let register, let load, let store):
      switch i.memoryOperand {
      case 0: return store[i.operandSize]
      case nil: return register[i.operandSize]
      default: return load[i.operandSize]
      }
    case .custom(let choose): return choose(i, op, c)
    }
  }

  private static func lowerOperands(_ i: Instruction, _ op: MicroOpPointer, _ c: CPU) {
    for n in 0..<Int(min(i.operandCount, 3)) {
      guard let pointer = registerPointer(i.operands[n], n, op, c) else { continue }
      switch n {
      case 0: op.pointee.dst = pointer
      case 1: op.pointee.src = pointer
      default: op.pointee.immediate = UInt64(UInt(bitPattern: pointer))
      }
    }
  }

  /// The pointer of a register operand, or of operand 1's immediate. Nil for others, including an
  /// immediate in third place, which is in `immediate` already.
  private static func registerPointer(
    _ operand: Operand, _ index: Int, _ op: MicroOpPointer, _ c: CPU
  ) -> UnsafeMutableRawPointer? {
    switch operand.kind {
    case .general: return generalRegister(operand.number, c)
    case .vector: return UnsafeMutableRawPointer(c.vector) + Int(operand.number) * 64
    case .immediate where index == 1:
      return UnsafeMutableRawPointer(op) + MemoryLayout<MicroOp>.offset(of: \.immediate)!
    default: return nil
    }
  }

  /// Numbers 16 to 19 are AH, CH, DH, BH: the second byte of registers 0 to 3.
  package static func generalRegister(_ number: UInt8, _ c: CPU) -> UnsafeMutableRawPointer {
    number < 16 ? c.raw + Int(number) * 8 : c.raw + Int(number - 16) * 8 + 1
  }

  private static func lowerAddress(_ i: Instruction, _ op: MicroOpPointer, _ c: CPU) {
    if i.base == Instruction.ripRegister {
      op.pointee.base = (c.raw + CPU.blockRIPOffset).assumingMemoryBound(to: UInt64.self)
      op.pointee.displacement =
        Int32(truncatingIfNeeded: i.displacement)
        &+ Int32(op.pointee.offset) &+ Int32(i.length)
    } else {
      if i.base != Instruction.noRegister { op.pointee.base = c.gpr + Int(i.base) }
      op.pointee.displacement = Int32(truncatingIfNeeded: i.displacement)
    }
    if i.index != Instruction.noRegister && !i.attributes.contains(.vsib) {
      op.pointee.index = c.gpr + Int(i.index)
      op.pointee.scale = i.scale
    }
    if i.addressSize == 4 { op.pointee.addressFlags |= AddressFlags.mask32 }
    if i.addressSize == 2 { op.pointee.addressFlags |= AddressFlags.mask16 }
    if i.mode != .bits64 {
      op.pointee.addressFlags |= AddressFlags.segmentCheck
    } else if i.segment == .fs || i.segment == .gs {
      let offset = CPU.segmentsOffset + Int(i.segment.rawValue) * MemoryLayout<SegmentState>.stride
      op.pointee.segmentBaseOffset = UInt16(offset + MemoryLayout<SegmentState>.offset(of: \.base)!)
    }
  }
}

extension Instruction {
  /// Index of the operand that is memory.
  package var memoryOperand: Int? {
    for n in 0..<Int(operandCount) where operands[n].kind == .memory { return n }
    return nil
  }
}

extension MicroOp {
  /// The processor lacks the instruction: its handler raises #UD.
  package var isUndefined: Bool {
    unsafeBitCast(handler, to: Int.self) == unsafeBitCast(undefinedOpcode, to: Int.self)
  }
}

/// #UD: the handler of instructions without a rule.
private let undefinedOpcode: Handler = { c, _ in CPU(c).raise(.invalidOpcode) }
