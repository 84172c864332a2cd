// SPDX-License-Identifier: Apache-2.0
//
// The registers of performance counters, and what a client decides about them: reads, writes
// and faults as the SDM has them.

import CHost
import Glibc
import SystemPackage
import Testing

extension PerformanceTests {
  // MARK: Registers

  /// A guest's own accesses: 32 bits with their sign, all bits through the other number, RDPMC.
  @Test func accessesByTheGuest() throws {
    let client = try Client()
    try client.setLongMode()
    func write(_ number: UInt32, _ low: UInt32, _ high: UInt32) -> [UInt8] {
      [0xB9] + bytes(number) + [0xB8] + bytes(low) + [0xBA] + bytes(high) + [0x0F, 0x30]
    }
    func bytes(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }
    // rdpmc of counter 1 and of fixed counter 2; out
    let read: [UInt8] =
      [0xB9] + bytes(1) + [0x0F, 0x33, 0x89, 0xC3, 0x89, 0xD6, 0xB9] + bytes(1 << 30 | 2)
      + [0x0F, 0x33, 0xE6, 0x90]
    client.load(
      write(0xC1, 0x8000_0000, 7) + write(0x4C2, 0x1234_5678, 0x9ABC) + write(0x30B, 5, 0xF_0001)
        + read)
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try count(client, 0) == 0xFFFF_8000_0000)
    #expect(try count(client, 1) == 0x9ABC_1234_5678)
    #expect(try client.msr(0x4C2) == 0x9ABC_1234_5678)
    let registers = try client.registers
    #expect(registers.rbx == 0x1234_5678 && registers.rsi == 0x9ABC)
    #expect(registers.rax == 5 && registers.rdx == 1)
  }

  /// What faults: reserved bits, registers that are not there, read-only ones.
  @Test func faultingAccesses() throws {
    let client = try Client()
    client.load([0xE6, 0x9D, 0xF4], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 13 * 4, as: UInt32.self)
    /// Whether the guest may write; 0x66 mov ecx, eax, edx; wrmsr; out 0x90, al
    func allows(_ number: UInt32, _ value: UInt64) throws -> Bool {
      func bytes(_ value: UInt64) -> [UInt8] {
        withUnsafeBytes(of: UInt32(truncatingIfNeeded: value)) { Array($0) }
      }
      client.load(
        [0x66, 0xB9] + bytes(UInt64(number)) + [0x66, 0xB8] + bytes(value) + [0x66, 0xBA]
          + bytes(value >> 32) + [0x0F, 0x30, 0xE6, 0x90])
      try client.setRegisters { $0.rip = 0x1000 }
      return try client.nextOut()?.port == 0x90
    }
    #expect(try allows(Self.select, 0xFFDF_FFFF))
    #expect(try !allows(Self.select, 1 << 21))
    #expect(try !allows(Self.select, 1 << 32))
    #expect(try !allows(Self.select + 8, 0))
    #expect(try !allows(0x4C1, 1 << 48))
    #expect(try allows(Self.fixedControl, 0xBBB))
    #expect(try !allows(Self.fixedControl, 4))
    #expect(try !allows(Self.fixedControl, 1 << 12))
    #expect(try allows(Self.control, 0x7_0000_00FF))
    #expect(try !allows(Self.control, 1 << 8))
    #expect(try !allows(Self.control, 1 << 35))
    #expect(try !allows(Self.status, 0))
    #expect(try allows(Self.overflowControl, 3 << 62))
    #expect(try !allows(Self.overflowControl, 1 << 61))
    #expect(try !allows(0x345, 0x2000))
    #expect(try client.setMSR(0x345, 0))
    #expect(try !allows(0x4C1, 0))
    #expect(try allows(Self.counter, 0))
    // MISC_ENABLE says that there are counters, whatever is written.
    #expect(try client.msr(0x1A0).map { $0 & 1 << 7 } == 1 << 7)
    #expect(try allows(0x1A0, 0x1801))
    #expect(try client.msr(0x1A0) == 0x1881)
  }

  /// RDPMC above CPL 0 needs CR4.PCE; a counter that is not there faults in any case.
  @Test(arguments: [true, false]) func userReads(isAllowed: Bool) throws {
    let client = try Client()
    try client.setLongMode()
    for place in [0x10000, 0x11000, 0x12000] {
      let entry = client.memory.load(fromByteOffset: place, as: UInt64.self)
      client.memory.storeBytes(of: entry | 4, toByteOffset: place, as: UInt64.self)
    }
    // xor ecx, ecx; rdpmc; out 0x90, al
    client.load([0x31, 0xC9, 0x0F, 0x33, 0xE6, 0x90])
    try client.changeSpecial {
      if isAllowed { $0.cr4 |= 1 << 8 }
      ($0.cs.dpl, $0.cs.selector, $0.ss.dpl, $0.ss.selector) = (3, 0x23, 3, 0x1B)
    }
    try client.setRegisters { $0.rflags = 0x3002 }
    #expect(try client.setMSR(Self.counter, 0x55))
    // Without an interrupt table the fault shuts the guest down.
    if isAllowed {
      #expect(try client.nextOut()?.value == 0x55)
    } else {
      #expect(try client.run() == KVM_EXIT_SHUTDOWN)
    }
  }

  /// What a client saves is what another vCPU goes on with.
  @Test func savedAndRestored() throws {
    let first = try Client()
    try first.setLongMode()
    first.load(Self.loop)
    try start(
      first, [Self.instructions | Self.both, Self.branches | Self.both | Self.interrupt],
      fixed: 0x30)
    #expect(try first.setMSR(Self.counter, Self.full))
    #expect(try first.nextOut()?.port == 0x90)
    #expect(try first.msr(Self.status) == 1)
    let second = try Client()
    try second.setLongMode()
    second.load(Self.loop)
    let numbers =
      (0..<8).map { Self.counter + $0 } + (0..<8).map { Self.select + $0 }
      + [0x309, 0x30A, 0x30B, 0x38D, 0x38E, 0x390, 0x38F, 0x345]
    for number in numbers {
      let value = try #require(try first.msr(number))
      #expect(try second.setMSR(number, value))
      #expect(try second.msr(number) == value)
    }
    #expect(try second.nextOut()?.port == 0x90)
    #expect(try count(second, 0) == 4001)
    #expect(try count(second, 1) == 2000)
    #expect(try second.msr(Self.fixed + 1) ?? 0 > first.msr(Self.fixed + 1) ?? .max)
    #expect(try second.msr(Self.status) == 1)
  }

  // MARK: What a client decides

  func filter(_ client: Client, _ action: Int32, _ events: [UInt64], fixed: UInt32 = 0)
    -> Errno?
  {
    struct Filter {
      var header = kvm_pmu_event_filter()
      var events = InlineArray<4, UInt64>(repeating: 0)
    }
    var value = Filter()
    value.header.action = UInt32(bitPattern: action)
    value.header.nevents = UInt32(events.count)
    value.header.fixed_counter_bitmap = fixed
    for (n, event) in events.prefix(4).enumerated() { value.events[n] = event }
    return client.error(client.vm, CKVM_SET_PMU_EVENT_FILTER, with: value)
  }

  @Test func eventFilter() throws {
    let client = try Client()
    try client.setLongMode()
    client.load(Self.loop)
    #expect(try client.capability(KVM_CAP_PMU_EVENT_FILTER) == 1)
    /// Counts of instructions, of branches, and of fixed counter 0, in a round of the guest.
    func counts() throws -> [UInt64] {
      try client.setRegisters { $0.rip = 0x1000 }
      try start(
        client, [Self.instructions | Self.both, Self.branches | Self.both], fixed: 3)
      #expect(try client.nextOut()?.port == 0x90)
      return [try count(client, 0), try count(client, 1), try client.msr(Self.fixed) ?? 0]
    }
    #expect(try counts() == [2001, 1000, 2001])
    #expect(filter(client, KVM_PMU_EVENT_DENY, [Self.branches]) == nil)
    #expect(try counts() == [2001, 0, 2001])
    #expect(filter(client, KVM_PMU_EVENT_DENY, [Self.instructions], fixed: 1) == nil)
    #expect(try counts() == [0, 1000, 0])
    #expect(filter(client, KVM_PMU_EVENT_ALLOW, [Self.branches], fixed: 6) == nil)
    #expect(try counts() == [0, 1000, 0])
    #expect(filter(client, KVM_PMU_EVENT_ALLOW, [], fixed: 1) == nil)
    #expect(try counts() == [0, 0, 2001])
    #expect(filter(client, KVM_PMU_EVENT_DENY, []) == nil)
    #expect(try counts() == [2001, 1000, 2001])
  }

  /// A vCPU that CPUID makes one of AMD's has AMD's counters.
  @Test func otherVendorsCounters() throws {
    let client = try Client(chips: .all)
    try client.changeCPUID {
      if $0.function == 0 { ($0.ebx, $0.edx, $0.ecx) = (0x6874_7541, 0x6974_6E65, 0x444D_4163) }
    }
    try client.setLongMode()
    client.load(Self.loop)
    client.load([0xE6, 0x91, 0xF4], at: 0x3000)
    try setGate(client, 2, to: 0x3000)
    try setLocalVector(client, 4 << 8)
    let (select, counter): (UInt32, UInt32) = (0xC001_0000, 0xC001_0004)
    // Reserved bits are not kept.
    #expect(try client.setMSR(select, Self.instructions | Self.both | Self.enable | 3 << 40))
    #expect(try client.msr(select) == Self.instructions | Self.both | Self.enable)
    #expect(try client.setMSR(select + 1, 0xC2 | Self.system | Self.enable))
    #expect(try client.setMSR(select + 2, 0x76 | Self.both | Self.enable))
    // What is Intel's event is none here; nor is 1C2H 0C2H.
    #expect(try client.setMSR(select + 3, 1 << 32 | 0xC2 | Self.both | Self.enable))
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try client.msr(counter) == 2001 && client.msr(counter + 1) == 1000)
    #expect(try client.msr(counter + 2) ?? 0 > 0 && client.msr(counter + 3) == 0)
    #expect(try client.msr(0x1A0).map { $0 & 1 << 7 } == 0)
    #expect(filter(client, KVM_PMU_EVENT_DENY, [0xC2]) == nil)
    #expect(try client.setMSR(counter + 2, Self.full))
    #expect(
      try client.setMSR(select, Self.instructions | Self.both | Self.enable | Self.interrupt))
    #expect(try client.setMSR(counter, Self.full - 499))
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x91)
    #expect(try client.registers.rcx == 1000 - 250)
    #expect(try client.msr(counter + 1) == 1000)
    // The architectural ones are not there.
    // mov ecx, 0x38F; rdmsr without a handler
    client.load([0xB9, 0x8F, 3, 0, 0, 0x0F, 0x32, 0xE6, 0x92])
    try client.changeSpecial { $0.idt.limit = 0 }
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.run() == KVM_EXIT_SHUTDOWN)
  }

  @Test func filterErrors() throws {
    let client = try Client()
    #expect(filter(client, 2, []) == .invalidArgument)
    var header = kvm_pmu_event_filter()
    header.flags = 2
    #expect(client.error(client.vm, CKVM_SET_PMU_EVENT_FILTER, with: header) == .invalidArgument)
    header.flags = 0
    header.nevents = 301
    #expect(client.error(client.vm, CKVM_SET_PMU_EVENT_FILTER, with: header) == .argListTooLong)
    #expect(
      client.error { () throws(Errno) in try client.call(client.vm, CKVM_SET_PMU_EVENT_FILTER, 0) }
        == .badAddress)
  }

  @Test func withoutCounters() throws {
    #expect(try Client().capability(KVM_CAP_PMU_CAPABILITY) == KVM_PMU_CAP_DISABLE)
    var early: Errno?
    let client = try Client { client in
      early = client.error { () throws(Errno) in try client.enable(KVM_CAP_PMU_CAPABILITY, 2) }
      try client.enable(KVM_CAP_PMU_CAPABILITY, UInt64(KVM_PMU_CAP_DISABLE))
    }
    #expect(early == .invalidArgument)
    // Not once there are vCPUs.
    let late = client.error { () throws(Errno) in
      try client.enable(KVM_CAP_PMU_CAPABILITY, UInt64(KVM_PMU_CAP_DISABLE))
    }
    #expect(late == .invalidArgument)
    // mov ecx, 0x38F; rdmsr; out 0x90, al
    client.load([0x66, 0xB9, 0x8F, 3, 0, 0, 0x0F, 0x32, 0xE6, 0x90])
    client.load([0xE6, 0x9D, 0xF4], at: 0x3000)
    client.memory.storeBytes(of: 0x3000, toByteOffset: 13 * 4, as: UInt32.self)
    #expect(try client.nextOut()?.port == 0x9D)
    // xor cx, cx; rdpmc
    client.load([0x31, 0xC9, 0x0F, 0x33, 0xE6, 0x90])
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x9D)
    #expect(try client.msr(0x1A0).map { $0 & 1 << 7 } == 0)
    // A list of all MSRs can be saved and restored.
    #expect(try client.msr(Self.control) == 0)
    #expect(try client.setMSR(Self.control, 0))
    #expect(try !client.setMSR(Self.control, 1))
  }
}
