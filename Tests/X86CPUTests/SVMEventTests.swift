// SPDX-License-Identifier: Apache-2.0
//
// Events of SVM: injected, virtual, cut off on their way; and what stays in the CPU between VMRUNs.

import Support
import Testing
import X86
import X86CPU

@Suite struct SVMEventTests {
  private func machine(_ handlers: [Int]) throws -> SVMMachine {
    let m = try SVMMachine()
    for vector in handlers {
      m.setGate(vector, to: UInt64(0x4000 + vector * 16))
      m.test.load([0xF4], at: 0x4000 + vector * 16)
    }
    m.test.load([0x90, 0x90, 0xF4], at: 0x1000)
    return m
  }

  @Test func injectedInterrupt() throws {
    let m = try machine([0x30])
    m.vmcb[.eventInjection] = SVMEvent(.externalInterrupt, vector: 0x30).rawValue
    #expect(try m.run() == .hlt)
    #expect(m.vmcb[.rip] == 0x4300 && m.stack(0) == 0x1000)
    // It is injected once.
    #expect(m.vmcb[.eventInjection] & SVMEvent.validBit == 0)
  }

  @Test func injectedExceptionHasItsCode() throws {
    let m = try machine([14])
    m.vmcb[.eventInjection] = SVMEvent(.exception, vector: 14, errorCode: 0x15).rawValue
    #expect(try m.run() == .hlt)
    #expect(m.vmcb[.rip] == 0x40E0 && m.stack(0) == 0x15 && m.stack(1) == 0x1000)
  }

  /// INT n and INT3 return to nRIP, an interrupt to RIP.
  @Test(arguments: [SVMEvent(.softwareInterrupt, vector: 0x40), SVMEvent(.exception, vector: 3)])
  func injectedSoftwareEvent(_ event: SVMEvent) throws {
    let m = try machine([3, 0x40])
    m.vmcb[.nextRIP] = 0x1002
    m.vmcb[.eventInjection] = event.rawValue
    #expect(try m.run() == .hlt)
    #expect(m.stack(0) == 0x1002)
  }

  /// The stack is not there: the event is told, so that it can be injected again.
  @Test func cutOffByANestedFault() throws {
    let m = try machine([0x30])
    m.test.store(0x100_0087 as UInt64, at: 0x12000 + 3 * 8)
    m.vmcb[.rsp] = 0x60_1000
    let event = SVMEvent(.externalInterrupt, vector: 0x30)
    m.vmcb[.eventInjection] = event.rawValue
    #expect(try m.run() == .nestedPageFault)
    #expect(m.vmcb[.exitInterruptInfo] == event.rawValue && m.vmcb[.rip] == 0x1000)
    m.vmcb[.rsp] = 0x8000
    m.vmcb[.eventInjection] = m.vmcb[.exitInterruptInfo]
    #expect(try m.run() == .hlt && m.vmcb[.rip] == 0x4300)
  }

  // MARK: Virtual interrupts

  private func pending(_ vector: UInt64, priority: UInt64, tpr: UInt64 = 0) -> UInt64 {
    vector << 32 | priority << 16 | VirtualInterrupt.pendingBit | VirtualInterrupt.maskingBit | tpr
  }

  @Test func virtualInterruptWaitsForIF() throws {
    let m = try machine([0x31])
    m.vmcb[.virtualInterrupt] = pending(0x31, priority: 3)
    m.test.load([0x90, 0xFB, 0x90, 0x90, 0xF4], at: 0x1000)  // NOP; STI; NOP; NOP; HLT
    #expect(try m.run() == .hlt)
    // Behind the instruction in the shadow of STI.
    #expect(m.vmcb[.rip] == 0x4310 && m.stack(0) == 0x1003)
    #expect(m.vmcb[.virtualInterrupt] & VirtualInterrupt.pendingBit == 0)
  }

