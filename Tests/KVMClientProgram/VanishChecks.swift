// SPDX-License-Identifier: Apache-2.0
//
// Memory of a slot goes without a word, while the guest accesses it: KVM_RUN is EFAULT with the
// state before the access, and goes on when the memory is back. Faults of the client's own stay its
// own.

import CHost
import Glibc
import Synchronization

/// How all of the memory goes, and comes back.
private enum Loss: CaseIterable {
  case truncation, protection

  func take(_ client: LongModeClient) {
    switch self {
    case .truncation: client.truncate(0)
    case .protection: client.protect(PROT_NONE)
    }
  }

  func giveBack(_ client: LongModeClient) {
    switch self {
    case .truncation: client.truncate(LongModeClient.size)
    case .protection: client.protect(PROT_READ | PROT_WRITE)
    }
  }
}

private final class Attack: Sendable {
  let client: LongModeClient
  let loss: Loss
  let rounds: Int
  let runner = pthread_self()
  /// How often the guest has met it.
  let faults = Atomic<Int>(0)
  let isOver = Atomic<Bool>(false)
  let isSeen = Atomic<Bool>(false)

  init(_ client: LongModeClient, _ loss: Loss, _ rounds: Int) {
    self.client = client
    self.loss = loss
    self.rounds = rounds
  }

  func go() {
    let deadline = time(nil) + 60
    var round = 0
    // On a busy machine the guest may be late.
    while round < rounds || faults.load(ordering: .relaxed) < rounds / 4, time(nil) < deadline {
      round += 1
      usleep(UInt32.random(in: 0..<300))
      loss.take(client)
      usleep(UInt32.random(in: 0..<100))
      loss.giveBack(client)
    }
    isOver.store(true, ordering: .sequentiallyConsistent)
    while !isSeen.load(ordering: .sequentiallyConsistent) {
      pthread_kill(runner, SIGUSR1)
      usleep(1000)
    }
  }
}

extension LongModeClient: @unchecked Sendable {}

/// Runs a guest whose memory comes and goes.
private func run(_ loop: VanishLoop, _ loss: Loss, rounds: Int) throws {
  let client = try LongModeClient(loop.code)
  signal(SIGUSR1, onSignal)
  let attack = Attack(client, loss, rounds)
  var thread = pthread_t()
  pthread_create(
    &thread, nil,
    { argument in
      Unmanaged<Attack>.fromOpaque(argument!).takeRetainedValue().go()
      return nil
    }, Unmanaged.passRetained(attack).toOpaque())
  defer {
    attack.isSeen.store(true, ordering: .sequentiallyConsistent)
    pthread_join(thread, nil)
  }
  let text = "\(loop.name), \(loss)"
  while !attack.isOver.load(ordering: .sequentiallyConsistent) {
    let result = client.client.enter()
    if result == -EINTR { continue }
    let registers = client.registers
    let offset = registers.rip &- LongModeClient.start
    try expect(
      result == -EFAULT,
      "\(text): \(result), exit \(client.client.run.pointee.exit_reason) at \(offset)")
    try expect(loop.holds(offset, registers, client), "\(text): state at \(offset): \(registers)")
    attack.faults.add(1, ordering: .relaxed)
  }
  try expect(attack.faults.load(ordering: .relaxed) > 0, "\(text): no fault")
  // The memory is there again.
  try expect(client.client.enter() == -EINTR, "\(text): does not go on")
}

func vanishChecks() throws {
  for loop in vanishLoops {
    for loss in Loss.allCases where loss == .protection || !loop.needsContents {
      try run(loop, loss, rounds: 40)
    }
  }
}

func stressChecks() throws {
  for loop in vanishLoops where ["group", "rounds"].contains(loop.name) {
    try run(loop, .truncation, rounds: 1000)
  }
}

/// Another process takes the memory away: of data, and of code.
func truncationChecks() throws {
  // l: mov rax, [rbx]; inc rcx; jmp l
  let reader = try LongModeClient([0x48, 0x8B, 0x03, 0x48, 0xFF, 0xC1, 0xEB, 0xF8])
  // jmp rbx, to: l: inc rcx; jmp l
  let jumper = try LongModeClient([0xFF, 0xE3])
  let code: [UInt8] = [0x48, 0xFF, 0xC1, 0xEB, 0xFB]
  for client in [reader, jumper] {
    pwrite(client.file, code, code.count, 0)
    signal(SIGALRM, onSignal)
    alarm(after: 20_000)
    try expect(client.client.enter() == -EINTR, "before")
    alarm(after: 0)
    let child = chost_fork()
    if child == 0 {
      usleep(20_000)
      ftruncate(client.file, 0)
      _exit(0)
    }
    // Code that is being executed is looked at when a signal comes.
    alarm(after: 100_000)
    var result = client.client.enter()
    if result == -EINTR { result = client.client.enter() }
    alarm(after: 0)
    var status: Int32 = 0
    try expect(waitpid(child, &status, 0) == child && status == 0)
    try expect(result == -EFAULT, "another process: \(result)")
    for _ in 0..<3 { try expect(client.client.enter() == -EFAULT, "again") }
    client.truncate(LongModeClient.size)
    pwrite(client.file, code, code.count, 0)
    alarm(after: 20_000)
    try expect(client.client.enter() == -EINTR, "after")
    alarm(after: 0)
  }
}

