// SPDX-License-Identifier: Apache-2.0
//
// What the processor is to a guest (CPUID, quirks, the other vendor's hypercall), and what a
// vCPU tells of itself. Both engines must give the same.

import CHost
import Glibc
import KVMClient
import KVMLoopback
import SystemPackage
import Testing
import X86
import X86CPU

@Suite(.serialized, .onBothEngines) struct ProcessorModelTests {
  private func handle(_ client: Client, vector: Int, port: UInt8) {
    client.load([0xE6, port, 0xF4], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: vector * 4, as: UInt32.self)
  }

  /// The last byte of VMCALL or VMMCALL: the processor's own, and the other vendor's.
  private var hypercall: (own: UInt8, other: UInt8) {
    Engine.vendor == .amd ? (0xD9, 0xC1) : (0xC1, 0xD9)
  }

  /// mov eax, `number`; xor ebx, ebx; the other vendor's hypercall; out 0x90, al
  private func loadOtherHypercall(_ client: Client, _ number: UInt8) {
    client.load([
      0x66, 0xB8, number, 0, 0, 0, 0x66, 0x31, 0xDB, 0x0F, 0x01, hypercall.other, 0xE6, 0x90,
    ])
    handle(client, vector: 6, port: 0x96)
  }

  @Test func otherVendorsHypercall() throws {
    let client = try Client()
    loadOtherHypercall(client, 11)
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.registers.rax == 0)
    #expect(client.memory.load(fromByteOffset: 0x100B, as: UInt8.self) == hypercall.own)
    loadOtherHypercall(client, 99)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.value == UInt8(truncatingIfNeeded: -1000))
  }

  @Test func otherVendorsHypercallWithoutTheQuirk() throws {
    let client = try Client()
    try client.enable(KVM_CAP_DISABLE_QUIRKS2, UInt64(KVM_X86_QUIRK_FIX_HYPERCALL_INSN))
    loadOtherHypercall(client, 11)
    #expect(try client.nextOut()?.port == 0x96)
    #expect(client.memory.load(fromByteOffset: 0x100B, as: UInt8.self) == hypercall.other)
  }

  @Test func undefinedInstructionsStayTheGuests() throws {
    let client = try Client()
    client.load([0x0F, 0x0B])
    handle(client, vector: 6, port: 0x96)
    #expect(try client.nextOut()?.port == 0x96)
    let stack = Int(try client.registers.rsp)
    #expect(client.memory.loadUnaligned(fromByteOffset: stack, as: UInt16.self) == 0x1000)
  }

  @Test func monitorAndWait() throws {
    let client = try Client()
    client.load([0x0F, 0x01, 0xC8, 0x0F, 0x01, 0xC9, 0xE6, 0x90])
    handle(client, vector: 6, port: 0x96)
    #expect(try client.nextOut()?.port == 0x90)
    try client.enable(KVM_CAP_DISABLE_QUIRKS2, 1 << 6)
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x96)
    // CPUID follows IA32_MISC_ENABLE without the other quirk.
    try client.enable(
      KVM_CAP_DISABLE_QUIRKS2, 1 << 6 | UInt64(KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT))
    #expect(try client.setMSR(0x1A0, 1 << 18))
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.setMSR(0x1A0, 0))
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x96)
  }

  /// Word 0 to 3 of CPUID leaf 1 as KVM_GET_CPUID2 gives it.
  private func leafOne(_ client: Client) throws -> [UInt32] {
    let size = 8 + 256 * MemoryLayout<kvm_cpuid_entry2>.stride
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 8)
    defer { buffer.deallocate() }
    buffer.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    buffer.storeBytes(of: 256, as: UInt32.self)
    try client.call(client.cpu, CKVM_GET_CPUID2, UInt(bitPattern: buffer))
    for index in 0..<Int(buffer.load(as: UInt32.self)) {
      let entry = buffer.loadUnaligned(
        fromByteOffset: 8 + index * MemoryLayout<kvm_cpuid_entry2>.stride,
        as: kvm_cpuid_entry2.self)
      if entry.function == 1 { return [entry.eax, entry.ebx, entry.ecx, entry.edx] }
    }
    return [0, 0, 0, 0]
  }

  @Test func tableFollowsTheState() throws {
    let client = try Client()
    #expect(try leafOne(client)[2] & 1 << 27 == 0)
    try client.changeSpecial { $0.cr4 = 1 << 18 }
    #expect(try leafOne(client)[2] & 1 << 27 != 0)
  }

  /// Clients place the XSAVE area's components by the CPUID instruction that they execute.
  @Test func extendedStateLiesAsOnTheHost() throws {
    let table = try System(transport: LoopbackTransport()).supportedCPUID()
    let mask = try #require(table.first { $0.function == 0xD && $0.index == 0 }).eax
    for number in UInt32(2)..<32 where mask & 1 << number != 0 {
      let host = HostCPUID.leaf(0xD, number)
      let entry = try #require(table.first { $0.function == 0xD && $0.index == number })
      #expect(host.eax == entry.eax && host.ebx == entry.ebx, "component \(number)")
    }
    let keys = try #require(table.first { $0.function == 7 && $0.index == 0 }).ecx & 1 << 3
    #expect((keys != 0) == (mask & 1 << 9 != 0))
  }

  /// The deadline timer is there where our local APIC is: a capability says so, CPUID does not.
  @Test func deadlineTimerIsACapability() throws {
    let system = try System(transport: LoopbackTransport())
    let table = try system.supportedCPUID()
    #expect(try #require(table.first { $0.function == 1 }).ecx & 1 << 24 == 0)
    #expect(system.capability(KVM_CAP_TSC_DEADLINE_TIMER) > 0)
  }

  /// Before the client says what the guest has, it may have all.
  @Test func controlBitsBeforeCPUID() throws {
    let client = try Client()
    let second = try client.call(client.vm, CKVM_CREATE_VCPU, 1)
    var value = try client.get(second, CKVM_GET_SREGS, kvm_sregs())
    value.cr4 = 1 << 18 | 1 << 20 | 1 << 21
    #expect(client.error(second, CKVM_SET_SREGS, with: value) == nil)
    try client.set(second, CKVM_SET_CPUID2, (UInt32(1), UInt32(0), kvm_cpuid_entry2()))
    #expect(client.error(second, CKVM_SET_SREGS, with: value) == .invalidArgument)
  }

  @Test func offsetOfTheCounter() throws {
    let client = try Client()
    var offset: UInt64 = 0
    func attribute(_ request: UInt32, _ number: UInt64) -> Errno? {
      withUnsafeMutablePointer(to: &offset) {
        var value = kvm_device_attr()
        value.group = UInt32(KVM_VCPU_TSC_CTRL)
        value.attr = number
        value.addr = UInt64(UInt(bitPattern: $0))
        return client.error(client.cpu, request, with: value)
      }
    }
    let number = UInt64(KVM_VCPU_TSC_OFFSET)
    #expect(attribute(CKVM_HAS_DEVICE_ATTR, number) == nil)
    #expect(attribute(CKVM_HAS_DEVICE_ATTR, 7) == .noSuchAddressOrDevice)
    offset = 1 << 62
    #expect(attribute(CKVM_SET_DEVICE_ATTR, number) == nil)
    offset = 0
    #expect(attribute(CKVM_GET_DEVICE_ATTR, number) == nil)
    #expect(offset == 1 << 62)
    #expect(try #require(try client.msr(0x10)) > 1 << 62)
  }

  /// The numbers of a vCPU that stays in KVM_RUN grow.
  @Test func statisticsWhileItRuns() throws {
    let client = try Client()
    let file = try client.call(client.cpu, CKVM_GET_STATS_FD)
    defer { close(file) }
    var header = kvm_stats_header()
    #expect(read(file, &header, 24) == 24)
    func exits() -> UInt64 {
      var value: UInt64 = 0
      return pread(file, &value, 8, Int(header.data_offset)) == 8 ? value : 0
    }
    client.load([0x31, 0xC0, 0x0F, 0xA2, 0xEB, 0xFA])  // again: xor ax, ax; cpuid; jmp again
    let thread = Thread {
      #expect(client.error { () throws(Errno) in _ = try client.run() } == .interrupted)
    }
    #expect(Client.eventually { exits() > 100 })
    let before = exits()
    #expect(Client.eventually { exits() > before + 100 })
    client.kick()
    thread.join()
  }

  @Test func statistics() throws {
    let client = try Client()
    let file = try client.call(client.cpu, CKVM_GET_STATS_FD)
    defer { close(file) }
    var header = kvm_stats_header()
    #expect(read(file, &header, 24) == 24)
    var name = [CChar](repeating: 0, count: Int(header.name_size))
    #expect(read(file, &name, name.count) == name.count)
    let text = String(decoding: name.prefix { $0 != 0 }.map { UInt8($0) }, as: UTF8.self)
    #expect(text.hasPrefix("kvm-") && text.hasSuffix("/vcpu-0"))
    func exits() -> UInt64 {
      var value: UInt64 = 0
      #expect(pread(file, &value, 8, Int(header.data_offset)) == 8)
      return value
    }
    #expect(exits() == 0)
    client.load([0xE6, 0x90])
    #expect(try client.nextOut()?.port == 0x90)
    #expect(exits() > 0)
    #expect(write(file, &header, 1) == -1)
    let machine = try client.call(client.vm, CKVM_GET_STATS_FD)
    #expect(read(machine, &header, 24) == 24)
    #expect(header.num_desc >= 2)
    close(machine)
  }
}
