// SPDX-License-Identifier: Apache-2.0
//
// The compression format of a bzImage's payload, and decompression by the host's libraries: zlib,
// liblzma, liblz4, libzstd, which every Debian has because apt needs them. They are loaded on
// demand and are not part of the program.
//
//     let format = PayloadFormat(payload)
//     let whole = format?.decompress(payload, into: &room) == room.byteCount

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

  /// The format that begins so; nil where it is none of these.
  package init?(_ payload: RawSpan) {
    let found = Self.allCases.first { payload.starts(with: $0.magic) }
    guard let found, payload.byteCount > 16 else { return nil }
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
  package func decompress(_ input: RawSpan, into output: inout MutableRawSpan) -> Int? {
    guard !input.isEmpty, !output.isEmpty else { return nil }
    switch self {
    case .gzip:
      return ZlibLibrary()?.inflate(input, into: &output, .gzip).flatMap(Self.whole)
    case .zstd:
      return ZstandardLibrary()?.decompress(input, into: &output).flatMap(Self.whole)
    case .xz, .lz4:
      guard let loaded = SharedLibrary(library) else { return nil }
      let result =
        self == .xz
        ? LZMA.decompress(loaded, input, &output) : LZ4.decompress(loaded, input, &output)
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
    _ library: borrowing SharedLibrary, _ input: RawSpan, _ output: inout MutableRawSpan
  ) -> Int? {
    guard let block = unsafe library.function("LZ4_decompress_safe", as: Decompress.self) else {
      return nil
    }
    var position = 4
    var written = 0
    while let word = input.load(UInt32.self, at: position) {
      position += 4
      let size = Int(word)
      guard let source = input.part(position..<position + size), let size = Int32(exactly: size),
        size > 0
      else { return nil }
      var room = output.part(written...)
      let count = unsafe source.withUnsafeBytes { source in
        unsafe room.withUnsafeMutableBytes { room -> Int32 in
          guard let from = source.baseAddress, let to = room.baseAddress else { return -1 }
          return unsafe block(from, to, size, Int32(clamping: room.count))
        }
      }
      guard count >= 0, Int(count) <= room.byteCount else { return nil }
      written += Int(count)
      position += Int(size)
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
    _ library: borrowing SharedLibrary, _ input: RawSpan, _ output: inout MutableRawSpan
  ) -> Int? {
    guard let decode = unsafe library.function("lzma_stream_buffer_decode", as: Decode.self) else {
      return nil
    }
    var limit = UInt64.max
    var read = 0
    var written = 0
    let result = unsafe input.withUnsafeBytes { input in
      unsafe output.withUnsafeMutableBytes { output -> Int32? in
        guard let from = input.baseAddress, let to = output.baseAddress else { return nil }
        return unsafe decode(&limit, 0, nil, from, &read, input.count, to, &written, output.count)
      }
    }
    return result == 0 ? written : nil
  }
}
