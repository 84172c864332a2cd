// SPDX-License-Identifier: Apache-2.0
//
// The file that keeps a flash chip's contents between runs. While it is open, it is locked against
// others.

import Host
import SystemPackage

package final class FlashFile: Sendable {
  private let file: DiskFile
  /// Bytes.
  package let size: UInt64

  package init(path: String) throws(ImageError) {
    file = try DiskFile(path: path, isReadOnly: false)
    size = file.size
  }

  /// All bytes of a file whose size the caller has checked.
  package func contents() throws(Errno) -> [UInt8] {
    try file.bytes(at: 0, count: Int(truncatingIfNeeded: size))
  }

  package func write(at offset: Int, _ bytes: RawSpan) throws(Errno) {
    try unsafe bytes.withUnsafeBytes { (bytes) throws(Errno) in
      let pieces = unsafe IOPieces(UnsafeMutableRawBufferPointer(mutating: bytes))
      try file.write(at: UInt64(truncatingIfNeeded: offset), from: pieces)
    }
  }
}
