// SPDX-License-Identifier: Apache-2.0
//
// KVM's paravirtual interface (end of interrupts, asynchronous page faults, clocks, polling) as
// Linux documents it, seen from a guest in 64-bit mode.

import CHost
import ClientMemory
import Glibc
import Host
import KVM
import KVMClient
import SystemPackage
import Testing

private let pollControl: UInt32 = 0x4B56_4D05
private let endOfInterrupt: UInt32 = 0x4B56_4D04
private let asyncFault: UInt32 = 0x4B56_4D02
private let asyncFaultVector: UInt32 = 0x4B56_4D06
private let asyncFaultAcknowledge: UInt32 = 0x4B56_4D07

/// A guest in 64-bit mode with interrupts: tables for segments and interrupts, the local APIC in
/// x2APIC mode. Code is at 0x1000, handlers at 0x2000 and above.
private struct LongGuest {
  let client: Client
  static let gates = 0x6000

  init(_ code: [UInt8], chips: Client.Chips = .all) throws {
    client = try Client(chips: chips, megabytes: 4)
    try client.setLongMode()
    let memory = client.memory
    memory.storeBytes(of: 0x00AF_9B00_0000_FFFF, toByteOffset: 0x7008, as: UInt64.self)
    memory.storeBytes(of: 0x00CF_9300_0000_FFFF, toByteOffset: 0x7010, as: UInt64.self)
    try client.changeSpecial {
      ($0.gdt.base, $0.gdt.limit) = (0x7000, 23)
      ($0.idt.base, $0.idt.limit) = (UInt64(Self.gates), 0xFFF)
      if $0.apic_base != 0 { $0.apic_base = 0xFEE0_0D00 }
    }
    if case .none = chips {} else { try client.setLocalAPIC(0xF0, 0x1FF) }
    client.load(code)
  }

  /// An interrupt gate.
  func handle(_ vector: Int, at address: Int, _ code: [UInt8]) {
    let place = client.memory + Self.gates + vector * 16
    let low = UInt64(address & 0xFFFF) | 8 << 16 | 0x8E00 << 32 | UInt64(address >> 16) << 48
    place.storeBytes(of: low, as: UInt64.self)
    client.load(code, at: address)
  }

  func signal(_ vector: UInt32) throws {
    var message = kvm_msi()
    message.address_lo = 0xFEE0_0000
    message.data = vector
    try client.set(client.vm, CKVM_SIGNAL_MSI, message)
  }

  func word(_ address: Int) -> UInt32 {
    client.memory.load(fromByteOffset: address, as: UInt32.self)
  }
}

/// Pieces of 64-bit code. Addresses are below 4 GiB.
private enum Code {
  static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    withUnsafeBytes(of: value) { Array($0) }
  }
  /// mov al, value; out port, al
  static func out(_ port: UInt8, _ value: UInt8) -> [UInt8] { [0xB0, value, 0xE6, port] }
  /// out port, al
  static func out(_ port: UInt8) -> [UInt8] { [0xE6, port] }
  /// mov eax, [address]
  static func load(_ address: UInt32) -> [UInt8] { [0x8B, 0x04, 0x25] + bytes(address) }
  /// mov dword [address], value
  static func store(_ address: UInt32, _ value: UInt32) -> [UInt8] {
    [0xC7, 0x04, 0x25] + bytes(address) + bytes(value)
  }
  /// mov ecx, number; mov eax, value; xor edx, edx; wrmsr
  static func writeMSR(_ number: UInt32, _ value: UInt32) -> [UInt8] {
    [0xB9] + bytes(number) + [0xB8] + bytes(value) + [0x31, 0xD2, 0x0F, 0x30]
  }
  /// lock btr dword [address], 0; setc al
  static func takeBit(_ address: UInt32) -> [UInt8] {
    [0xF0, 0x0F, 0xBA, 0x34, 0x25] + bytes(address) + [0, 0x0F, 0x92, 0xC0]
  }
  static let enableInterrupts: [UInt8] = [0xFB]
  static let iret: [UInt8] = [0x48, 0xCF]
  static let halt: [UInt8] = [0xF4]
  /// jmp $
  static let loop: [UInt8] = [0xEB, 0xFE]
}

