// SPDX-License-Identifier: Apache-2.0
//
// What programs in the shape of real clients, and Linux's own selftests, rely on; on both
// engines, so that the kernel's KVM confirms each expectation.

import CHost
import KVM
import KVMClient
import SystemPackage
import Testing

@Suite(.serialized, .onBothEngines) struct ClientShapeTests {
  private func error(_ client: Client, _ request: UInt32, _ argument: UInt) -> Errno? {
    client.error { () throws(Errno) in try client.call(client.vm, request, argument) }
  }

  private func error(_ client: Client, _ capability: Int32, _ argument: UInt64) -> Errno? {
    client.error { () throws(Errno) in try client.enable(capability, argument) }
  }

  // MARK: Machines

  /// The last place of the three pages ends at 4 GiB.
  @Test func taskStatePages() throws {
    _ = try Client {
      #expect(error($0, CKVM_SET_TSS_ADDR, 0xFFFF_D000) == nil)
      #expect(error($0, CKVM_SET_TSS_ADDR, 0xFFFF_E000) == .invalidArgument)
    }
  }

  @Test func bootProcessor() throws {
    let set = CKVM_SET_BOOT_CPU_ID
    let client = try Client(chips: .all) {
      let limit = UInt(try $0.capability(KVM_CAP_MAX_VCPU_ID))
      #expect(error($0, set, limit + 1) == .invalidArgument)
      #expect(error($0, set, 1 << 32) == .invalidArgument)
      #expect(error($0, set, 9) == nil)
      #expect(error($0, KVM_CAP_MAX_VCPU_ID, 8) == .invalidArgument)
      #expect(error($0, KVM_CAP_MAX_VCPU_ID, 10) == nil)
      #expect(error($0, set, 11) == .invalidArgument)
    }
    #expect(error(client, set, 1) == .resourceBusy)
    #expect(error(client, CKVM_CREATE_VCPU, 10) == .invalidArgument)
    #expect(error(client, CKVM_CREATE_VCPU, 1 << 32 | 1) == .invalidArgument)
  }

  /// Identifiers of more than eight bits.
  @Test func manyProcessors() throws {
    let client = try Client(chips: .all)
    let (count, numbers) = (
      try client.capability(KVM_CAP_MAX_VCPUS), try client.capability(KVM_CAP_MAX_VCPU_ID)
    )
    #expect(count >= 1024 && numbers >= count)
    #expect(error(client, CKVM_CREATE_VCPU, 300) == nil)
    #expect(error(client, CKVM_CREATE_VCPU, UInt(numbers) - 1) == nil)
    #expect(error(client, CKVM_CREATE_VCPU, UInt(numbers)) == .invalidArgument)
  }

  @Test func secondMemoryRegionCall() throws {
    let client = try Client()
    #expect(try client.capability(KVM_CAP_USER_MEMORY2) == 1)
    let set = CKVM_SET_USER_MEMORY_REGION2
    var region = kvm_userspace_memory_region2()
    region.slot = 5
    region.guest_phys_addr = 0x3000_0000
    region.memory_size = 0x1000
    region.userspace_addr = UInt64(UInt(bitPattern: client.memory)) + 0x5000
    client.memory.storeBytes(of: 0x77, toByteOffset: 0x5123, as: UInt8.self)
    #expect(client.error(client.vm, set, with: region) == nil)
    // mov al, [rdi]; out 0x90, al
    try client.setLongMode()
    client.load([0x8A, 0x07, 0xE6, 0x90])
    try client.setRegisters { $0.rdi = 0x3000_0123 }
    #expect(try client.nextOut()?.value == 0x77)
    region.slot = 6
    #expect(client.error(client.vm, set, with: region) == .fileExists)
    region.flags = 1 << 20
    #expect(client.error(client.vm, set, with: region) == .invalidArgument)
    region.slot = 5
    (region.flags, region.memory_size) = (0, 0)
    #expect(client.error(client.vm, set, with: region) == nil)
    #expect(error(client, set, 0) == .badAddress)
  }

  @Test func cycleOfTheBus() throws {
    let cycle = KVM_CAP_X86_APIC_BUS_CYCLES_NS
    _ = try Client { #expect(error($0, cycle, 10) == .noSuchAddressOrDevice) }
    let client = try Client(chips: .all) {
      let isThere = try $0.capability(cycle)
      #expect(isThere == 1)
      #expect(error($0, cycle, 0) == .invalidArgument)
      #expect(error($0, cycle, .max) == .invalidArgument)
      #expect(error($0, cycle, 10) == nil)
    }
    #expect(error(client, cycle, 10) == .invalidArgument)
  }

  // MARK: Registers

  @Test func controlRegister0() throws {
    let client = try Client()
    var value = try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs())
    value.cr0 = 1 << 29 | 1 << 4
    #expect(client.error(client.cpu, CKVM_SET_SREGS, with: value) == .invalidArgument)
    value.cr0 = 1 << 30 | 1 << 29 | 1 << 4
    #expect(client.error(client.cpu, CKVM_SET_SREGS, with: value) == nil)
  }

