// SPDX-License-Identifier: Apache-2.0

import CHost
import Glibc
import Host
import SystemPackage
import Testing
import X86

/// Performance counters: what counts, overflow, filters, and what a client can take away.
@Suite(.serialized) struct PerformanceTests {
  private static let enable: UInt64 = 1 << 22
  private static let system: UInt64 = 1 << 17
  private static let user: UInt64 = 1 << 16
  private static let interrupt: UInt64 = 1 << 20
  private static let both = system | user
  private static let cycles: UInt64 = 0x3C
  private static let reference: UInt64 = 0x13C
  private static let instructions: UInt64 = 0xC0
  private static let branches: UInt64 = 0xC4
  private static let select: UInt32 = 0x186
  private static let counter: UInt32 = 0xC1
  private static let fixed: UInt32 = 0x309
  private static let fixedControl: UInt32 = 0x38D
  private static let status: UInt32 = 0x38E
  private static let control: UInt32 = 0x38F
  private static let overflowControl: UInt32 = 0x390
  private static let full: UInt64 = 1 << 48 - 1

  private func count(_ client: Client, _ n: UInt32) throws -> UInt64 {
    try #require(try client.msr(Self.counter + n))
  }

  /// Counters 0, 1, ... for these events, and all of them on.
  private func start(_ client: Client, _ events: [UInt64], fixed: UInt64 = 0) throws {
    #expect(try client.setMSR(Self.control, 0))
    for (n, event) in events.enumerated() {
      #expect(try client.setMSR(Self.counter + UInt32(n), 0))
      #expect(try client.setMSR(Self.select + UInt32(n), event | Self.enable))
    }
    for n in 0..<UInt32(3) { #expect(try client.setMSR(Self.fixed + n, 0)) }
    #expect(try client.setMSR(Self.fixedControl, fixed))
    #expect(try client.setMSR(Self.control, 7 << 32 | (1 << UInt64(events.count) - 1)))
  }

  /// 1000 rounds: mov ecx, 1000; 1: dec ecx; jnz 1b; out 0x90, al; jmp .
  private static let loop: [UInt8] = [
    0xB9, 0xE8, 0x03, 0, 0, 0xFF, 0xC9, 0x75, 0xFC, 0xE6, 0x90, 0xEB, 0xFE,
  ]

  @Test(arguments: [false, true]) func exactCounts(translates: Bool) throws {
    let client = try Client(translates: translates)
    try client.setLongMode()
    client.load(Self.loop)
    let events = [
      Self.instructions | Self.system, Self.branches | Self.both, Self.instructions | Self.user,
      Self.cycles | Self.both, Self.reference | Self.system, 0x412E | Self.both,
      // With a counter mask, it would count something else.
      Self.instructions | Self.both | 1 << 24,
    ]
    try start(client, events, fixed: 0x333)
    let before = try #require(try client.msr(0x10))
    #expect(try client.nextOut()?.port == 0x90)
    let after = try #require(try client.msr(0x10))
    // OUT retires with the next KVM_RUN.
    #expect(try count(client, 0) == 2001)
    #expect(try count(client, 1) == 1000)
    #expect(try count(client, 2) == 0)
    for n: UInt32 in [3, 4] {
      let cycles = try count(client, n)
      #expect(cycles > 0 && cycles < after - before)
    }
    #expect(try count(client, 5) == 0 && count(client, 6) == 0)
    #expect(try client.msr(Self.fixed) == 2001)
    #expect(try client.msr(Self.fixed + 1) != 0 && client.msr(Self.fixed + 2) != 0)
    #expect(try client.msr(Self.status) == 0)
    // Switched off, it stands still.
    #expect(try client.setMSR(Self.control, 1 << 1))
    try client.setRegisters { $0.rip = 0x1000 }
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try count(client, 0) == 2001)
    #expect(try count(client, 1) == 2000)
  }

