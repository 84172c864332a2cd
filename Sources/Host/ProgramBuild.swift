// SPDX-License-Identifier: Apache-2.0
//
// Which build of the program, or of the library, this is: a hash of the file that its code was
// loaded from.

import CHost
import Glibc
import SystemPackage

package enum ProgramBuild {
  /// - Parameter anchor: an address in the program's or the library's code.
  /// - Returns: where the file cannot be read, a number that no other process has.
  package static func hash(anchor: UnsafeRawPointer) -> UInt64 {
    guard let path = path(anchor),
      let file = try? OwnedFileDescriptor(opening: path, flags: O_RDONLY)
    else { return UInt64.random(in: 0...(.max)) }
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 18, alignment: 64)
    defer { buffer.deallocate() }
    var hash: UInt64 = 0
    while let count = try? file.read(into: buffer), count > 0 {
      hash = ContentHash.of(UnsafeRawBufferPointer(rebasing: buffer[..<count]), seed: hash)
    }
    return hash
  }

  private static func path(_ anchor: UnsafeRawPointer) -> String? {
    var info = chost_dl_info()
    guard chost_dladdr(anchor, &info) != 0, let name = info.file else { return nil }
    // The program itself has the name that it was called by, which may be relative.
    let isPath = name[0] == CChar(bitPattern: UInt8(ascii: "/"))
    return isPath ? String(cString: name) : "/proc/self/exe"
  }
}
