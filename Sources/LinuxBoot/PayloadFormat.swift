// SPDX-License-Identifier: Apache-2.0
//
// The compression format of a bzImage's payload, and decompression by the host's libraries: zlib,
// liblzma, liblz4, libzstd, which every Debian has because apt needs them. They are loaded on
// demand and are not part of the program.
//
//     let format = PayloadFormat(payload)
//     let whole = format?.decompress(payload, into: buffer) == buffer.count

import Host

/// Compression formats of Linux's kernel that a library here can decompress.
package enum PayloadFormat: String, CaseIterable, Sendable {
  case gzip, xz, lz4, zstd

  private static let xzMagic: [UInt8] = [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00]
  private static let gzipMagic: [UInt8] = [0x1F, 0x8B]
  private static let zstdMagic: [UInt8] = [0x28, 0xB5, 0x2F, 0xFD]
  /// LZ4's legacy frame: Linux uses no other.
  private static let lz4Magic: [UInt8] = [0x02, 0x21, 0x4C, 0x18]

  private var magic: [UInt8] {
    switch self {
    case .gzip: Self.gzipMagic
    case .xz: Self.xzMagic
    case .lz4: Self.lz4Magic
    case .zstd: Self.zstdMagic
    }
  }

  /// Detects the format; nil if it is none of these.
  package init?(_ payload: UnsafeRawBufferPointer) {
    let found = Self.allCases.first { format in
      unsafe payload.count > 16 && payload.prefix(format.magic.count).elementsEqual(format.magic)
    }
    guard let found else { return nil }
    self = found
  }

  package var library: String {
    switch self {
    case .gzip: ZlibLibrary.file
    case .xz: "liblzma.so.5"
    case .lz4: "liblz4.so.1"
    case .zstd: ZstandardLibrary.file
    }
  }

  /// Decompresses a payload without the size that Linux's build appends.
  ///
  /// - Returns: bytes written; nil if the library is missing or finds the data damaged or longer
  ///   than `output`.
  package func decompress(
    _ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer
  ) -> Int? {
    guard let source = input.baseAddress, let target = output.baseAddress else { return nil }
    let from = unsafe UnsafeRawBufferPointer(start: source, count: input.count)
    let to = unsafe UnsafeMutableRawBufferPointer(start: target, count: output.count)
    switch self {
    case .gzip:
      return unsafe ZlibLibrary()?.inflate(from, into: to, .gzip).flatMap(Self.whole)
    case .zstd:
      return unsafe ZstandardLibrary()?.decompress(from, into: to).flatMap(Self.whole)
    case .xz, .lz4:
      guard let loaded = SharedLibrary(library) else { return nil }
      let result =
        unsafe self == .xz
        ? LZMA.decompress(loaded, from, to) : LZ4.decompress(loaded, from, to)
      // A restart needs it when nothing can be loaded any more.
      loaded.keep()
      return result
    }
  }

  private static func whole(_ result: DecompressionResult) -> Int? {
    result.isComplete ? result.written : nil
  }
}

private enum LZ4 {
  /// (source, destination, compressed size, capacity) -> bytes, or less than 0.
  typealias Decompress =
    @convention(c) (UnsafeRawPointer, UnsafeMutableRawPointer, Int32, Int32) -> Int32

  /// Blocks of up to 8 MiB, each preceded by its compressed size.
  static func decompress(
    _ library: borrowing SharedLibrary, _ input: UnsafeRawBufferPointer,
    _ output: UnsafeMutableRawBufferPointer
  ) -> Int? {
    guard let block = unsafe library.function("LZ4_decompress_safe", as: Decompress.self) else {
      return nil
    }
    var position = 4
    var written = 0
    while position + 4 <= input.count {
      let size = unsafe Int(input.loadUnaligned(fromByteOffset: position, as: UInt32.self))
      position += 4
      guard size > 0, size <= input.count - position, size <= Int32.max else { return nil }
      let count = unsafe block(
        input.baseAddress.unsafelyUnwrapped + position,
        output.baseAddress.unsafelyUnwrapped + written, Int32(size),
        Int32(clamping: output.count - written))
      guard count >= 0 else { return nil }
      written += Int(count)
      position += size
    }
    return written
  }
}

private enum LZMA {
  /// (memory limit, flags, allocator, source, position, size, destination, position, capacity)
  typealias Decode =
    @convention(c) (
      UnsafeMutablePointer<UInt64>, UInt32, UnsafeRawPointer?, UnsafeRawPointer,
      UnsafeMutablePointer<Int>, Int, UnsafeMutableRawPointer, UnsafeMutablePointer<Int>, Int
    ) -> Int32

  static func decompress(
    _ library: borrowing SharedLibrary, _ input: UnsafeRawBufferPointer,
    _ output: UnsafeMutableRawBufferPointer
  ) -> Int? {
    guard let decode = unsafe library.function("lzma_stream_buffer_decode", as: Decode.self) else {
      return nil
    }
    var limit = UInt64.max
    var read = 0
    var written = 0
    let result = unsafe decode(
      &limit, 0, nil, input.baseAddress.unsafelyUnwrapped, &read, input.count,
      output.baseAddress.unsafelyUnwrapped, &written, output.count)
    return result == 0 ? written : nil
  }
}