  /// Instructions that the hypervisor does count as well: an MMIO access, CPUID, OUT.
  @Test func emulatedInstructions() throws {
    let client = try Client()
    try client.setLongMode()
    // mov eax, 0; cpuid; mov ebx, 0x30000000; mov [rbx], eax; call [rbx]
    // 0x2000: out 0x90, al; out 0x91, al
    client.load([
      0xB8, 0, 0, 0, 0, 0x0F, 0xA2, 0xBB, 0, 0, 0, 0x30, 0x89, 0x03, 0xFF, 0x13,
    ])
    client.load([0xE6, 0x90, 0xE6, 0x91], at: 0x2000)
    try start(client, [Self.instructions | Self.both, Self.branches | Self.both])
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(try count(client, 0) == 3)
    #expect(try client.run() == KVM_EXIT_MMIO)
    #expect(try count(client, 0) == 4)
    withUnsafeMutableBytes(of: &client.shared.pointee.mmio.data) {
      $0.storeBytes(of: 0x2000, as: UInt64.self)
    }
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try count(client, 0) == 5 && count(client, 1) == 1)
    #expect(try client.nextOut()?.port == 0x91)
    #expect(try count(client, 0) == 6 && count(client, 1) == 1)
  }

  @Test(arguments: [false, true]) func rings(translates: Bool) throws {
    let client = try Client(translates: translates)
    try client.setLongMode()
    for place in [0x10000, 0x11000, 0x12000] {
      let entry = client.memory.load(fromByteOffset: place, as: UInt64.self)
      client.memory.storeBytes(of: entry | 4, toByteOffset: place, as: UInt64.self)
    }
    // mov ebx, 10; 1: syscall; dec ebx; jnz 1b; out 0x90, al
    client.load([0xBB, 10, 0, 0, 0, 0x0F, 0x05, 0xFF, 0xCB, 0x75, 0xFA, 0xE6, 0x90])
    // nop; nop; sysretq
    client.load([0x90, 0x90, 0x48, 0x0F, 0x07], at: 0x2000)
    #expect(try client.setMSR(0xC000_0082, 0x2000))
    #expect(try client.setMSR(0xC000_0081, 0x0013_0008 << 32))
    try client.changeSpecial {
      $0.efer |= 1
      ($0.cs.dpl, $0.cs.selector, $0.ss.dpl, $0.ss.selector) = (3, 0x23, 3, 0x1B)
    }
    try client.setRegisters { $0.rflags = 0x3002 }
    try start(
      client,
      [
        Self.instructions | Self.user, Self.instructions | Self.system,
        Self.branches | Self.user, Self.branches | Self.system, Self.instructions | Self.both,
        Self.cycles | Self.user, Self.cycles | Self.system, Self.cycles | Self.both,
      ])
    #expect(try client.nextOut()?.port == 0x90)
    #expect(try count(client, 0) == 31 && count(client, 1) == 30)
    #expect(try count(client, 2) == 20 && count(client, 3) == 10)
    #expect(try count(client, 4) == 61)
    #expect(try count(client, 5) > 0 && count(client, 6) > 0)
    #expect(try count(client, 7) == count(client, 5) + count(client, 6))
  }

  // MARK: Overflow

  /// Local APIC in x2APIC mode, on; its performance entry.
  private func setLocalVector(_ client: Client, _ entry: UInt32) throws {
    try client.setLocalAPIC(0xF0, 0x1FF)
    try client.setLocalAPIC(0x340, entry)
  }

  /// An interrupt gate of the table at 0x4000, which is made the guest's.
  private func setGate(_ client: Client, _ vector: Int, to handler: Int) throws {
    let entry = UInt64(handler) | 8 << 16 | 0x8E00 << 32
    client.memory.storeBytes(of: entry, toByteOffset: 0x4000 + vector * 16, as: UInt64.self)
    client.memory.storeBytes(of: 0, toByteOffset: 0x4008 + vector * 16, as: UInt64.self)
    // GDT at 0x5000: code at 8, data at 16.
    client.memory.storeBytes(of: 0x00AF_9B00_0000_FFFF, toByteOffset: 0x5008, as: UInt64.self)
    client.memory.storeBytes(of: 0x00CF_9300_0000_FFFF, toByteOffset: 0x5010, as: UInt64.self)
    try client.changeSpecial {
      ($0.idt.base, $0.idt.limit) = (0x4000, 0xFFF)
      ($0.gdt.base, $0.gdt.limit) = (0x5000, 0x17)
    }
  }

  /// An NMI right behind the instruction that overflows; the entry is masked then.
  @Test(arguments: [false, true]) func instructionOverflow(translates: Bool) throws {
    let client = try Client(chips: .all, translates: translates)
    try client.setLongMode()
    client.load(Self.loop)
    client.load([0xE6, 0x91, 0xF4], at: 0x3000)
    try setGate(client, 2, to: 0x3000)
    try setLocalVector(client, 4 << 8)
    try start(client, [Self.instructions | Self.both | Self.interrupt])
    #expect(try client.setMSR(Self.counter, Self.full - 499))
    #expect(try client.nextOut()?.port == 0x91)
    // 500 instructions are 249 rounds and one.
    #expect(try client.registers.rcx == 1000 - 250)
    #expect(try client.msr(Self.status) == 1)
    #expect(try client.localAPIC(0x340) == 4 << 8 | 1 << 16)
    #expect(try count(client, 0) < 4)
  }

  @Test func branchOverflowWithVector() throws {
    let client = try Client(chips: .all)
    try client.setLongMode()
    client.load(Self.loop)
    client.load([0xE6, 0x91, 0xF4], at: 0x3000)
    try setGate(client, 0x50, to: 0x3000)
    try setLocalVector(client, 0x50)
    try client.setRegisters { $0.rflags = 0x202 }
    try start(client, [Self.cycles, Self.branches | Self.system | Self.interrupt])
    #expect(try client.setMSR(Self.counter + 1, Self.full - 99))
    #expect(try client.nextOut()?.port == 0x91)
    #expect(try client.registers.rcx == 1000 - 100)
    #expect(try client.msr(Self.status) == 2)
    // The handler's OUT is on its way; the guest clears the status.
    // mov ecx, 0x390; mov eax, 2; xor edx, edx; wrmsr; out 0x92, al
    client.load(
      [0xB9, 0x90, 3, 0, 0, 0xB8, 2, 0, 0, 0, 0x31, 0xD2, 0x0F, 0x30, 0xE6, 0x92], at: 0x6000)
    try client.setRegisters { $0.rip = 0x6000 }
    #expect(try client.nextOut()?.port == 0x92)
    #expect(try client.msr(Self.status) == 0)
  }

  /// Without an exit of its own, a loop is interrupted when its cycles are over.
  @Test(arguments: [false, true]) func cycleOverflow(translates: Bool) throws {
    let client = try Client(chips: .all, translates: translates)
    try client.setLongMode()
    client.load([0xEB, 0xFE])
    client.load([0xE6, 0x91, 0xF4], at: 0x3000)
    try setGate(client, 2, to: 0x3000)
    try setLocalVector(client, 4 << 8)
    try start(client, [], fixed: 0xB0)
    let rate = UInt64(try client.call(client.cpu, CKVM_GET_TSC_KHZ))
    #expect(try client.setMSR(Self.fixed + 1, Self.full - rate * 20))
    let start = HostClock.monotonic()
    #expect(try client.nextOut()?.port == 0x91)
    let time = HostClock.monotonic() - start
    #expect(time >= 19_000_000 && time < 2_000_000_000)
    #expect(try client.msr(Self.status) == 1 << 33)
  }

  /// Halted, nothing counts.
  @Test func haltedTime() throws {
    let client = try Client(chips: .all)
    try client.setLongMode()
    // hlt; out 0x90, al
    client.load([0xF4, 0xE6, 0x90])
    client.load([0x48, 0xCF], at: 0x3000)
    try setGate(client, 2, to: 0x3000)
    try start(client, [Self.cycles | Self.both])
    let start = HostClock.monotonic()
    let kicker = Thread { [unowned(unsafe) client] in
      sleepMilliseconds(100)
      client.kick()
    }
    #expect(throws: Errno.interrupted) { try client.run() }
    kicker.join()
    try client.call(client.cpu, CKVM_NMI)
    #expect(try client.nextOut()?.port == 0x90)
    let rate = UInt64(try client.call(client.cpu, CKVM_GET_TSC_KHZ))
    #expect(HostClock.monotonic() - start > 90_000_000)
    #expect(try count(client, 0) < rate * 50)
  }

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

  private func filter(_ client: Client, _ action: Int32, _ events: [UInt64], fixed: UInt32 = 0)
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
