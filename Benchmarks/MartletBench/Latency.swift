// SPDX-License-Identifier: Apache-2.0
//
// How long it takes until a guest, or its client, sees that something happened:
//
//     kick          a signal to the vCPU's thread -> KVM_RUN has returned
//     irqfd-busy    a write to an eventfd -> the guest's handler runs; the guest was in a loop
//     irqfd-halt    the same; the guest was in HLT
//     timer-busy    the local APIC timer's deadline -> the guest's handler runs; in a loop
//     timer-halt    the same; in HLT
//
// A handler tells by an OUT, so an exit to user space is in the figures of irqfd. Medians and 99th
// percentiles of wall time: they mean something on an idle machine only.

import CHost
import Glibc
import Host
import KVMClient
import KVMLoopback
import Synchronization
import SystemPackage
import X86

func measureLatency() throws {
  try measureLatency("soft", LoopbackTransport(translates: true))
  try measureDeviceLatency("kvm")
}

func measureDeviceLatency(_ name: String) throws {
  KickSignal.install()
  let device = DeviceTransport()
  guard (try? System(transport: device)) != nil else { return }
  try measureLatency(name, device)
}

private func measureLatency(_ engine: String, _ transport: any KVMTransport) throws {
  let kinds: [(name: String, samples: (LatencyGuest) throws -> [UInt64], halts: Bool)] = [
    ("kick", { try $0.kicks() }, false),
    ("irqfd-busy", { try $0.events() }, false),
    ("irqfd-halt", { try $0.events() }, true),
    ("timer-busy", { try $0.deadlines() }, false),
    ("timer-halt", { try $0.deadlines() }, true),
  ]
  for kind in kinds {
    let guest = try LatencyGuest(transport, halts: kind.halts)
    guard let samples = try? kind.samples(guest).sorted(), !samples.isEmpty else { continue }
    let (median, late) = (samples[samples.count / 2], samples[samples.count * 99 / 100])
    report("latency \(engine) \(kind.name) \(median) \(late)")
  }
}

/// A machine with one CPU in 64-bit mode and interrupt chips, which waits in a loop or in HLT.
private final class LatencyGuest: @unchecked Sendable {
  private static let memorySize = 2 << 20
  private static let start: UInt64 = 0x1000
  private static let handler: UInt64 = 0x2000
  private static let (descriptors, gates, task): (UInt64, UInt64, UInt64) = (0xA000, 0xB000, 0xC000)
  private static let tables: UInt64 = 0x10000
  private static let stack: UInt64 = 0x9000
  private static let vector: UInt8 = 0x30
  private static let gsi: UInt32 = 4
  private static let rounds = 300
  private static let limit: UInt64 = 1_000_000_000
  /// Between two samples, in microseconds: long enough that everyone is where he waits.
  private static let pause: UInt32 = 500

  private let machine: MachineHandle
  private let cpu: VirtualCPUHandle
  private let memory: SharedMapping
  private let halts: Bool
  private let stamp = Atomic<UInt64>(0)
  private let isOver = Atomic<Bool>(false)

  init(_ transport: any KVMTransport, halts: Bool) throws {
    self.halts = halts
    let system = try System(transport: transport)
    machine = try system.createMachine()
    memory = try SharedMapping(Self.memorySize)
    try machine.setTSSAddress(0xFFFB_D000)
    try machine.createInterruptChips()
    try machine.setMemory(
      slot: 0, guestAddress: 0, size: UInt64(Self.memorySize), hostAddress: memory.address)
    cpu = try machine.createVirtualCPU(0)
    try cpu.setCPUID(
      try system.supportedCPUID().map { entry in
        var entry = entry
        // x2APIC and the deadline timer, which KVM leaves to the client.
        if entry.function == 1 { entry.ecx |= 1 << 21 | 1 << 24 }
        return entry
      })
    writeTables()
    try setLongMode()
  }

  // MARK: Measuring

  /// From a kick to the return of KVM_RUN.
  func kicks() throws -> [UInt64] {
    load(setUp + waiting, at: Self.start)
    return try withRunningGuest { thread in
      try samples { self.cpu.kick(thread) }
    }
  }

  /// From a write to an eventfd to the handler's OUT.
  func events() throws -> [UInt64] {
    load(setUp + waiting, at: Self.start)
    load([0xE6, 0xE9] + endOfInterrupt, at: Self.handler)  // out 0xe9, al
    try machine.setMessageRoutes([
      (gsi: Self.gsi, address: 0xFEE0_0000, data: UInt32(Self.vector))
    ])
    let event = try EventFile()
    try machine.addInterruptEvent(event.descriptor.rawValue, gsi: Self.gsi)
    return try withRunningGuest { _ in
      try samples { event.signal() }
    }
  }

  private func samples(_ raise: () -> Void) throws -> [UInt64] {
    var all: [UInt64] = []
    for _ in 0..<Self.rounds {
      usleep(Self.pause)
      stamp.store(0, ordering: .sequentiallyConsistent)
      let begin = HostClock.monotonic()
      raise()
      while stamp.load(ordering: .sequentiallyConsistent) == 0 {
        if HostClock.monotonic() > begin + Self.limit { throw BenchError("nothing came") }
        usleep(100)
      }
      let end = stamp.load(ordering: .sequentiallyConsistent)
      all.append(end > begin ? end - begin : 0)
    }
    return all
  }

  /// From the deadline that the guest sets to its handler's RDTSC: both in the guest.
  func deadlines() throws -> [UInt64] {
    load(setUp + armTimer + waiting, at: Self.start)
    load(timerHandler, at: Self.handler)
    let begin = HostClock.monotonic()
    let counter = chost_rdtsc()
    var ticks: [UInt64] = []
    while ticks.count < Self.rounds, case .io(let access) = try cpu.run() {
      ticks.append(UInt64(access.data.loadUnaligned(as: UInt32.self)))
      if HostClock.monotonic() > begin + 20 * Self.limit { break }
    }
    let frequency =
      Double(chost_rdtsc() &- counter) / Double(HostClock.monotonic() &- begin)
    return ticks.map { UInt64(Double($0) / frequency) }
  }

