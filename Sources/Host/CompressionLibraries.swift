// SPDX-License-Identifier: Apache-2.0
//
// The host's decompression libraries: zlib and libzstd, which every Debian has because apt needs
// them. They are loaded on demand (`SharedLibrary`) and are not part of the program.
//
//     guard let zlib = ZlibLibrary() else { ... }
//     let result = zlib.inflate(input, into: &output, .raw)

/// The result of a decompression.
package struct DecompressionResult {
  /// Bytes of the output.
  package var written: Int
  /// The end of the data was reached.
  package var isComplete: Bool
}

/// zlib's inflate. It stays loaded: a guest's restart needs it when nothing can be loaded any more.
@safe package struct ZlibLibrary: Sendable {
  package static let file = "libz.so.1"

  package enum Header: Int32, Sendable {
    /// Raw deflate data, with any window.
    case raw = -15
    /// A gzip header; the largest window.
    case gzip = 31
  }

  /// `z_stream` on 64-bit systems.
  private enum Stream {
    static let size = 112
    static let nextIn = 0
    static let availableIn = 8
    static let nextOut = 24
    static let availableOut = 32
    static let totalOut = 40
  }
  private typealias Initialize =
    @convention(c) @Sendable (UnsafeMutableRawPointer, Int32, UnsafePointer<CChar>, Int32) -> Int32
  private typealias Inflate = @convention(c) @Sendable (UnsafeMutableRawPointer, Int32) -> Int32
  private typealias End = @convention(c) @Sendable (UnsafeMutableRawPointer) -> Int32

  private static let finish: Int32 = 4
  private static let streamEnd: Int32 = 1
  private static let bufferError: Int32 = -5

  private let initialize: Initialize
  private let inflate: Inflate
  private let end: End

  /// Nil if the host lacks the library.
  package init?() {
    guard let library = SharedLibrary(Self.file),
      let initialize = unsafe library.function("inflateInit2_", as: Initialize.self),
      let inflate = unsafe library.function("inflate", as: Inflate.self),
      let end = unsafe library.function("inflateEnd", as: End.self)
    else { return nil }
    unsafe (self.initialize, self.inflate, self.end) = unsafe (initialize, inflate, end)
    library.keep()
  }

  /// - Returns: nil if the data is damaged, or a buffer has 4 GiB or more.
  package func inflate(
    _ input: RawSpan, into output: inout MutableRawSpan, _ header: Header
  ) -> DecompressionResult? {
    unsafe input.withUnsafeBytes { input in
      unsafe output.withUnsafeMutableBytes { unsafe inflate(input, $0, header) }
    }
  }

  private func inflate(
    _ input: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer, _ header: Header
  ) -> DecompressionResult? {
    guard let inputSize = UInt32(exactly: input.count),
      let outputSize = UInt32(exactly: output.count)
    else { return nil }
    return unsafe withUnsafeTemporaryAllocation(byteCount: Stream.size, alignment: 8) { stream in
      unsafe stream.initializeMemory(as: UInt8.self, repeating: 0)
      unsafe stream.storeBytes(
        of: input.baseAddress, toByteOffset: Stream.nextIn, as: UnsafeRawPointer?.self)
      unsafe stream.storeBytes(of: inputSize, toByteOffset: Stream.availableIn, as: UInt32.self)
      unsafe stream.storeBytes(
        of: output.baseAddress, toByteOffset: Stream.nextOut, as: UnsafeMutableRawPointer?.self)
      unsafe stream.storeBytes(of: outputSize, toByteOffset: Stream.availableOut, as: UInt32.self)
      guard let state = stream.baseAddress,
        unsafe initialize(state, header.rawValue, "1.2.0", Int32(Stream.size)) == 0
      else { return nil }
      let result = unsafe inflate(state, Self.finish)
      let written = unsafe stream.load(fromByteOffset: Stream.totalOut, as: Int.self)
      _ = unsafe end(state)
      guard result == Self.streamEnd || result == Self.bufferError else { return nil }
      return DecompressionResult(written: written, isComplete: result == Self.streamEnd)
    }
  }
}

/// libzstd's streaming decompression. It stays loaded.
@safe package struct ZstandardLibrary: Sendable {
  package static let file = "libzstd.so.1"

  private typealias Create = @convention(c) @Sendable () -> OpaquePointer?
  private typealias Free = @convention(c) @Sendable (OpaquePointer) -> Int
  /// (context, output, input) -> 0 at a frame's end, more before, or an error that `IsError`
  /// detects.
  private typealias Decompress =
    @convention(c) @Sendable (
      OpaquePointer, UnsafeMutableRawPointer, UnsafeMutableRawPointer
    ) -> Int
  private typealias IsError = @convention(c) @Sendable (Int) -> UInt32

  /// The library's descriptions of input and output.
  @safe private struct Buffer {
    var start: UnsafeRawPointer?
    var size: Int
    var position: Int
  }

  private let create: Create
  private let free: Free
  private let step: Decompress
  private let isError: IsError

  /// Nil if the host lacks the library.
  package init?() {
    guard let library = SharedLibrary(Self.file),
      let create = unsafe library.function("ZSTD_createDCtx", as: Create.self),
      let free = unsafe library.function("ZSTD_freeDCtx", as: Free.self),
      let step = unsafe library.function("ZSTD_decompressStream", as: Decompress.self),
      let isError = library.function("ZSTD_isError", as: IsError.self)
    else { return nil }
    unsafe (self.create, self.free, self.step, self.isError) = unsafe (create, free, step, isError)
    library.keep()
  }

  /// Decompresses frames until the input ends, or a frame ends and the output is full.
  ///
  /// - Returns: nil if the data is damaged.
  package func decompress(
    _ source: RawSpan, into target: inout MutableRawSpan
  ) -> DecompressionResult? {
    unsafe source.withUnsafeBytes { source in
      unsafe target.withUnsafeMutableBytes { unsafe decompress(source, $0) }
    }
  }

  private func decompress(
    _ source: UnsafeRawBufferPointer, _ target: UnsafeMutableRawBufferPointer
  ) -> DecompressionResult? {
    guard let context = unsafe create() else { return nil }
    defer { _ = unsafe free(context) }
    var input = unsafe Buffer(start: source.baseAddress, size: source.count, position: 0)
    var output = unsafe Buffer(
      start: UnsafeRawPointer(target.baseAddress), size: target.count, position: 0)
    var left = 1
    // A step without progress is the last.
    while true {
      let before = (input.position, output.position)
      left = unsafe step(context, &output, &input)
      guard isError(left) == 0 else { return nil }
      let isFinished = input.position == input.size || output.position == output.size
      if left == 0 && isFinished || (input.position, output.position) == before { break }
    }
    return DecompressionResult(written: output.position, isComplete: left == 0)
  }
}
