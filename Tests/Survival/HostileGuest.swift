// SPDX-License-Identifier: Apache-2.0
//
// A machine with two vCPUs and devices whose guests are hostile: each round has new memory, new
// code and new registers, and both vCPUs run in it until they stop, or are stopped.

import CHost
import Devices
import Glibc
import Host
import KVMClient
import KVMLoopback
import LinuxBoot
import Support
import Synchronization
import SystemPackage
import TestRandom
import X86
import X86Decoder

final class HostileGuest: @unchecked Sendable {
  static let cpuCount = 2
  private static let blocks = 64
  private static let mostExits = 60
  /// Until a guest is stopped that does not stop by itself.
  #if DEBUG
    static let patience: UInt64 = 20_000_000
  #else
    static let patience: UInt64 = 400_000
  #endif

  private let transport: LoopbackTransport
  private let vm: Int32
  private var cpus: [Int32] = []
  private var shared: [UnsafeMutablePointer<kvm_run>] = []
  private let runSize: Int
  private let memory: UnsafeMutableRawPointer
  private var hostile: HostileMemory
  private let ports = Bus()
  private var random: SplitMix
  private let isFull: Bool
  /// When each vCPU is to be stopped, in nanoseconds; 0 while it does not run.
  private let deadlines: UnsafeMutablePointer<Atomic<UInt64>>

  init(_ transport: LoopbackTransport, seed: UInt64, memory: UnsafeMutableRawPointer) throws {
    self.transport = transport
    self.memory = memory
    random = SplitMix(seed: seed)
    hostile = HostileMemory(base: memory, seed: seed &+ 1)
    isFull = !random.oneIn(4)
    deadlines = .allocate(capacity: Self.cpuCount)
    for n in 0..<Self.cpuCount { (deadlines + n).initialize(to: Atomic(0)) }
    let system = try transport.open()
    defer { transport.close(system) }
    runSize = Int(try transport.ioctl(system, CKVM_GET_VCPU_MMAP_SIZE, 0))
    vm = try transport.ioctl(system, CKVM_CREATE_VM, 0)
    if isFull {
      _ = try transport.ioctl(vm, CKVM_CREATE_IRQCHIP, 0)
      try set(vm, CKVM_CREATE_PIT2, kvm_pit_config())
    }
    try mapMemory()
    let cpuid = UnsafeMutableRawPointer.allocate(byteCount: 1 << 14, alignment: 8)
    defer { cpuid.deallocate() }
    cpuid.storeBytes(of: 256, as: UInt64.self)
    _ = try transport.ioctl(system, CKVM_GET_SUPPORTED_CPUID, UInt(bitPattern: cpuid))
    for number in 0..<Self.cpuCount {
      let cpu = try transport.ioctl(vm, CKVM_CREATE_VCPU, UInt(number))
      cpus.append(cpu)
      _ = try transport.ioctl(cpu, CKVM_SET_CPUID2, UInt(bitPattern: cpuid))
      let pages = try transport.mapRun(cpu, size: runSize)
      shared.append(pages.assumingMemoryBound(to: kvm_run.self))
    }
    attachDevices()
  }

  deinit {
    for cpu in cpus { transport.close(cpu) }
    transport.close(vm)
    deadlines.deallocate()
  }

  private func set<T>(_ handle: Int32, _ request: UInt32, _ value: T) throws(Errno) {
    var value = value
    try withUnsafeMutablePointer(to: &value) { (pointer) throws(Errno) in
      _ = try transport.ioctl(handle, request, UInt(bitPattern: pointer))
    }
  }

  private func get<T>(_ handle: Int32, _ request: UInt32, _ initial: T) throws(Errno) -> T {
    var value = initial
    try withUnsafeMutablePointer(to: &value) { (pointer) throws(Errno) in
      _ = try transport.ioctl(handle, request, UInt(bitPattern: pointer))
    }
    return value
  }

