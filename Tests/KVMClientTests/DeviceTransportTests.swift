// SPDX-License-Identifier: Apache-2.0
//
// Small guests in real mode on the kernel's KVM: the typed API against the real one, exits and
// errnos.

import CHost
import Glibc
import Host
import HostTestSupport
import KVMClient
import SystemPackage
import Testing

@Suite(.enabled(if: KernelKVM.kind != nil, "\(KernelKVM.missing)"))
struct DeviceTransportTests {
  /// A machine with one page of code at guest address 0x1000 and one CPU about to run it.
  final class Guest {
    let memory: Mapping
    let machine: MachineHandle
    let cpu: VirtualCPUHandle

    init(_ code: [UInt8]) throws {
      var filled = try Mapping(anonymous: 0x10000)
      filled.withMutableBytes { $0.copy(from: code.bytes, at: 0x1000) }
      memory = filled
      machine = try System(transport: DeviceTransport()).createMachine()
      try machine.setMemory(slot: 0, guestAddress: 0, size: 0x10000, hostAddress: memory.address)
      cpu = try machine.createVirtualCPU(0)
      var special = try cpu.specialRegisters()
      special.cs.base = 0
      special.cs.selector = 0
      try cpu.setSpecialRegisters(special)
      var registers = try cpu.registers()
      registers.rip = 0x1000
      registers.rflags = 2
      try cpu.setRegisters(registers)
    }

    func run() throws -> Exit {
      try cpu.run()
    }
  }

  @Test func aGuestOfThreeInstructionsRuns() throws {
    // add al, 3; out 0x10, al; hlt
    let guest = try Guest([0x04, 3, 0xE6, 0x10, 0xF4])
    var registers = try guest.cpu.registers()
    registers.rax = 4
    try guest.cpu.setRegisters(registers)
    guard case .io(let access) = try guest.run() else { throw Unexpected() }
    #expect(access.isWrite && access.port == 0x10 && access.width == 1 && access.count == 1)
    #expect(access.data.load(as: UInt8.self) == 7)
    guard case .halt = try guest.run() else { throw Unexpected() }
    #expect(try guest.cpu.registers().rip == 0x1005)
  }

  @Test func memoryOutsideOfSlotsIsTheClients() throws {
    // mov ax, 0xF000; mov ds, ax; mov eax, [0x10]; out 0x10, eax; mov [0x14], ax; hlt
    let guest = try Guest([
      0xB8, 0x00, 0xF0, 0x8E, 0xD8, 0x66, 0xA1, 0x10, 0x00, 0x66, 0xE7, 0x10, 0xA3, 0x14, 0x00,
      0xF4,
    ])
    guard case .mmio(let read) = try guest.run() else { throw Unexpected() }
    #expect(!read.isWrite && read.address == 0xF0010 && read.width == 4)
    read.data.storeBytes(of: 0x1234_5678, as: UInt32.self)
    guard case .io(let access) = try guest.run() else { throw Unexpected() }
    #expect(access.data.loadUnaligned(as: UInt32.self) == 0x1234_5678)
    guard case .mmio(let write) = try guest.run() else { throw Unexpected() }
    #expect(write.isWrite && write.address == 0xF0014 && write.width == 2)
    #expect(write.data.loadUnaligned(as: UInt16.self) == 0x5678)
  }

  @Test func aKickEndsAnEndlessLoop() throws {
    let guest = try Guest([0xEB, 0xFE])  // jmp $
    let cpu = guest.cpu
    // Before the run: immediate_exit alone.
    cpu.kick(.current)
    guard case .interrupted = try guest.run() else { throw Unexpected() }
    // During the run: the signal.
    let ended = SharedNumber()
    let runner = try HostThread(name: "vcpu") {
      if case .interrupted? = try? cpu.run() { ended.value = 1 }
    }
    usleep(20_000)
    cpu.kick(runner.identifier)
    runner.join()
    #expect(ended.value == 1)
    #expect(try cpu.registers().rip == 0x1000)
  }

  @Test func aTripleFaultIsAShutdown() throws {
    // ud2 in protected mode without an interrupt table
    let guest = try Guest([0x0F, 0x0B])
    var special = try guest.cpu.specialRegisters()
    special.cr0 |= 1
    special.cs.type = 11
    special.cs.limit = 0xFFFF_FFFF
    special.cs.g = 1
    special.cs.db = 1
    special.idt.limit = 0
    try guest.cpu.setSpecialRegisters(special)
    guard case .shutdown = try guest.run() else { throw Unexpected() }
  }

  @Test func cpuidIsWhatItWasSetTo() throws {
    // xor eax, eax; cpuid; mov eax, ebx; out 0x10, eax
    let guest = try Guest([0x66, 0x31, 0xC0, 0x0F, 0xA2, 0x66, 0x89, 0xD8, 0x66, 0xE7, 0x10])
    let system = try System(transport: DeviceTransport())
    var entries = try system.supportedCPUID()
    #expect(entries.count > 10)
    for index in entries.indices where entries[index].function == 0 {
      entries[index].ebx = 0x7472_614D
    }
    try guest.cpu.setCPUID(entries)
    guard case .io(let access) = try guest.run() else { throw Unexpected() }
    #expect(access.data.loadUnaligned(as: UInt32.self) == 0x7472_614D)
  }

  @Test func misuseThrowsLinuxErrnos() throws {
    #expect(throws: Errno.noSuchFileOrDirectory) {
      _ = try System(transport: DeviceTransport(path: "/dev/no-kvm"))
    }
    let guest = try Guest([0xF4])
    #expect(throws: Errno.fileExists) { _ = try guest.machine.createVirtualCPU(0) }
    #expect(throws: Errno.invalidArgument) {
      try guest.machine.setMemory(
        slot: 1, guestAddress: 0x1_0001, size: 4096, hostAddress: guest.memory.address)
    }
  }

  struct Unexpected: Error {}
}
