// SPDX-License-Identifier: Apache-2.0
//
// A client that calls the ioctls of a KVM by number, for what the typed client does not offer: one
// machine, one vCPU in real mode at 0x1000 with all segments at 0, 2 MiB of memory. The KVM is ours
// or, in suites that are `.onBothEngines`, the kernel's as well.
//
//     let client = try Client(chips: .all)
//     client.load([0xE6, 0x90, 0xF4])
//     #expect(try client.run() == KVM_EXIT_IO)

import CHost
import ClientMemory
import Glibc
import Host
import KVM
import KVMClient
import KVMLoopback
import Synchronization
import SystemPackage
import Testing
import X86CPU

final class Client: @unchecked Sendable {
  enum Chips { case none, split(routes: UInt64), all }

  let transport: any KVMTransport
  /// Ours; it has nothing to do where the test runs on the kernel's.
  let hypervisor: Hypervisor
  let system: Int32
  let vm: Int32
  private(set) var cpu: Int32 = 0
  private(set) var pages: UnsafeMutableRawPointer
  let memory: UnsafeMutableRawPointer
  let memorySize: Int
  private let runs = Atomic<Int>(0)
  private let isRunning = Atomic<Bool>(false)
  private let isOver = Atomic<Bool>(false)
  /// The thread that is in `run`.
  private let runner = Atomic<UInt>(0)
  private let runSize: Int
  private var watchdog: Thread?

