// SPDX-License-Identifier: Apache-2.0
//
// Instructions and MSRs are the guest's only where its CPUID says so: each is executed with its
// bit and without it, and without it must fault.

import CHost
import KVM
import SystemPackage
import Testing

/// A bit of CPUID that a test takes away or gives.
struct CPUIDBit: Sendable {
  enum Word { case eax, ebx, ecx, edx }
  var function: UInt32
  var index: UInt32 = 0
  var word: Word
  var bit: UInt32

  func set(_ entry: inout kvm_cpuid_entry2, _ on: Bool) {
    guard entry.function == function, entry.index == index else { return }
    func change(_ value: inout UInt32) {
      value = on ? value | 1 << bit : value & ~(1 << bit)
    }
    switch word {
    case .eax: change(&entry.eax)
    case .ebx: change(&entry.ebx)
    case .ecx: change(&entry.ecx)
    case .edx: change(&entry.edx)
    }
  }

  static let x2APIC = CPUIDBit(function: 1, word: .ecx, bit: 21)
  static let deadline = CPUIDBit(function: 1, word: .ecx, bit: 24)
  static let pdcm = CPUIDBit(function: 1, word: .ecx, bit: 15)
  static let rdrand = CPUIDBit(function: 1, word: .ecx, bit: 30)
  static let invpcid = CPUIDBit(function: 7, word: .ebx, bit: 10)
  static let rdseed = CPUIDBit(function: 7, word: .ebx, bit: 18)
  static let rdpid = CPUIDBit(function: 7, word: .ecx, bit: 22)
  static let ibrs = CPUIDBit(function: 7, word: .edx, bit: 26)
  static let stibp = CPUIDBit(function: 7, word: .edx, bit: 27)
  static let archCapabilities = CPUIDBit(function: 7, word: .edx, bit: 29)
  static let ssbd = CPUIDBit(function: 7, word: .edx, bit: 31)
  static let xsaves = CPUIDBit(function: 0xD, index: 1, word: .eax, bit: 3)
  static let nx = CPUIDBit(function: 0x8000_0001, word: .edx, bit: 20)
  static let rdtscp = CPUIDBit(function: 0x8000_0001, word: .edx, bit: 27)
  static let longMode = CPUIDBit(function: 0x8000_0001, word: .edx, bit: 29)
}

/// MSRs and instructions are the guest's only where its CPUID says so.
@Suite(.serialized) struct GuestFeatureTests {
  private static let undefined: UInt16 = 0x96
  private static let protection: UInt16 = 0x9D
  private static let done: UInt16 = 0x90

  /// Code at 0x1000, then OUT to 0x90; #UD and #GP go to ports of their own.
  private func client(
    _ code: [UInt8], without: [CPUIDBit] = [], with: [CPUIDBit] = [], chips: Client.Chips = .none
  ) throws -> Client {
    let client = try Client(chips: chips)
    try client.changeCPUID { entry in
      for bit in without { bit.set(&entry, false) }
      for bit in with { bit.set(&entry, true) }
    }
    client.load(code + [0xE6, 0x90, 0xF4])
    for (vector, port) in [(6, UInt8(Self.undefined)), (13, UInt8(Self.protection))] {
      let place = 0x3000 + vector * 16
      client.load([0xE6, port, 0xF4], at: place)
      client.memory.storeBytes(of: UInt32(place), toByteOffset: vector * 4, as: UInt32.self)
    }
    return client
  }

  // MARK: Instructions

  struct Instruction: Sendable, CustomTestStringConvertible {
    var testDescription: String
    var code: [UInt8]
    var bits: [CPUIDBit]
  }

  static let instructions = [
    Instruction(testDescription: "RDTSCP", code: [0x0F, 0x01, 0xF9], bits: [.rdtscp, .rdpid]),
    Instruction(
      testDescription: "RDPID", code: [0xF3, 0x0F, 0xC7, 0xF8], bits: [.rdtscp, .rdpid]),
    Instruction(testDescription: "RDRAND", code: [0x0F, 0xC7, 0xF0], bits: [.rdrand]),
    Instruction(testDescription: "RDSEED", code: [0x0F, 0xC7, 0xF8], bits: [.rdseed]),
    // mov ax, 2; invpcid eax, [0x5000]
    Instruction(
      testDescription: "INVPCID",
      code: [0x66, 0xB8, 2, 0, 0, 0, 0x66, 0x0F, 0x38, 0x82, 0x06, 0, 0x50], bits: [.invpcid]),
  ]