/// KVM's own features for guests (Linux, "KVM CPUID bits" and "KVM-specific MSRs"), on both KVMs.
@Suite(.serialized, .onBothEngines) struct ParavirtualTests {
  @Test func registersAreChecked() throws {
    let client = try Client(chips: .all)
    for (number, good, bad) in [
      (endOfInterrupt, 0x5001, 0x5003), (asyncFault, 0x5009, 0x5019),
      (asyncFaultVector, 0x40, 0x140),
    ] as [(UInt32, UInt64, UInt64)] {
      #expect(try !client.setMSR(number, bad), "\(String(number, radix: 16))")
      #expect(try client.setMSR(number, good), "\(String(number, radix: 16))")
      #expect(try client.msr(number) == good)
      #expect(try client.setMSR(number, 0))
    }
    #expect(try client.setMSR(asyncFaultAcknowledge, 1))
    #expect(try client.msr(asyncFaultAcknowledge) == 0)
    #expect(try client.capability(KVM_CAP_ASYNC_PF) == 1)
    #expect(try client.capability(KVM_CAP_ASYNC_PF_INT) == 1)
  }

  @Test func withoutChipsTheyDoNothing() throws {
    let client = try Client()
    #expect(try !client.setMSR(asyncFault, 0x5009))
    #expect(try client.setMSR(asyncFault, 0))
    if Engine.current == .software { #expect(try client.setMSR(asyncFaultVector, 0)) }
    #expect(try client.setMSR(endOfInterrupt, 0x5001))
    client.load([0xE6, 0x90])
    #expect(try client.nextOut()?.port == 0x90)
    #expect(client.memory.load(fromByteOffset: 0x5000, as: UInt32.self) == 0)
  }

  /// The guest ends the interrupt by its bit, and the next of the same class comes.
  @Test(arguments: [false, true]) func interruptEndsByBit(split: Bool) throws {
    let guest = try LongGuest(
      Code.enableInterrupts + Code.out(0x90) + Code.loop,
      chips: split ? .split(routes: 24) : .all)
    // The bit in AL, to a port; then interrupts may come again in the handler.
    let report = Code.out(0x91) + Code.iret
    guest.handle(0x40, at: 0x2000, Code.takeBit(0x5000) + report)
    guest.handle(0x41, at: 0x2100, Code.takeBit(0x5000) + report)
    #expect(try guest.client.setMSR(endOfInterrupt, 0x5001))
    #expect(try guest.client.nextOut()?.port == 0x90)
    for vector in [0x40, 0x41, 0x40] as [UInt32] {
      try guest.signal(vector)
      let end = try #require(try guest.client.nextOut())
      #expect(end.port == 0x91 && end.value == 1, "vector \(vector)")
      #expect(guest.word(0x5000) == 0)
      #expect(try guest.client.localAPIC(0x120) == 0, "in service")
    }
  }

  /// With a second interrupt behind the first the register is wanted.
  @Test func bitIsNotOfferedWhereOthersWait() throws {
    let guest = try LongGuest(Code.enableInterrupts + Code.out(0x90) + Code.loop)
    let handler = Code.takeBit(0x5000) + Code.out(0x91) + Code.writeMSR(0x80B, 0) + Code.iret
    guest.handle(0x40, at: 0x2000, handler)
    guest.handle(0x41, at: 0x2100, Code.takeBit(0x5000) + Code.out(0x92) + Code.loop)
    #expect(try guest.client.setMSR(endOfInterrupt, 0x5001))
    #expect(try guest.client.nextOut()?.port == 0x90)
    try guest.signal(0x41)
    try guest.signal(0x40)
    // The higher first: nothing may end it quietly, as the other waits.
    let first = try #require(try guest.client.nextOut())
    #expect(first.port == 0x92 && first.value == 0)
  }

  /// The I/O APIC has to know of the end. (Linux looks for a pin that sends the vector.)
  @Test func bitIsNotOfferedForLevels() throws {
    let guest = try LongGuest(Code.enableInterrupts + Code.out(0x90) + Code.loop)
    guest.handle(0x50, at: 0x2200, Code.takeBit(0x5000) + Code.out(0x93) + Code.loop)
    #expect(try guest.client.setMSR(endOfInterrupt, 0x5001))
    #expect(try guest.client.nextOut()?.port == 0x90)
    try guest.signal(0x50 | 0xC000)
    let level = try #require(try guest.client.nextOut())
    #expect(level.port == 0x93 && level.value == 0)
  }

  /// Outside KVM_RUN the guest's memory and the local APIC say the same as without the feature.
  @Test func bitGoesOnTheWayOut() throws {
    let guest = try LongGuest(Code.enableInterrupts + Code.out(0x90) + Code.loop)
    guest.handle(
      0x40, at: 0x2000,
      Code.load(0x5000) + Code.out(0x91) + Code.load(0x5000) + Code.out(0x91) + Code.takeBit(0x5000)
        + Code.out(0x92) + Code.loop)
    #expect(try guest.client.setMSR(endOfInterrupt, 0x5001))
    #expect(try guest.client.nextOut()?.port == 0x90)
    try guest.signal(0x40)
    for _ in 0..<2 {
      let look = try #require(try guest.client.nextOut())
      #expect(look.port == 0x91 && look.value == 1)
      #expect(guest.word(0x5000) == 0)
      #expect(try guest.client.localAPIC(0x120) == 1)
    }
    #expect(try guest.client.nextOut()?.value == 1)
    #expect(try guest.client.localAPIC(0x120) == 0)
  }

  /// KVM_HC_SEND_IPI: the second word of the bitmap, from identifier 0 on.
  @Test func hypercallSendsInterrupts() throws {
    let guest = try LongGuest(
      [0xB8, 10, 0, 0, 0, 0xBB, 1, 0, 0, 0, 0x31, 0xC9, 0x31, 0xD2, 0xBE, 0x40, 0, 0, 0]
        + [0x0F, 0x01, 0xC1] + Code.out(0x90)
        // A logical destination is refused.
        + [0xB8, 10, 0, 0, 0, 0xBE, 0x40, 8, 0, 0, 0x0F, 0x01, 0xC1] + Code.out(0x90) + Code.halt)
    let count = try #require(try guest.client.nextOut())
    #expect(count.port == 0x90 && count.value == 1)
    #expect(try guest.client.isRequested(0x40))
    #expect(try guest.client.nextOut()?.value == UInt8(truncatingIfNeeded: -22))
  }
}

/// KVM_FEATURE_PV_TLB_FLUSH.
@Suite(.serialized) struct ParavirtualFlushTests {
  /// What another CPU asks for while this one does not run is done before it does.
  @Test func translationsGoWhereThatIsWanted() throws {
    let place: UInt32 = 0x20_0000
    let guest = try LongGuest(
      Code.load(place) + Code.out(0x90) + Code.load(place) + Code.out(0x91) + Code.load(place)
        + Code.out(0x92) + Code.halt)
    let (client, memory) = (guest.client, guest.client.memory)
    memory.storeBytes(of: 1, toByteOffset: Int(place), as: UInt32.self)
    memory.storeBytes(of: 2, toByteOffset: 0, as: UInt32.self)
    #expect(try client.setMSR(0x4B56_4D03, 0x5041))
    #expect(try client.nextOut()?.value == 1)
    // Another page table entry: nobody has told this processor.
    memory.storeBytes(of: 0xE3, toByteOffset: 0x12008, as: UInt64.self)
    #expect(try client.nextOut()?.value == 1)
    memory.storeBytes(of: 2, toByteOffset: 0x5050, as: UInt8.self)
    #expect(try client.nextOut()?.value == 2)
    #expect(memory.load(fromByteOffset: 0x5050, as: UInt8.self) == 0)
  }
}

private enum UserFaults {
  static func open() -> Int32 {
    Int32(chost_syscall(Int(SYS_userfaultfd), Int(O_CLOEXEC | O_NONBLOCK), 0, 0, 0, 0, 0))
  }

