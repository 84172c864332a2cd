// SPDX-License-Identifier: Apache-2.0
//
// What the oracle once found, one small test each.

import Support
import Testing
import X86
import X86CPU

@Suite struct OracleRegressionTests {
  private func machine(_ code: [UInt8], cpl: UInt8 = 0) -> TestMachine {
    let m = TestMachine()
    m.setLongMode(cpl: cpl)
    m.cpu.vmxControls.exceptionBitmap = .max
    m.load(code + [0xF4], at: 0x1000)
    return m
  }

  private func vector(_ m: TestMachine) -> UInt8 {
    InterruptionInfo(rawValue: m.cpu.exitFields.interruptionInfo).vector
  }

  @Test(arguments: [UInt8(0xBC), 0xBD])
  func scanOfZeroKeepsAllOfA32BitDestination(opcode: UInt8) {
    let m = machine([0x0F, opcode, 0xC8])  // bsf ecx, eax
    m.cpu.gpr[1] = 0xFFFF_FFFF_FFFF_FF2A
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[1] == 0xFFFF_FFFF_FFFF_FF2A)
  }

  @Test func failedCompareExchangeKeepsAllOfA32BitRegister() {
    let m = machine([0x0F, 0xB1, 0xCA])  // cmpxchg edx, ecx
    m.cpu.gpr[0] = 3
    m.cpu.gpr[2] = 0xFFFF_FFFF_FFFF_FFA3
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[2] == 0xFFFF_FFFF_FFFF_FFA3)
    #expect(m.cpu.gpr[0] == 0xFFFF_FFA3)
  }

  @Test func adcxHasItsOperandsSize() {
    let m = machine([0x66, 0x0F, 0x38, 0xF6, 0xC8])  // adcx ecx, eax
    m.cpu.gpr[0] = 2
    m.cpu.gpr[1] = 3
    m.cpu.flags = 3
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.gpr[1] == 6)
  }

  /// RET, CALL, CALL to where no code can be, ENTER.
  @Test(arguments: [[UInt8(0xC3)], [0xE8, 0, 0, 0, 0], [0xFF, 0xD3], [0xC8, 0, 0, 0]])
  func stackThatIsNotCanonicalIsAStackFault(code: [UInt8]) {
    let m = machine(code)
    m.cpu.gpr[4] = 0x8000_0000_1000
    m.cpu.gpr[3] = 0x8000_0000_0000
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(vector(m) == ExceptionVector.stackFault.rawValue)
    #expect(m.cpu.gpr[4] == 0x8000_0000_1000)
  }

  /// Both pages fail; the write to the first is what counts.
  @Test func modificationAcrossPagesFaultsAsAWrite() {
    let m = machine([0x83, 0x03, 0x01])  // add dword [rbx], 1
    let end = UInt64(m.memorySize)
    m.cpu.gpr[3] = end &- 2
    let last = m.read(0x12000 + (m.memorySize >> 21 - 1) * 8, as: UInt64.self)
    m.store(last & ~2, at: 0x12000 + (m.memorySize >> 21 - 1) * 8)
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(vector(m) == ExceptionVector.pageFault.rawValue)
    #expect(m.cpu.exitFields.qualification == end &- 2)
    let code = PageFaultCode(rawValue: m.cpu.exitFields.interruptionErrorCode)
    #expect(code == [.present, .write])
  }

  /// REPE and REPNE, SCASB and CMPSB: rounds are done up to the page that is not there, and the
  /// flags are those from before them all.
  @Test(arguments: [0xF3, 0xF2] as [UInt8], [0xAE, 0xA6] as [UInt8])
  func faultOfARepeatedComparisonRestoresFlags(prefix: UInt8, opcode: UInt8) {
    let m = machine([prefix, opcode])
    let end = UInt64(m.memorySize)
    for n in 1...8 { m.store(prefix == 0xF3 ? 7 : UInt8(n), at: m.memorySize - n) }
    for n in 0..<8 { m.store(UInt8(prefix == 0xF3 ? 7 : 99), at: 0x3000 + n) }
    m.cpu.gpr[0] = prefix == 0xF3 ? 7 : 99
    m.cpu.gpr[1] = 20
    m.cpu.gpr[6] = 0x3000
    m.cpu.gpr[7] = end &- 8
    let flags = RFLAGS.of.rawValue | RFLAGS.af.rawValue | RFLAGS.fixed.rawValue
    m.cpu.flags = flags
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(vector(m) == ExceptionVector.pageFault.rawValue)
    #expect(m.cpu.gpr[1] == 12 && m.cpu.gpr[7] == end)
    #expect(m.cpu.flags & ~RFLAGS.rf.rawValue == flags)
  }
}
