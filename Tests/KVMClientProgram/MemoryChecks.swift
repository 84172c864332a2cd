// SPDX-License-Identifier: Apache-2.0
//
// The client writes to memory whose code has been executed, and tells nobody.

import CHost
import Glibc
import Synchronization

/// Guest memory in its kinds.
private enum Kind: CaseIterable {
  case anonymous, shared, file

  func map(_ size: Int) -> UnsafeMutableRawPointer {
    switch self {
    case .anonymous:
      mmap(nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    case .shared: mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
    case .file: mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, memoryFile(size), 0)
    }
  }
}

private func memoryFile(_ size: Int) -> Int32 {
  let file = memfd_create("memory", 0)
  ftruncate(file, size)
  return file
}

private let page = 4096
/// mov al, 1; out 0xE9, al; jmp to the start
private let loop = Code.out(1) + [0xEB, 0xFA]
/// Where its value is.
private let valueOffset = 1

/// A client in whose second page the loop runs; it has run.
private func runningClient(_ kind: Kind) throws -> Client {
  let size = 1 << 16
  // jmp 0x1000
  let client = try Client([0xE9, 0xFD, 0x0F], size: size, memory: kind.map(size))
  (client.memory + page).copyMemory(from: loop, byteCount: loop.count)
  for _ in 0..<100 { try expect(try client.output() == 1, "\(kind)") }
  return client
}

private typealias Write = @Sendable (UnsafeMutableRawPointer, UInt8) throws -> Void

private let ways: [(name: String, write: Write)] = [
  ("store", { place, value in place.storeBytes(of: value, as: UInt8.self) }),
  (
    "read",
    { place, value in
      let pipe = try filledFile([value])
      try expect(read(pipe, place, 1) == 1, "read")
      close(pipe)
    }
  ),
  (
    "preadv",
    { place, value in
      let file = try filledFile([0, value])
      var vector = iovec(iov_base: place, iov_len: 1)
      try expect(preadv(file, &vector, 1, 1) == 1, "preadv")
      close(file)
    }
  ),
]

private func filledFile(_ bytes: [UInt8]) throws -> Int32 {
  let file = memoryFile(0)
  try expect(pwrite(file, bytes, bytes.count, 0) == bytes.count)
  return file
}

func writeChecks() throws {
  for kind in Kind.allCases {
    for way in ways {
      let client = try runningClient(kind)
      var value: UInt8 = 1
      for _ in 0..<20 {
        value += 1
        try way.write(client.memory + page + valueOffset, value)
        for _ in 0..<3 {
          let output = try client.output()
          try expect(output == value, "\(kind) \(way.name): \(output), not \(value)")
        }
      }
    }
  }
}

/// Values before and after they are written.
private let writing = Atomic<UInt8>(1)
private let written = Atomic<UInt8>(1)

/// Two machines have the same memory and run its code on threads of their own, while a third thread
/// writes to it: nobody executes what was there before KVM_RUN.
func raceChecks() throws {
  for kind in Kind.allCases {
    writing.store(1, ordering: .sequentiallyConsistent)
    written.store(1, ordering: .sequentiallyConsistent)
    let first = try runningClient(kind)
    let second = try Client([0xE9, 0xFD, 0x0F], size: first.size, memory: first.memory)
    var threads: [pthread_t] = []
    for client in [first, second] {
      var thread = pthread_t()
      pthread_create(&thread, nil, runWhileWritten, Unmanaged.passRetained(client).toOpaque())
      threads.append(thread)
    }
    let place = first.memory + page + valueOffset
    for value in UInt8(2)...250 {
      usleep(200)
      writing.store(value, ordering: .sequentiallyConsistent)
      place.storeBytes(of: value, as: UInt8.self)
      written.store(value, ordering: .sequentiallyConsistent)
    }
    for thread in threads {
      var result: UnsafeMutableRawPointer?
      pthread_join(thread, &result)
      try expect(result == nil, "\(kind): old code ran")
    }
  }
}

private func runWhileWritten(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  guard let argument else { return nil }
  let client = Unmanaged<Client>.fromOpaque(argument).takeRetainedValue()
  while written.load(ordering: .sequentiallyConsistent) != 250 {
    let least = written.load(ordering: .sequentiallyConsistent)
    guard let value = try? client.output(), value >= least,
      value <= writing.load(ordering: .sequentiallyConsistent)
    else { return UnsafeMutableRawPointer(bitPattern: 1) }
  }
  return nil
}

