// SPDX-License-Identifier: Apache-2.0
//
// System management mode: entry, RSM, the second address space, what is put off meanwhile. The
// save area's layouts are the manuals'.

import CHost
import Glibc
import KVM
import SystemPackage
import Testing
import X86

@Suite(.serialized) struct SystemManagementTests {
  /// A client whose address space 1 has memory at SMBASE alone.
  private final class Managed {
    static let base = 0x3_0000
    let client: Client
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 0x1_0000, alignment: 4096)

    init(_ handler: [UInt8], chips: Client.Chips = .none) throws {
      client = try Client(chips: chips)
      memory.initializeMemory(as: UInt8.self, repeating: 0, count: 0x1_0000)
      memory.advanced(by: 0x8000).copyMemory(from: handler, byteCount: handler.count)
      try client.setMemory(1 << 16, at: UInt64(Self.base), size: 0x1_0000, host: memory)
    }

    deinit { memory.deallocate() }

    func saved<T: FixedWidthInteger>(_ offset: Int, as: T.Type = T.self) -> T {
      memory.loadUnaligned(fromByteOffset: 0x8000 + offset, as: T.self)
    }

    func interrupt() throws(Errno) { try client.call(client.cpu, CKVM_SMI) }

    var events: kvm_vcpu_events {
      get throws(Errno) { try client.get(client.cpu, CKVM_GET_VCPU_EVENTS, kvm_vcpu_events()) }
    }