  /// Runs the CPU on a thread of its own, which notes the time of each return.
  private func withRunningGuest(
    _ body: (ThreadIdentifier) throws -> [UInt64]
  ) throws -> [UInt64] {
    let thread = try HostThread(name: "vcpu") { [self] in
      while !isOver.load(ordering: .relaxed), (try? cpu.run()) != nil {
        stamp.store(HostClock.monotonic(), ordering: .sequentiallyConsistent)
      }
    }
    let identifier = thread.identifier
    usleep(50_000)
    let samples = Result { try body(identifier) }
    isOver.store(true, ordering: .sequentiallyConsistent)
    cpu.kick(identifier)
    thread.join()
    return try samples.get()
  }

  // MARK: The guest

  private func load(_ code: [UInt8], at address: UInt64) {
    memory.address.advanced(by: Int(address)).copyMemory(from: code, byteCount: code.count)
  }

  private func wrmsr(_ number: UInt32, _ value: UInt32) -> [UInt8] {
    [0xB9] + bytes(number) + [0xB8] + bytes(value) + [0x31, 0xD2, 0x0F, 0x30]
  }

  private func bytes(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }

  /// x2APIC on, its timer in deadline mode; interrupts on.
  private var setUp: [UInt8] {
    wrmsr(0x1B, 0xFEE0_0D00) + wrmsr(0x80F, 0x1FF)
      + wrmsr(0x832, 1 << 18 | UInt32(Self.vector)) + [0xFB]
  }

  private var waiting: [UInt8] {
    if halts { return [0xF4, 0xEB, 0xFD] }  // L: hlt; jmp L
    // L: mov [rdi], rbx; add rbx, 1; mov r9, [rdi]; test r9, r9; jns L; jmp L
    return [
      0x48, 0x89, 0x1F, 0x48, 0x83, 0xC3, 0x01, 0x4C, 0x8B, 0x0F, 0x4D, 0x85, 0xC9, 0x79, 0xF1,
      0xEB, 0xEF,
    ]
  }

  /// EOI, then back.
  private var endOfInterrupt: [UInt8] { wrmsr(0x80B, 0) + [0x48, 0xCF] }

  /// R8 = now and a half millisecond or so; that is the deadline.
  private var armTimer: [UInt8] {
    [0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0]  // rdtsc; shl rdx, 32; or rax, rdx
      + [0x48, 0x05] + bytes(1_500_000) + [0x49, 0x89, 0xC0]  // add rax, ...; mov r8, rax
      + [0x48, 0x89, 0xC2, 0x48, 0xC1, 0xEA, 0x20]  // mov rdx, rax; shr rdx, 32
      + [0xB9] + bytes(0x6E0) + [0x0F, 0x30]  // mov ecx, 0x6e0; wrmsr
  }

  /// Tells how late it is, and sets the next deadline.
  private var timerHandler: [UInt8] {
    [0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0]  // rdtsc; shl rdx, 32; or rax, rdx
      + [0x4C, 0x29, 0xC0, 0xE7, 0xE9]  // sub rax, r8; out 0xe9, eax
      + armTimer + endOfInterrupt
  }

  private func store(_ value: UInt64, at address: UInt64) {
    memory.address.storeBytes(of: value, toByteOffset: Int(address), as: UInt64.self)
  }

  private func writeTables() {
    store(Self.tables + 0x1000 | 3, at: Self.tables)
    store(Self.tables + 0x2000 | 3, at: Self.tables + 0x1000)
    for index in 0..<512 as Range<UInt64> {
      store(index << 21 | 0x83, at: Self.tables + 0x2000 + index * 8)
    }
    store(0x00AF_9B00_0000_FFFF, at: Self.descriptors + 8)
    store(0x00CF_9300_0000_FFFF, at: Self.descriptors + 16)
    let gate = Self.handler & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (Self.handler >> 16) << 48
    store(gate, at: Self.gates + UInt64(Self.vector) * 16)
    store(0, at: Self.gates + UInt64(Self.vector) * 16 + 8)
  }

  private func setLongMode() throws {
    var special = try cpu.specialRegisters()
    special.cr0 = 0x8000_0031
    special.cr3 = Self.tables
    special.cr4 = 0x620
    special.efer = 0x500
    special.cs = Self.segment(selector: 8, type: 11)
    special.cs.l = 1
    special.cs.db = 0
    special.ss = Self.segment(selector: 16, type: 3)
    (special.ds, special.es) = (special.ss, special.ss)
    special.tr.base = Self.task
    special.tr.limit = 0x67
    (special.tr.type, special.tr.present, special.tr.s) = (11, 1, 0)
    special.gdt.base = Self.descriptors
    special.gdt.limit = 23
    special.idt.base = Self.gates
    special.idt.limit = 0xFFF
    try cpu.setSpecialRegisters(special)
    var registers = kvm_regs()
    registers.rip = Self.start
    registers.rsp = Self.stack
    registers.rdi = 0x20000
    registers.rflags = RFLAGS([.fixed]).rawValue
    try cpu.setRegisters(registers)
  }

  private static func segment(selector: UInt16, type: UInt8) -> kvm_segment {
    var segment = kvm_segment()
    segment.limit = 0xFFFF_FFFF
    segment.selector = selector
    segment.type = type
    (segment.present, segment.db, segment.s, segment.g) = (1, 1, 1, 1)
    return segment
  }
}
