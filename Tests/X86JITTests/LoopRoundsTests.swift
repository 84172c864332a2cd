// SPDX-License-Identifier: Apache-2.0
//
// Random loops of one block that walk through memory by constant steps, each run by the interpreter
// and by the translator: across pages, onto misaligned and absent ones, over their own code, with
// the loop's end anywhere.

import Foundation
import Support
import Testing
import X86
import X86CPU
import X86JIT

@Suite struct LoopRoundsTests {
  @Test(arguments: 1...4) func randomLoops(_ seed: UInt64) { run(seed) }

  @Test(arguments: 5...6) func unguardedLoops(_ seed: UInt64) { run(seed, guards: false) }

  @Test(arguments: 7...8) func roundsAreInTheirPages(_ seed: UInt64) {
    run(seed, verifies: true).expectVerified()
  }

  @discardableResult
  private func run(_ seed: UInt64, guards: Bool = true, verifies: Bool = false) -> ComparisonRig {
    var rig = ComparisonRig(
      seed: seed &* 0xA076_1D64_78BD_642F, vector: true, guards: guards, verifies: verifies,
      xcr0: HostFeatures.current.hasAVX512 ? 0xE7 : 7)
    let rounds = RandomRounds(debug: 100, release: 1500)
    for round in rounds.range {
      rig.begin(round)
      let loop = LoopGenerator.loop(&rig.random)
      rig.load(loop)
      for run in 0..<6 {
        let given = LoopGenerator.registers(&rig.random)
        guard let difference = rig.run(loop, given: given) else { continue }
        Issue.record(
          "seed \(seed), round \(round), run \(run): \(difference)\n\(rounds.again(round))")
        return rig
      }
    }
    return rig
  }

  /// A loop whose stores reach the page of its code: what is run is what was written.
  @Test(arguments: [0, 1] as [UInt32]) func storesReachTheLoop(_ threshold: UInt32) {
    let m = TestMachine(threshold: threshold)
    m.setLongMode()
    // mov [rdi], al ; inc rdi ; dec rcx ; jnz -10 ; hlt
    let code: [UInt8] = [0x88, 0x07, 0x48, 0xFF, 0xC7, 0x48, 0xFF, 0xC9, 0x75, 0xF6, 0xF4]
    for start in [0x2100, 0x2100, 0x2FF0 - 0x400] {
      m.load(code, at: 0x3000)
      m.cpu.gpr[0] = 0xF4
      m.cpu.gpr[7] = UInt64(start)
      m.cpu.gpr[1] = UInt64(0x3000 - start + 4)
      // The fourth byte of the code that is overwritten is of `inc rdi`: HLT at the loop's head.
      #expect(m.run(from: 0x3000) == .hlt)
      #expect(m.cpu.s.pointee.rip == 0x3000)
      #expect(m.cpu.gpr[7] == 0x3001)
      #expect(m.read(0x2FFF, as: UInt8.self) == 0xF4)
    }
  }

  /// A loop that waits for another processor's store ends a moment after a request.
  @Test func requestEndsALoopInPlace() {
    let m = TestMachine(threshold: 1)
    m.setLongMode()
    // cmp [rdi], eax ; jne -4
    m.load([0x39, 0x07, 0x75, 0xFC, 0xF4], at: 0x1000)
    m.cpu.gpr[0] = 1
    m.cpu.gpr[7] = 0x4000
    let processor = m.processor
    // A thread of its own: the test blocks one of the few that tasks run on.
    Thread.detachNewThread {
      usleep(20_000)
      processor.kick()
    }
    #expect(m.run(from: 0x1000) == .externalInterrupt)
    #expect(m.cpu.s.pointee.rip == 0x1000)
  }
}

/// Loops of LoopRoundsTests. RSI and RDI walk, RBX counts up, RBP and R8 stay, R11 and R14 are
/// steps, RAX and R9 small, RCX counts down.
private enum LoopGenerator {
  private static let steps: [Int32] = [1, 2, 3, 4, 8, 16, 24, 64, 80, 512, -1, -4, -8, -16, -48, 0]

  static func registers(_ random: inout SplitMix) -> [Int: UInt64] {
    func address() -> UInt64 {
      UInt64(ComparisonRig.data) + UInt64.random(in: 0..<0x5020, using: &random) & ~7
    }
    var registers: [Int: UInt64] = [:]
    for n in [5, 6, 7, 8, 13] { registers[n] = address() }
    if Bool.random(using: &random) { registers[6]! += UInt64.random(in: 0..<8, using: &random) }
    registers[3] = UInt64.random(in: 0..<64, using: &random)
    for n in [11, 14] {
      registers[n] = UInt64(bitPattern: Int64.random(in: -2...1100, using: &random))
      if Bool.random(using: &random) { registers[n]! &= 15 }
    }
    registers[1] = UInt64.random(in: 1..<400, using: &random)
    return registers
  }

  static func loop(_ random: inout SplitMix) -> InstructionGenerator.Program {
    var a = Assembler(origin: 0)
    var program = InstructionGenerator.Program()
    program.undefinedFlags = 0x10
    let head = a.label()
    a.bind(head)
    for _ in 0..<Int.random(in: 1...5, using: &random) {
      if body(&a, &random) { program.undefinedFlags = 0xD4 }
      if Int.random(in: 0..<4, using: &random) == 0 { advance(&a, &random) }
    }
    advance(&a, &random)
    // JNZ, JA, JG: all end with RCX at 0.
    a.arithmetic(.sub, .register(.rcx), immediate: 1)
    a.jump(if: [5, 5, 7, 15].randomElement(using: &random)!, head)
    a.byte(0xF4)
    a.resolve()
    program.bytes = a.bytes
    return program
  }