  @Test func virtualInterruptBelowThePriority() throws {
    let m = try machine([0x31])
    m.vmcb[.rflags] |= RFLAGS.if.rawValue
    m.vmcb[.virtualInterrupt] = pending(0x31, priority: 3, tpr: 3)
    #expect(try m.run() == .hlt && m.vmcb[.rip] == 0x1002)
    #expect(m.vmcb[.virtualInterrupt] & VirtualInterrupt.pendingBit != 0)
    // The guest lowers CR8, which is V_TPR.
    m.vmcb[.rip] = 0x1000
    m.vmcb[.rax] = 2
    m.test.load([0x44, 0x0F, 0x22, 0xC0, 0xF4], at: 0x1000)  // MOV CR8, RAX; HLT
    #expect(try m.run() == .hlt && m.vmcb[.rip] == 0x4310)
    #expect(m.vmcb[.virtualInterrupt] & 0xF == 2)
  }

  @Test func virtualInterruptExits() throws {
    let m = try machine([0x31])
    m.intercept(.virtualInterrupt)
    m.vmcb[.rflags] |= RFLAGS.if.rawValue
    m.vmcb[.virtualInterrupt] = pending(0x31, priority: 3)
    #expect(try m.run() == .virtualInterrupt)
    #expect(m.vmcb[.rip] == 0x1000)
    #expect(m.vmcb[.virtualInterrupt] & VirtualInterrupt.pendingBit != 0)
  }

  /// The guest's own global interrupt flag holds it back until STGI.
  @Test func virtualGlobalFlag() throws {
    let m = try machine([0x31])
    m.vmcb[.rflags] |= RFLAGS.if.rawValue
    m.vmcb[.virtualInterrupt] = pending(0x31, priority: 3) | VirtualInterrupt.gifEnabledBit
    m.test.load([0x90, 0x0F, 0x01, 0xDC, 0xF4], at: 0x1000)  // NOP; STGI; HLT
    #expect(try m.run() == .hlt)
    #expect(m.vmcb[.rip] == 0x4310 && m.stack(0) == 0x1004)
    #expect(m.vmcb[.virtualInterrupt] & VirtualInterrupt.gifBit != 0)
  }

  @Test func virtualNMI() throws {
    let m = try machine([2])
    let word = VirtualInterrupt.nmiEnabledBit | VirtualInterrupt.nmiPendingBit
    m.vmcb[.virtualInterrupt] = word
    #expect(try m.run() == .hlt && m.vmcb[.rip] == 0x4020)
    #expect(m.vmcb[.virtualInterrupt] & VirtualInterrupt.nmiPendingBit == 0)
    #expect(m.vmcb[.virtualInterrupt] & VirtualInterrupt.nmiMaskedBit != 0)
    // Another waits while the first is served, and comes behind its IRET.
    m.vmcb[.virtualInterrupt] |= VirtualInterrupt.nmiPendingBit
    m.test.load([0x90, 0xF4], at: 0x4020)
    #expect(try m.run() == .hlt && m.vmcb[.rip] == 0x4021)
    m.test.load([0x90, 0x48, 0xCF], at: 0x4020)  // NOP; IRETQ
    m.vmcb[.rip] = 0x4020
    m.intercept(.iret)
    #expect(try m.run() == .iret)
    m.intercept(.iret, false)
    m.vmcb[.rip] = 0x4021
    m.test.load([0xF4], at: 0x4020)
    #expect(try m.run() == .hlt && m.vmcb[.rip] == 0x4020)
    #expect(m.vmcb[.virtualInterrupt] & VirtualInterrupt.nmiPendingBit == 0)
  }

  @Test func interruptShadow() throws {
    let m = try machine([0x30])
    m.intercept(.softwareInterrupt)
    m.test.load([0xFB, 0xCD, 0x20], at: 0x1000)  // STI; INT 20H
    #expect(try m.run() == .softwareInterrupt)
    #expect(m.vmcb[.interruptShadow] & InterruptShadow.active != 0)
    m.vmcb[.rip] = 0x1010
    m.test.load([0x90, 0xCD, 0x20], at: 0x1010)
    #expect(try m.run() == .softwareInterrupt)
    #expect(m.vmcb[.interruptShadow] & InterruptShadow.active == 0)
  }

  // MARK: Global interrupt flag, VMLOAD, VMSAVE

