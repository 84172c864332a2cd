// SPDX-License-Identifier: Apache-2.0
//
// The steps of the fuzzing client: what a good client does, and what none should do. All of
// them must leave the program running.

import CHost
import Glibc
import Synchronization

extension Worker {
  /// One of the things that a client does, or should not do.
  func step() {
    let machines = world.machines
    guard !machines.isEmpty, !chance(400) else { return makeMachine() }
    let machine = of(machines)
    switch below(100) {
    case 0..<8: callSystem()
    case 8..<32: callMachine(machine)
    case 32..<72: if let cpu = cpu(machine) { callCPU(cpu) }
    case 72..<86: if let cpu = cpu(machine) { run(cpu, machine) }
    case 86..<94: wrongCall(machine)
    default: around(machine)
    }
  }

  private func cpu(_ machine: FuzzedMachine) -> FuzzedCPU? {
    let cpus = machine.cpus
    return cpus.isEmpty ? nil : of(cpus)
  }

  private func callSystem() {
    let call = CallTable.shared.choose(.system, below(1 << 20))
    let result = perform(call, world.system)
    if call.opens, result >= 0 { close(result) }
  }

  private func callMachine(_ machine: FuzzedMachine) {
    let call = CallTable.shared.choose(.machine, below(1 << 20))
    let result = perform(call, machine.descriptor)
    guard call.opens, result >= 0 else { return }
    if call.request == CKVM_CREATE_VCPU {
      machine.add(FuzzedCPU(result))
    } else {
      readAndClose(result)
    }
  }

  private func callCPU(_ cpu: FuzzedCPU) {
    let call = CallTable.shared.choose(.cpu, below(1 << 20))
    let result = perform(call, cpu.descriptor)
    if call.opens, result >= 0 { readAndClose(result) }
  }

  private func readAndClose(_ descriptor: Int32) {
    var bytes = [UInt8](repeating: 0, count: 512)
    _ = read(descriptor, &bytes, bytes.count)
    close(descriptor)
  }

  // MARK: Machines

  /// A machine that works: memory, chips, a CPU or two.
  private func makeMachine() {
    let descriptor = raw("CREATE_VM", world.system, UInt(CKVM_CREATE_VM), 0)
    guard descriptor >= 0 else {
      if [ENOMEM, EMFILE].contains(-descriptor) { return }
      fail("CREATE_VM: errno \(-descriptor)")
    }
    let memory = world.memory + below(World.windows) * World.windowSize
    let machine = FuzzedMachine(descriptor, memory)
    switch below(4) {
    case 0: break
    case 1:
      var capability = kvm_enable_cap()
      capability.cap = UInt32(KVM_CAP_SPLIT_IRQCHIP)
      capability.args.0 = 24
      expectDone("ENABLE_CAP", descriptor, CKVM_ENABLE_CAP, &capability)
    default: expectDone("CREATE_IRQCHIP", descriptor, CKVM_CREATE_IRQCHIP, nil)
    }
    var region = kvm_userspace_memory_region()
    region.memory_size = UInt64(World.windowSize)
    region.userspace_addr = UInt64(UInt(bitPattern: memory))
    region.flags = chance(2) ? UInt32(KVM_MEM_LOG_DIRTY_PAGES) : 0
    expectDone("SET_USER_MEMORY_REGION", descriptor, CKVM_SET_USER_MEMORY_REGION, &region)
    for id in 0..<1 + below(3) {
      let cpu = raw("CREATE_VCPU", descriptor, UInt(CKVM_CREATE_VCPU), UInt(id))
      if cpu >= 0 { machine.add(FuzzedCPU(cpu)) }
    }
    world.add(machine, replacing: below(World.maxMachines))
  }

  private func expectDone(
    _ name: String, _ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?
  ) {
    let result = raw(name, descriptor, UInt(request), UInt(bitPattern: argument))
    if result < 0 { fail("\(name): errno \(-result)") }
  }

  // MARK: What nobody should do