  @Test(arguments: [false, true]) func baseOfTheLocalAPIC(chips: Bool) throws {
    let client = try Client(chips: chips ? .all : .none)
    func isTaken(_ base: UInt64) throws -> Bool {
      var value = try client.get(client.cpu, CKVM_GET_SREGS, kvm_sregs())
      value.apic_base = base
      let isTaken = client.error(client.cpu, CKVM_SET_SREGS, with: value) == nil
      #expect(try client.setMSR(0x1B, base) == isTaken)
      return isTaken
    }
    #expect(try isTaken(0xFEE0_0D00))
    #expect(try !isTaken(0xFEE0_0500), "x2APIC mode of one that is off")
    #expect(try !isTaken(0xFEE0_0A00), "bit 9")
    #expect(try isTaken(0xFEE0_0900))
    try client.changeCPUID {
      CPUIDBit.x2APIC.set(&$0, false)
      if $0.function == 0x8000_0008 { $0.eax = $0.eax & ~0xFF | 36 }
    }
    #expect(try !isTaken(0xFEE0_0D00))
    #expect(try !isTaken(1 << 36 | 0xFEE0_0900))
    #expect(try isTaken(1 << 35 | 0xFEE0_0900))
  }

  @Test func variableRanges() throws {
    let client = try Client()
    try client.changeCPUID {
      if $0.function == 0x8000_0008 { $0.eax = $0.eax & ~0xFF | 36 }
    }
    #expect(try client.setMSR(0x201, 0xF_F000_0800))
    #expect(try !client.setMSR(0x201, 0x1F_F000_0800))
    #expect(try !client.setMSR(0x200, 1 << 36 | 6))
  }

