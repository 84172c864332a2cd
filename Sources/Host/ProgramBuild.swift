// SPDX-License-Identifier: Apache-2.0
//
// Identifies the build of the program, or of the library: the file that its code was loaded from,
// and the file's times. Writes change the times, and hashing the whole file would take too long.

import CHost
import Glibc
import SystemPackage

package enum ProgramBuild {
  /// - Parameter anchor: an address in the program's or the library's code.
  /// - Returns: numbers unique to the build; if the file cannot be found, unique to the
  ///   process.
  package static func identity(anchor: UnsafeRawPointer) -> [UInt64] {
    var status = stat()
    guard let path = unsafe path(anchor), unsafe stat(path, &status) == 0 else {
      return [UInt64.random(in: 0...(.max))]
    }
    return [
      Int(truncatingIfNeeded: status.st_ino), Int(status.st_size), status.st_mtim.tv_sec,
      status.st_mtim.tv_nsec, status.st_ctim.tv_sec, status.st_ctim.tv_nsec,
    ].map { UInt64(truncatingIfNeeded: $0) }
  }

  private static func path(_ anchor: UnsafeRawPointer) -> String? {
    var info = unsafe chost_dl_info()
    guard unsafe chost_dladdr(anchor, &info) != 0, let name = unsafe info.file else { return nil }
    // The program's name is the one that it was called by: another file may have it by now.
    let text = unsafe String(cString: name)
    let isLibrary = text.hasPrefix("/") && text != CommandLine.arguments.first
    return isLibrary ? text : "/proc/self/exe"
  }
}
