// SPDX-License-Identifier: Apache-2.0
//
// Gates, privilege changes and segment checks of 32-bit protected mode: frames, vectors and
// error codes are the SDM's.

import Support
import Testing
import X86
import X86CPU

@Suite struct ProtectedModeTests {
  private func machine(cpl: UInt8 = 0) -> TestMachine {
    let m = TestMachine()
    m.setProtectedSystem(cpl: cpl)
    m.setHandlers(long: false)
    return m
  }

  /// A call gate in a descriptor table.
  private func callGate(
    _ offset: UInt64, type: UInt64 = 12, dpl: UInt64 = 3, parameters: UInt64 = 0,
    selector: UInt16 = Tables.code0
  ) -> UInt64 {
    offset & 0xFFFF | UInt64(selector) << 16 | parameters << 32
      | (type | dpl << 5 | 0x80) << 40 | (offset >> 16) << 48
  }

  @Test func interruptSwitchesStacks() {
    let m = machine(cpl: 3)
    m.setGate(0x20, to: 0x2000, dpl: 3)
    m.load([0xF4], at: 0x2000)
    m.load([0xCD, 0x20], at: 0x1000)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.cpu.cpl == 0)
    #expect(m.cpu.gpr[4] == Tables.innerStack - 20)
    #expect(m.stacked(0, as: UInt32.self) == 0x1002)
    #expect(m.stacked(1, as: UInt32.self) == UInt32(Tables.code3))
    #expect(m.stacked(3, as: UInt32.self) == UInt32(Tables.stack))
    #expect(m.stacked(4, as: UInt32.self) == UInt32(Tables.data3))
    #expect(m.cpu.segment(.ss).pointee.selector == Tables.data0)
  }

  @Test func returnDropsPrivilegedSegments() {
    let m = machine(cpl: 3)
    m.setGate(0x20, to: 0x2000, dpl: 3)
    // mov ax, data0; mov ds, ax; iretd
    m.load([0x66, 0xB8, 0x10, 0, 0x8E, 0xD8, 0xCF], at: 0x2000)
    // int 0x20; int 0x20's gate is 3; then hlt: #GP
    m.load([0xCD, 0x20, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(1, as: UInt32.self) == 0x1002)
    #expect(m.cpu.segment(.ds).pointee.selector == 0)
    #expect(m.cpu.segment(.ds).pointee.rights.isUnusable)
    #expect(m.cpu.segment(.es).pointee.selector == Tables.data3)
  }

  @Test func sixteenBitGatePushesWords() {
    let m = machine()
    m.setGate(0x20, to: 0x2000, type: 6)
    m.load([0xF4], at: 0x2000)
    m.load([0xCD, 0x20], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.cpu.gpr[4] == Tables.stack - 6)
    #expect(m.stacked(0, as: UInt16.self) == 0x1002)
  }

  @Test func callGateCopiesParametersAndReturns() {
    let m = machine(cpl: 3)
    m.setDescriptor(Tables.spare, callGate(0x2000, parameters: 2))
    // mov eax, [esp+12]; retf 8
    m.load([0x8B, 0x44, 0x24, 0x0C, 0xCA, 8, 0], at: 0x2000)
    // push 0x11; push 0x22; call far 0x43:0; hlt
    m.load([0x6A, 0x11, 0x6A, 0x22, 0x9A, 0, 0, 0, 0, 0x43, 0, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(1, as: UInt32.self) == 0x100B)
    #expect(m.stacked(4, as: UInt32.self) == UInt32(Tables.stack))
    #expect(m.cpu.gpr[0] == 0x11)
    let base = Int(Tables.innerStack)
    #expect(m.read(base - 4, as: UInt32.self) == UInt32(Tables.data3))
  }

  @Test func gateBelowPrivilegeIsRefused() {
    let m = machine(cpl: 3)
    m.setDescriptor(Tables.spare, callGate(0x2000, dpl: 2))
    m.load([0x9A, 0, 0, 0, 0, 0x43, 0], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(0, as: UInt32.self) == 0x40)
  }

  @Test func conformingCodeKeepsPrivilege() {
    let m = machine(cpl: 3)
    m.setDescriptor(Tables.spare, descriptor(rights: 0xC09E))
    m.load([0xEA, 0, 0x20, 0, 0, 0x40, 0], at: 0x1000)  // jmp 0x40:0x2000
    m.load([0xF4], at: 0x2000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(1, as: UInt32.self) == 0x2000)
    #expect(m.stacked(2, as: UInt32.self) == 0x43)
    // The accessed bit has been set.
    #expect(m.read(Tables.gdt + 0x45, as: UInt8.self) == 0x9F)
  }

  @Test func badStackInTSSIsInvalidTSS() {
    let m = machine(cpl: 3)
    m.store(Tables.data3, at: Tables.tss + 8)
    m.setGate(0x20, to: 0x2000, dpl: 3)
    // #TS itself goes to the same bad stack: double fault, shutdown.
    m.load([0xCD, 0x20], at: 0x1000)
    m.cpu.vmxControls.exceptionBitmap = 1 << 10
    #expect(m.run(from: 0x1000) == .exceptionOrNMI)
    #expect(m.cpu.exitFields.interruptionInfo == 0x8000_0B0A)
    #expect(m.cpu.exitFields.interruptionErrorCode == 0x20)
    #expect(m.cpu.exitFields.idtVectoringInfo == 0x8000_0420)
    m.cpu.vmxControls.exceptionBitmap = 0
    #expect(m.run(from: 0x1000) == .tripleFault)
  }

  @Test(arguments: [
    // selector, access rights of the spare descriptor, vector, error code
    (0x40, 0x00F2, 0xD0, 13, 0x40), (0x40, 0xC012, 0xD8, 11, 0x40),
    (0x40, 0xC012, 0xD0, 12, 0x40), (0x40, 0xC098, 0xD8, 13, 0x40),
    (0x40, 0xC082, 0xC0, 13, 0x40), (0x43, 0xC092, 0xD8, 13, 0x40), (0, 0xC092, 0xD0, 13, 0),
    (0x44, 0xC092, 0xD8, 13, 0x44),
  ])
  func segmentLoadFaults(
    _ selector: Int, _ rights: Int, _ modRM: Int, _ vector: Int, _ code: Int
  ) {
    let m = machine()
    m.setDescriptor(Tables.spare, descriptor(rights: UInt64(rights)))
    m.cpu.gpr[0] = UInt64(selector)
    m.load([0x8E, UInt8(modRM)], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == vector)
    #expect(m.stacked(0, as: UInt32.self) == UInt32(code))
    #expect(m.stacked(1, as: UInt32.self) == 0x1000)
  }

  @Test func descriptorsCanBeInspected() {
    let m = machine(cpl: 3)
    m.setDescriptor(Tables.spare, descriptor(limit: 0x1234, rights: 0x40F0))
    m.cpu.gpr[1] = UInt64(Tables.spare)
    // lsl eax, ecx; setz bl; lar edx, ecx; verr cx; setz bh; verw cx; setz cl
    m.load(
      [
        0x0F, 0x03, 0xC1, 0x0F, 0x94, 0xC3, 0x0F, 0x02, 0xD1, 0x0F, 0x00, 0xE1, 0x0F, 0x94, 0xC7,
        0x0F, 0x00, 0xE9, 0x0F, 0x94, 0xC1, 0xF4,
      ], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.cpu.gpr[0] == 0x1234)
    #expect(m.cpu.gpr[3] & 0xFFFF == 0x0101)
    #expect(m.cpu.gpr[2] == 0x0040_F000)
    #expect(m.cpu.gpr[1] & 0xFF == 0)
  }

  @Test func localTableAndTaskRegister() {
    let m = machine()
    m.setDescriptor(Tables.spare, descriptor(base: 0xB000, limit: 0xF, rights: 0x82))
    m.setDescriptor(0x48, descriptor(base: 0xC000, limit: 0x67, rights: 0x89))
    m.store(descriptor(rights: 0xC092), at: 0xB008)
    m.cpu.gpr[0] = 0x40
    m.cpu.gpr[1] = 0x48
    m.cpu.gpr[2] = 0x0C
    // lldt ax; ltr cx; mov ds, dx; sldt ebx; str esi; hlt
    m.load(
      [
        0x0F, 0x00, 0xD0, 0x0F, 0x00, 0xD9, 0x8E, 0xDA, 0x0F, 0x00, 0xC3, 0x0F, 0x00, 0xCE, 0xF4,
      ], at: 0x1000)
    #expect(m.run(from: 0x1000) == .hlt)
    #expect(m.stoppedIn == nil)
    #expect(m.cpu.gpr[3] == 0x40)
    #expect(m.cpu.gpr[6] == 0x48)
    #expect(m.cpu.segment(.tr).pointee.rights.type == 11)
    #expect(m.read(Tables.gdt + 0x4D, as: UInt8.self) == 0x8B)
    #expect(m.cpu.segment(.ds).pointee.rights.type == 3)
    #expect(m.read(0xB00D, as: UInt8.self) == 0x93)
  }

  @Test func flagsThatPrivilegeProtects() {
    let m = machine(cpl: 3)
    m.cpu.s.pointee.rflags |= RFLAGS.if.rawValue
    // push 0x3000; popf; cli
    m.load([0x68, 0, 0x30, 0, 0, 0x9D, 0xFA], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(1, as: UInt32.self) == 0x1006)
    #expect(m.stacked(3, as: UInt32.self) & 0x3200 == 0x200)
  }

  @Test func protectedVirtualInterrupts() {
    let m = machine(cpl: 3)
    m.cpu.s.pointee.cr4 |= CR4.pvi.rawValue
    m.load([0xFB, 0xF4], at: 0x1000)
    m.run(from: 0x1000)
    #expect(m.stoppedIn == 13)
    #expect(m.stacked(1, as: UInt32.self) == 0x1001)
    #expect(m.stacked(3, as: UInt32.self) & 0x8_0200 == 0x8_0000)
  }
}
