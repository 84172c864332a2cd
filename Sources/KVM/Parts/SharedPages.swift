// SPDX-License-Identifier: Apache-2.0
//
// The pages that a vCPU shares with its client: `kvm_run`, the data of port accesses, the ring of
// coalesced writes. They are in a file, so that a client maps them as it maps Linux's. The client
// may write there at any time, so code copies values before it checks them.

import CHost
import Host
import SystemPackage

struct SharedPages: ~Copyable, Sendable {
  static let size = 3 * 4096

  /// The file that the client maps.
  let file: MemoryFile
  /// The file of the machine's first vCPU, with the ring of coalesced writes for all vCPUs; nil for
  /// the first itself. It is open as long as the machine lives.
  let ringFile: Int32?
  private let mapping: Mapping

  var address: UnsafeMutableRawPointer { unsafe mapping.address }

  /// - Parameters:
  ///   - first: the file of the machine's first vCPU; nil for the first itself.
  ///   - dirtyRingEntries: size of the dirty ring behind the pages; 0: none.
  init(first: Int32?, dirtyRingEntries: UInt32) throws(Errno) {
    let file = try MemoryFile(
      name: "kvm-vcpu",
      size: dirtyRingEntries == 0 ? Self.size : DirtyRing.fileSize(count: dirtyRingEntries))
    let mapping = try Mapping(sharing: file.descriptor.rawValue, size: Self.size)
    if let first {
      try mapping.replace(
        CoalescedRing.fileRange, sharing: first, offset: CoalescedRing.fileRange.lowerBound)
    }
    self.file = file
    self.mapping = mapping
    ringFile = first
  }
}