  static var isOffered: Bool {
    let faults = open()
    guard faults >= 0 else { return false }
    close(faults)
    return true
  }
}

/// Asynchronous page faults, with memory that the test brings by a userfaultfd.
@Suite(.serialized, .enabled(if: UserFaults.isOffered, "the kernel refuses userfaultfd"))
struct AsyncPageFaultTests {
  /// Memory whose pages wait for `bring`.
  private final class LateMemory: @unchecked Sendable {
    let faults: Int32
    let place: UnsafeMutableRawPointer
    static let size = 1 << 16
    var range: Range<UInt> { UInt(bitPattern: place)..<UInt(bitPattern: place + Self.size) }

    init?() {
      faults = UserFaults.open()
      place = mmap(nil, Self.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
      var api = uffdio_api(api: 0xAA, features: 0, ioctls: 0)
      let start = UInt(bitPattern: place)
      var memory = uffdio_register(
        range: uffdio_range(start: UInt64(start), len: UInt64(Self.size)), mode: 1, ioctls: 0)
      guard faults >= 0, ioctl(faults, UInt(CUFFDIO_API), &api) == 0,
        ioctl(faults, UInt(CUFFDIO_REGISTER), &memory) == 0
      else { return nil }
    }

    deinit {
      close(faults)
      munmap(place, Self.size)
    }

    /// Fills a page with 42s; waits first until somebody wants one, if `wanted`.
    func bring(_ page: Int, wanted: Bool = true) {
      var poller = pollfd(fd: faults, events: Int16(POLLIN), revents: 0)
      if wanted { _ = poll(&poller, 1, 5000) }
      var source = [UInt8](repeating: 42, count: 8192)
      source.withUnsafeMutableBytes { bytes in
        var copy = uffdio_copy()
        let aligned = (UInt(bitPattern: bytes.baseAddress!) + 4095) & ~4095
        copy.dst = UInt64(UInt(bitPattern: place) + UInt(page) * 4096)
        copy.src = UInt64(aligned)
        copy.len = 4096
        _ = ioctl(faults, UInt(CUFFDIO_COPY), &copy)
      }
    }
  }

