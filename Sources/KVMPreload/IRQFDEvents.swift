// SPDX-License-Identifier: Apache-2.0
//
// Descriptors of eventfds that the client gave to KVM_IRQFD, and their duplicates. In Linux an
// irqfd ends with the last descriptor of its eventfd; ours keeps one of its own, so the hypervisor
// must be told when the client's are closed. Raw system calls are not noticed: such an irqfd stays.

import CHost
import Glibc
import Host
import KVM

enum IRQFDEvents {
  /// Called after KVM_IRQFD.
  static func note(_ argument: UInt) {
    guard let request = unsafe UnsafePointer<kvm_irqfd>(bitPattern: argument)?.pointee,
      request.flags & UInt32(KVM_IRQFD_FLAG_DEASSIGN) == 0
    else { return }
    DescriptorTable.shared.setEvent(Int32(bitPattern: request.fd), true)
  }

  static func duplicate(_ old: Int32, as new: Int32) {
    if DescriptorTable.shared.mayBeEvent(old) { DescriptorTable.shared.setEvent(new, true) }
  }

  /// Runs `close`, which closes these descriptors.
  static func closing(_ range: ClosedRange<Int32>, _ close: () -> Int32) -> Int32 {
    // Read first: the number may be another file's as soon as it is closed.
    let isEvent = DescriptorTable.shared.takeEvents(range)
    let result = close()
    if isEvent { tell() }
    return result
  }

  /// Runs `duplicate`, which closes `new` and makes it a duplicate of `old`.
  static func replacing(_ new: Int32, by old: Int32, _ duplicate: () -> Int32) -> Int32 {
    let wasEvent = DescriptorTable.shared.mayBeEvent(new) && new != old
    let result = duplicate()
    guard result >= 0, new != old else { return result }
    DescriptorTable.shared.setEvent(new, DescriptorTable.shared.mayBeEvent(old))
    if wasEvent { tell() }
    return result
  }

  private static func tell() {
    let error = errno
    Library.existing?.hypervisor.eventsClosed()
    errno = error
  }
}
