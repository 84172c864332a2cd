// SPDX-License-Identifier: Apache-2.0
//
// Checks of KVM_RUN with several threads and signals, and of rings in its mappings. What
// happens must be what happens with Linux.

import CHost
import Glibc
import Synchronization

/// The dirty ring lies at page 64 of the vCPU.
func ringChecks() throws {
  let size = 4096
  let offset = off_t(64 * 4096)
  // again: inc byte [0x3000]; out 0xE9, al; jmp again
  let client = try Client(
    [0xFE, 0x06, 0x00, 0x30, 0xE6, 0xE9, 0xEB, 0xF8], ringBytes: UInt64(size))
  try Client.setMemory(
    client.machine, slot: 0, at: 0, client.memory, client.size,
    flags: UInt32(KVM_MEM_LOG_DIRTY_PAGES))
  let readWrite = PROT_READ | PROT_WRITE
  for (protection, flags) in [
    (PROT_READ, MAP_PRIVATE), (readWrite, MAP_PRIVATE), (PROT_READ | PROT_EXEC, MAP_SHARED),
  ] {
    errno = 0
    let refused = mmap(nil, size, protection, flags, client.cpu, offset)
    try expect(refused == MAP_FAILED && errno == EINVAL, "\(protection) \(flags)")
  }
  guard let ring = mmap(nil, size, readWrite, MAP_SHARED, client.cpu, offset), ring != MAP_FAILED
  else { throw Failure(text: "mmap of the ring") }
  defer { munmap(ring, size) }
  let entries = ring.bindMemory(to: kvm_dirty_gfn.self, capacity: size / 16)
  _ = try client.output()
  try expect(entries[0].flags == CKVM_DIRTY_GFN_F_DIRTY && entries[0].offset == 3, "one entry")
  _ = try client.output()
  try expect(entries[1].flags == 0, "once")
  entries[0].flags = CKVM_DIRTY_GFN_F_RESET
  try expect(ioctl(client.machine, UInt(CKVM_RESET_DIRTY_RINGS), CInt(0)) == 1, "reset")
  _ = try client.output()
  try expect(entries[1].flags == CKVM_DIRTY_GFN_F_DIRTY && entries[1].offset == 3, "again")
}

nonisolated(unsafe) private var cancelled: Client?
private let isInside = Atomic<Bool>(false)

/// A thread that is cancelled in KVM_RUN leaves the vCPU to others.
func cancelChecks() throws {
  for chips in [false, true] {
    // In guest code, and in a halt.
    let code = chips ? Code.out(1) + Code.halt : Code.out(1) + Code.loop
    cancelled = try Client(code, chips: chips)
    for _ in 0..<10 {
      try cancelled?.reset()
      var state = kvm_mp_state(mp_state: UInt32(KVM_MP_STATE_RUNNABLE))
      try expect(ioctl(cancelled?.cpu ?? -1, UInt(CKVM_SET_MP_STATE), &state) == 0)
      isInside.store(false, ordering: .sequentiallyConsistent)
      var thread = pthread_t()
      pthread_create(
        &thread, nil,
        { _ in
          pthread_setcanceltype(1, nil)  // asynchronous
          _ = try? cancelled?.output()
          isInside.store(true, ordering: .sequentiallyConsistent)
          while true { _ = cancelled?.enter() }
        }, nil)
      while !isInside.load(ordering: .sequentiallyConsistent) { usleep(100) }
      usleep(2000)
      try expect(pthread_cancel(thread) == 0)
      var result: UnsafeMutableRawPointer?
      try expect(pthread_join(thread, &result) == 0 && Int(bitPattern: result) == -1, "cancelled")
      try expect(cancelled?.registers.rflags != 0, "registers")
    }
  }
  cancelled = nil
}