  private static func advance(_ a: inout Assembler, _ random: inout SplitMix) {
    let register: HostRegister = [.rsi, .rdi, .rbx].randomElement(using: &random)!
    let step = steps.randomElement(using: &random)!
    switch Int.random(in: 0..<6, using: &random) {
    case 0: a.lea(register, .memory(register, step))
    case 2, 3: a.arithmetic(.add, register, .register(Bool.random(using: &random) ? .r14 : .r11))
    case 1: a.arithmetic(.sub, .register(register), immediate: -step)
    default: a.arithmetic(.add, .register(register), immediate: step)
    }
  }

  private static func place(_ random: inout SplitMix) -> Place {
    let displacement = Int32.random(in: -4..<8, using: &random) * 8
    let scale = UInt8.random(in: 0..<4, using: &random)
    switch Int.random(in: 0..<10, using: &random) {
    case 8: return .memory(.r8, index: .rax, scale: scale, displacement)
    case 9: return .memory(.rsi, index: .r9, scale: scale, displacement)
    case 0, 1: return .memory(.rsi, displacement)
    case 2: return .memory(.rdi, displacement)
    case 3: return .memory(.rbp, index: .rbx, scale: scale, displacement)
    case 4: return .memory(.r8, index: .rbx, scale: scale, displacement)
    case 5: return .memory(.rsp, displacement)
    case 6: return .memory(.r13, index: .rbx, scale: scale, displacement)
    default: return .memory(.rsi, index: .rbx, scale: scale, displacement)
    }
  }

  /// One instruction; whether it leaves flags undefined.
  private static func body(_ a: inout Assembler, _ random: inout SplitMix) -> Bool {
    let reg: UInt8 = [0, 2, 9, 10].randomElement(using: &random)!
    let rm = place(&random)
    switch Int.random(in: 0..<14, using: &random) {
    case 12: a.emit(Form(0xB6, map: .two), reg: [0, 9].randomElement(using: &random)!, rm: rm)
    case 13:
      let register: HostRegister = Bool.random(using: &random) ? .rax : .r9
      a.arithmetic(.and, .register(register), immediate: 0x7F, wide: false)
    case 0, 1, 2: arithmetic(&a, &random, reg, rm)
    case 3: a.emit(Form(0x8B, wide: Bool.random(using: &random)), reg: reg, rm: rm)
    case 4: a.emit(Form(0x89, wide: Bool.random(using: &random)), reg: reg, rm: rm)
    case 5:
      a.emit(Form(0xB6 + UInt8.random(in: 0...1, using: &random), map: .two), reg: reg, rm: rm)
    case 6:
      a.emit(Form(0xF7, wide: true), reg: 4, rm: rm)
      return true
    case 7: a.emitVEX(Form(0xF6, map: .three38, wide: true), prefix: 3, reg: reg, vvvv: 11, rm: rm)
    case 8: a.emit(Form([0x28, 0x29].randomElement(using: &random)!, map: .two), reg: reg, rm: rm)
    case 9: sse(&a, &random, reg, rm)
    case 10:
      let opcode: UInt8 = [0x10, 0x11, 0x58, 0x59, 0xFE].randomElement(using: &random)!
      a.emitVEX(Form(opcode, map: .two), prefix: opcode == 0xFE ? 1 : 0, reg: reg, vvvv: 2, rm: rm)
    default:
      // VMOVDQU64 of 64 bytes, where there is no REX to encode.
      guard (rm.base?.rawValue ?? 0) < 8, HostFeatures.current.hasAVX512 else {
        return body(&a, &random)
      }
      a.emit(0x62, 0xF1, 0xFE, 0x48)
      a.emit(Form(0x6F + UInt8.random(in: 0...1, using: &random) * 0x10), reg: reg & 7, rm: rm)
    }
    return false
  }

  private static func arithmetic(
    _ a: inout Assembler, _ random: inout SplitMix, _ reg: UInt8, _ rm: Place
  ) {
    let kind = UInt8.random(in: 0..<8, using: &random) << 3
    var form = Form(kind | UInt8.random(in: 0..<4, using: &random))
    if form.opcode & 1 != 0 {
      form.wide = Bool.random(using: &random)
      form.operandSize16 = !form.wide && Bool.random(using: &random)
    }
    a.emit(form, reg: reg, rm: rm)
  }

  private static func sse(
    _ a: inout Assembler, _ random: inout SplitMix, _ reg: UInt8, _ rm: Place
  ) {
    let opcode: UInt8 = [0x10, 0x11, 0x58, 0x5C, 0xEF].randomElement(using: &random)!
    var form = Form(opcode, map: .two)
    switch opcode == 0xEF ? 0 : Int.random(in: 0..<4, using: &random) {
    case 0: form.operandSize16 = true
    case 1: form.repeatPrefix = 0xF3
    case 2: form.repeatPrefix = 0xF2
    default: break
    }
    a.emit(form, reg: reg, rm: rm)
  }
}
