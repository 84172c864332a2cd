// SPDX-License-Identifier: Apache-2.0
//
// Loads and stores the guest's MXCSR and x87 state. The first block that needs them loads them, and
// they stay loaded across blocks. Before Swift code runs, and at exits of translated code, `store`
// writes them back. `vectorReady` says what is loaded.

import X86CPU

/// Offsets from the CPUState of what vector code uses.
enum VectorOffset {
  private static let native = MemoryLayout<CPUState>.offset(of: \.native)!
  static let ready = native + MemoryLayout<NativeState>.offset(of: \.vectorReady)!
  static let hostMXCSR = native + MemoryLayout<NativeState>.offset(of: \.hostMXCSR)!
  static let x87Instruction = native + MemoryLayout<NativeState>.offset(of: \.x87Instruction)!
  static let x87Data = native + MemoryLayout<NativeState>.offset(of: \.x87Data)!
  static let x87Opcode = native + MemoryLayout<NativeState>.offset(of: \.x87Opcode)!
  static let image = CPU.vectorOffset + VectorLayout.fx
  static let mxcsr = CPU.vectorOffset + VectorLayout.mxcsr
  static let instructionPointer = CPU.vectorOffset + VectorLayout.fip
  static let dataPointer = CPU.vectorOffset + VectorLayout.fdp
  static let opcode = CPU.vectorOffset + VectorLayout.fop
  /// Four bytes for the operand of a load of a control word.
  static let scratch = CPU.vectorOffset + VectorLayout.mxcsrScratch

  static func vector(_ number: UInt8) -> Int {
    CPU.vectorOffset + VectorLayout.zmm + Int(number) * 64
  }

  static func mask(_ number: UInt8) -> Int {
    CPU.vectorOffset + VectorLayout.opmask + Int(number) * 8
  }
}

struct VectorThunks {
  /// Called: the guest's MXCSR is in the host's. Clobbers R14 and flags.
  private(set) var loadMXCSR: UInt = 0
  /// Called: the guest's x87 state and MXCSR are in the host's. Clobbers XMM0 to XMM15 as well.
  private(set) var loadX87: UInt = 0
  /// Called: bytes 16 to 63 of registers 0 to 15 in the state are 0. Clobbers ZMM31.
  private(set) var zeroUpper: UInt = 0

  /// `here` is the address of what is emitted next.
  mutating func emit(_ a: inout Assembler, hasAVX512: Bool) {
    func here(_ a: Assembler) -> UInt { a.origin + UInt(a.position) }
    loadMXCSR = here(a)
    Self.control(&a, 2, VectorOffset.mxcsr + 8)
    Self.noteLoaded(&a, [])
    a.ret()
    loadX87 = here(a)
    let skip = a.label()
    // FXRSTOR loads MXCSR, too: from the image, which must have the flags raised since.
    a.testByte(.state(VectorOffset.ready + 8), Self.arithmetic)
    a.jump(if: 4, skip)
    Self.control(&a, 3, VectorOffset.mxcsr + 8)
    a.bind(skip)
    a.emit(Form(0xAE, map: .two, wide: true), reg: 1, rm: .state(VectorOffset.image + 8))
    Self.takePointers(&a)
    Self.noteLoaded(&a, .x87Loaded)
    a.ret()
    guard hasAVX512 else { return }
    zeroUpper = here(a)
    a.emit(0x62, 0x01, 0x85, 0x40, 0xEF, 0xFF)  // vpxorq zmm31, zmm31, zmm31
    for number in 0..<16 as Range<UInt8> {
      let place = VectorOffset.vector(number) + 8
      a.vectorMove(31, width: 16, .store, offset: place + 16)
      a.vectorMove(31, width: 32, .store, offset: place + 32)
    }
    a.ret()
  }

  private static let arithmetic = UInt8(
    truncatingIfNeeded:
      VectorReadiness([.sseArithmetic, .avxArithmetic, .avx512Arithmetic]).rawValue)

  /// LDMXCSR (2) or STMXCSR (3).
  private static func control(_ a: inout Assembler, _ operation: UInt8, _ offset: Int) {
    a.emit(Form(0xAE, map: .two), reg: operation, rm: .state(offset))
  }

  /// Sets the bits of what is usable in their places for what has MXCSR loaded.
  private static func noteLoaded(_ a: inout Assembler, _ more: VectorReadiness) {
    let ready = Place.state(VectorOffset.ready + 8)
    a.emit(Form(0x8B), reg: HostRegister.r14.rawValue, rm: ready)
    a.arithmetic(
      .and, .register(.r14), immediate: Int32(VectorReadiness.levels.rawValue), wide: false)
    a.shiftLeft32(.r14, VectorReadiness.arithmeticShift)
    if !more.isEmpty {
      a.arithmetic(.or, .register(.r14), immediate: Int32(more.rawValue), wide: false)
    }
    a.emit(Form(0x09), reg: HostRegister.r14.rawValue, rm: ready)
  }

  /// The image's pointers and opcode, where blocks put theirs.
  private static func takePointers(_ a: inout Assembler) {
    a.load(.r14, .state(VectorOffset.instructionPointer + 8))
    a.store(.state(VectorOffset.x87Instruction + 8), .r14)
    a.load(.r14, .state(VectorOffset.dataPointer + 8))
    a.store(.state(VectorOffset.x87Data + 8), .r14)
    a.emit(
      Form(0xB7, map: .two), reg: HostRegister.r14.rawValue,
      rm: .state(VectorOffset.opcode + 8))
    a.store(.state(VectorOffset.x87Opcode + 8), .r14)
  }

  /// Writes loaded state back. `offset` is that of the CPUState from RSP. Clobbers R15 and flags.
  static func store(_ a: inout Assembler, offset: Int) {
    let done = a.label()
    let withoutX87 = a.label()
    let common = a.label()
    let ready = Place.state(VectorOffset.ready + offset)
    a.testByte(ready, UInt8(truncatingIfNeeded: VectorReadiness.loaded.rawValue))
    a.jump(if: 4, done)
    a.testByte(ready, UInt8(truncatingIfNeeded: VectorReadiness.x87Loaded.rawValue))
    a.jump(if: 4, withoutX87)
    a.emit(Form(0xAE, map: .two, wide: true), reg: 0, rm: .state(VectorOffset.image + offset))
    // The pointers that the host recorded are its own.
    a.load(.r15, .state(VectorOffset.x87Instruction + offset))
    a.store(.state(VectorOffset.instructionPointer + offset), .r15)
    a.load(.r15, .state(VectorOffset.x87Data + offset))
    a.store(.state(VectorOffset.dataPointer + offset), .r15)
    a.load(.r15, .state(VectorOffset.x87Opcode + offset))
    var word = Form(0x89)
    word.operandSize16 = true
    a.emit(
      word, reg: HostRegister.r15.rawValue, rm: .state(VectorOffset.opcode + offset))
    a.emit(0xDB, 0xE3)  // fninit
    a.jump(common)
    a.bind(withoutX87)
    control(&a, 3, VectorOffset.mxcsr + offset)
    a.bind(common)
    control(&a, 2, VectorOffset.hostMXCSR + offset)
    a.arithmetic(.and, ready, immediate: Int32(VectorReadiness.usable.rawValue), wide: false)
    a.bind(done)
  }
}