/// A signal that KVM_RUN alone lets through ends it and stays pending, and nothing else happens.
func maskChecks() throws {
  var signals = sigset_t()
  sigemptyset(&signals)
  sigaddset(&signals, SIGUSR1)
  try expect(pthread_sigmask(SIG_BLOCK, &signals, nil) == 0)
  let client = try Client(Code.out(1) + Code.loop)
  // The length, and no signal.
  var mask: InlineArray<3, UInt32> = [8, 0, 0]
  try expect(ioctl(client.cpu, UInt(CKVM_SET_SIGNAL_MASK), &mask) == 0, "KVM_SET_SIGNAL_MASK")
  _ = try client.output()
  for _ in 0..<10 {
    let own = pthread_self()
    var thread = pthread_t()
    pthread_create(
      &thread, nil,
      { argument in
        usleep(2000)
        pthread_kill(pthread_t(UInt(bitPattern: argument)), SIGUSR1)
        return nil
      }, UnsafeMutableRawPointer(bitPattern: UInt(own)))
    try expect(client.enter() == -EINTR, "EINTR")
    pthread_join(thread, nil)
    // Pending already: KVM_RUN ends at once.
    try expect(client.enter() == -EINTR, "EINTR again")
    var number: Int32 = 0
    try expect(sigwait(&signals, &number) == 0 && number == SIGUSR1, "still pending")
    var pending = sigset_t()
    sigpending(&pending)
    try expect(sigismember(&pending, SIGUSR1) == 0, "once")
  }
  var action = sigaction()
  try expect(sigaction(SIGUSR1, nil, &action) == 0)
  try expect(withUnsafeBytes(of: action) { $0.load(as: UInt.self) } == 0, "the default action")
  // With no mask it stays blocked.
  try expect(ioctl(client.cpu, UInt(CKVM_SET_SIGNAL_MASK), CInt(0)) == 0)
  raise(SIGUSR1)
  client.run.pointee.immediate_exit = 1
  try expect(client.enter() == -EINTR)
}

nonisolated(unsafe) private var contended: Client?
private let isSecondInside = Atomic<Bool>(false)
private let secondResult = Atomic<Int32>(1)
private let isFirstOut = Atomic<Bool>(false)
private let firstResult = Atomic<Int32>(1)

/// A signal to a thread that waits for another's KVM_RUN does not end that, but its own once it can
/// begin.
func contentionChecks() throws {
  let client = try Client(Code.out(1) + Code.loop)
  _ = try client.output()
  contended = client
  signal(SIGUSR1, onSignal)
  var threads = [pthread_t(), pthread_t()]
  pthread_create(
    &threads[0], nil,
    { _ in
      firstResult.store(contended?.enter() ?? 0, ordering: .sequentiallyConsistent)
      isFirstOut.store(true, ordering: .sequentiallyConsistent)
      return nil
    }, nil)
  usleep(50_000)
  pthread_create(
    &threads[1], nil,
    { _ in
      isSecondInside.store(true, ordering: .sequentiallyConsistent)
      secondResult.store(contended?.enter() ?? 0, ordering: .sequentiallyConsistent)
      return nil
    }, nil)
  while !isSecondInside.load(ordering: .sequentiallyConsistent) { usleep(1000) }
  usleep(50_000)
  let before = delivered.load(ordering: .sequentiallyConsistent)
  pthread_kill(threads[1], SIGUSR1)
  usleep(100_000)
  try expect(!isFirstOut.load(ordering: .sequentiallyConsistent), "the other's KVM_RUN ended")
  pthread_kill(threads[0], SIGUSR1)
  for thread in threads { pthread_join(thread, nil) }
  try expect(firstResult.load(ordering: .sequentiallyConsistent) == -EINTR, "first")
  try expect(secondResult.load(ordering: .sequentiallyConsistent) == -EINTR, "second")
  try expect(delivered.load(ordering: .sequentiallyConsistent) == before + 2, "handlers")
  contended = nil
}

/// The ring of coalesced writes in the mappings of two vCPUs, made whole and page by page.
func coalescedChecks() throws {
  let client = try Client(Code.out(7) + [0xE6, 0xEA])
  let second = ioctl(client.machine, UInt(CKVM_CREATE_VCPU), CInt(1))
  try expect(second >= 0, "KVM_CREATE_VCPU")
  let pages = mmap(nil, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, second, 0)!
  let page = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, second, 8192)!
  try expect(pages != MAP_FAILED && page != MAP_FAILED, "mmap")
  var zone = kvm_coalesced_mmio_zone()
  (zone.addr, zone.size, zone.pio) = (0xE9, 1, 1)
  try expect(ioctl(client.machine, UInt(CKVM_REGISTER_COALESCED_MMIO), &zone) == 0, "zone")
  _ = try client.output()
  try expect(client.run.pointee.io.port == 0xEA, "port")
  for ring in [UnsafeMutableRawPointer(client.run) + 8192, pages + 8192, page] {
    try expect(ring.load(fromByteOffset: 4, as: UInt32.self) == 1, "one entry")
    try expect(ring.load(fromByteOffset: 8, as: UInt64.self) == 0xE9, "its port")
  }
  let run = pages.assumingMemoryBound(to: kvm_run.self)
  run.pointee.immediate_exit = 1
  try expect(client.run.pointee.immediate_exit == 0, "the rest is the vCPU's own")
  try expect(ioctl(second, UInt(CKVM_RUN), CInt(0)) == -1 && errno == EINTR, "and is in use")
  munmap(pages, 12288)
  munmap(page, 4096)
  close(second)
}