  /// Numbers of other kinds of objects, of no ioctl, of other sizes, on descriptors of all kinds.
  private func wrongCall(_ machine: FuzzedMachine) {
    var request = of(CallTable.shared.all).request
    switch below(4) {
    case 0: request ^= UInt32(1 + below(1 << 13)) << 16
    case 1: request = request & ~0xFF | UInt32(below(256))
    case 2: request ^= UInt32(1 + below(3)) << 30
    default: break
    }
    // Kept until the call is over: its descriptor is closed with its last reference, and another
    // thread may take it out of the machine.
    let chosen = cpu(machine)
    defer { withExtendedLifetime(chosen) {} }
    let kinds: [(Kind?, Int32)] = [
      (.system, world.system), (.machine, machine.descriptor),
      (.cpu, chosen?.descriptor ?? world.system), (nil, Worker.neverOpen),
      (nil, eventDescriptor()),
    ]
    let (kind, descriptor) = of(kinds)
    let isCPU = kind == .cpu && descriptor != world.system
    guard let kind = kind == .cpu && !isCPU ? .system : kind else {
      let result = raw("other file", descriptor, UInt(request), 0)
      let allowed: Set<Int32> = descriptor == world.system ? [] : [EBADF, ENOTTY, EINVAL]
      if !allowed.isEmpty, !allowed.contains(-result) { fail("other file: \(result)") }
      return
    }
    // Where it is one of this kind's, others have it.
    if request == CKVM_CREATE_VM || CallTable.shared.find(kind, request) != nil { return }
    let pointer = chance(2) ? 0 : innerPointer()
    let result = raw("no \(kind)", descriptor, UInt(request), pointer)
    let other: Set<Int32> = [EINVAL, ENOTTY, ENXIO, EFAULT]
    if -result != kind.missing, !Self.rare.contains(request & 0xFF) || !other.contains(-result) {
      fail("\(kind) with \(hex(UInt(request))): \(result)")
    }
  }

  /// Numbers that a later kernel may have for this kind of object.
  private static let rare: Set<UInt32> = [
    0x49, 0xB7, 0xC1, 0xC5, 0xC6, 0xC8, 0xC9, 0xCA, 0xCB, 0xCD,
  ]

  // MARK: Around the calls

  private func around(_ machine: FuzzedMachine) {
    switch below(9) {
    case 0: if chance(8) { world.remove(below(64)) }
    case 1: if chance(8) { machine.remove(below(64)) }
    case 2: useDuplicate(machine)
    case 3: if let cpu = cpu(machine) { mapping(cpu) }
    case 4: if let cpu = cpu(machine) { waitForNothing(cpu.descriptor) }
    case 5:
      var one: UInt64 = 1
      let event = eventDescriptor()
      if event > 2, event != world.system { _ = write(event, &one, 8) }
    case 6: remap()
    default: GuestCode.write(self, machine.memory + below(World.windowSize - 4096))
    }
  }

  /// Guest memory goes, comes, and changes its protection.
  private func remap() {
    guard Options.current.usesHoles else { return }
    let size = 4096 * (1 + below(16))
    // What this program itself touches stays.
    let place = world.changing + below((World.changingSize - size) / 4096) * 4096
    let kind = MAP_ANONYMOUS | MAP_FIXED | (chance(2) ? MAP_SHARED : MAP_PRIVATE)
    switch below(5) {
    case 0: mprotect(place, size, of([PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE]))
    case 1: madvise(place, size, MADV_DONTNEED)
    case 2: _ = mmap(place, size, PROT_NONE, kind, -1, 0)
    default: _ = mmap(place, size, PROT_READ | PROT_WRITE, kind, -1, 0)
    }
  }

  /// A descriptor that lives for a few calls; others may be in one while it is closed.
  private func useDuplicate(_ machine: FuzzedMachine) {
    guard let cpu = cpu(machine) else { return }
    let duplicate = world.duplicate(cpu.descriptor)
    guard duplicate >= 0 else { return }
    perform(CallTable.shared.choose(.cpu, 8 + below(64)), duplicate)
    close(duplicate)
  }

  private func mapping(_ cpu: FuzzedCPU) {
    let size = 4096 * (1 + below(4))
    let offset = chance(2) ? 0 : 4096 * below(70)
    let place = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu.descriptor, offset)
    if let place, place != MAP_FAILED { munmap(place, size) }
  }

  private func waitForNothing(_ descriptor: Int32) {
    var waiting = pollfd(fd: descriptor, events: Int16(POLLIN | POLLOUT), revents: 0)
    _ = poll(&waiting, 1, 0)
  }
}
