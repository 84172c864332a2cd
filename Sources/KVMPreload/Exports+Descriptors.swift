// SPDX-License-Identifier: Apache-2.0
//
// ioctl(2), and calls that create and close descriptors.

import CHost
import ClientMemory
import Glibc
import Host
import KVM

/// The type byte of KVM's requests.
private let kvmRequestType: UInt = 0xAE
/// The type byte of userfaultfd's.
private let userFaultRequestType: UInt = 0xAA

@_cdecl("ioctl") public func exportedIoctl(
  _ descriptor: Int32, _ request: UInt, _ argument: UInt
) -> Int32 {
  if (request >> 8) & 0xFF == kvmRequestType {
    let isAsynchronous = Cancellation.postpone()
    // Clients that keep the number in an int sign-extend it: only 32 bits count.
    let result = callKVM(descriptor, UInt32(truncatingIfNeeded: request), argument)
    if isAsynchronous { Cancellation.restore() }
    if let result { return result }
  }
  let result = Real.ioctl?(descriptor, request, argument) ?? fail(ENOSYS)
  if (request >> 8) & 0xFF != userFaultRequestType { return result }
  let last = yielding(result, descriptor, request, argument)
  return UserFaults.noted(descriptor, request, argument, last)
}

/// The result of an ioctl, repeated if it needed memory that we watch for writes.
private func yielding(
  _ result: Int32, _ descriptor: Int32, _ request: UInt, _ argument: UInt
) -> Int32 {
  if result == -1, errno == EBUSY, UInt32(truncatingIfNeeded: request) == UInt32(CUFFDIO_REGISTER),
    let library = Library.existing,
    let memory = unsafe UnsafePointer<uffdio_register>(bitPattern: argument)
  {
    // A migration's page faults belong to the client: stop watching the memory for writes.
    unsafe library.hypervisor.yieldProtection(of: UserFaults.range(memory.pointee.range))
    return Real.ioctl?(descriptor, request, argument) ?? fail(ENOSYS)
  }
  return result
}

/// nil if the descriptor is not KVM's. Releases all references on return; only then may the thread
/// end.
@inline(never) private func callKVM(
  _ descriptor: Int32, _ request: UInt32, _ argument: UInt
) -> Int32? {
  guard let file = DescriptorTable.shared.file(descriptor) else { return nil }
  return file.library.call(file, request, argument)
}

@_cdecl("close") public func exportedClose(_ descriptor: Int32) -> Int32 {
  DescriptorTable.shared.remove(descriptor)
  Client.memory?.userFaults.close(descriptor)
  return IRQFDEvents.closing(descriptor...descriptor) {
    Real.close?(descriptor) ?? fail(ENOSYS)
  }
}

@_cdecl("close_range") public func exportedCloseRange(
  _ first: UInt32, _ last: UInt32, _ flags: Int32
) -> Int32 {
  let closesNow = flags & 4 == 0  // CLOSE_RANGE_CLOEXEC
  if closesNow, first <= last, first <= UInt32(Int32.max) {
    DescriptorTable.shared.remove(Int32(first)...Int32(clamping: last))
    Client.memory?.userFaults.close(Int32(first)...Int32(clamping: last))
    return IRQFDEvents.closing(Int32(first)...Int32(clamping: last)) {
      Real.closeRange?(first, last, flags) ?? fail(ENOSYS)
    }
  }
  return Real.closeRange?(first, last, flags) ?? fail(ENOSYS)
}

@_cdecl("closefrom") public func exportedCloseFrom(_ first: Int32) {
  DescriptorTable.shared.remove(max(first, 0)...Int32.max)
  Client.memory?.userFaults.close(max(first, 0)...Int32.max)
  _ = IRQFDEvents.closing(max(first, 0)...Int32.max) {
    Real.closefrom?(first)
    return 0
  }
}

@_cdecl("dup") public func exportedDup(_ old: Int32) -> Int32 {
  let new = Real.dup?(old) ?? fail(ENOSYS)
  if new >= 0 {
    DescriptorTable.shared.duplicate(old, as: new)
    IRQFDEvents.duplicate(old, as: new)
  }
  return new
}

@_cdecl("dup2") public func exportedDup2(_ old: Int32, _ wanted: Int32) -> Int32 {
  IRQFDEvents.replacing(wanted, by: old) {
    replaced(old, wanted, Real.dup2?(old, wanted) ?? fail(ENOSYS))
  }
}

@_cdecl("dup3") public func exportedDup3(_ old: Int32, _ wanted: Int32, _ flags: Int32) -> Int32 {
  IRQFDEvents.replacing(wanted, by: old) {
    replaced(old, wanted, Real.dup3?(old, wanted, flags) ?? fail(ENOSYS))
  }
}

/// `wanted` was closed, if it was open, and is now `old`'s duplicate.
private func replaced(_ old: Int32, _ wanted: Int32, _ result: Int32) -> Int32 {
  if result >= 0, old != wanted {
    DescriptorTable.shared.remove(wanted)
    Client.memory?.userFaults.close(wanted)
    DescriptorTable.shared.duplicate(old, as: result)
  }
  return result
}

@_cdecl("fcntl") public func exportedFcntl(
  _ descriptor: Int32, _ command: Int32, _ argument: UInt
) -> Int32 {
  duplicated(descriptor, command, Real.fcntl?(descriptor, command, argument) ?? fail(ENOSYS))
}

@_cdecl("fcntl64") public func exportedFcntl64(
  _ descriptor: Int32, _ command: Int32, _ argument: UInt
) -> Int32 {
  duplicated(descriptor, command, Real.fcntl64?(descriptor, command, argument) ?? fail(ENOSYS))
}

private func duplicated(_ old: Int32, _ command: Int32, _ result: Int32) -> Int32 {
  if result >= 0, command == F_DUPFD || command == F_DUPFD_CLOEXEC {
    DescriptorTable.shared.duplicate(old, as: result)
    IRQFDEvents.duplicate(old, as: result)
  }
  return result
}
