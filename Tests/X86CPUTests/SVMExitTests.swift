// SPDX-License-Identifier: Apache-2.0
//
// One small guest for each exit of SVM: its code, EXITINFO1, EXITINFO2, and nRIP.

import Support
import Testing
import X86
import X86CPU

@Suite struct SVMExitTests {
  /// An instruction with the intercept that makes it exit.
  struct Simple: Sendable, CustomTestStringConvertible {
    var code: SVMExitCode
    var bytes: [UInt8]
    var intercept: SVMIntercepts
    var testDescription: String { code.name }

    init(_ code: SVMExitCode, _ bytes: [UInt8], _ intercept: SVMIntercepts) {
      (self.code, self.bytes, self.intercept) = (code, bytes, intercept)
    }
  }

  static let simple: [Simple] = [
    .init(.cpuid, [0x0F, 0xA2], .cpuid), .init(.hlt, [0xF4], .hlt),
    .init(.rdtsc, [0x0F, 0x31], .rdtsc), .init(.rdtscp, [0x0F, 0x01, 0xF9], .rdtscp),
    .init(.rdpmc, [0x0F, 0x33], .rdpmc), .init(.pushf, [0x9C], .pushf),
    .init(.popf, [0x9D], .popf), .init(.iret, [0x48, 0xCF], .iret),
    .init(.invd, [0x0F, 0x08], .invd), .init(.wbinvd, [0x0F, 0x09], .wbinvd),
    .init(.pause, [0xF3, 0x90], .pause), .init(.monitor, [0x0F, 0x01, 0xC8], .monitor),
    .init(.mwait, [0x0F, 0x01, 0xC9], .mwait), .init(.icebp, [0xF1], .icebp),
    .init(.vmmcall, [0x0F, 0x01, 0xD9], .vmmcall), .init(.vmrun, [0x0F, 0x01, 0xD8], .vmrun),
    .init(.vmload, [0x0F, 0x01, 0xDA], .vmload), .init(.vmsave, [0x0F, 0x01, 0xDB], .vmsave),
    .init(.stgi, [0x0F, 0x01, 0xDC], .stgi), .init(.clgi, [0x0F, 0x01, 0xDD], .clgi),
    .init(.invlpga, [0x0F, 0x01, 0xDF], .invlpga),
    .init(.gdtrRead, [0x0F, 0x01, 0x06], .gdtrRead),
    .init(.idtrRead, [0x0F, 0x01, 0x0E], .idtrRead),
    .init(.gdtrWrite, [0x0F, 0x01, 0x16], .gdtrWrite),
    .init(.idtrWrite, [0x0F, 0x01, 0x1E], .idtrWrite),
    .init(.ldtrRead, [0x0F, 0x00, 0xC0], .ldtrRead), .init(.trRead, [0x0F, 0x00, 0xC8], .trRead),
    .init(.ldtrWrite, [0x0F, 0x00, 0xD0], .ldtrWrite),
    .init(.trWrite, [0x0F, 0x00, 0xD8], .trWrite),
  ]

  @Test(arguments: simple) func simpleInstruction(_ one: Simple) throws {
    let m = try SVMMachine()
    m.intercept(one.intercept)
    m.test.load([0x90] + one.bytes, at: 0x1000)
    m.vmcb[.rax] = 0x3000
    #expect(try m.run() == one.code)
    #expect(m.vmcb[.exitCode] == one.code.rawValue)
    #expect(m.vmcb[.rip] == 0x1001 && m.vmcb[.nextRIP] == 0x1001 + UInt64(one.bytes.count))
    #expect(m.vmcb[.exitInterruptInfo] == 0 && m.vmcb[.rax] == 0x3000)
  }

