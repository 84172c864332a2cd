// SPDX-License-Identifier: Apache-2.0
//
// How much of the guest's memory is resident on the host, for statistics.

import Glibc

extension GuestMemory {
  /// Bytes of guest memory that are resident: those that the guest and its loader touched. 0 if the
  /// host does not tell.
  package var residentBytes: Int {
    let pageSize = 4096
    var pages = [UInt8](repeating: 0, count: size / pageSize)
    guard let start = unsafe regions.first?.hostAddress else { return 0 }
    // The regions are contiguous in one mapping.
    guard unsafe mincore(start, size, &pages) == 0 else { return 0 }
    return pages.reduce(0) { $0 + Int($1 & 1) } * pageSize
  }
}
