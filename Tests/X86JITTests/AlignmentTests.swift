// SPDX-License-Identifier: Apache-2.0
//
// Alignment checks (SDM volume 3, "Interrupt 17, Alignment Check Exception") of code that has run
// without them before, so that the TLB has its pages, by the interpreter and by the translator.

import Support
import Testing
import X86
import X86CPU

@Suite struct AlignmentTests {
  /// An instruction whose operands are at odd addresses.
  private struct Access: CustomTestStringConvertible, Sendable {
    var testDescription: String
    var bytes: [UInt8]
    var isChecked = true
  }

  private static let accesses = [
    Access(testDescription: "mov eax, [rbx]", bytes: [0x8B, 0x03]),
    Access(testDescription: "mov [rbx], ax", bytes: [0x66, 0x89, 0x03]),
    Access(testDescription: "add [rbx], rax", bytes: [0x48, 0x01, 0x03]),
    Access(testDescription: "movzx eax, word [rbx]", bytes: [0x0F, 0xB7, 0x03]),
    Access(testDescription: "lock xadd [rbx], eax", bytes: [0xF0, 0x0F, 0xC1, 0x03]),
    Access(testDescription: "bts [rbx], eax", bytes: [0x0F, 0xAB, 0x03]),
    Access(testDescription: "cmpxchg8b [rbx]", bytes: [0x0F, 0xC7, 0x0B]),
    Access(testDescription: "push rax", bytes: [0x50]),
    Access(testDescription: "pop rdx", bytes: [0x5A]),
    Access(testDescription: "push [rbx]", bytes: [0xFF, 0x33]),
    Access(testDescription: "two of a group", bytes: [0x8B, 0x03, 0x8B, 0x53, 0x04]),
    Access(testDescription: "lodsd", bytes: [0xAD]),
    Access(testDescription: "rep movsd", bytes: [0xF3, 0xA5]),
    Access(testDescription: "rep stosq", bytes: [0xF3, 0x48, 0xAB]),
    Access(testDescription: "movss xmm0, [rbx]", bytes: [0xF3, 0x0F, 0x10, 0x03]),
    Access(testDescription: "movq xmm0, [rbx]", bytes: [0xF3, 0x0F, 0x7E, 0x03]),
    Access(testDescription: "movsd [rbx], xmm0", bytes: [0xF2, 0x0F, 0x11, 0x03]),
    Access(testDescription: "fld dword [rbx]", bytes: [0xD9, 0x03]),
    Access(testDescription: "fld tbyte [rbx]", bytes: [0xDB, 0x2B]),
    Access(testDescription: "fnstenv [rbx]", bytes: [0xD9, 0x33]),
    Access(testDescription: "mov al, [rbx]", bytes: [0x8A, 0x03], isChecked: false),
    Access(testDescription: "movups xmm0, [rbx]", bytes: [0x0F, 0x10, 0x03], isChecked: false),
    Access(testDescription: "movups [rbx], xmm0", bytes: [0x0F, 0x11, 0x03], isChecked: false),
    Access(testDescription: "lea eax, [rbx]", bytes: [0x8D, 0x03], isChecked: false),
  ]

  private static let code: UInt64 = 0x1000

  private func machine(_ threshold: UInt32, cpl: UInt8 = 3) -> TestMachine {
    let m = TestMachine(threshold: threshold)
    prepare(m, cpl)
    return m
  }

  private func prepare(_ m: TestMachine, _ cpl: UInt8) {
    m.setLongMode(cpl: cpl)
    m.cpu.s.pointee.cr0 |= CR0.am.rawValue
    m.cpu.vmxControls.exceptionBitmap = .max
    m.cpu.updateMode()
  }

  /// The vector that ends the code.
  private func run(_ m: TestMachine, flags: RFLAGS = [], offset: UInt64 = 1) -> UInt8 {
    for n in 0..<16 { m.cpu.gpr[n] = 0x5000 + offset }
    m.cpu.gpr[0] = 8
    m.cpu.gpr[1] = 4
    m.cpu.gpr[4] = 0x7000 + offset
    m.cpu.gpr[7] = 0x6000 + offset
    m.cpu.flags = flags.rawValue | 2
    m.cpu.updateMode()
    #expect(m.run(from: Self.code) == .exceptionOrNMI)
    return InterruptionInfo(rawValue: m.cpu.exitFields.interruptionInfo).vector
  }