  /// VMMCALL that is not intercepted is #UD, as is SVM's instruction above privilege 0.
  @Test func hypercallWithoutIntercept() throws {
    let m = try SVMMachine()
    m.intercept(.vmmcall, false)
    m.vmcb[.exceptionIntercepts] = 1 << 6
    m.test.load([0x0F, 0x01, 0xD9], at: 0x1000)
    #expect(try m.run() == .exception(6))
    // Nor does AMD's processor have VMCALL.
    m.test.load([0x0F, 0x01, 0xC1], at: 0x1000)
    #expect(try m.run() == .exception(6))
  }

  // MARK: Registers

  @Test func controlRegisters() throws {
    let m = try SVMMachine()
    m.vmcb[.controlRegisterIntercepts] = 1 << 3 | 1 << (16 + 4)
    // MOV RDX, CR3; MOV CR4, RSI.
    m.test.load([0x0F, 0x20, 0xDA], at: 0x1000)
    #expect(try m.run() == .readCR(3))
    #expect(m.vmcb[.exitInfo1] == 1 << 63 | 2 && m.vmcb[.nextRIP] == 0x1003)
    m.test.load([0x0F, 0x22, 0xE6], at: 0x1000)
    m.cpu.gpr[6] = m.vmcb[.cr4]
    #expect(try m.run() == .writeCR(4))
    #expect(m.vmcb[.exitInfo1] == UInt64(1) << 63 | 6)
    // CLTS is no MOV.
    m.vmcb[.controlRegisterIntercepts] = 1 << 16
    m.test.load([0x0F, 0x06], at: 0x1000)
    #expect(try m.run() == .writeCR(0) && m.vmcb[.exitInfo1] == 0)
  }

  /// TS and MP may change without an exit, another bit not.
  @Test func selectiveWrite() throws {
    let m = try SVMMachine()
    m.intercept(.selectiveCR0Write)
    // MOV CR0, RAX; HLT
    m.test.load([0x0F, 0x22, 0xC0, 0xF4], at: 0x1000)
    m.vmcb[.rax] = m.vmcb[.cr0] | CR0.ts.rawValue
    #expect(try m.run() == .hlt)
    #expect(m.vmcb[.cr0] & CR0.ts.rawValue != 0)
    m.vmcb[.rip] = 0x1000
    m.vmcb[.rax] = m.vmcb[.cr0] | CR0.am.rawValue
    #expect(try m.run() == .selectiveCR0Write)
  }

  @Test func debugRegisters() throws {
    let m = try SVMMachine()
    m.vmcb[.debugRegisterIntercepts] = 1 << 7 | 1 << 16
    m.test.load([0x0F, 0x21, 0xFB], at: 0x1000)  // MOV RBX, DR7
    #expect(try m.run() == .readDR(7) && m.vmcb[.exitInfo1] == 3)
    m.test.load([0x0F, 0x23, 0xC1], at: 0x1000)  // MOV DR0, RCX
    #expect(try m.run() == .writeDR(0) && m.vmcb[.exitInfo1] == 1)
  }

  // MARK: Ports and MSRs

  @Test func ports() throws {
    let m = try SVMMachine()
    m.intercept(.ports)
    m.portMap.storeBytes(of: 1 << 4, toByteOffset: 0x80 / 8 + 2, as: UInt8.self)  // port 0x94
    // OUT 0x80, AL; IN EAX, 0x94 (by DX).
    m.cpu.gpr[2] = 0x94
    m.test.load([0xE6, 0x80, 0xED], at: 0x1000)
    #expect(try m.run() == .port)
    let info = SVMPortInfo(rawValue: m.vmcb[.exitInfo1])
    #expect(m.vmcb[.rip] == 0x1002 && info.port == 0x94 && info.size == 4 && info.isInput)
    #expect(!info.isString && m.vmcb[.exitInfo2] == 0x1003)
    // OUTSB with another segment and 32-bit addresses, repeated.
    m.vmcb[.rip] = 0x1010
    m.cpu.gpr[1] = 2
    m.test.load([0x64, 0x67, 0xF3, 0x6E], at: 0x1010)
    #expect(try m.run() == .port)
    let string = SVMPortInfo(rawValue: m.vmcb[.exitInfo1])
    #expect(string.isString && string.isRepeated && !string.isInput && string.size == 1)
    #expect(string.segment == .fs && string.addressSize == 4 && m.vmcb[.exitInfo2] == 0x1014)
  }

