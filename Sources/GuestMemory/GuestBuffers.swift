// SPDX-License-Identifier: Apache-2.0
//
// A scatter-gather list of guest memory from a driver: checked when it is built, then read and
// written as one run of bytes. The guest may change the bytes at any time, so code copies bytes
// before it checks them.

import CHost
import Glibc

/// Ranges of guest memory, in order. The memory must outlive the list.
/// Sendable: addresses of guest memory, which is shared in any case.
@safe package struct GuestBuffers: @unchecked Sendable {
  private let memory: GuestMemory
  private var pieces: [iovec] = unsafe []
  /// Bytes in all.
  package private(set) var count = 0

  package init(_ memory: GuestMemory) { self.memory = memory }

  /// Adds a range.
  ///
  /// - Returns: false if it is not in memory, or the list would have more bytes than fit
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

  /// A slice of the bytes, clamped to the list.
  package func slice(from start: Int, count wanted: Int = .max) -> GuestBuffers {
    var part = GuestBuffers(memory)
    unsafe forPieces(from: start, count: wanted) { base, size in
      unsafe part.pieces.append(iovec(iov_base: base, iov_len: size))
      part.count &+= size
    }
    return part
  }

  /// Copies bytes out; nil if there are fewer.
  package func bytes(from start: Int = 0, count wanted: Int) -> [UInt8]? {
    guard wanted >= 0, start >= 0, start <= count, wanted <= count &- start else { return nil }
    var result: [UInt8] = []
    result.reserveCapacity(wanted)
    unsafe forPieces(from: start, count: wanted) { base, size in
      unsafe result.append(contentsOf: UnsafeRawBufferPointer(start: base, count: size))
    }
    return result
  }

  /// Copies as many bytes in as fit, and notifies the processor.
  ///
  /// - Returns: their number.
  @discardableResult
  package func write(_ bytes: RawSpan, at start: Int = 0) -> Int {
    unsafe bytes.withUnsafeBytes { bytes in
      var done = 0
      unsafe forPieces(from: start, count: bytes.count) { base, size in
        unsafe base.copyMemory(from: bytes.baseAddress.unsafelyUnwrapped + done, byteCount: size)
        unsafe memory.noteWrite(base, count: size)
        done &+= size
      }
      return done
    }
  }

  /// Zeroes all bytes.
  package func clear() {
    unsafe forPieces(from: 0, count: count) { base, size in
      unsafe memset(base, 0, size)
      unsafe memory.noteWrite(base, count: size)
    }
  }

  /// Returns whole pages to the host; they read as 0 afterwards.
  ///
  /// - Returns: bytes returned to the host.
  package func discard() -> Int {
    var done = 0
    unsafe forPieces(from: 0, count: count) { base, size in
      done &+= unsafe memory.discard(base, count: size)
    }
    return done
  }

  /// The pieces for system calls. Report their writes by `noteWritten`.
  package func withVectors<Result>(
    _ body: (UnsafeBufferPointer<iovec>) -> Result
  ) -> Result { unsafe pieces.withUnsafeBufferPointer(body) }

  /// The first bytes were written without the processor's knowledge.
  package func noteWritten(_ size: Int) {
    unsafe forPieces(from: 0, count: size) { base, size in
      unsafe memory.noteWrite(base, count: size)
    }
  }

  /// Calls a function with the pieces of a part; none is empty.
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
