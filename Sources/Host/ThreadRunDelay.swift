// SPDX-License-Identifier: Apache-2.0
//
// How long the calling thread has waited for a processor, from /proc/thread-self/schedstat. The file
// stays open for as long as the thread lives, so that it can be read where no file may be opened any more.
//
//     ThreadRunDelay.prepare()            // where files may be opened
//     let nanoseconds = ThreadRunDelay.read()

import CHost
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

package enum ThreadRunDelay {
  /// The thread's open file plus 1; -1 where there is none.
  private static let key: pthread_key_t = {
    var key = pthread_key_t()
    pthread_key_create(&key) { value in
      let descriptor = Int32(truncatingIfNeeded: Int(bitPattern: value) - 1)
      if descriptor >= 0 { close(descriptor) }
    }
    return key
  }()

  /// Opens the calling thread's file.
  package static func prepare() { _ = descriptor() }

  private static func descriptor() -> Int32 {
    let known = Int(bitPattern: pthread_getspecific(key))
    if known != 0 { return Int32(truncatingIfNeeded: known > 0 ? known - 1 : -1) }
    let raw = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)
    pthread_setspecific(key, UnsafeRawPointer(bitPattern: raw < 0 ? -1 : Int(raw) + 1))
    return raw
  }

  /// Nanoseconds since the thread's start; 0 where the kernel does not tell.
  package static func read() -> UInt64 {
    let file = descriptor()
    guard file >= 0 else { return 0 }
    return withUnsafeTemporaryAllocation(byteCount: 128, alignment: 1) { bytes in
      let count = pread(file, bytes.baseAddress, bytes.count, 0)
      // Three numbers: time on a processor, time waiting for one, time slices.
      var field = 0
      var value: UInt64 = 0
      for byte in bytes.prefix(max(count, 0)) {
        if byte == UInt8(ascii: " ") {
          if field == 1 { return value }
          (field, value) = (field + 1, 0)
        } else if (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) {
          value = value &* 10 &+ UInt64(byte - UInt8(ascii: "0"))
        }
      }
      return 0
    }
  }
}
