// SPDX-License-Identifier: Apache-2.0
//
// Builds the code and the description of one stub (see VectorStub).

import X86
import X86Decoder

struct StubBuilder {
  private let i: Instruction
  private let bytes: CodeBytes
  private let host = HostFeatures.current
  private var out = StubEmitter()

  init(_ instruction: Instruction, _ bytes: CodeBytes) {
    i = instruction
    self.bytes = bytes
  }

  private var isLegacy: Bool { i.prefixes.isDisjoint(with: [.vex, .evex]) }
  private var isX87: Bool { i.attributes.contains(.x87) }
  private var isFloatingPoint: Bool { i.attributes.contains(.floatingPoint) && !isX87 }
  private var usesFlags: Bool {
    !i.attributes.isDisjoint(with: [.readsFlags, .writesFlags])
  }

  // MARK: Code

  mutating func build() -> [UInt8] {
    if usesFlags { out.emit(0x49, 0x89, 0xCB) }  // mov r11, rcx
    if isX87 { out.fxrstor() }
    if isFloatingPoint { out.enterGuestMXCSR() }
    loadVectors()
    loadGenerals()
    if usesFlags { out.emit(0x41, 0x53, 0x9D) }  // push r11; popfq
    out.emit(bytes)
    if usesFlags { out.emit(0x9C, 0x41, 0x5B) }  // pushfq; pop r11
    if isX87 { out.fxsave() }
    if isFloatingPoint { out.leaveGuestMXCSR(cleanUpper: !isLegacy) }
    storeVectors()
    storeGenerals()
    if i.usesMMX { out.emit(0x0F, 0x77) }  // emms
    if usesFlags { out.emit(0x4C, 0x89, 0xD8) } else { out.emit(0x31, 0xC0) }  // rax
    if !isLegacy { out.vzeroupper() }
    out.emit(0xC3)
    return out.code
  }

  private var loadWidth: VectorWidth {
    if isLegacy { return .xmm }
    return i.prefixes.contains(.evex) ? .zmm : .ymm
  }

  private var storeWidth: VectorWidth {
    if isLegacy { return .xmm }
    return host.hasAVX512 ? .zmm : .ymm
  }

  private mutating func loadVectors() {
    for operand in i.hostOperands {
      switch operand.kind {
      case .vector: out.vector(operand.number, width: loadWidth, .load)
      case .mask: out.mask(operand.number, wide: host.hasWideMasks, .load)
      case .mmx: out.mmx(operand.number, .load)
      default: break
      }
    }
  }

  private mutating func storeVectors() {
    for operand in i.hostOperands where operand.access.contains(.write) {
      switch operand.kind {
      case .vector: out.vector(operand.number, width: storeWidth, .store)
      case .mask: out.mask(operand.number, wide: host.hasWideMasks, .store)
      case .mmx: out.mmx(operand.number, .store)
      default: break
      }
    }
  }

  private mutating func loadGenerals() {
    if i.comparesStrings {
      out.emit(0x49, 0x89, 0xD2)  // mov r10, rdx
      out.emit(0x49, 0x8B, 0x02)  // mov rax, [r10]
      out.emit(0x49, 0x8B, 0x52, 0x10)  // mov rdx, [r10 + 16]
      out.emit(0x49, 0x8B, 0x4A, 0x08)  // mov rcx, [r10 + 8]
    } else if i.generalOperand != nil {
      out.emit(0x48, 0x8B, 0x02)  // mov rax, [rdx]
    }
  }

  private mutating func storeGenerals() {
    if i.comparesStrings {
      out.emit(0x49, 0x89, 0x4A, 0x08)  // mov [r10 + 8], rcx
    } else if let general = i.generalOperand, general.access.contains(.write) {
      out.emit(0x48, 0x89, 0x02)  // mov [rdx], rax
    }
  }

  // MARK: Description

  func describe(_ code: StubCode) -> VectorStub {
    var stub = VectorStub(code: code)
    stub.writesFlags = i.attributes.contains(.writesFlags)
    if let n = i.memoryOperand {
      stub.memorySize = Int(i.operands[n].size)
      stub.writesMemory = i.operands[n].access.contains(.write)
      if i.attributes.contains(.aligned) && stub.memorySize > 0 {
        stub.alignmentMask = UInt64(stub.memorySize - 1)
      }
      stub.needsBounce = isX87 || isFloatingPoint
      stub.mask = i.elementMask(memorySize: stub.memorySize)
    }
    stub.opcode = UInt16(i.encoding.opcode & 7) << 8 | UInt16(i.encoding.modRM)
    stub.waits = isX87 && !i.attributes.contains(.nonWaiting)
    stub.setsPointers = isX87 && !i.isX87Control
    return stub
  }
}

extension Instruction {
  /// Operands in the vector state, each once, including implicit ones.
  package var hostOperands: [Operand] {
    var all: [Operand] = []
    func add(_ operand: Operand) {
      if let n = all.firstIndex(where: { $0.kind == operand.kind && $0.number == operand.number }) {
        all[n].access.formUnion(operand.access)
      } else {
        all.append(operand)
      }
    }
    for n in 0..<Int(operandCount) {
      switch operands[n].kind {
      case .vector, .mask, .mmx: add(operands[n])
      default: break
      }
    }
    if encoding.evexMask != 0 && prefixes.contains(.evex) {
      add(Operand(.mask, number: encoding.evexMask, size: 8, access: .read))
    }
    switch mnemonic {
    case .pcmpestrm, .pcmpistrm, .vpcmpestrm, .vpcmpistrm:
      add(Operand(.vector, number: 0, size: 16, access: .write))
    case .sha256rnds2, .blendvpd, .blendvps, .pblendvb:
      add(Operand(.vector, number: 0, size: 16, access: .read))
    case .vp2intersectd, .vp2intersectq:
      // A pair of masks is written: the named one with bit 0 clear, and the next.
      let first = operands[0].number & 6
      all.removeAll { $0.kind == .mask }
      add(Operand(.mask, number: first, size: 8, access: .write))
      add(Operand(.mask, number: first | 1, size: 8, access: .write))
    default: break
    }
    return all
  }

  package var usesMMX: Bool {
    for n in 0..<Int(operandCount) where operands[n].kind == .mmx { return true }
    return false
  }

  /// x87 instructions that do not change FIP, FDP and FOP (SDM volume 1, "x87 FPU Instruction and
  /// Data (Operand) Pointers").
  package var isX87Control: Bool {
    switch mnemonic {
    case .fnclex, .fldcw, .fnstcw, .fnstsw, .fnstenv, .fldenv, .fninit, .fnsave, .frstor, .fwait:
      true
    default: false
    }
  }
}
