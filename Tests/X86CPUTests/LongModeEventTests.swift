// SPDX-License-Identifier: Apache-2.0
//
// Events in IA-32e mode: frames, error codes, stacks, double faults and exits in the middle of
// a delivery, each against the SDM ("Exception and Interrupt Handling in 64-bit Mode").

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

/// Exceptions of instructions in IA-32e mode: vector, error code, and what else they leave.
@Suite struct LongModeExceptionTests {
  struct Fault: Sendable, CustomTestStringConvertible {
    var name: String
    var code: [UInt8]
    var vector: Int
    var errorCode: UInt64?
    var pushed: UInt64 = 0x1000
    var testDescription: String { name }
  }

  static let faults: [Fault] = [
    Fault(name: "#DE", code: [0x31, 0xC9, 0xF7, 0xF1], vector: 0, pushed: 0x1002),
    Fault(name: "INT1", code: [0xF1], vector: 1, pushed: 0x1001),
    Fault(name: "INT3", code: [0xCC], vector: 3, pushed: 0x1001),
    Fault(name: "#UD", code: [0x0F, 0x0B], vector: 6),
    Fault(name: "INT 0x20", code: [0xCD, 0x20], vector: 32, pushed: 0x1002),
    // mov rax, 0x8000_0000_0000; mov [rax], al
    Fault(
      name: "#GP not canonical", code: [0x48, 0xB8, 0, 0, 0, 0, 0, 0x80, 0, 0, 0x88, 0],
      vector: 13, errorCode: 0, pushed: 0x100A),
    // mov ds, [selector beyond the GDT]
    Fault(
      name: "#GP selector", code: [0xB8, 0x0B, 0x01, 0, 0, 0x8E, 0xD8], vector: 13,
      errorCode: 0x108, pushed: 0x1005),
    // mov ds, [not present]
    Fault(
      name: "#NP", code: [0xB8, 0x40, 0, 0, 0, 0x8E, 0xD8], vector: 11, errorCode: 0x40,
      pushed: 0x1005),
    // mov ss, [not present]
    Fault(
      name: "#SS", code: [0xB8, 0x40, 0, 0, 0, 0x8E, 0xD0], vector: 12, errorCode: 0x40,
      pushed: 0x1005),
    // mov rax, [0x40000000]
    Fault(
      name: "#PF", code: [0x48, 0x8B, 0x04, 0x25, 0, 0, 0, 0x3F], vector: 14, errorCode: 0),
    // INT 0x21 whose gate is not present
    Fault(name: "#NP gate", code: [0xCD, 0x21], vector: 11, errorCode: 0x21 << 3 | 2),
    // INT 0x22 with a gate of a bad type
    Fault(name: "#GP gate", code: [0xCD, 0x22], vector: 13, errorCode: 0x22 << 3 | 2),
    // INT 0x23 to a code segment that is data
    Fault(name: "#GP code", code: [0xCD, 0x23], vector: 13, errorCode: UInt64(Tables.data0)),
  ]

  @Test(arguments: faults) func pushes(_ fault: Fault) {
    let m = TestMachine()
    m.setLongSystem()
    m.setHandlers(long: true)
    m.setDescriptor(Tables.spare, descriptor(rights: 0xC013))
    m.setLongGate(0x21, to: 0x2000, present: false)
    m.setLongGate(0x22, to: 0x2000, type: 12)
    m.setLongGate(0x23, to: 0x2000, selector: Tables.data0)
    m.load(fault.code, at: 0x1000)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.stoppedIn == fault.vector)
    let first = fault.errorCode == nil ? 0 : 1
    if let code = fault.errorCode { #expect(m.stacked(0, as: UInt64.self) == code) }
    #expect(m.stacked(first, as: UInt64.self) == fault.pushed)
    #expect(m.cpu.gpr[4] == Tables.stack - 40 - UInt64(first) * 8)
    if fault.vector == 14 { #expect(m.cpu.s.pointee.cr2 == 0x3F00_0000) }
    let isFault = fault.pushed != 0x1000 + UInt64(fault.code.count)
    let resume = m.stacked(first + 2, as: UInt64.self) & RFLAGS.rf.rawValue != 0
    #expect(resume == isFault)
  }

  @Test func interruptStackTable() {
    let m = TestMachine()
    m.setLongSystem()
    m.setHandlers(long: true)
    m.setLongGate(6, to: m.handler(6), ist: 2)
    m.store(UInt64(0xA008), at: Tables.tss + 0x2C)
    m.load([0x0F, 0x0B], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 6)
    #expect(m.cpu.gpr[4] == 0xA000 - 40)
    #expect(m.cpu.segment(.ss).pointee.selector == Tables.data0)
  }

  @Test(arguments: [14, 15]) func gateTypeDecidesInterruptFlag(_ type: Int) {
    let m = TestMachine()
    m.setLongSystem()
    m.setHandlers(long: true)
    m.setLongGate(3, to: m.handler(3), type: UInt64(type))
    m.cpu.s.pointee.rflags |= RFLAGS([.if, .nt]).rawValue
    m.load([0xCC], at: 0x1000)
    m.run(from: 0x1000)
    #expect((m.cpu.flags & RFLAGS.if.rawValue != 0) == (type == 15))
    #expect(m.cpu.flags & RFLAGS.nt.rawValue == 0)
    #expect(m.stacked(2, as: UInt64.self) & RFLAGS.nt.rawValue != 0)
  }

  @Test func doubleFaultWhenHandlerIsMissing() {
    let m = TestMachine()
    m.setLongSystem()
    m.setHandlers(long: true)
    m.setLongGate(13, to: 0, present: false)
    m.load([0xB8, 0x0B, 0x01, 0, 0, 0x8E, 0xD8], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 8)
    #expect(m.stacked(0, as: UInt64.self) == 0)
    #expect(m.stacked(1, as: UInt64.self) == 0x1005)
  }

  @Test func shutdownWhenNothingCanBeDelivered() {
    let m = TestMachine()
    m.setLongSystem()
    m.cpu.s.pointee.idtr.limit = 0
    m.load([0x0F, 0x0B], at: 0x1000)
    #expect(m.run(from: 0x1000) == .tripleFault)
    #expect(m.cpu.s.pointee.rip == 0x1000)
    #expect(m.cpu.gpr[4] == Tables.stack)
    #expect(m.cpu.exitFields.idtVectoringInfo == 0)
  }
}

/// Intercepts of exceptions, and exits in the middle of a delivery.
@Suite struct ExceptionExitTests {
  private func machine() -> TestMachine {
    let m = TestMachine()
    m.setLongSystem()
    m.setHandlers(long: true)
    return m
  }