  /// - Parameter prepare: called before the vCPU is made.
  init(
    chips: Chips = .none, memoryFlags: UInt32 = 0, megabytes: Int = 2, translates: Bool = false,
    clientMemory: ClientMemory = ClientMemory(), entryFailures: EntryFailureReports = .silent,
    prepare: (Client) throws -> Void = { _ in }
  ) throws {
    hypervisor = try Hypervisor(
      physicalCPUs: 1, silicon: Engine.vendor, translates: translates, client: clientMemory,
      entryFailures: entryFailures)
    transport =
      switch Engine.current {
      case .software: LoopbackTransport(hypervisor)
      case .kernel: try Engine.current.transport()
      }
    system = try transport.open()
    vm = try transport.ioctl(system, CKVM_CREATE_VM, 0)
    runSize = Int(try transport.ioctl(system, CKVM_GET_VCPU_MMAP_SIZE, 0))
    memorySize = megabytes << 20
    memory = .allocate(byteCount: memorySize, alignment: 2 << 20)
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: memorySize)
    pages = memory
    switch chips {
    case .none: break
    case .all: try call(vm, CKVM_CREATE_IRQCHIP)
    case .split(let routes): try enable(KVM_CAP_SPLIT_IRQCHIP, routes)
    }
    try prepare(self)
    try setMemory(0, at: 0, size: memorySize, host: memory, flags: memoryFlags)
    cpu = try call(vm, CKVM_CREATE_VCPU)
    pages = try transport.mapRun(cpu, size: runSize)
    try copyCPUID()
    try setRealMode()
    watchdog = Thread { [unowned(unsafe) self] in watch() }
  }

  /// Ends a KVM_RUN that a failed test would wait for without end.
  private func watch() {
    var (last, ticks) = (0, 0)
    while !isOver.load(ordering: .relaxed) {
      usleep(50_000)
      let now = runs.load(ordering: .relaxed)
      ticks = now == last && isRunning.load(ordering: .relaxed) ? ticks + 1 : 0
      last = now
      if ticks > 100 { kick() }
    }
  }

  /// Makes `run` return, from any thread.
  func kick() {
    pages.storeBytes(of: 1, toByteOffset: 1, as: UInt8.self)  // immediate_exit
    let thread = runner.load(ordering: .sequentiallyConsistent)
    if thread != 0 { transport.kick(cpu, thread: ThreadIdentifier(rawValue: thread)) }
  }

  deinit {
    isOver.store(true, ordering: .relaxed)
    watchdog?.join()
    if pages != memory { transport.unmapRun(cpu, pages, size: runSize) }
    if cpu != 0 { transport.close(cpu) }
    transport.close(vm)
    transport.close(system)
    memory.deallocate()
  }

  var shared: UnsafeMutablePointer<kvm_run> { pages.assumingMemoryBound(to: kvm_run.self) }

  // MARK: Calls

  @discardableResult
  func call(_ handle: Int32, _ request: UInt32, _ argument: UInt = 0) throws(Errno) -> Int32 {
    try transport.ioctl(handle, request, argument)
  }

  @discardableResult
  func set<T>(_ handle: Int32, _ request: UInt32, _ value: T) throws(Errno) -> Int32 {
    var value = value
    return try withUnsafeMutablePointer(to: &value) { (pointer) throws(Errno) in
      try transport.ioctl(handle, request, UInt(bitPattern: pointer))
    }
  }

  func get<T>(_ handle: Int32, _ request: UInt32, _ initial: T) throws(Errno) -> T {
    var value = initial
    try withUnsafeMutablePointer(to: &value) { (pointer) throws(Errno) in
      _ = try transport.ioctl(handle, request, UInt(bitPattern: pointer))
    }
    return value
  }

  func error(_ body: () throws(Errno) -> Void) -> Errno? {
    do throws(Errno) {
      try body()
      return nil
    } catch {
      return error
    }
  }

  func error<T>(_ handle: Int32, _ request: UInt32, with value: T) -> Errno? {
    error { () throws(Errno) in try set(handle, request, value) }
  }

  func enable(_ capability: Int32, _ argument: UInt64 = 0, on handle: Int32? = nil) throws(Errno) {
    var request = kvm_enable_cap()
    request.cap = UInt32(capability)
    request.args.0 = argument
    try set(handle ?? vm, CKVM_ENABLE_CAP, request)
  }

  func capability(_ number: Int32) throws(Errno) -> Int32 {
    try call(vm, CKVM_CHECK_EXTENSION, UInt(number))
  }

  func setMemory(
    _ slot: UInt32, at address: UInt64, size: Int, host: UnsafeMutableRawPointer,
    flags: UInt32 = 0
  ) throws(Errno) {
    try set(
      vm, CKVM_SET_USER_MEMORY_REGION,
      kvm_userspace_memory_region(
        slot: slot, flags: flags, guest_phys_addr: address, memory_size: UInt64(size),
        userspace_addr: UInt64(UInt(bitPattern: host))))
  }

  // MARK: The guest

  func load(_ code: [UInt8], at address: Int = 0x1000) {
    memory.advanced(by: address).copyMemory(from: code, byteCount: code.count)
    PhysicalCPU.noteHostWrite(memory + address, count: code.count)
  }

  /// KVM_RUN; the reason that it returned with. EINTR where it takes more than five seconds.
  func run() throws(Errno) -> Int32 {
    runs.add(1, ordering: .relaxed)
    isRunning.store(true, ordering: .relaxed)
    runner.store(ThreadIdentifier.current.rawValue, ordering: .sequentiallyConsistent)
    defer {
      isRunning.store(false, ordering: .relaxed)
      runner.store(0, ordering: .sequentiallyConsistent)
    }
    do throws(Errno) {
      try call(cpu, CKVM_RUN)
    } catch {
      // A kick is over.
      if error == .interrupted { pages.storeBytes(of: 0, toByteOffset: 1, as: UInt8.self) }
      throw error
    }
    return Int32(bitPattern: shared.pointee.exit_reason)
  }

  /// The byte that the guest writes to a port, if that is the next exit.
  func nextOut() throws -> (port: UInt16, value: UInt8)? {
    guard try run() == KVM_EXIT_IO, shared.pointee.io.direction == KVM_EXIT_IO_OUT else {
      return nil
    }
    return (shared.pointee.io.port, pages.load(fromByteOffset: 4096, as: UInt8.self))
  }

  var registers: kvm_regs { get throws(Errno) { try get(cpu, CKVM_GET_REGS, kvm_regs()) } }

  func setRegisters(_ change: (inout kvm_regs) -> Void) throws(Errno) {
    var value = try registers
    change(&value)
    try set(cpu, CKVM_SET_REGS, value)
  }

  func changeSpecial(_ change: (inout kvm_sregs) -> Void) throws(Errno) {
    var value = try get(cpu, CKVM_GET_SREGS, kvm_sregs())
    change(&value)
    try set(cpu, CKVM_SET_SREGS, value)
  }

  func setRealMode() throws(Errno) {
    try changeSpecial {
      $0.cs.base = 0
      $0.cs.selector = 0
    }
    try setRegisters {
      $0 = kvm_regs()
      $0.rip = 0x1000
      $0.rsp = 0x8000
      $0.rflags = 2
    }
  }

  /// 64-bit mode with the first GiB mapped one to one; its tables, from 0x10000 to 0x13000, say
  /// that all was accessed and written already.
  func setLongMode() throws(Errno) {
    memory.storeBytes(of: 0x11023, toByteOffset: 0x10000, as: UInt64.self)
    memory.storeBytes(of: 0x12023, toByteOffset: 0x11000, as: UInt64.self)
    for page in 0..<512 {
      memory.storeBytes(
        of: UInt64(page) << 21 | 0xE3, toByteOffset: 0x12000 + page * 8, as: UInt64.self)
    }
    try changeSpecial {
      $0.cr3 = 0x10000
      $0.cr4 = 0x20
      $0.cr0 = 0x8000_0031
      $0.efer = 0x500
      ($0.cs.l, $0.cs.db, $0.cs.g, $0.cs.limit, $0.cs.type) = (1, 0, 1, 0xFFFF_FFFF, 11)
      $0.cs.selector = 8
      ($0.ss.db, $0.ss.g, $0.ss.limit, $0.ss.type, $0.ss.selector) = (1, 1, 0xFFFF_FFFF, 3, 16)
    }
  }

  private func copyCPUID() throws(Errno) {
    let size = 8 + 256 * MemoryLayout<kvm_cpuid_entry2>.stride
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 8)
    defer { buffer.deallocate() }
    buffer.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    buffer.storeBytes(of: 256, as: UInt32.self)
    try call(system, CKVM_GET_SUPPORTED_CPUID, UInt(bitPattern: buffer))
    try call(cpu, CKVM_SET_CPUID2, UInt(bitPattern: buffer))
  }

  /// KVM_SET_CPUID2 with the table changed entry by entry.
  func changeCPUID(_ change: (inout kvm_cpuid_entry2) -> Void) throws(Errno) {
    let size = 8 + 256 * MemoryLayout<kvm_cpuid_entry2>.stride
    let buffer = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 8)
    defer { buffer.deallocate() }
    buffer.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    buffer.storeBytes(of: 256, as: UInt32.self)
    try call(cpu, CKVM_GET_CPUID2, UInt(bitPattern: buffer))
    let count = Int(buffer.load(as: UInt32.self))
    let entries = (buffer + 8).assumingMemoryBound(to: kvm_cpuid_entry2.self)
    for index in 0..<min(count, 256) { change(&entries[index]) }
    try call(cpu, CKVM_SET_CPUID2, UInt(bitPattern: buffer))
  }

  /// KVM_SET_MSRS for one register; whether it was accepted.
  func setMSR(_ number: UInt32, _ value: UInt64) throws(Errno) -> Bool {
    try msr(CKVM_SET_MSRS, number, value) != nil
  }

  func msr(_ number: UInt32) throws(Errno) -> UInt64? { try msr(CKVM_GET_MSRS, number, 0) }

  private func msr(_ request: UInt32, _ number: UInt32, _ value: UInt64) throws(Errno) -> UInt64? {
    var list: (UInt32, UInt32, kvm_msr_entry) = (
      1, 0, kvm_msr_entry(index: number, reserved: 0, data: value)
    )
    let count = try withUnsafeMutablePointer(to: &list) { (pointer) throws(Errno) in
      try call(cpu, request, UInt(bitPattern: pointer))
    }
    return count == 1 ? list.2.data : nil
  }

  /// The local APIC's register at `offset`.
  func localAPIC(_ offset: Int) throws(Errno) -> UInt32 {
    let state = try get(cpu, CKVM_GET_LAPIC, kvm_lapic_state())
    return withUnsafeBytes(of: state) { $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
  }

  func setLocalAPIC(_ offset: Int, _ value: UInt32) throws(Errno) {
    var state = try get(cpu, CKVM_GET_LAPIC, kvm_lapic_state())
    withUnsafeMutableBytes(of: &state) {
      $0.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
    }
    try set(cpu, CKVM_SET_LAPIC, state)
  }

  /// Whether a vector waits in the local APIC.
  func isRequested(_ vector: Int) throws(Errno) -> Bool {
    try localAPIC(0x200 + vector / 32 * 16) & 1 << UInt32(vector % 32) != 0
  }

  /// Sends GSI `gsi` as an edge of `vector` to CPU 0, or as a level.
  func route(_ gsi: UInt32, vector: UInt32, level: Bool = false) throws(Errno) {
    var entry = kvm_irq_routing_entry()
    entry.gsi = gsi
    entry.type = UInt32(KVM_IRQ_ROUTING_MSI)
    entry.u.msi.address_lo = 0xFEE0_0000
    entry.u.msi.data = vector | (level ? 0xC000 : 0)
    try set(vm, CKVM_SET_GSI_ROUTING, (UInt32(1), UInt32(0), entry))
  }

  /// An eventfd; closed by the test's end only.
  static func event() -> Int32 { eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK)) }

  /// How often an eventfd was signalled since the last look, waiting up to a second.
  static func take(_ event: Int32, wait: Bool = true) -> UInt64 {
    var poll = pollfd(fd: event, events: Int16(POLLIN), revents: 0)
    _ = Glibc.poll(&poll, 1, wait ? 1000 : 0)
    var value: UInt64 = 0
    return read(event, &value, 8) == 8 ? value : 0
  }

  static func signal(_ event: Int32) {
    var one: UInt64 = 1
    _ = write(event, &one, 8)
  }

  /// Waits up to a second for `condition`.
  static func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
    for _ in 0..<1000 {
      if try condition() { return true }
      usleep(1000)
    }
    return false
  }
}