    var special: kvm_sregs {
      get throws(Errno) { try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs()) }
    }
  }

  /// again: out 0x90, al; jmp again
  private static let loop: [UInt8] = [0xE6, 0x90, 0xEB, 0xFC]
  /// out 0x91, al; rsm
  private static let handler: [UInt8] = [0xE6, 0x91, 0x0F, 0xAA]

  /// Stores a constant at a linear address: mov dword [address], value, in 16-bit code.
  private static func store(_ value: UInt32, at address: Int) -> [UInt8] {
    [0x66, 0x67, 0xC7, 0x05] + bytes(UInt32(address)) + bytes(value)
  }

  private static func bytes(_ value: UInt32) -> [UInt8] {
    withUnsafeBytes(of: value) { Array($0) }
  }

  private func isEqual<T>(_ a: T, _ b: T) -> Bool {
    withUnsafeBytes(of: a) { a in withUnsafeBytes(of: b) { b in a.elementsEqual(b) } }
  }

  @Test func capabilities() throws {
    let client = try Client()
    #expect(try client.capability(KVM_CAP_X86_SMM) == 1)
    #expect(try client.capability(KVM_CAP_MULTI_ADDRESS_SPACE) == 2)
    #expect(
      client.error { () throws(Errno) in
        try client.setMemory(2 << 16, at: 0x4000_0000, size: 4096, host: client.memory)
      } == .invalidArgument)
    #expect(try client.msr(MSR.smBase.rawValue) == 0x3_0000)
    #expect(try client.events.flags & UInt32(KVM_VCPUEVENT_VALID_SMM) != 0)
  }

  @Test func entryAndReturnInLongMode() throws {
    let managed = try Managed(Self.handler)
    let client = managed.client
    client.load(Self.loop)
    try client.setLongMode()
    try client.setRegisters {
      ($0.r15, $0.rbx, $0.rsp) = (0x1234_5678_9ABC_DEF0, 7, 0x8_0000_0000)
      $0.rflags = 0xCD7
    }
    #expect(try client.nextOut()?.port == 0x90)
    let before = (try client.registers, try managed.special)
    try managed.interrupt()
    #expect(try managed.events.smi.pending == 1)
    #expect(try client.nextOut()?.port == 0x91)
    #expect(client.shared.pointee.flags == UInt16(KVM_RUN_X86_SMM))
    let special = try managed.special
    #expect(special.cs.base == 0x3_0000 && special.cs.selector == 0x3000)
    #expect(special.cs.limit == .max && special.ds.limit == .max && special.ds.base == 0)
    #expect(special.cr0 & 0x8000_000D == 0 && special.cr4 == 0 && special.efer == 0)
    #expect(special.idt.limit == 0)
    #expect(try client.registers.rip == 0x8000 && client.registers.rflags == 2)
    let events = try managed.events
    #expect(events.smi.smm == 1 && events.smi.pending == 0 && events.nmi.masked == 1)
    #expect(managed.saved(0x7F78, as: UInt64.self) == 0x1002)
    #expect(managed.saved(0x7ED0, as: UInt64.self) == 0x500)
    #expect(managed.saved(0x7F80, as: UInt64.self) == 0x1234_5678_9ABC_DEF0)
    #expect(managed.saved(0x7F00, as: UInt32.self) == 0x3_0000)
    #expect(managed.saved(0x7EFC, as: UInt32.self) == 0x2_0064)
    #expect(managed.saved(0x7E12, as: UInt16.self) & 0xF000 == 0xA000)  // CS: G, L
    #expect(try client.nextOut()?.port == 0x90)
    #expect(client.shared.pointee.flags == 0)
    #expect(isEqual(try client.registers, before.0))
    #expect(isEqual(try managed.special, before.1))
    let after = try managed.events
    #expect(after.smi.smm == 0 && after.nmi.masked == 0)
    #expect(try client.msr(MSR.smiCount.rawValue) == 1)
  }

  /// What the handler leaves in the save area is what goes on, SMBASE too.
  @Test func handlerChangesTheSavedState() throws {
    let area = Managed.base + 0x8000
    let managed = try Managed(
      Self.store(0x51, at: area + 0x7FF8) + Self.store(0x2000, at: area + 0x7F78)
        + Self.store(0x3_1000, at: area + 0x7F00) + Self.handler)
    managed.client.load(Self.loop)
    managed.client.load([0xE6, 0x92, 0xF4], at: 0x2000)
    managed.memory.advanced(by: 0x9000).copyMemory(
      from: [0xE6, 0x93, 0x0F, 0xAA] as [UInt8], byteCount: 4)
    #expect(try managed.client.nextOut()?.port == 0x90)
    try managed.interrupt()
    #expect(try managed.client.nextOut()?.port == 0x91)
    let next = try managed.client.nextOut()
    #expect(next?.port == 0x92 && next?.value == 0x51)
    #expect(try managed.client.msr(MSR.smBase.rawValue) == 0x3_1000)
    // The save area at the new SMBASE is outside of the slot; its handler runs all the same.
    try managed.interrupt()
    #expect(try managed.client.nextOut()?.port == 0x93)
  }

  /// The same address is other memory in system management mode.
  @Test func addressSpaces() throws {
    // mov al, [cs:0x7000]; out 0x91, al; mov byte [cs:0x7000], 0x77; rsm
    let managed = try Managed([
      0x2E, 0xA0, 0x00, 0x70, 0xE6, 0x91, 0x2E, 0xC6, 0x06, 0x00, 0x70, 0x77, 0x0F, 0xAA,
    ])
    let client = managed.client
    managed.memory.storeBytes(of: 0x22, toByteOffset: 0x7000, as: UInt8.self)
    client.memory.storeBytes(of: 0x11, toByteOffset: 0x3_7000, as: UInt8.self)
    try client.changeSpecial { $0.ds.base = 0x3_0000 }
    // again: mov al, [0x7000]; out 0x90, al; jmp again
    client.load([0xA0, 0x00, 0x70, 0xE6, 0x90, 0xEB, 0xF9])
    #expect(try client.nextOut()?.value == 0x11)
    try managed.interrupt()
    let inside = try client.nextOut()
    #expect(inside?.port == 0x91 && inside?.value == 0x22)
    let outside = try client.nextOut()
    #expect(outside?.port == 0x90 && outside?.value == 0x11)
    #expect(managed.memory.load(fromByteOffset: 0x7000, as: UInt8.self) == 0x77)
    #expect(client.memory.load(fromByteOffset: 0x3_7000, as: UInt8.self) == 0x11)
  }

  @Test func eventsWaitForTheEnd() throws {
    let managed = try Managed(Self.handler)
    let client = managed.client
    client.load(Self.loop)
    // Vector 2: out 0x92, al; iret
    client.memory.storeBytes(of: 0x2000, toByteOffset: 8, as: UInt32.self)
    client.load([0xE6, 0x92, 0xCF], at: 0x2000)
    #expect(try client.nextOut()?.port == 0x90)
    try managed.interrupt()
    #expect(try client.nextOut()?.port == 0x91)
    try managed.interrupt()
    try client.call(client.cpu, CKVM_NMI)
    // RSM; the second SMI comes before the NMI, which comes after its RSM.
    #expect(try managed.events.smi.pending == 1)
    #expect(try client.nextOut()?.port == 0x91)
    #expect(try client.msr(MSR.smiCount.rawValue) == 2)
    #expect(try client.nextOut()?.port == 0x92)
    #expect(try client.nextOut()?.port == 0x90)
  }

  /// An event that is on its way comes first; its handler has not begun when the SMI comes.
  @Test func eventBefore() throws {
    let managed = try Managed(Self.handler)
    let client = managed.client
    client.memory.storeBytes(of: 0x2000, toByteOffset: 0x30 * 4, as: UInt32.self)
    client.load([0xE6, 0x92, 0xCF], at: 0x2000)
    client.load(Self.loop)
    try client.setRegisters { $0.rflags = 0x202 }
    #expect(try client.nextOut()?.port == 0x90)
    var events = try managed.events
    events.interrupt.injected = 1
    events.interrupt.nr = 0x30
    events.interrupt.soft = 1
    events.smi.pending = 1
    try client.set(client.cpu, CKVM_SET_VCPU_EVENTS, events)
    #expect(try client.nextOut()?.port == 0x91)
    #expect(managed.saved(0x7F78, as: UInt64.self) == 0x2000)
    #expect(try client.nextOut()?.port == 0x92)
    #expect(try client.nextOut()?.port == 0x90)
  }

  @Test func resumeOutsideIsUndefined() throws {
    let managed = try Managed(Self.handler)
    let client = managed.client
    client.memory.storeBytes(of: 0x2000, toByteOffset: 6 * 4, as: UInt32.self)
    client.load([0xE6, 0x92, 0xF4], at: 0x2000)
    client.load([0x0F, 0xAA, 0xF4])
    #expect(try client.nextOut()?.port == 0x92)
  }

  /// Without long mode in CPUID the save area is that of 32-bit processors.
  @Test func layoutOf32Bits() throws {
    let managed = try Managed(Self.store(0x99, at: Managed.base + 0xFFD0) + Self.handler)
    let client = managed.client
    try client.set(client.cpu, CKVM_SET_CPUID2, kvm_cpuid2())
    client.load(Self.loop)
    try client.setRegisters { ($0.rdi, $0.rbx) = (0x1234, 0x5678) }
    #expect(try client.nextOut()?.port == 0x90)
    let before = try managed.special
    try managed.interrupt()
    #expect(try client.nextOut()?.port == 0x91)
    #expect(managed.saved(0x7FF0, as: UInt32.self) == 0x1002)
    #expect(managed.saved(0x7FEC, as: UInt32.self) == 0x1234)
    #expect(managed.saved(0x7FDC, as: UInt32.self) == 0x5678)
    #expect(managed.saved(0x7EF8, as: UInt32.self) == 0x3_0000)
    #expect(managed.saved(0x7EFC, as: UInt32.self) == 0x2_0000)
    let next = try client.nextOut()
    #expect(next?.port == 0x90 && next?.value == 0x99)
    #expect(isEqual(try managed.special, before))
  }

  /// Paging without protection: no processor can be in that state.
  @Test func impossibleState() throws {
    let managed = try Managed(Self.store(0x8000_0010, at: Managed.base + 0xFF58) + Self.handler)
    managed.client.load(Self.loop)
    #expect(try managed.client.nextOut()?.port == 0x90)
    try managed.interrupt()
    #expect(try managed.client.nextOut()?.port == 0x91)
    #expect(try managed.client.run() == KVM_EXIT_SHUTDOWN)
  }

  /// A message on the bus takes a halted CPU into system management mode, and INIT waits for its
  /// end.
  @Test func messagesWhileHalted() throws {
    let managed = try Managed(Self.handler, chips: .all)
    let client = managed.client
    client.load([0xF4, 0xE6, 0x90, 0xEB, 0xFC])
    let sender = Thread {
      usleep(20_000)
      var message = kvm_msi()
      message.address_lo = 0xFEE0_0000
      message.data = 2 << 8
      _ = try? client.set(client.vm, CKVM_SIGNAL_MSI, message)
    }
    #expect(try client.nextOut()?.port == 0x91)
    sender.join()
    var message = kvm_msi()
    message.address_lo = 0xFEE0_0000
    message.data = 5 << 8 | 1 << 14
    try client.set(client.vm, CKVM_SIGNAL_MSI, message)
    // INIT is done at RSM: the CPU starts again at its reset vector, where there is nothing.
    #expect(try client.run() != KVM_EXIT_IO)
    #expect(try managed.events.smi.latched_init == 0)
  }

  /// State that is saved in system management mode goes on in another CPU.
  @Test func migration() throws {
    let first = try Managed(Self.handler)
    first.client.load(Self.loop)
    try first.client.setLongMode()
    #expect(try first.client.nextOut()?.port == 0x90)
    try first.interrupt()
    #expect(try first.client.nextOut()?.port == 0x91)
    // The OUT is over, RSM is next.
    first.client.shared.pointee.immediate_exit = 1
    #expect(first.client.error { () throws(Errno) in _ = try first.client.run() } == .interrupted)
    let second = try Managed([])
    let (from, to) = (first.client, second.client)
    to.memory.copyMemory(from: from.memory, byteCount: from.memorySize)
    second.memory.copyMemory(from: first.memory, byteCount: 0x1_0000)
    try to.set(to.cpu, CKVM_SET_SREGS, try first.special)
    try to.set(to.cpu, CKVM_SET_VCPU_EVENTS, try first.events)
    try to.set(to.cpu, CKVM_SET_REGS, try from.registers)
    #expect(try to.nextOut()?.port == 0x90)
    #expect(try second.special.efer == 0x500)
  }
}

extension Client {
  fileprivate var events: kvm_vcpu_events {
    get throws(Errno) { try get(cpu, CKVM_GET_VCPU_EVENTS, kvm_vcpu_events()) }
  }
}