  @Test func msrs() throws {
    let m = try SVMMachine()
    m.intercept(.msrs)
    // Writes of LSTAR (C0000082H): bit 2 * 82H + 1 of the second part.
    m.msrMap.storeBytes(of: 1 << 5, toByteOffset: 0x800 + 0x82 / 4, as: UInt8.self)
    m.cpu.gpr[1] = 0xC000_0082
    m.test.load([0x0F, 0x32, 0x0F, 0x30], at: 0x1000)  // RDMSR; WRMSR
    #expect(try m.run() == .msr)
    #expect(m.vmcb[.rip] == 0x1002 && m.vmcb[.exitInfo1] == 1)
    m.msrMap.storeBytes(of: 1 << 4, toByteOffset: 0x800 + 0x82 / 4, as: UInt8.self)
    m.vmcb[.rip] = 0x1000
    #expect(try m.run() == .msr)
    #expect(m.vmcb[.rip] == 0x1000 && m.vmcb[.exitInfo1] == 0)
    // Outside the three ranges.
    m.vmcb[.rip] = 0x1000
    m.cpu.gpr[1] = 0x4B56_4D00
    #expect(try m.run() == .msr && m.vmcb[.exitInfo1] == 0)
  }

  // MARK: Memory

  @Test func nestedFaults() throws {
    let m = try SVMMachine()
    // A mapping of the guest's own to 16 MiB, where the nested tables have nothing.
    m.test.store(0x100_0087 as UInt64, at: 0x12000 + 3 * 8)
    m.test.load([0x88, 0x04, 0x25, 0x34, 0x12, 0x60, 0x00], at: 0x1000)  // MOV [0x601234], AL
    #expect(try m.run() == .nestedPageFault)
    let write = NestedFaultInfo(rawValue: m.vmcb[.exitInfo1])
    #expect(write == [.write, .user, .finalAddress] && m.vmcb[.exitInfo2] == 0x100_1234)
    m.test.load([0x8A, 0x04, 0x25, 0x34, 0x12, 0x60, 0x00], at: 0x1000)
    #expect(try m.run() == .nestedPageFault)
    #expect(NestedFaultInfo(rawValue: m.vmcb[.exitInfo1]) == [.user, .finalAddress])
    m.vmcb[.rip] = 0x60_0000
    #expect(try m.run() == .nestedPageFault)
    #expect(NestedFaultInfo(rawValue: m.vmcb[.exitInfo1]) == [.fetch, .user, .finalAddress])
    // A page table that is not there.
    m.vmcb[.rip] = 0x1000
    m.vmcb[.cr3] = 0x200_0000
    #expect(try m.run() == .nestedPageFault)
    #expect(NestedFaultInfo(rawValue: m.vmcb[.exitInfo1]).contains(.guestTable))
    #expect(m.vmcb[.exitInfo2] == 0x200_0000)
  }

  /// Nested tables that do not let the guest write, or execute.
  @Test func nestedRights() throws {
    let m = try SVMMachine()
    m.test.load([0x88, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00], at: 0x1000)  // MOV [0x400000], AL
    m.test.setRights(5, ofLargePage: 2)
    #expect(try m.run() == .nestedPageFault)
    let info = NestedFaultInfo(rawValue: m.vmcb[.exitInfo1])
    #expect(info == [.present, .write, .user, .finalAddress])
    // Not a user's page: not there for the guest.
    m.test.setRights(3, ofLargePage: 2)
    #expect(try m.run() == .nestedPageFault)
    m.test.setRights(7, ofLargePage: 2)
    m.test.load([0xF4], at: 0x1007)
    #expect(try m.run() == .hlt)
  }

  // MARK: Exceptions

