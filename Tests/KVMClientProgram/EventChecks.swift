// SPDX-License-Identifier: Apache-2.0
//
// Checks of eventfds that drive interrupts and that the client closes: they do nothing any
// more, and the library does not keep them open.

import CHost
import Glibc

/// Descriptors of this process that are open on eventfds.
private func eventDescriptors() throws -> Int {
  guard let directory = opendir("/proc/self/fd") else { throw Failure(text: "/proc/self/fd") }
  defer { closedir(directory) }
  var count = 0
  while let entry = readdir(directory) {
    let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
      String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
    var target = [UInt8](repeating: 0, count: 64)
    let length = target.withUnsafeMutableBytes {
      readlink("/proc/self/fd/\(name)", $0.baseAddress!.assumingMemoryBound(to: CChar.self), 64)
    }
    if length > 0, String(decoding: target.prefix(length), as: UTF8.self).contains("eventfd") {
      count += 1
    }
  }
  return count
}

/// Waits up to a second.
private func isLetGo(_ before: Int) throws -> Bool {
  for _ in 0..<1000 {
    if try eventDescriptors() == before { return true }
    usleep(1000)
  }
  return false
}

private func assign(_ machine: Int32, _ event: Int32, gsi: UInt32) -> Int32 {
  var request = kvm_irqfd()
  (request.fd, request.gsi) = (UInt32(bitPattern: event), gsi)
  return ioctl(machine, UInt(CKVM_IRQFD), &request)
}

/// Whether the master 8259 has latched a line.
private func isLatched(_ machine: Int32, _ line: UInt8) -> Bool {
  var chip = kvm_irqchip()
  chip.chip_id = UInt32(KVM_IRQCHIP_PIC_MASTER)
  return ioctl(machine, UInt(CKVM_GET_IRQCHIP), &chip) == 0 && chip.chip.pic.irr & 1 << line != 0
}

/// close_range(2), by its name: not every C library's headers have it.
private func closeRange(_ descriptor: Int32) -> Int32 {
  typealias Function = @convention(c) (UInt32, UInt32, Int32) -> Int32
  guard let address = dlsym(nil, "close_range") else { return -1 }
  let number = UInt32(descriptor)
  return unsafeBitCast(address, to: Function.self)(number, number, 0)
}

/// An eventfd that the client closes drives nothing any more, and nobody keeps it, unless another
/// process has it.
func eventChecks() throws {
  let client = try Client(Code.loop, chips: true)
  let first = eventfd(0, Int32(EFD_CLOEXEC))
  try expect(assign(client.machine, first, gsi: 4) == 0, "KVM_IRQFD")
  let before = try eventDescriptors()
  for round in 0..<4 {
    let event = eventfd(0, Int32(EFD_CLOEXEC))
    try expect(assign(client.machine, event, gsi: 5) == 0)
    try expect(assign(client.machine, event, gsi: 5) == -1 && errno == EBUSY, "twice")
    let copy = dup(event)
    try expect(close(event) == 0)
    usleep(20_000)
    try expect(try eventDescriptors() == before + 2, "held while there is a duplicate")
    switch round {
    case 0: try expect(close(copy) == 0)
    case 1: try expect(dup2(0, copy) == copy && close(copy) == 0)
    case 2: try expect(closeRange(copy) == 0)
    default: try expect(fcntl(copy, F_SETFD, 0) == 0 && close(copy) == 0)
    }
    try expect(try isLetGo(before), "kept after the last, round \(round)")
  }
  try foreignCheck(client, before)
  var one: UInt64 = 1
  try expect(write(first, &one, 8) == 8)
  for _ in 0..<1000 where !isLatched(client.machine, 4) { usleep(1000) }
  try expect(isLatched(client.machine, 4), "others work on")
  close(first)
}

private func foreignCheck(_ client: Client, _ before: Int) throws {
  let event = eventfd(0, Int32(EFD_CLOEXEC))
  try expect(assign(client.machine, event, gsi: 3) == 0)
  let child = chost_fork()
  if child == 0 {
    usleep(100_000)
    var one: UInt64 = 1
    _ = write(event, &one, 8)
    usleep(200_000)
    _exit(0)
  }
  try expect(close(event) == 0)
  try expect(try isLetGo(before), "kept beside another process")
  try expect(!isLatched(client.machine, 3))
  for _ in 0..<1000 where !isLatched(client.machine, 3) { usleep(1000) }
  try expect(isLatched(client.machine, 3), "the child's event")
  var status: Int32 = 0
  try expect(waitpid(child, &status, 0) == child && status == 0)
}
