// SPDX-License-Identifier: Apache-2.0
//
// KVM_SET_GUEST_DEBUG, and registers that travel in the shared page: each stop is at the
// address where the kernel's KVM stops.

import CHost
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct GuestDebugTests {
  private func debug(
    _ client: Client, _ control: Int32, _ registers: [Int: UInt64] = [:]
  ) -> Errno? {
    var request = kvm_guest_debug()
    request.control = UInt32(control)
    withUnsafeMutableBytes(of: &request.arch.debugreg) { place in
      for (number, value) in registers {
        place.storeBytes(of: value, toByteOffset: number * 8, as: UInt64.self)
      }
    }
    return client.error(client.cpu, CKVM_SET_GUEST_DEBUG, with: request)
  }

  private struct Stop: Equatable {
    var exception: UInt32
    var pc: UInt64
    var dr6: UInt64
  }

  /// The next stop of the debugger.
  private func stop(_ client: Client) throws -> Stop? {
    guard try client.run() == KVM_EXIT_DEBUG else { return nil }
    let arch = client.shared.pointee.debug.arch
    return Stop(exception: arch.exception, pc: arch.pc, dr6: arch.dr6)
  }

  private static let step = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
  private static let stepped: UInt64 = 0xFFFF_4FF0

  /// Instructions that the processor runs, that exit, and that the client completes.
  @Test func stepsOverEveryKindOfInstruction() throws {
    let client = try Client(chips: .all)
    client.load([
      0x90,  // 1000 nop
      0x0F, 0xA2,  // 1001 cpuid
      0xE6, 0x90,  // 1003 out 0x90, al
      0xE4, 0x91,  // 1005 in al, 0x91
      0xE6, 0x20,  // 1007 out 0x20, al: the 8259's
      0xB0, 0x07,  // 1009 mov al, 7
      0xEB, 0xFE,  // 100B jmp $
    ])
    #expect(debug(client, Self.step) == nil)
    #expect(try stop(client) == Stop(exception: 1, pc: 0x1001, dr6: Self.stepped))
    #expect(try client.registers.rip == 0x1001)
    #expect(try client.registers.rflags & 0x100 == 0)
    #expect(try stop(client)?.pc == 0x1003)
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try stop(client)?.pc == 0x1005)
    #expect(try client.run() == KVM_EXIT_IO)
    client.pages.storeBytes(of: 0x20, toByteOffset: 4096, as: UInt8.self)
    #expect(try stop(client)?.pc == 0x1007)
    #expect(try client.registers.rax & 0xFF == 0x20)
    #expect(try stop(client)?.pc == 0x1009)
    #expect(try stop(client)?.pc == 0x100B)
    #expect(try stop(client)?.pc == 0x100B)
    #expect(debug(client, 0) == nil)
    client.load([0xE6, 0x92], at: 0x100B)
    #expect(try client.nextOut()?.port == 0x92)
  }

  @Test func memoryMappedAccessIsOneStep() throws {
    let client = try Client()
    try client.changeSpecial { $0.ds.base = 0xD000_0000 }
    client.load([0x80, 0x0E, 0x30, 0, 0x80, 0xF4])  // or byte [0x30], 0x80
    #expect(debug(client, Self.step) == nil)
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(try stop(client)?.pc == 0x1005)
  }

  @Test func softwareBreakpoint() throws {
    let client = try Client()
    client.load([0x90, 0xCC, 0xE6, 0x90])
    client.load([0xE6, 0x95], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 3 * 4, as: UInt32.self)
    let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP
    #expect(debug(client, control) == nil)
    #expect(try stop(client)?.exception == 3)
    #expect(client.shared.pointee.debug.arch.pc == 0x1001)
    #expect(try client.registers.rip == 0x1001)
    // It was the guest's own: its handler returns behind it.
    #expect(debug(client, control | KVM_GUESTDBG_INJECT_BP) == nil)
    #expect(debug(client, control | KVM_GUESTDBG_INJECT_BP) == .resourceBusy)
    #expect(try client.nextOut()?.port == 0x95)
    let stack = Int(try client.registers.rsp)
    #expect(client.memory.loadUnaligned(fromByteOffset: stack, as: UInt16.self) == 0x1002)
    #expect(debug(client, 0) == nil)
    try client.setRegisters { $0.rip = 0x1001 }
    #expect(try client.nextOut()?.port == 0x95)
  }

  @Test func hardwareBreakpoints() throws {
    let client = try Client()
    client.load([
      0x90, 0x90,  // 1000
      0xA2, 0x00, 0x20,  // 1002 mov [0x2000], al
      0x0F, 0x21, 0xC0,  // 1005 mov eax, dr0
      0xE6, 0x90,  // 1008
    ])
    let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP
    var own = kvm_debugregs()
    own.db.0 = 0x5555
    own.dr6 = 0xFFFF_0FF0
    own.dr7 = 0x400
    try client.set(client.cpu, CKVM_SET_DEBUGREGS, own)
    // DR0: execute 0x1001; DR1: write of a byte at 0x2000.
    #expect(debug(client, control, [0: 0x1001, 1: 0x2000, 7: 0x10_0405]) == nil)
    #expect(try stop(client) == Stop(exception: 1, pc: 0x1001, dr6: 0xFFFF_0FF1))
    #expect(debug(client, control, [1: 0x2000, 7: 0x10_0404]) == nil)
    #expect(try stop(client) == Stop(exception: 1, pc: 0x1005, dr6: 0xFFFF_0FF2))
    // The guest sees its own registers, and so does the client.
    #expect(try client.nextOut()?.value == 0x55)
    #expect(try client.get(client.cpu, CKVM_GET_DEBUGREGS, kvm_debugregs()).db.0 == 0x5555)
    #expect(debug(client, 0) == nil)
    #expect(try client.get(client.cpu, CKVM_GET_DEBUGREGS, kvm_debugregs()).db.0 == 0x5555)
    try client.setRegisters { $0.rip = 0x1001 }
    #expect(try client.nextOut()?.port == 0x90)
  }

  /// General detect: an access to the debug registers stops.
  @Test func generalDetect() throws {
    let client = try Client()
    client.load([0x90, 0x0F, 0x23, 0xC0, 0xF4])  // nop; mov dr0, eax
    let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP
    #expect(debug(client, control, [7: 0x2400]) == nil)
    #expect(try stop(client) == Stop(exception: 1, pc: 0x1001, dr6: 0xFFFF_2FF0))
  }

  @Test func blockedInterruptsComeLater() throws {
    let client = try Client()
    client.load([0xFB, 0x90, 0x90, 0xE6, 0x90])  // sti; nop; nop; out 0x90, al
    client.load([0xE6, 0x96, 0xCF], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 0x30 * 4, as: UInt32.self)
    try client.set(client.cpu, CKVM_INTERRUPT, kvm_interrupt(irq: 0x30))
    #expect(debug(client, Self.step | KVM_GUESTDBG_BLOCKIRQ) == nil)
    #expect(try stop(client)?.pc == 0x1001)
    #expect(try stop(client)?.pc == 0x1002)
    #expect(try stop(client)?.pc == 0x1003)
    #expect(debug(client, 0) == nil)
    #expect(try client.nextOut()?.port == 0x96)
    #expect(try client.nextOut()?.port == 0x90)
  }

  // MARK: Registers in kvm_run

  @Test func registersInTheSharedPage() throws {
    let client = try Client()
    // again: inc bx; out 0x90, al; jmp again
    client.load([0x43, 0xE6, 0x90, 0xEB, 0xFB])
    let shared = client.shared
    #expect(try client.capability(KVM_CAP_SYNC_REGS) == 7)
    shared.pointee.kvm_valid_regs = 1 << 20
    #expect(client.error { () throws(Errno) in _ = try client.run() } == .invalidArgument)
    shared.pointee.kvm_valid_regs = 0
    shared.pointee.kvm_dirty_regs = 1 << 20
    #expect(client.error { () throws(Errno) in _ = try client.run() } == .invalidArgument)
    shared.pointee.kvm_dirty_regs = 0
    shared.pointee.kvm_valid_regs = 7
    #expect(try client.nextOut()?.port == 0x90)
    #expect(shared.pointee.s.regs.regs.rbx == 1 && shared.pointee.s.regs.regs.rip == 0x1001)
    #expect(shared.pointee.s.regs.sregs.cs.limit == 0xFFFF)
    shared.pointee.s.regs.regs.rbx = 0x1000
    shared.pointee.s.regs.sregs.apic_base = 1 << 11
    shared.pointee.kvm_dirty_regs = 3
    #expect(try client.nextOut()?.port == 0x90)
    #expect(shared.pointee.kvm_dirty_regs == 0)
    #expect(try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()).apic_base == 1 << 11)
    // Not marked: what the client wrote does not count.
    shared.pointee.s.regs.regs.rbx = 0
    shared.pointee.kvm_valid_regs = 0
    #expect(try client.nextOut()?.port == 0x90)
    #expect(shared.pointee.s.regs.regs.rbx == 0)
    #expect(try client.registers.rbx >= 0x1001)
  }
}
