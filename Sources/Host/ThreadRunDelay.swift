// SPDX-License-Identifier: Apache-2.0
//
// How long the calling thread has waited for a processor, from /proc/thread-self/schedstat. A
// thread that will not be allowed to open files keeps this one open for life. Others open it each
// time: a thread of another program must not hold a descriptor, whose number that program may close
// and reuse.
//
//     ThreadRunDelay.prepare()            // while files may be opened
//     let nanoseconds = ThreadRunDelay.read()

import CHost
import SystemPackage

#if canImport(Glibc)
  import Glibc
#endif

package enum ThreadRunDelay {
  /// The thread's open file plus 1.
  private static let key: pthread_key_t = {
    var key = pthread_key_t()
    unsafe pthread_key_create(&key) { value in
      let descriptor = Int32(truncatingIfNeeded: Int(bitPattern: value) - 1)
      if descriptor >= 0 { close(descriptor) }
    }
    return key
  }()

  /// Opens the calling thread's file and keeps it.
  package static func prepare() {
    if kept != nil { return }
    let file = openFile()
    if file >= 0 { unsafe pthread_setspecific(key, UnsafeRawPointer(bitPattern: Int(file) + 1)) }
  }

  private static var kept: Int32? {
    unsafe pthread_getspecific(key).map { Int32(truncatingIfNeeded: Int(bitPattern: $0) - 1) }
  }

  private static func openFile() -> Int32 {
    unsafe open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)
  }

  /// Nanoseconds since the thread's start; 0 if the kernel does not tell.
  package static func read() -> UInt64 {
    if let kept { return read(kept) }
    let file = openFile()
    guard file >= 0 else { return 0 }
    defer { close(file) }
    return read(file)
  }

  private static func read(_ file: Int32) -> UInt64 {
    unsafe withUnsafeTemporaryAllocation(byteCount: 128, alignment: 1) { bytes in
      let count = unsafe pread(file, bytes.baseAddress, bytes.count, 0)
      // Three numbers: time on a processor, time waiting for one, time slices.
      var field = 0
      var value: UInt64 = 0
      for n in 0..<max(count, 0) {
        let byte = unsafe bytes[n]
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