  @Test func globalInterruptFlag() throws {
    let m = try machine([])
    #expect(m.processor.gif)
    #expect(try m.run() == .hlt && !m.processor.gif)
    try m.processor.stgi()
    #expect(m.processor.gif)
    try m.processor.clgi()
    #expect(!m.processor.gif)
  }

  @Test func loadAndSave() throws {
    let m = try machine([])
    m.vmcb[.lstar] = 0x1234
    m.vmcb[.base(of: .fs)] = 0x5000
    m.vmcb[.selector(of: .tr)] = 0x18
    try m.processor.vmload(m.address)
    #expect(try m.cpu.readMSR(MSR.lstar.rawValue) == 0x1234)
    #expect(m.cpu.segment(.fs).pointee.base == 0x5000)
    // VMRUN does not touch them, nor does the exit save them.
    m.vmcb[.lstar] = 7
    #expect(try m.run() == .hlt)
    #expect(m.vmcb[.lstar] == 7)
    try m.processor.vmsave(m.address)
    #expect(m.vmcb[.lstar] == 0x1234 && m.vmcb[.base(of: .fs)] == 0x5000)
  }

  // MARK: State that stays in the CPU

  @Test func heldState() throws {
    let m = try machine([])
    #expect(try m.processor.vmrun(m.address, keepsState: true) == .hlt)
    // Memory still has what was loaded.
    #expect(m.vmcb[.rip] == 0x1000 && m.processor.vmcbRead(.rip) == 0x1002)
    m.processor.vmcbWrite(.rip, 0x1001)
    m.vmcb[.cleanBits] = UInt64(VMCBClean.all.rawValue)
    m.processor.vmcbWrite(.rax, 0x77)
    #expect(try m.processor.vmrun(m.address, keepsState: true) == .hlt)
    m.processor.vmcbWriteBack()
    #expect(m.vmcb[.rip] == 0x1002 && m.vmcb[.rax] == 0x77)
    #expect(m.vmcb[.attributes(of: .cs)] == 0xA9B && m.vmcb[.cpl] == 0)
  }

  /// A field that has a clean bit loses it when it is written.
  @Test func writesAreNotClean() throws {
    let m = try machine([])
    #expect(try m.processor.vmrun(m.address, keepsState: true) == .hlt)
    m.vmcb[.cleanBits] = UInt64(VMCBClean.all.rawValue)
    m.processor.vmcbWrite(.cr4, m.processor.vmcbRead(.cr4) | 1 << 30)
    #expect(try m.processor.vmrun(m.address, keepsState: true) == .invalid)
    #expect(m.processor.vmrunFailure == .cr4)
  }

  /// Two guests on one CPU: each has its own state, and the TLB is no one's but the last's.
  @Test func twoVMCBs() throws {
    let m = try machine([])
    let other = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
    defer {
      m.processor.vmcbRelease()
      other.deallocate()
    }
    other.copyMemory(from: m.vmcb.base, byteCount: 4096)
    let second = VMCB(base: other)
    second[.asid] = 2
    second[.rip] = 0x1001
    let address = UInt64(UInt(bitPattern: other))
    #expect(try m.processor.vmrun(m.address, keepsState: true) == .hlt)
    #expect(try m.processor.vmrun(address, keepsState: true) == .hlt)
    #expect(m.vmcb[.rip] == 0x1002 && second[.rip] == 0x1001)
    #expect(try m.processor.vmrun(m.address) == .hlt)
    #expect(second[.rip] == 0x1002)
  }

  /// TLB_CONTROL drops what the TLB has of the guest's page tables.
  @Test func flushByTLBControl() throws {
    let m = try machine([])
    m.test.load([0x8A, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00, 0xF4], at: 0x1000)
    m.test.store(0x11 as UInt8, at: 0x40_0000)
    m.test.store(0x22 as UInt8, at: 0x20_0000)
    #expect(try m.run() == .hlt && m.vmcb[.rax] & 0xFF == 0x11)
    m.test.store(0x20_0087 as UInt64, at: 0x12000 + 2 * 8)
    m.vmcb[.tlbControl] = UInt64(TLBControl.flushGuest)
    m.vmcb[.rip] = 0x1000
    #expect(try m.run() == .hlt && m.vmcb[.rax] & 0xFF == 0x22)
  }
}
