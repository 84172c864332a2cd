// SPDX-License-Identifier: Apache-2.0
//
// The transport to the kernel's KVM. Each call is one ioctl(2); owners close their descriptors.

import CHost
import Host
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

/// The kernel's KVM through its device file.
package final class DeviceTransport: KVMTransport {
  package let name: String
  private let path: String

  /// Nothing is opened before `open`.
  package init(path: String = "/dev/kvm") {
    self.path = path
    name = path
  }

  package func open() throws(Errno) -> Int32 {
    KickSignal.install()
    return try OwnedFileDescriptor(opening: path, flags: O_RDWR).release()
  }

  package func ioctl(
    _ handle: Int32, _ request: UInt32, _ argument: UInt
  ) throws(Errno) -> Int32 {
    let pointer = unsafe UnsafeMutableRawPointer(bitPattern: argument)
    return try systemCall(interruption: request == CKVM_RUN ? .report : .repeatCall) {
      () -> Int32 in
      guard let pointer = unsafe pointer else { return Glibc.ioctl(handle, UInt(request), CInt(0)) }
      return unsafe Glibc.ioctl(handle, UInt(request), pointer)
    }
  }

  package func mapRun(_ vcpu: Int32, size: Int) throws(Errno) -> UnsafeMutableRawPointer {
    try unsafe mappingCall { unsafe mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0) }
  }

  package func unmapRun(_ vcpu: Int32, _ pages: UnsafeMutableRawPointer, size: Int) {
    unsafe munmap(pages, size)
  }

  package func close(_ handle: Int32) { Glibc.close(handle) }

  package func kick(_ vcpu: Int32, thread: ThreadIdentifier) {
    thread.signal(KickSignal.number)
  }
}