  @Test(arguments: accesses, [0, 1] as [UInt32])
  private func hotAccesses(_ access: Access, _ threshold: UInt32) {
    let m = machine(threshold)
    // HLT is #GP.
    m.load(access.bytes + [0xF4], at: Int(Self.code))
    let end = Self.code + UInt64(access.bytes.count)
    for round in 0..<3 {
      for _ in 0..<4 {
        #expect(run(m) == ExceptionVector.generalProtection.rawValue)
        #expect(m.cpu.s.pointee.rip == end)
      }
      let vector = run(m, flags: .ac)
      if access.isChecked {
        #expect(vector == ExceptionVector.alignmentCheck.rawValue, "round \(round)")
        #expect(m.cpu.s.pointee.rip == Self.code)
        #expect(m.cpu.exitFields.interruptionErrorCode == 0)
      } else {
        #expect(vector == ExceptionVector.generalProtection.rawValue)
        #expect(m.cpu.s.pointee.rip == end)
      }
      #expect(run(m, flags: .ac, offset: 0) == ExceptionVector.generalProtection.rawValue)
      m.cpu.s.pointee.cr0 &= ~CR0.am.rawValue
      #expect(run(m, flags: .ac) == ExceptionVector.generalProtection.rawValue)
      m.cpu.s.pointee.cr0 |= CR0.am.rawValue
    }
  }

  @Test(arguments: [0, 1] as [UInt32]) func noChecksForSupervisors(_ threshold: UInt32) {
    let m = machine(threshold, cpl: 0)
    m.load([0x8B, 0x03, 0x50, 0xF4], at: Int(Self.code))
    for _ in 0..<4 {
      m.cpu.gpr[3] = 0x5001
      m.cpu.gpr[4] = 0x7001
      m.cpu.flags = RFLAGS.ac.rawValue | 2
      m.cpu.updateMode()
      #expect(m.run(from: Self.code) == .hlt)
    }
  }

  @Test(arguments: [0, 1] as [UInt32]) func popfSetsChecks(_ threshold: UInt32) {
    let m = machine(threshold)
    // popf ; mov eax, [rbx]
    m.load([0x9D, 0x8B, 0x03, 0xF4], at: Int(Self.code))
    for isChecked in [false, false, false, true, false, true] {
      m.store(isChecked ? RFLAGS.ac.rawValue | 2 : 2, at: 0x7000)
      for n in 0..<16 { m.cpu.gpr[n] = 0x5001 }
      m.cpu.gpr[4] = 0x7000
      m.cpu.flags = 2
      m.cpu.updateMode()
      m.run(from: Self.code)
      #expect(m.cpu.s.pointee.rip == Self.code + (isChecked ? 1 : 3))
    }
  }

  @Test(arguments: [0, 1] as [UInt32]) func sysretBringsChecks(_ threshold: UInt32) {
    let m = machine(threshold, cpl: 0)
    m.load([0x48, 0x0F, 0x07], at: Int(Self.code))
    m.load([0x8B, 0x03, 0xF4], at: 0x1800)
    m.cpu.s.pointee.star = 0x0023_0010 << 32
    for isChecked in [false, false, false, true, false, true] {
      prepare(m, 0)
      m.cpu.gpr[1] = 0x1800
      m.cpu.gpr[3] = 0x5001
      m.cpu.gpr[11] = isChecked ? RFLAGS.ac.rawValue | 2 : 2
      m.run(from: Self.code)
      #expect(m.cpu.cpl == 3)
      #expect(m.cpu.s.pointee.rip == (isChecked ? 0x1800 : 0x1802))
    }
  }

  /// Descriptors are a supervisor's accesses, wherever they are.
  @Test(arguments: [0, 1] as [UInt32]) func noChecksOfDescriptors(_ threshold: UInt32) {
    let m = machine(threshold)
    m.load([0x8E, 0xC0, 0xF4], at: Int(Self.code))
    for _ in 0..<3 {
      // A data segment of DPL 3, not accessed.
      m.store(0x00CF_F200_0000_FFFF as UInt64, at: 0x8000)
      m.memory.advanced(by: 0x8019).storeBytes(of: 0x00CF_F200_0000_FFFF, as: UInt64.self)
      m.cpu.s.pointee.gdtr.base = 0x8001
      m.cpu.s.pointee.gdtr.limit = 0xFF
      m.cpu.gpr[0] = 0x1B
      m.cpu.flags = RFLAGS.ac.rawValue | 2
      m.cpu.updateMode()
      m.run(from: Self.code)
      #expect(m.cpu.s.pointee.rip == Self.code + 2)
      #expect(m.read(0x8019 + 5, as: UInt8.self) == 0xF3)
    }
  }
}
