// SPDX-License-Identifier: Apache-2.0
//
// Buffers the guest's serial output and writes it to the terminal in pieces, so that a vCPU does
// not make a system call for each character. The event loop writes; a vCPU does so itself only when
// the buffer is full, which slows a guest down to the speed of its reader.

import Host
import Synchronization
import SystemPackage

/// Buffered output to another owner's descriptor.
package final class ConsoleWriter: Sendable {
  /// Bytes that may be buffered before the sender must wait.
  private static let limit = 64 << 10

  private let pending = Mutex<[UInt8]>([])
  private let writing = Mutex<Bool>(false)
  private let descriptor: Int32
  private let wake: EventFile

  package init(descriptor: Int32) throws(Errno) {
    wake = try EventFile()
    self.descriptor = descriptor
    pending.withLock { $0.reserveCapacity(4096) }
  }

  /// Readable when there are bytes to write.
  package var wakeDescriptor: Int32 { wake.descriptor.rawValue }

  /// Adds a byte.
  package func put(_ byte: UInt8) {
    let count = pending.withLock { bytes in
      bytes.append(byte)
      return bytes.count
    }
    if count == 1 { wake.signal() }
    if count >= Self.limit { flush() }
  }

  /// Writes all bytes. They are lost if the reader has closed.
  package func flush() {
    writing.withLock { _ in
      wake.consume()
      let bytes = pending.withLock { pending in
        let bytes = pending
        pending.removeAll(keepingCapacity: true)
        return bytes
      }
      guard !bytes.isEmpty else { return }
      try? writeAll(descriptor, bytes.bytes)
    }
  }
}
