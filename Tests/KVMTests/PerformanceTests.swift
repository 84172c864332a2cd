// SPDX-License-Identifier: Apache-2.0
//
// Performance counters: what counts, overflow, filters. Guests run loops whose instructions and
// branches are counted by hand, on both tiers, and counts must be exact.

import CHost
import Glibc
import Host
import KVMClient
import Synchronization
import SystemPackage
import Testing

@Suite(.serialized) struct PerformanceTests {
  static let enable: UInt64 = 1 << 22
  static let system: UInt64 = 1 << 17
  static let user: UInt64 = 1 << 16
  static let interrupt: UInt64 = 1 << 20
  static let both = system | user
  static let cycles: UInt64 = 0x3C
  static let reference: UInt64 = 0x13C
  static let instructions: UInt64 = 0xC0
  static let branches: UInt64 = 0xC4
  static let select: UInt32 = 0x186
  static let counter: UInt32 = 0xC1
  static let fixed: UInt32 = 0x309
  static let fixedControl: UInt32 = 0x38D
  static let status: UInt32 = 0x38E
  static let control: UInt32 = 0x38F
  static let overflowControl: UInt32 = 0x390
  static let full: UInt64 = 1 << 48 - 1

  func count(_ client: Client, _ n: UInt32) throws -> UInt64 {
    try #require(try client.msr(Self.counter + n))
  }

  /// Counters 0, 1, ... for these events, and all of them on.
  func start(_ client: Client, _ events: [UInt64], fixed: UInt64 = 0) throws {
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
  static let loop: [UInt8] = [
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

  /// Counts are a vCPU's own, on a physical CPU that it has in turns.
  @Test func cpusShareOne() throws {
    let guest = try Guest(.software, cpus: 3, physicalCPUs: 1)
    let results = Mutex<[Int: [UInt32]]>([:])
    let rounds: [UInt32] = [4_000_000, 5_000_000, 3_000_000]
    var threads: [Thread] = []
    for (number, cpu) in guest.cpus.enumerated() {
      // mov ecx, rounds; 1: dec ecx; jnz 1b; xor ecx, ecx; rdpmc; out 0x90, eax;
      // mov ecx, 1; rdpmc; out 0x91, eax
      let count = withUnsafeBytes(of: rounds[number]) { Array($0) }
      guest.load(
        [0x66, 0xB9] + count + [0x66, 0x49, 0x75, 0xFC, 0x66, 0x31, 0xC9, 0x0F, 0x33, 0x66]
          + [0xE7, 0x90, 0x66, 0xB9, 1, 0, 0, 0, 0x0F, 0x33, 0x66, 0xE7, 0x91],
        at: 0x1000 + number * 0x100)
      try guest.setRealMode(cpu, rip: UInt64(0x1000 + number * 0x100))
      // The last one counts nothing.
      let on: UInt64 = number < 2 ? 3 : 0
      let set = try cpu.setMSRs([
        (Self.control, 0), (Self.select, Self.instructions | Self.both | Self.enable),
        (Self.select + 1, Self.branches | Self.both | Self.enable), (Self.control, on),
      ])
      #expect(set == 4)
      threads.append(
        Thread {
          for _ in 0..<2 {
            guard case .io(let access) = try? cpu.run() else { return }
            let value = access.data.loadUnaligned(as: UInt32.self)
            results.withLock { $0[number, default: []].append(value) }
          }
        })
    }
    for thread in threads { thread.join() }
    results.withLock {
      for number in 0..<2 { #expect($0[number] == [2 * rounds[number] + 2, rounds[number]]) }
      #expect($0[2] == [0, 0])
    }
  }

  // MARK: Overflow

  /// Local APIC in x2APIC mode, on; its performance entry.
  func setLocalVector(_ client: Client, _ entry: UInt32) throws {
    try client.setLocalAPIC(0xF0, 0x1FF)
    try client.setLocalAPIC(0x340, entry)
  }

  /// An interrupt gate of the table at 0x4000, which is made the guest's.
  func setGate(_ client: Client, _ vector: Int, to handler: Int) throws {
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
}