/// Another page comes to lie where the code was.
func remapChecks() throws {
  for kind in Kind.allCases {
    let client = try runningClient(kind)
    let place = client.memory + page
    let new = mmap(
      place, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
    try expect(new == place)
    place.copyMemory(from: Code.out(2) + [0xEB, 0xFA], byteCount: 6)
    try expect(try client.output() == 2, "\(kind): mmap")
    place.storeBytes(of: 3, toByteOffset: valueOffset, as: UInt8.self)
    try expect(try client.output() == 3, "\(kind): written after mmap")

    let other = Kind.anonymous.map(page)
    other.copyMemory(from: Code.out(4) + [0xEB, 0xFA], byteCount: 6)
    try expect(chost_mremap_to(other, page, place) == place)
    try expect(try client.output() == 4, "\(kind): mremap")
    place.storeBytes(of: 5, toByteOffset: valueOffset, as: UInt8.self)
    try expect(try client.output() == 5, "\(kind): written after mremap")

    try expect(madvise(place, page, MADV_DONTNEED) == 0)
    place.copyMemory(from: Code.out(6) + [0xEB, 0xFA], byteCount: 6)
    try expect(try client.output() == 6, "\(kind): written after madvise")

    // Lengths that no address space has are refused.
    for length in [Int.min, 1 << 62] {
      try expect(munmap(client.memory, length) == -1 && errno == EINVAL, "\(kind): munmap")
    }
    try expect(try client.output() == 6, "\(kind): after munmap of too much")
    munmap(client.memory, client.size)
  }
}

/// Another process writes through a mapping of its own, then an interrupt comes of it, or the
/// client is asked for something.
func processChecks() throws {
  let client = try runningClient(.file)
  for value in 2...20 {
    let child = chost_fork()
    if child == 0 {
      client.memory.storeBytes(of: UInt8(value), toByteOffset: page + valueOffset, as: UInt8.self)
      _exit(0)
    }
    var status: Int32 = 0
    try expect(waitpid(child, &status, 0) == child && status == 0)
    try expect(try client.output() == UInt8(value), "written by a process")
  }
  // After a fork, memory that is not shared is protected as before.
  let other = try runningClient(.anonymous)
  for value in 2...5 {
    let child = chost_fork()
    if child == 0 {
      other.memory.storeBytes(of: 99, toByteOffset: page + valueOffset, as: UInt8.self)
      _exit(0)
    }
    var status: Int32 = 0
    try expect(waitpid(child, &status, 0) == child && status == 0)
    other.memory.storeBytes(of: UInt8(value), toByteOffset: page + valueOffset, as: UInt8.self)
    try expect(try other.output() == UInt8(value), "written after a fork")
  }
}

/// A userfaultfd that is ready for use.
private func openUserFaults() throws -> Int32 {
  let flags = Int(O_CLOEXEC | O_NONBLOCK)
  let faults = Int32(chost_syscall(Int(SYS_userfaultfd), flags, 0, 0, 0, 0, 0))
  if faults < 0 { throw Skip(text: "the kernel refuses userfaultfd") }
  var api = uffdio_api(api: 0xAA, features: 0, ioctls: 0)
  try expect(ioctl(faults, UInt(CUFFDIO_API), &api) == 0)
  return faults
}

/// The client brings pages by a userfaultfd of its own, as a migration does: the guest waits for
/// them.
func userFaultChecks() throws {
  let faults = try openUserFaults()
  let size = 1 << 16
  // mov al, [0x2000]; out 0xE9, al; jmp back
  let code: [UInt8] = [0xA0, 0x00, 0x20, 0xE6, 0xE9, 0xEB, 0xF9]
  let client = try Client(code, size: size, memory: Kind.anonymous.map(size))
  try expect(try client.output() == 0)
  try expect(madvise(client.memory + 2 * page, page, MADV_DONTNEED) == 0)
  let start = UInt64(UInt(bitPattern: client.memory))
  var memory = uffdio_register(
    range: uffdio_range(start: start, len: UInt64(size)), mode: 1, ioctls: 0)
  try expect(ioctl(faults, UInt(CUFFDIO_REGISTER), &memory) == 0, "register")
  var thread = pthread_t()
  let argument = UnsafeMutablePointer<Int32>.allocate(capacity: 1)
  argument.pointee = faults
  pthread_create(&thread, nil, bringPage, argument)
  try expect(try client.output() == 42, "the page that was brought")
  var result: UnsafeMutableRawPointer?
  pthread_join(thread, &result)
  try expect(result == nil, "a page was asked for")
  // And code that is written is seen, if late.
  (client.memory + 3).copyMemory(from: Code.out(7), byteCount: 4)
  try client.reset()
  try expect(try client.output() == 7, "written")
  close(faults)
}

/// Answers one fault with a page of 42s.
private func bringPage(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  let failure = UnsafeMutableRawPointer(bitPattern: 1)
  guard let faults = argument?.load(as: Int32.self) else { return failure }
  var poller = pollfd(fd: faults, events: Int16(POLLIN), revents: 0)
  guard poll(&poller, 1, 10_000) == 1 else { return failure }
  var message = [UInt64](repeating: 0, count: 4)
  guard read(faults, &message, 32) == 32 else { return failure }
  let source = mmap(nil, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
  memset(source, 42, page)
  var copy = uffdio_copy()
  copy.dst = message[2] & ~0xFFF
  copy.src = UInt64(UInt(bitPattern: source))
  copy.len = UInt64(page)
  return ioctl(faults, UInt(CUFFDIO_COPY), &copy) == 0 ? nil : failure
}

/// A guest that knows asynchronous page faults, and cannot be told of them in real mode, takes an
/// interrupt while it waits for a page.
func latePageChecks() throws {
  let faults = try openUserFaults()
  let size = 1 << 16
  // sti; mov al, [0x2000]; out 0xE9, al; jmp to the read
  let code: [UInt8] = [0xFB, 0xA0, 0x00, 0x20, 0xE6, 0xE9, 0xEB, 0xF9]
  let memory = Kind.anonymous.map(size)
  memset(memory, 0, size)
  let client = try Client(code, size: size, memory: memory, chips: true)
  try expect(try client.output() == 0)
  // Vector 0x31 returns, 0x50 writes 7.
  (memory + 0x31 * 4).storeBytes(of: 0x3100, as: UInt32.self)
  (memory + 0x3100).storeBytes(of: 0xCF, as: UInt8.self)
  (memory + 0x50 * 4).storeBytes(of: 0x3000, as: UInt32.self)
  // push ax; mov al, 7; out 0xE9, al; pop ax; iret
  (memory + 0x3000).copyMemory(from: [0x50] + Code.out(7) + [0x58, 0xCF], byteCount: 7)
  try enableAsyncFaults(client)
  try expect(madvise(memory + 2 * page, page, MADV_DONTNEED) == 0)
  let start = UInt64(UInt(bitPattern: memory))
  var watched = uffdio_register(
    range: uffdio_range(start: start, len: UInt64(size)), mode: 1, ioctls: 0)
  try expect(ioctl(faults, UInt(CUFFDIO_REGISTER), &watched) == 0, "register")
  var thread = pthread_t()
  let argument = UnsafeMutablePointer<(Int32, Int32)>.allocate(capacity: 1)
  argument.pointee = (faults, client.machine)
  pthread_create(&thread, nil, interruptThenBringPage, argument)
  try expect(try client.output() == 7, "the interrupt in the fault")
  try expect(try client.output() == 42, "the page that was brought")
  var result: UnsafeMutableRawPointer?
  pthread_join(thread, &result)
  try expect(result == nil, "a page was asked for")
  close(faults)
}

/// Local APIC on; structure at 0x4000, told of arrivals by vector 0x31.
private func enableAsyncFaults(_ client: Client) throws {
  var chip = kvm_lapic_state()
  try expect(ioctl(client.cpu, UInt(CKVM_GET_LAPIC), &chip) == 0)
  withUnsafeMutableBytes(of: &chip) {
    $0.storeBytes(of: 0x1FF, toByteOffset: 0xF0, as: UInt32.self)
  }
  try expect(ioctl(client.cpu, UInt(CKVM_SET_LAPIC), &chip) == 0)
  var registers: (UInt32, UInt32, kvm_msr_entry, kvm_msr_entry) = (
    2, 0, kvm_msr_entry(index: 0x4B56_4D06, reserved: 0, data: 0x31),
    kvm_msr_entry(index: 0x4B56_4D02, reserved: 0, data: 0x4000 | 0xB)
  )
  try expect(ioctl(client.cpu, UInt(CKVM_SET_MSRS), &registers) == 2, "MSRs")
}

/// Waits for the fault, interrupts the guest, and brings the page when there was time for that.
private func interruptThenBringPage(
  _ argument: UnsafeMutableRawPointer?
) -> UnsafeMutableRawPointer? {
  guard let (faults, machine) = argument?.load(as: (Int32, Int32).self) else { return nil }
  var poller = pollfd(fd: faults, events: Int16(POLLIN), revents: 0)
  _ = poll(&poller, 1, 10_000)
  var message = kvm_msi()
  message.address_lo = 0xFEE0_0000
  message.data = 0x50
  _ = ioctl(machine, UInt(CKVM_SIGNAL_MSI), &message)
  usleep(300_000)
  var file = faults
  return bringPage(&file)
}