  @Test(arguments: instructions) func instruction(_ instruction: Instruction) throws {
    #expect(try client(instruction.code).nextOut()?.port == Self.done)
    let without = try client(instruction.code, without: instruction.bits)
    #expect(try without.nextOut()?.port == Self.undefined)
  }

  /// Either bit brings both of the instructions that read IA32_TSC_AUX.
  @Test(arguments: [CPUIDBit.rdtscp, .rdpid]) func oneOfTwo(_ bit: CPUIDBit) throws {
    #expect(try client([0x0F, 0x01, 0xF9], without: [bit]).nextOut()?.port == Self.done)
  }

  /// xsaves [0x5000], of which the host may have none.
  @Test func compactedStates() throws {
    let code: [UInt8] = [0x66, 0x31, 0xC0, 0x66, 0x31, 0xD2, 0x0F, 0xC7, 0x2E, 0, 0x50]
    var isOffered = false
    let with = try client(code)
    try with.changeCPUID { entry in
      if entry.function == 0xD, entry.index == 1 { isOffered = entry.eax & 1 << 3 != 0 }
    }
    try with.changeSpecial { $0.cr4 = 1 << 18 }
    if isOffered { #expect(try with.nextOut()?.port == Self.done) }
    let without = try client(code, without: [.xsaves])
    try without.changeSpecial { $0.cr4 = 1 << 18 }
    #expect(try without.nextOut()?.port == Self.undefined)
  }

  // MARK: Model-specific registers

  private func bytes(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }
  /// mov ecx, number; rdmsr
  private func read(_ number: UInt32) -> [UInt8] { [0x66, 0xB9] + bytes(number) + [0x0F, 0x32] }
  /// mov ecx, number; mov eax, value; xor edx, edx; wrmsr
  private func write(_ number: UInt32, _ value: UInt32) -> [UInt8] {
    [0x66, 0xB9] + bytes(number) + [0x66, 0xB8] + bytes(value) + [0x66, 0x31, 0xD2, 0x0F, 0x30]
  }

  private func port(
    _ code: [UInt8], without: [CPUIDBit] = [], with: [CPUIDBit] = [], chips: Client.Chips = .none
  ) throws -> UInt16? {
    try client(code, without: without, with: with, chips: chips).nextOut()?.port
  }

  struct Register: Sendable, CustomTestStringConvertible {
    var testDescription: String
    var number: UInt32
    var bits: [CPUIDBit]
  }

  static let registers = [
    Register(
      testDescription: "IA32_ARCH_CAPABILITIES", number: 0x10A, bits: [.archCapabilities]),
    Register(testDescription: "IA32_PERF_CAPABILITIES", number: 0x345, bits: [.pdcm]),
    Register(testDescription: "IA32_TSC_AUX", number: 0xC000_0103, bits: [.rdtscp, .rdpid]),
    Register(testDescription: "IA32_XSS", number: 0xDA0, bits: [.xsaves]),
    Register(testDescription: "IA32_SPEC_CTRL", number: 0x48, bits: [.ibrs]),
  ]

  @Test(arguments: registers) func register(_ register: Register) throws {
    let code = read(register.number)
    #expect(try port(code, with: register.bits) == Self.done)
    #expect(try port(code, without: register.bits) == Self.protection)
    // The client reads it all the same.
    let client = try client(code, without: register.bits)
    #expect(try client.msr(register.number) == 0)
    #expect(try client.setMSR(register.number, 0))
  }

  @Test func writableRegisters() throws {
    #expect(try port(write(0xC000_0103, 7)) == Self.done)
    #expect(try port(write(0xC000_0103, 7), without: [.rdtscp, .rdpid]) == Self.protection)
    #expect(try port(write(0x48, 1), with: [.ibrs]) == Self.done)
    #expect(try port(write(0x48, 1), without: [.ibrs]) == Self.protection)
    #expect(try port(write(0x48, 1 << 5), with: [.ibrs]) == Self.protection)
  }

  /// A command that is written and never read.
  @Test func predictionBarrier() throws {
    #expect(try port(write(0x49, 1), with: [.ibrs]) == Self.done)
    #expect(try port(write(0x49, 2), with: [.ibrs]) == Self.protection)
    #expect(try port(write(0x49, 1), without: [.ibrs]) == Self.protection)
    #expect(try port(read(0x49), with: [.ibrs]) == Self.protection)
    #expect(try Client().msr(0x49) == nil)
  }

  /// What does nothing here is not offered.
  @Test func noSwitchesOfSpeculation() throws {
    var found: [UInt32: UInt32] = [:]
    let client = try Client()
    try client.changeCPUID { if $0.function == 7 { found[$0.index] = $0.edx } }
    let switches = [CPUIDBit.ibrs, .stibp, .ssbd].reduce(0) { $0 | UInt32(1) << $1.bit }
    #expect(try #require(found[0]) & switches == 0)
    #expect(found[2] ?? 0 == 0)
    #expect(try port(read(0x48)) == Self.protection)
    let capabilities = try #require(try client.msr(0x10A))
    // IBRS_ALL, BHI_NO, PBRSB_NO; RSBA.
    #expect(capabilities & (1 << 1 | 1 << 20 | 1 << 24) == 0)
    #expect(capabilities & 1 << 2 != 0)
  }

  @Test func extendedFeatures() throws {
    let (sce, lme, nxe): (UInt32, UInt32, UInt32) = (1 << 0, 1 << 8, 1 << 11)
    let efer: UInt32 = 0xC000_0080
    #expect(try port(write(efer, sce | lme | nxe)) == Self.done)
    #expect(try port(write(efer, sce | nxe), without: [.nx]) == Self.protection)
    #expect(try port(write(efer, sce | lme), without: [.nx]) == Self.done)
    #expect(try port(write(efer, sce | lme), without: [.longMode]) == Self.protection)
    let client = try client(write(efer, sce | nxe), without: [.longMode])
    #expect(try client.nextOut()?.port == Self.done)
    #expect(try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()).efer == UInt64(sce | nxe))
  }

  /// The guest's IA32_TSC_ADJUST moves its counter only where there is one; Linux has no #GP here.
  @Test func adjustment() throws {
    let bit = CPUIDBit(function: 7, word: .ebx, bit: 1)
    let with = try client(write(0x3B, 5))
    #expect(try with.nextOut()?.port == Self.done)
    #expect(try with.msr(0x3B) == 5)
    let without = try client(write(0x3B, 5), without: [bit])
    #expect(try without.nextOut()?.port == Self.done)
    #expect(try without.msr(0x3B) == 0)
  }

  // MARK: Local APIC

  @Test func modeOfTheLocalAPIC() throws {
    let code = write(0x1B, 0xFEE0_0D00)
    #expect(try port(code, chips: .all) == Self.done)
    #expect(try port(code, without: [.x2APIC], chips: .all) == Self.protection)
  }

  /// Mode 2 of the timer, the deadline, is a reserved bit of its entry without the CPUID bit.
  @Test func deadlineMode() throws {
    let code = write(0x1B, 0xFEE0_0D00) + write(0x832, 1 << 18 | 0x40)
    #expect(try port(code, with: [.deadline], chips: .all) == Self.done)
    #expect(try port(code, without: [.deadline], chips: .all) == Self.protection)
  }

  /// A deadline that is over when it is set interrupts before the next instruction.
  @Test func expiredDeadline() throws {
    // sti; wrmsr; out 0x90, al
    let client = try client([0xFB] + write(0x6E0, 1), with: [.deadline], chips: .all)
    client.load([0xE6, 0x92, 0xF4], at: 0x4000)
    client.memory.storeBytes(of: 0x4000, toByteOffset: 0x40 * 4, as: UInt32.self)
    try client.setLocalAPIC(0xF0, 0x1FF)
    try client.setLocalAPIC(0x320, 2 << 17 | 0x40)
    #expect(try client.nextOut()?.port == 0x92)
    #expect(try client.msr(0x6E0) == 0)
  }
}