  @Test func breakpointExitsWithItsLength() {
    let m = machine()
    m.cpu.vmxControls.exceptionBitmap = 1 << 3
    m.load([0xF8, 0xCC], at: 0x1000)
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    let exit = m.cpu.exitFields
    #expect(exit.interruptionInfo == 0x8000_0603)
    #expect(exit.instructionLength == 1)
    #expect(m.cpu.s.pointee.rip == 0x1001)
  }

  @Test(arguments: [(0, 0, true), (1, 0, true), (1, 1, false), (2, 2, false)])
  func pageFaultMaskAndMatch(_ mask: Int, _ match: Int, _ exits: Bool) {
    let m = machine()
    m.cpu.vmxControls.exceptionBitmap = 1 << 14
    m.cpu.vmxControls.pageFaultMask = UInt32(mask)
    m.cpu.vmxControls.pageFaultMatch = UInt32(match)
    m.load([0x48, 0x8B, 0x04, 0x25, 0, 0, 0, 0x3F], at: 0x1000)
    #expect(m.run(from: 0x1000) == (exits ? .exceptionOrNMI : .hlt))
    if exits {
      #expect(m.cpu.exitFields.qualification == 0x3F00_0000)
      #expect(m.cpu.exitFields.interruptionInfo == 0x8000_0B0E)
      #expect(m.cpu.s.pointee.cr2 == 0)
    }
  }

  @Test func faultOfDeliveryReportsVectoring() {
    let m = machine()
    m.cpu.vmxControls.exceptionBitmap = 1 << 14
    m.cpu.gpr[4] = 0x3F00_0000
    m.load([0xF8, 0xCD, 0x20], at: 0x1000)
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    let exit = m.cpu.exitFields
    #expect(exit.interruptionInfo == 0x8000_0B0E)
    #expect(exit.interruptionErrorCode == 2)
    #expect(exit.idtVectoringInfo == 0x8000_0420)
    #expect(exit.instructionLength == 2)
    #expect(m.cpu.s.pointee.rip == 0x1001)
    #expect(m.cpu.gpr[4] == 0x3F00_0000)
  }

  @Test func memoryMissingInDeliveryReportsVectoring() {
    let m = machine()
    // A guest-physical page that EPT does not map.
    m.store(UInt64(0x4000_0000 | 0x87), at: 0x12000 + 8 * 8)
    m.cpu.gpr[4] = 0x0100_0800
    m.load([0x0F, 0x0B], at: 0x1000)
    #expect(m.run(from: 0x1000) == .eptViolation)
    #expect(m.cpu.exitFields.idtVectoringInfo == 0x8000_0306)
    #expect(m.cpu.s.pointee.rip == 0x1000)
  }

  @Test func injectedInterruptIsDelivered() {
    let m = machine()
    m.cpu.s.pointee.rip = 0x1000
    m.cpu.s.pointee.activity = ActivityState.hlt
    let nmi = GuestEvent.nmi
    #expect(m.cpu.deliver(nmi, returnRIP: 0x1000))
    #expect(m.cpu.s.pointee.rip == m.handler(2))
    #expect(m.cpu.s.pointee.interruptibility == Interruptibility.blockingByNMI)
    #expect(m.cpu.s.pointee.activity == ActivityState.active)
    // iretq to a hlt
    m.load([0x48, 0xCF], at: Int(m.handler(2)))
    m.load([0xF4], at: 0x1000)
    m.run()
    #expect(m.cpu.s.pointee.rip == 0x1000)
    #expect(m.cpu.s.pointee.interruptibility == 0)
  }

  @Test func faultingReturnTellsOfUnblocking() {
    let m = machine()
    m.cpu.s.pointee.interruptibility = Interruptibility.blockingByNMI
    m.cpu.vmxControls.exceptionBitmap = 1 << 14
    m.cpu.gpr[4] = 0x3F00_0000
    m.load([0x48, 0xCF], at: 0x1000)
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.exitFields.interruptionInfo == 0x8000_1B0E)
    #expect(m.cpu.s.pointee.interruptibility == 0)
  }
}