  /// Memory from 0, and parts of it again: read-only, at the end of the first 4 GiB, far up.
  private func mapMemory() throws(Errno) {
    let slots: [(UInt64, Int, Int, Int32)] = [
      (0, 0, HostileMemory.size, 0), (0x20_0000, 0x20000, 0x10000, Int32(KVM_MEM_READONLY)),
      (0xFFFF_0000, 0x20000, 0x10000, 0), (0xF_FFFF_0000, 0x10000, 0x10000, 0),
    ]
    // Once more for system-management mode.
    for (number, slot) in (slots + slots).enumerated() {
      try set(
        vm, CKVM_SET_USER_MEMORY_REGION,
        kvm_userspace_memory_region(
          slot: UInt32(number % 4 | number / 4 << 16), flags: UInt32(slot.3),
          guest_phys_addr: slot.0,
          memory_size: UInt64(slot.2), userspace_addr: UInt64(UInt(bitPattern: memory + slot.1))))
    }
  }

  /// Those of the monitor, where it has them.
  private func attachDevices() {
    let line: InterruptLine = { _ in }
    let now: @Sendable () -> UInt64 = { HostClock.realtime() }
    let serial = SerialPort(interrupt: line) { _ in }
    serial.receive([1, 2, 3])
    ports.attach(serial, at: 0x3F8, size: 8)
    ports.attach(RealTimeClockDevice(interrupt: line, now: now), at: 0x70, size: 2)
    ports.attach(
      PowerManagement(interrupt: line, now: now) {}, at: 0x600, size: PowerManagement.size)
    ports.attach(KeyboardController {}, at: 0x60, size: 5)
    ports.attach(ResetRegister {}, at: GuestMap.Port.reset, size: 1)
    ports.attach(DebugExit { _ in }, at: GuestMap.Port.debugExit, size: 1)
  }

  private static let traces = getenv("MARTLET_SURVIVE_TRACE") != nil

  /// For whoever wants to see what guests do.
  private func trace(_ n: Int, _ text: @autoclosure () -> String) {
    guard Self.traces, let r = try? get(cpus[n], CKVM_GET_REGS, kvm_regs()),
      let s = try? get(cpus[n], CKVM_GET_SREGS, kvm_sregs())
    else { return }
    func hex(_ value: UInt64) -> String { String(value, radix: 16) }
    print(
      "cpu \(n): \(text()); rip \(hex(r.rip)) cr0 \(hex(s.cr0)) cr2 \(hex(s.cr2)) cr3 \(hex(s.cr3))",
      "cr4 \(hex(s.cr4)) efer \(hex(s.efer)) cs \(hex(UInt64(s.cs.selector))) l \(s.cs.l) db \(s.cs.db)"
    )
  }

  // MARK: A round

  /// Returns the number of blocks that the guest had.
  func round(seed: UInt64) -> Int {
    random = SplitMix(seed: seed)
    hostile.random = SplitMix(seed: seed ^ 0x5555)
    let mode = [CodeMode.bits64, .bits64, .bits64, .bits32, .bits32, .bits16][random.below(6)]
    hostile.fill(mode, blocks: Self.blocks)
    let isAlone = random.oneIn(2)
    for n in 0..<Self.cpuCount where n == 0 || !isAlone {
      // A state that is refused leaves the vCPU as it was, which is one more state.
      do { try start(n, mode, &random, &hostile) } catch { trace(n, "start: \(error)") }
    }
    let seeds = [random.next(), random.next()]
    if isAlone {
      run(0, mode, seeds[0])
      return Self.blocks
    }
    if let other = try? HostThread(name: "cpu1", { [self] in run(1, mode, seeds[1]) }) {
      run(0, mode, seeds[0])
      other.join()
    }
    return Self.blocks
  }

