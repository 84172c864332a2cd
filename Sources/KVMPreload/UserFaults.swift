// SPDX-License-Identifier: Apache-2.0
//
// The client's userfaultfds: their ioctls tell which memory the client supplies page by page.

import CHost
import ClientMemory
import Glibc
import KVM

enum UserFaults {
  private static let missingMode: UInt64 = 1 << 0

  /// Notes a userfaultfd's completed ioctl; returns its result.
  static func noted(
    _ descriptor: Int32, _ request: UInt, _ argument: UInt, _ result: Int32
  ) -> Int32 {
    guard result == 0 else { return result }
    switch UInt32(truncatingIfNeeded: request) {
    case UInt32(CUFFDIO_REGISTER):
      guard let memory = unsafe UnsafePointer<uffdio_register>(bitPattern: argument)?.pointee,
        memory.mode & missingMode != 0
      else { break }
      let range = range(memory.range)
      Client.makeMemory().userFaults.add(range, descriptor)
      Library.existing?.hypervisor.noteUserFaults(range)
    case UInt32(CUFFDIO_UNREGISTER):
      guard let memory = unsafe UnsafePointer<uffdio_range>(bitPattern: argument)?.pointee else {
        break
      }
      Client.memory?.userFaults.remove(range(memory))
    default: break
    }
    return result
  }

  /// The kernel has checked the range, but the client may have overwritten it since.
  static func range(_ memory: uffdio_range) -> Range<UInt> {
    let start = UInt(memory.start)
    return start..<max(start, start &+ UInt(memory.len))
  }
}