  private static let structure: UInt32 = 0x5000
  private static let arrived: UInt32 = 0x5100
  private static let late: UInt32 = 0x40_0000

  /// A guest that reads a byte of late memory. #PF: number of the token to port 0x90, flags to
  /// 0x91, then its rounds of other work to 0x92 until the page is there. Arrivals: number to 0x93.
  /// The byte to 0x94.
  private static func guest(
    _ memory: LateMemory, enable: UInt64?, interrupts: Bool = true
  ) throws -> LongGuest {
    let wait = Code.load(arrived) + [0x84, 0xC0, 0x74, 0xF5]
    let start =
      (enable == nil ? [] : Code.enableInterrupts + wait + Code.store(arrived, 0))
      + (interrupts ? Code.enableInterrupts : [0xFA])
    let guest = try LongGuest(start + Code.load(late + 8) + Code.out(0x94) + Code.halt)
    let client = guest.client
    client.hypervisor.client.userFaults.add(memory.range, memory.faults)
    try client.setMemory(1, at: UInt64(late), size: LateMemory.size, host: memory.place)
    guest.handle(
      14, at: 0x2000,
      [0x50, 0x0F, 0x20, 0xD0, 0xC1, 0xE8, 12] + Code.out(0x90) + Code.load(structure)
        + Code.out(0x91) + Code.store(structure, 0) + Code.enableInterrupts
        // test byte [arrived], 1; jnz over the work; out 0x92; back
        + [0xF6, 0x04, 0x25] + Code.bytes(arrived) + [1, 0x75, 4] + Code.out(0x92) + [0xEB, 0xF2]
        + [0x58, 0x48, 0x83, 0xC4, 8] + Code.iret)
    guest.handle(
      0x40, at: 0x2100,
      [0x50, 0x51, 0x52] + Code.load(structure + 4) + [0xC1, 0xE8, 12] + Code.out(0x93)
        + Code.store(structure + 4, 0) + Code.store(arrived, 1)
        + Code.writeMSR(asyncFaultAcknowledge, 1) + Code.writeMSR(0x80B, 0)
        + [0x5A, 0x59, 0x58] + Code.iret)
    guest.handle(0x50, at: 0x2200, Code.out(0x95) + Code.loop)
    if let enable {
      #expect(try client.setMSR(asyncFaultVector, 0x40))
      #expect(try client.setMSR(asyncFault, UInt64(structure) | enable))
      // Whoever waits from before is to try again.
      let all = try #require(try client.nextOut())
      #expect(all.port == 0x93 && all.value == 0xFF)
    }
    return guest
  }