  private func start(
    _ n: Int, _ mode: CodeMode, _ random: inout SplitMix, _ hostile: inout HostileMemory
  ) throws(Errno) {
    let cpu = cpus[n]
    try? set(cpu, CKVM_SET_MP_STATE, kvm_mp_state(mp_state: UInt32(KVM_MP_STATE_RUNNABLE)))
    var events = kvm_vcpu_events()
    events.flags = UInt32(KVM_VCPUEVENT_VALID_SMM)
    try? set(cpu, CKVM_SET_VCPU_EVENTS, events)
    var state = HostileState(random: random, mode: mode)
    let special = state.special(try get(cpu, CKVM_GET_SREGS, kvm_sregs()))
    let registers = state.registers(&hostile)
    random = state.random
    try set(cpu, CKVM_SET_SREGS, special)
    try set(cpu, CKVM_SET_REGS, registers)
    var xcrs = kvm_xcrs()
    xcrs.nr_xcrs = 1
    xcrs.xcrs.0.value = 0xE7
    try? set(cpu, CKVM_SET_XCRS, xcrs)
    var debug = kvm_guest_debug()
    if random.oneIn(12) {
      debug.control = UInt32(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)
    }
    try? set(cpu, CKVM_SET_GUEST_DEBUG, debug)
    if random.oneIn(8) { _ = try? transport.ioctl(cpu, CKVM_NMI, 0) }
    if random.oneIn(12) { _ = try? transport.ioctl(cpu, CKVM_SMI, 0) }
  }

  /// KVM_RUN until it is over.
  private func run(_ n: Int, _ mode: CodeMode, _ seed: UInt64) {
    var random = SplitMix(seed: seed)
    var addresses = HostileMemory(base: memory, seed: seed &+ 1)
    let end = HostClock.monotonic() &+ Self.patience
    deadlines[n].store(end, ordering: .sequentiallyConsistent)
    defer { deadlines[n].store(0, ordering: .sequentiallyConsistent) }
    for _ in 0..<Self.mostExits {
      do {
        _ = try transport.ioctl(cpus[n], CKVM_RUN, 0)
      } catch {
        trace(n, "run: \(error)")
        setImmediateExit(n, 0)
        return
      }
      if HostClock.monotonic() > end { break }
      let exit = Exit(reading: shared[n], size: runSize)
      trace(n, "\(exit)")
      if handle(exit, &random) { continue }
      // What the guest did ends it; its memory is as it left it.
      addresses.starts = hostile.starts
      if random.oneIn(4) {
        try? start(n, mode, &random, &addresses)
      } else {
        var state = HostileState(random: random, mode: mode)
        try? set(cpus[n], CKVM_SET_REGS, state.registers(&addresses))
        random = state.random
      }
    }
    setImmediateExit(n, 0)
  }

  /// Returns whether to go on.
  private func handle(_ exit: Exit, _ random: inout SplitMix) -> Bool {
    switch exit {
    case .io(let access):
      for item in 0..<access.count {
        let place = access.data + item * access.width
        if access.isWrite {
          var value: UInt64 = 0
          memcpy(&value, place, access.width)
          ports.write(UInt64(access.port), width: access.width, value: value)
        } else {
          var value = ports.read(UInt64(access.port), width: access.width)
          memcpy(place, &value, access.width)
        }
      }
    case .mmio(let access):
      if !access.isWrite {
        access.data.storeBytes(of: HostileCode.edges[random.below(35)], as: UInt64.self)
      }
    case .debug, .interruptWindowOpen, .systemEvent: break
    default: return false
    }
    return true
  }

  private func setImmediateExit(_ n: Int, _ value: UInt8) {
    UnsafeMutableRawPointer(shared[n]).storeBytes(of: value, toByteOffset: 1, as: UInt8.self)
  }

  /// Called by the watchdog.
  func stopLate(now: UInt64) {
    for n in 0..<Self.cpuCount {
      let deadline = deadlines[n].load(ordering: .sequentiallyConsistent)
      if deadline == 0 || now < deadline { continue }
      setImmediateExit(n, 1)
      transport.kick(cpus[n], thread: .current)
    }
  }
}
