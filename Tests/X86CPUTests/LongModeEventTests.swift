// SPDX-License-Identifier: Apache-2.0

import Support
import Testing
import X86
import X86CPU

/// Delivery of events and returns in IA-32e mode.
@Suite struct LongModeEventTests {
  private func machine(cpl: UInt8 = 0) -> TestMachine {
    let m = TestMachine()
    m.setLongSystem(cpl: cpl)
    m.setHandlers(long: true)
    return m
  }

  @Test func faultPushesFrameWithResumeFlag() {
    let m = machine()
    m.cpu.gpr[4] = 0x7FFB
    m.load([0x0F, 0x0B], at: 0x1000)  // ud2
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.stoppedIn == 6)
    #expect(m.cpu.gpr[4] == 0x7FF0 - 40)
    #expect(m.stacked(0, as: UInt64.self) == 0x1000)
    #expect(m.stacked(1, as: UInt64.self) == UInt64(Tables.code0))
    #expect(m.stacked(2, as: UInt64.self) & RFLAGS.rf.rawValue != 0)
    #expect(m.stacked(3, as: UInt64.self) == 0x7FFB)
    #expect(m.stacked(4, as: UInt64.self) == UInt64(Tables.data0))
  }

  @Test func softwareInterruptFromUserAndBack() {
    let m = machine(cpl: 3)
    m.setLongGate(0x20, to: 0x2000, type: 14, dpl: 3)
    m.load([0xCD, 0x20, 0xCD, 0x20], at: 0x1000)
    m.load([0x48, 0xCF], at: 0x2000)  // iretq
    m.load([0xF4], at: 0x2010)
    m.cpu.s.pointee.rflags |= RFLAGS.if.rawValue
    m.cpu.gpr[3] = 0
    #expect(m.cpu.cpl == 3)
    // hlt in user mode: #GP(0)
    m.load([0xCD, 0x20, 0xF4], at: 0x1000)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.stoppedIn == 13)
    #expect(m.cpu.cpl == 0)
    #expect(m.cpu.gpr[4] == Tables.innerStack - 48)
    #expect(m.stacked(0, as: UInt64.self) == 0)
    #expect(m.stacked(1, as: UInt64.self) == 0x1002)
    #expect(m.stacked(2, as: UInt64.self) == UInt64(Tables.code3))
    #expect(m.stacked(3, as: UInt64.self) & RFLAGS.if.rawValue != 0)
    #expect(m.stacked(4, as: UInt64.self) == Tables.stack)
    #expect(m.stacked(5, as: UInt64.self) == UInt64(Tables.data3))
    #expect(m.cpu.segment(.ss).pointee.selector == 0)
  }

  @Test func gateOfLowerPrivilegeIsRefused() {
    let m = machine(cpl: 3)
    m.load([0xCD, 0x20], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(0, as: UInt64.self) == 0x20 << 3 | 2)
    #expect(m.stacked(1, as: UInt64.self) == 0x1000)
  }
}