  @Test func guestWorksMeanwhile() throws {
    let memory = try #require(LateMemory())
    let client = try Self.guest(memory, enable: 0xB).client
    let fault = try #require(try client.nextOut())
    #expect(fault.port == 0x90 && fault.value == 1)
    let flags = try #require(try client.nextOut())
    #expect(flags.port == 0x91 && flags.value == 1)
    for _ in 0..<5 { #expect(try client.nextOut()?.port == 0x92) }
    memory.bring(0)
    var next = try client.nextOut()
    var rounds = 0
    while next?.port == 0x92, rounds < 1_000_000 {
      next = try client.nextOut()
      rounds += 1
    }
    #expect(next?.port == 0x93 && next?.value == 1)
    // The work of the round that was interrupted.
    next = try client.nextOut()
    if next?.port == 0x92 { next = try client.nextOut() }
    #expect(next?.port == 0x94 && next?.value == 42)
  }

  /// Not asked for; or by a guest that takes interrupts alone for user code, or none.
  @Test(arguments: [nil, 0x9, 0xB] as [UInt64?]) func guestWaits(enable: UInt64?) throws {
    let memory = try #require(LateMemory())
    let client = try Self.guest(memory, enable: enable, interrupts: enable != 0xB).client
    let thread = try HostThread(name: "bring") {
      usleep(20_000)
      memory.bring(0)
    }
    let next = try #require(try client.nextOut())
    #expect(next.port == 0x94 && next.value == 42)
    thread.join()
  }

  /// In its kernel, where it does not want to be told, it takes interrupts all the same.
  @Test func haltedGuestTakesInterrupts() throws {
    let memory = try #require(LateMemory())
    let guest = try Self.guest(memory, enable: 0x9)
    let thread = try HostThread(name: "interrupt") {
      usleep(50_000)
      try? guest.signal(0x50)
    }
    #expect(try guest.client.nextOut()?.port == 0x95)
    thread.join()
    memory.bring(0)
  }

  /// Nobody waits for pages that never come.
  @Test func machineGoesWithAFaultOut() throws {
    let memory = try #require(LateMemory())
    do {
      let client = try Self.guest(memory, enable: 0xB).client
      #expect(try client.nextOut()?.port == 0x90)
      // The slot goes first.
      var region = kvm_userspace_memory_region()
      (region.slot, region.guest_phys_addr) = (1, UInt64(Self.late))
      region.userspace_addr = UInt64(UInt(bitPattern: memory.place))
      try client.set(client.vm, CKVM_SET_USER_MEMORY_REGION, region)
      #expect(try client.nextOut()?.port == 0x91)
    }
    memory.bring(0)
  }

  /// Pages that are there are mapped, the others not: each is a fault of its own.
  @Test func eachPageIsAFault() throws {
    let memory = try #require(LateMemory())
    memory.bring(0, wanted: false)
    let client = try Self.guest(memory, enable: 0xB).client
    let there = try #require(try client.nextOut())
    #expect(there.port == 0x94 && there.value == 42)
    try client.setRegisters { $0.rip = 0x3000 }
    client.load(Code.load(Self.late + 4096) + Code.out(0x94), at: 0x3000)
    #expect(try client.nextOut()?.port == 0x90)
  }
}
