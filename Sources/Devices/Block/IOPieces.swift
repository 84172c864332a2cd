// SPDX-License-Identifier: Apache-2.0
//
// A scatter-gather list for file reads and writes: guest memory, the program's memory, or both in
// one list, so that one system call can write a guest's bytes between copied ones.

import CHost
import Glibc
import GuestMemory

/// A list of memory ranges, in order. The memory must outlive the list.
@safe struct IOPieces {
  /// None is empty.
  private(set) var vectors: [iovec]
  /// Bytes in all.
  private(set) var count: Int

  private init(vectors: [iovec], count: Int) {
    unsafe (self.vectors, self.count) = unsafe (vectors, count)
  }

  init() { unsafe self.init(vectors: [], count: 0) }

  init(_ buffers: GuestBuffers) {
    unsafe self.init(vectors: buffers.withVectors { unsafe Array($0) }, count: buffers.count)
  }

  init(_ memory: UnsafeMutableRawBufferPointer) {
    self.init()
    unsafe append(memory)
  }

  var isEmpty: Bool { count == 0 }

  mutating func append(_ memory: UnsafeMutableRawBufferPointer) {
    if unsafe memory.isEmpty { return }
    unsafe vectors.append(iovec(iov_base: memory.baseAddress, iov_len: memory.count))
    count &+= memory.count
  }

  mutating func append(_ pieces: IOPieces) {
    unsafe vectors += pieces.vectors
    count &+= pieces.count
  }

  /// A slice of the bytes, clamped to the list.
  func slice(from start: Int, count wanted: Int = .max) -> IOPieces {
    if start == 0, wanted >= count { return self }
    var part = IOPieces()
    unsafe forPieces(from: start, count: wanted) { unsafe part.append($0) }
    return part
  }

  /// Zeroes all bytes.
  func clear() {
    for n in unsafe vectors.indices {
      let vector = unsafe vectors[n]
      if let base = unsafe vector.iov_base { unsafe memset(base, 0, vector.iov_len) }
    }
  }

  /// Copies bytes in, as many as fit.
  func fill(from bytes: RawSpan) {
    unsafe bytes.withUnsafeBytes { bytes in
      var done = 0
      unsafe forPieces(from: 0, count: bytes.count) { piece in
        unsafe piece.copyMemory(
          from: UnsafeRawBufferPointer(rebasing: bytes[done...].prefix(piece.count)))
        done &+= piece.count
      }
    }
  }

  private func forPieces(
    from start: Int, count wanted: Int, _ body: (UnsafeMutableRawBufferPointer) -> Void
  ) {
    var (skip, left) = (start, wanted)
    for n in unsafe vectors.indices where left > 0 {
      let vector = unsafe vectors[n]
      guard unsafe skip < vector.iov_len, let base = unsafe vector.iov_base else {
        unsafe skip &-= vector.iov_len
        continue
      }
      let size = unsafe min(vector.iov_len &- skip, left)
      unsafe body(UnsafeMutableRawBufferPointer(start: base.advanced(by: skip), count: size))
      left &-= size
      skip = 0
    }
  }
}

/// A buffer of the program for the duration of a request.
@safe final class HostBuffer {
  private let start: UnsafeMutableRawPointer
  private let count: Int

  /// - Parameter count: bytes, zeroed.
  init(count: Int) {
    unsafe start = UnsafeMutableRawPointer.allocate(byteCount: max(count, 1), alignment: 4096)
    unsafe start.initializeMemory(as: UInt8.self, repeating: 0, count: count)
    self.count = count
  }

  deinit { unsafe start.deallocate() }

  private var memory: UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(start: start, count: count)
  }

  /// Calls a function with all bytes, while no request writes to them.
  func withBytes<Result>(_ body: (RawSpan) -> Result) -> Result {
    let start = unsafe start
    return unsafe body(RawSpan(_unsafeStart: start, byteCount: count))
  }

  /// Copies bytes in, which are not more than these.
  func fill(from bytes: RawSpan) {
    unsafe bytes.withUnsafeBytes { unsafe memory.copyMemory(from: $0) }
  }

  /// The bytes from an offset on, clamped to the buffer.
  func pieces(from start: Int = 0, count wanted: Int) -> IOPieces {
    unsafe IOPieces(memory).slice(from: start, count: wanted)
  }
}
