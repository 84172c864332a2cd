// SPDX-License-Identifier: Apache-2.0
//
// Which pages of this process can be accessed without waiting, by mincore(2) and
// /proc/self/pagemap, and faulting in of absent ones.

import CHost
import Host
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

package enum PagePresence {
  /// Whether this host has swap space at all.
  package static let mayBeSwapped: Bool = {
    // A heading, then a line for each swap area.
    guard let text = try? contentsOfFile("/proc/swaps") else { return false }
    return text.split(separator: UInt8(ascii: "\n")).count > 1
  }()

  private static let pageSize: UInt = 4096

  /// Which pages of a range are in memory; untouched ones are not. nil if a part is not mapped.
  package static func resident(_ range: Range<UInt>) -> [Bool]? {
    var bytes = [UInt8](repeating: 0, count: range.count / Int(pageSize))
    let start = unsafe UnsafeMutableRawPointer(bitPattern: range.lowerBound)
    guard !bytes.isEmpty, unsafe mincore(start, range.count, &bytes) == 0 else { return nil }
    return bytes.map { $0 & 1 != 0 }
  }

  /// Which pages of a range are swapped out; nil if the kernel does not tell.
  package static func swapped(_ range: Range<UInt>) -> [Bool]? {
    guard let file = try? OwnedFileDescriptor(opening: "/proc/self/pagemap", flags: O_RDONLY)
    else { return nil }
    var entries = [UInt64](repeating: 0, count: range.count / Int(pageSize))
    let size = entries.count * 8
    let offset = Int(range.lowerBound / pageSize) * 8
    guard unsafe pread(file.rawValue, &entries, size, offset) == size else { return nil }
    // Bit 62: swapped (Linux, "pagemap").
    return entries.map { $0 & 1 << 62 != 0 }
  }

  /// Has the kernel bring in the page of an address and waits for it. Never faults, whatever
  /// happens to the mapping meanwhile.
  ///
  /// - Returns: false if no page can be brought in.
  package static func bring(_ address: UInt) -> Bool {
    var byte: UInt8 = 0
    return unsafe withUnsafeMutablePointer(to: &byte) { place in
      var local = unsafe iovec(iov_base: place, iov_len: 1)
      var remote = unsafe iovec(iov_base: UnsafeMutableRawPointer(bitPattern: address), iov_len: 1)
      return unsafe withUnsafeMutablePointer(to: &local) { local in
        unsafe withUnsafeMutablePointer(to: &remote) { remote in
          chost_syscall(
            Int(SYS_process_vm_readv), Int(getpid()), Int(bitPattern: local), 1,
            Int(bitPattern: remote), 1, 0) == 1
        }
      }
    }
  }
}