/// A segment of shmget(2) is detached.
func segmentChecks() throws {
  for isSeen in [true, false] {
    let segment = shmget(IPC_PRIVATE, LongModeClient.size, IPC_CREAT | 0o600)
    try expect(segment >= 0, "shmget")
    defer { shmctl(segment, IPC_RMID, nil) }
    let memory = shmat(segment, nil, 0)!
    let client = try LongModeClient(
      [0x48, 0x8B, 0x03, 0x48, 0xFF, 0xC1, 0xEB, 0xF8], memory: memory)
    signal(SIGALRM, onSignal)
    alarm(after: 20_000)
    try expect(client.client.enter() == -EINTR, "before")
    alarm(after: 0)
    if isSeen {
      try expect(shmdt(memory) == 0)
    } else {
      try expect(chost_syscall(Int(SYS_shmdt), Int(bitPattern: memory), 0, 0, 0, 0, 0) == 0)
    }
    try expect(client.client.enter() == -EFAULT, "shmdt")
    try expect(client.registers.rip == LongModeClient.start, "RIP")
    try expect(shmat(segment, memory, 0) == memory)
    alarm(after: 20_000)
    try expect(client.client.enter() == -EINTR, "after")
    alarm(after: 0)
  }
}

private let ownFaults = Atomic<Int>(0)
private let ownAddress = Atomic<UInt>(0)

private func onOwnFault(
  _ number: Int32, _ info: UnsafeMutablePointer<siginfo_t>?, _ context: UnsafeMutableRawPointer?
) {
  guard let address = info?.pointee._sifields._sigfault.si_addr else { return }
  ownAddress.store(UInt(bitPattern: address), ordering: .relaxed)
  ownFaults.add(1, ordering: .relaxed)
  // The page comes back, and the access is made again.
  let page = UnsafeMutableRawPointer(bitPattern: UInt(bitPattern: address) & ~4095)
  mprotect(page, 4096, PROT_READ | PROT_WRITE)
}

/// The client has handlers for faults of its own, or blocks these signals.
func ownFaultChecks() throws {
  let client = try LongModeClient([0x48, 0x8B, 0x03, 0x48, 0xFF, 0xC1, 0xEB, 0xF8])
  var action = sigaction()
  action.__sigaction_handler.sa_sigaction = onOwnFault
  action.sa_flags = SA_SIGINFO
  try expect(sigaction(SIGSEGV, &action, nil) == 0)
  var known = sigaction()
  try expect(sigaction(SIGSEGV, nil, &known) == 0)
  let kept = withUnsafeBytes(of: known) { $0.load(as: UInt.self) }
  try expect(kept == withUnsafeBytes(of: action) { $0.load(as: UInt.self) }, "sigaction tells")
  let own = mmap(nil, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
  // Its own memory, and memory of a slot that it accesses itself.
  for (count, place) in [own + 8, client.memory + 16].enumerated() {
    mprotect(UnsafeMutableRawPointer(bitPattern: UInt(bitPattern: place) & ~4095), 4096, PROT_NONE)
    place.storeBytes(of: 5, as: UInt64.self)
    try expect(ownFaults.load(ordering: .relaxed) == count + 1, "the handler ran")
    try expect(ownAddress.load(ordering: .relaxed) == UInt(bitPattern: place), "si_addr")
    try expect(place.load(as: UInt64.self) == 5)
  }
  // The guest's access is not the client's.
  client.protect(PROT_NONE)
  try expect(client.client.enter() == -EFAULT)
  try expect(ownFaults.load(ordering: .relaxed) == 2, "no handler for the guest's access")
  client.protect(PROT_READ | PROT_WRITE)
  var blocked = sigset_t()
  sigemptyset(&blocked)
  sigaddset(&blocked, SIGSEGV)
  sigaddset(&blocked, SIGBUS)
  try expect(pthread_sigmask(SIG_BLOCK, &blocked, nil) == 0)
  signal(SIGALRM, onSignal)
  alarm(after: 20_000)
  try expect(client.client.enter() == -EINTR, "blocked")
  alarm(after: 0)
  client.protect(PROT_NONE)
  try expect(client.client.enter() == -EFAULT, "blocked")
  client.truncate(0)
  client.protect(PROT_READ | PROT_WRITE)
  try expect(client.client.enter() == -EFAULT, "blocked, SIGBUS")
  var mask = sigset_t()
  try expect(pthread_sigmask(SIG_BLOCK, nil, &mask) == 0)
  try expect(sigismember(&mask, SIGSEGV) == 1 && sigismember(&mask, SIGBUS) == 1, "still blocked")
}

/// What the hypervisor itself reads and writes for the guest: its clock.
func clockPageChecks() throws {
  // wrmsr; l: mov rax, [0x8000]; jmp l
  let client = try LongModeClient([
    0x0F, 0x30, 0x48, 0x8B, 0x04, 0x25, 0, 0x80, 0, 0, 0xEB, 0xF6,
  ])
  var registers = client.registers
  registers.rcx = 0x4B56_4D01
  registers.rax = LongModeClient.base | 1
  _ = ioctl(client.client.cpu, UInt(CKVM_SET_REGS), &registers)
  signal(SIGALRM, onSignal)
  for round in 0..<6 {
    if round % 2 == 1 { client.truncate(0) }
    var data = kvm_clock_data()
    data.clock = UInt64(round + 1) * 1_000_000_000
    try expect(ioctl(client.client.machine, UInt(CKVM_SET_CLOCK), &data) == 0, "KVM_SET_CLOCK")
    alarm(after: 10_000)
    let result = client.client.enter()
    alarm(after: 0)
    try expect(result == -EINTR, "round \(round): \(result)")
    client.truncate(LongModeClient.size)
  }
}

/// The client's own bug, with a machine there.
func crashChecks() throws {
  let client = try Client(Code.out(1) + Code.loop)
  try expect(try client.output() == 1)
  let nowhere = UnsafeMutableRawPointer(bitPattern: 8)!
  nowhere.storeBytes(of: 1, as: UInt8.self)
}