  @Test func exceptions() throws {
    let m = try SVMMachine()
    m.vmcb[.exceptionIntercepts] = 1 << 13 | 1 << 14 | 1 << 3
    m.test.load([0xA1, 0, 0, 0, 0, 0, 0, 0, 0x80], at: 0x1000)  // not canonical
    #expect(try m.run() == .exception(13) && m.vmcb[.exitInfo1] == 0)
    m.test.load([0x8A, 0x04, 0x25, 0x34, 0x12, 0x00, 0x40], at: 0x1000)
    m.vmcb[.cr2] = 7
    #expect(try m.run() == .exception(14))
    #expect(m.vmcb[.exitInfo2] == 0x4000_1234 && m.vmcb[.cr2] == 7)
    m.test.load([0xCC], at: 0x1000)
    #expect(try m.run() == .exception(3) && m.vmcb[.nextRIP] == 0x1001)
  }

  /// DR6 has the causes.
  @Test func debugException() throws {
    let m = try SVMMachine()
    m.vmcb[.exceptionIntercepts] = 1 << 1
    m.vmcb[.rflags] |= RFLAGS.tf.rawValue
    m.test.load([0x90, 0x90], at: 0x1000)
    #expect(try m.run() == .exception(1))
    #expect(m.vmcb[.rip] == 0x1001 && m.vmcb[.dr6] & DR6.bs.rawValue != 0)
  }

  /// No IDT: a fault, a double fault, and the end.
  @Test func shutdown() throws {
    let m = try SVMMachine()
    m.vmcb[.idtrLimit] = 0
    m.test.load([0x0F, 0x0B], at: 0x1000)
    #expect(try m.run() == .shutdown)
  }

  @Test func softwareInterruptBeforeItsGate() throws {
    let m = try SVMMachine()
    m.intercept(.softwareInterrupt)
    m.test.load([0xCD, 0x80], at: 0x1000)
    #expect(try m.run() == .softwareInterrupt)
    #expect(m.vmcb[.exitInfo1] == 0x80 && m.vmcb[.nextRIP] == 0x1002)
  }

  @Test func addressOfINVLPG() throws {
    let m = try SVMMachine()
    m.intercept(.invlpg)
    m.test.load([0x0F, 0x01, 0x3C, 0x25, 0x78, 0x56, 0x34, 0x12], at: 0x1000)
    #expect(try m.run() == .invlpg && m.vmcb[.exitInfo1] == 0x1234_5678)
  }

  // MARK: Time and PAUSE

  @Test func counterHasOffsetAndRatio() throws {
    let m = try SVMMachine()
    m.test.load([0x0F, 0x31, 0xF4], at: 0x1000)  // RDTSC; HLT
    m.vmcb[.tscOffset] = 1 << 62
    #expect(try m.run() == .hlt)
    #expect(m.cpu.gpr[2] >> 30 == 1)
    // Twice as fast from nothing: far beyond the host's own.
    m.vmcb[.tscOffset] = 0
    m.vmcb[.rip] = 0x1000
    try m.cpu.writeMSR(MSR.tscRatio.rawValue, 2 << 32)
    let before = HostTSC.read()
    #expect(try m.run() == .hlt)
    let value = m.vmcb[.rax] & 0xFFFF_FFFF | m.cpu.gpr[2] << 32
    #expect(value >= 2 &* before && value <= 2 &* HostTSC.read())
    #expect(throws: (any Error).self) { try m.cpu.writeMSR(MSR.tscRatio.rawValue, 1 << 40) }
  }

  /// So many PAUSEs pass as the count says.
  @Test func pauseFilter() throws {
    let m = try SVMMachine()
    m.intercept(.pause)
    m.vmcb[.pauseFilterCount] = 3
    m.test.load([0xF3, 0x90, 0xEB, 0xFC], at: 0x1000)  // PAUSE; JMP to it
    let retired = m.cpu.s.pointee.retired
    #expect(try m.run() == .pause)
    #expect(m.cpu.s.pointee.retired &- retired == 6 && m.vmcb[.rip] == 0x1000)
  }
}