  /// Linux makes of these what the register can hold, where the guest itself would have a #GP.
  /// (What is read back may be what was written, where KVM emulates them.)
  @Test func wideValues() throws {
    let client = try Client()
    #expect(try client.setMSR(0x174, 0x1_0000_0008))
    let reads = Engine.current == .software
    if reads { #expect(try client.msr(0x174) == 8) }
    for number in [0x175, 0x176] as [UInt32] {
      #expect(try client.setMSR(number, 0x0123_4567_89AB_CDEF))
      if reads { #expect(try client.msr(number) == 0x4567_89AB_CDEF) }
      #expect(try client.setMSR(number, 0x0123_C567_89AB_CDEF))
      if reads { #expect(try client.msr(number) == 0xFFFF_C567_89AB_CDEF) }
    }
    func setVendor(_ ebx: UInt32, _ edx: UInt32, _ ecx: UInt32) throws {
      try client.changeCPUID {
        if $0.function == 0 { ($0.ebx, $0.edx, $0.ecx) = (ebx, edx, ecx) }
      }
    }
    try setVendor(0x756E_6547, 0x4965_6E69, 0x6C65_746E)  // GenuineIntel
    #expect(try !client.setMSR(0xC000_0103, 0x1_0000_0005))
    try setVendor(0x6874_7541, 0x6974_6E65, 0x444D_4163)  // AuthenticAMD
    #expect(try client.setMSR(0xC000_0103, 0x1_0000_0005))
    #expect(try client.msr(0xC000_0103) == 5)
  }

  /// 0 is no address: clients write it at each reset, and the guest has something else there.
  @Test(arguments: [0x11, 0x4B56_4D00] as [UInt32])
  func wallClockWithoutAddress(_ number: UInt32) throws {
    let client = try Client()
    let second = try client.call(client.vm, CKVM_CREATE_VCPU, 1)
    defer { client.transport.close(second) }
    client.memory.initializeMemory(as: UInt8.self, repeating: 0x5A, count: 64)
    #expect(try client.setMSR(number, 0))
    for offset in 0..<64 {
      #expect(client.memory.load(fromByteOffset: offset, as: UInt8.self) == 0x5A)
    }
    #expect(try client.setMSR(number, 0x6000))
    #expect(client.memory.load(fromByteOffset: 0x6004, as: UInt32.self) != 0)
    // It is the machine's: each vCPU reads it.
    var list: (UInt32, UInt32, kvm_msr_entry) = (
      1, 0, kvm_msr_entry(index: number, reserved: 0, data: 0)
    )
    list = try client.get(second, CKVM_GET_MSRS, list)
    #expect(list.2.data == 0x6000)
    // Memory that is not there is not written, and nothing else happens.
    #expect(try client.setMSR(number, 0x4000_0000))
  }

  // MARK: CPUID

  /// KVM_GET_CPUID2 into room for `count` entries.
  private func table(_ client: Client, _ count: Int) throws(Errno) -> [kvm_cpuid_entry2] {
    let size = 8 + count * MemoryLayout<kvm_cpuid_entry2>.stride
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 8)
    defer { buffer.deallocate() }
    buffer.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    buffer.storeBytes(of: UInt32(count), as: UInt32.self)
    try client.call(client.cpu, CKVM_GET_CPUID2, UInt(bitPattern: buffer))
    return (0..<Int(buffer.load(as: UInt32.self))).map {
      buffer.loadUnaligned(
        fromByteOffset: 8 + $0 * MemoryLayout<kvm_cpuid_entry2>.stride, as: kvm_cpuid_entry2.self)
    }
  }

  @Test func tableComesBack() throws {
    let client = try Client()
    var (first, second) = (kvm_cpuid_entry2(), kvm_cpuid_entry2())
    (first.function, first.eax, first.ebx) = (0, 4, 0x1234_5678)
    (second.function, second.index) = (4, 1)
    second.flags = UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
    (second.ecx, second.edx) = (0x9ABC, 0xDEF0)
    try client.set(client.cpu, CKVM_SET_CPUID2, (UInt32(2), UInt32(0), first, second))
    let back = try table(client, 256)
    #expect(back.count == 2)
    #expect(back[0].function == 0 && back[0].eax == 4 && back[0].ebx == 0x1234_5678)
    #expect(back[1].function == 4 && back[1].index == 1 && back[1].flags == second.flags)
    #expect(back[1].ecx == 0x9ABC && back[1].edx == 0xDEF0)
    #expect(try table(client, 2).count == 2)
    #expect(client.error { () throws(Errno) in _ = try table(client, 1) } == .argListTooLong)
    #expect(client.error { () throws(Errno) in _ = try table(client, 0) } == .argListTooLong)
    #expect(
      client.error(client.cpu, CKVM_SET_CPUID2, with: (UInt32(257), UInt32(0)))
        == .argListTooLong)
  }

  /// Once the vCPU has run, the same table is taken and no other.
  @Test func tableStays() throws {
    let client = try Client()
    client.load([0xE6, 0x90])
    #expect(try client.nextOut()?.port == 0x90)
    #expect(client.error { () throws(Errno) in try client.changeCPUID { _ in } } == nil)
    let changed = client.error { () throws(Errno) in
      try client.changeCPUID { if $0.function == 1 { $0.eax ^= 1 } }
    }
    #expect(changed == .invalidArgument)
  }

  @Test(arguments: [(0, true), (48, true), (57, true), (47, false), (64, false)])
  func widthOfLinearAddresses(_ width: UInt32, _ isValid: Bool) throws {
    let client = try Client()
    let result = client.error { () throws(Errno) in
      try client.changeCPUID {
        if $0.function == 0x8000_0008 { $0.eax = $0.eax & ~0xFF00 | width << 8 }
      }
    }
    #expect((result == nil) == isValid)
  }

  /// Where halts do not exit nobody has to end them.
  @Test func haltsThatDoNotExit() throws {
    func unhalt(_ client: Client) throws -> UInt32 {
      let leaf = try table(client, 256).first { $0.function == 0x4000_0001 }
      return try #require(leaf).eax & 1 << 7
    }
    let exits = try Client(chips: .all)
    #expect(try unhalt(exits) != 0)
    let halt = UInt64(KVM_X86_DISABLE_EXITS_HLT)
    #expect(error(exits, KVM_CAP_X86_DISABLE_EXITS, halt) == .invalidArgument)
    let client = try Client(chips: .all) { try $0.enable(KVM_CAP_X86_DISABLE_EXITS, halt) }
    #expect(try unhalt(client) == 0)
  }

  // MARK: String output

  /// Each item is an exit of its own, with the registers behind it: clients read one.
  @Test func itemsOfStringOutput() throws {
    let client = try Client()
    // mov si, 0x2000; mov cx, 5; mov dx, 0xE9; rep outsb; hlt
    client.load([0xBE, 0, 0x20, 0xB9, 5, 0, 0xBA, 0xE9, 0, 0xF3, 0x6E, 0xF4])
    client.load(Array("hello".utf8), at: 0x2000)
    for (index, byte) in "hello".utf8.enumerated() {
      let out = try client.nextOut()
      #expect(out?.port == 0xE9 && out?.value == byte)
      #expect(client.shared.pointee.io.count == 1 && client.shared.pointee.io.size == 1)
      #expect(try client.registers.rcx & 0xFFFF == UInt64(4 - index))
      #expect(try client.registers.rsi & 0xFFFF == UInt64(0x2001 + index))
    }
    #expect(try client.run() == KVM_EXIT_HLT)
  }
}

/// MSRs of a vCPU that has no CPUID yet (a rule of kernels from 6.13 on).
@Suite struct BeforeCPUIDTests {
  @Test(arguments: [0x10A, 0x345] as [UInt32]) func featureRegistersAreZero(
    _ number: UInt32
  ) throws {
    let client = try Client()
    let second = try client.call(client.vm, CKVM_CREATE_VCPU, 1)
    defer { client.transport.close(second) }
    func list(_ value: UInt64) -> (UInt32, UInt32, kvm_msr_entry) {
      (1, 0, kvm_msr_entry(index: number, reserved: 0, data: value))
    }
    #expect(try client.get(second, CKVM_GET_MSRS, list(7)).2.data == 0)
    #expect(try client.set(second, CKVM_SET_MSRS, list(0)) == 1)
    #expect(try client.set(second, CKVM_SET_MSRS, list(1)) == 0)
  }
}
