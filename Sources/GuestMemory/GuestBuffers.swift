// SPDX-License-Identifier: Apache-2.0
//
// Guest memory in pieces, as a driver hands it to a device: checked when the list is made, then
// read and written as one run of bytes. The guest may change the bytes at any time; what is checked
// is copied first.

import CHost
import Glibc

/// Ranges of guest memory, one after the other. The memory must outlive the list.
/// Sendable: addresses of guest memory, which is shared in any case.
@safe package struct GuestBuffers: @unchecked Sendable {
  private let memory: GuestMemory
  private var pieces: [iovec] = unsafe []
  /// Bytes in all.
  package private(set) var count = 0

  package init(_ memory: GuestMemory) { self.memory = memory }

  /// Adds a range.
  ///
  /// - Returns: false where it does not lie in memory, or the list would have more bytes than fit
  ///   an `Int`.
  package mutating func append(_ address: UInt64, count size: UInt32) -> Bool {
    if size == 0 { return true }
    let (sum, overflow) = count.addingReportingOverflow(Int(size))
    guard !overflow, let start = unsafe memory.host(address, count: Int(size)) else { return false }
    unsafe pieces.append(iovec(iov_base: start, iov_len: Int(size)))
    count = sum
    return true
  }

  package var isEmpty: Bool { count == 0 }

  /// A part of the bytes, as much of it as there is.
  package func slice(from start: Int, count wanted: Int = .max) -> GuestBuffers {
    var part = GuestBuffers(memory)
    unsafe forPieces(from: start, count: wanted) { base, size in
      unsafe part.pieces.append(iovec(iov_base: base, iov_len: size))
      part.count &+= size
    }
    return part
  }

  /// Copies bytes out; nil where there are fewer.
  package func bytes(from start: Int = 0, count wanted: Int) -> [UInt8]? {
    guard wanted >= 0, start >= 0, start <= count, wanted <= count &- start else { return nil }
    var result: [UInt8] = []
    result.reserveCapacity(wanted)
    unsafe forPieces(from: start, count: wanted) { base, size in
      unsafe result.append(contentsOf: UnsafeRawBufferPointer(start: base, count: size))
    }
    return result
  }

  /// Copies bytes in, as many as fit, and tells the processor.
  ///
  /// - Returns: how many.
  @discardableResult
  package func write(_ bytes: UnsafeRawBufferPointer, at start: Int = 0) -> Int {
    var done = 0
    unsafe forPieces(from: start, count: bytes.count) { base, size in
      unsafe base.copyMemory(from: bytes.baseAddress.unsafelyUnwrapped + done, byteCount: size)
      unsafe memory.noteWrite(base, count: size)
      done &+= size
    }
    return done
  }

  /// Sets all bytes to 0.
  package func clear() {
    unsafe forPieces(from: 0, count: count) { base, size in
      unsafe memset(base, 0, size)
      unsafe memory.noteWrite(base, count: size)
    }
  }

  /// Gives the host the memory of whole pages back; they read as 0 then.
  ///
  /// - Returns: bytes that were given back.
  package func discard() -> Int {
    var done = 0
    unsafe forPieces(from: 0, count: count) { base, size in
      done &+= unsafe memory.discard(base, count: size)
    }
    return done
  }

  /// The pieces as system calls take them. What such a call wrote is to be told by `noteWritten`.
  package func withVectors<Result>(
    _ body: (UnsafeBufferPointer<iovec>) -> Result
  ) -> Result { unsafe pieces.withUnsafeBufferPointer(body) }

  /// The first bytes were written by somebody whom the processor has not seen.
  package func noteWritten(_ size: Int) {
    unsafe forPieces(from: 0, count: size) { base, size in
      unsafe memory.noteWrite(base, count: size)
    }
  }

  /// Calls a function with the pieces of a part; none has 0 bytes.
  private func forPieces(
    from start: Int, count wanted: Int, _ body: (UnsafeMutableRawPointer, Int) -> Void
  ) {
    var (skip, left) = (start, wanted)
    for n in unsafe pieces.indices where left > 0 {
      let piece = unsafe pieces[n]
      guard unsafe skip < piece.iov_len, let base = unsafe piece.iov_base else {
        unsafe skip &-= piece.iov_len
        continue
      }
      let size = unsafe min(piece.iov_len &- skip, left)
      unsafe body(base + skip, size)
      left &-= size
      skip = 0
    }
  }
}
