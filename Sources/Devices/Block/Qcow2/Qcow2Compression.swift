// SPDX-License-Identifier: Apache-2.0
//
// Compressed clusters, undone by the host's libraries: zlib, libzstd. They are loaded when an image
// is opened, as nothing can be loaded while a guest runs.

import Host

/// How the clusters of an image are compressed, by the header's number.
enum Qcow2Compression: UInt8, Sendable {
  case zlib = 0
  case zstd = 1

  var library: String { self == .zlib ? "libz.so.1" : "libzstd.so.1" }
  var package: String { self == .zlib ? "zlib1g" : "libzstd1" }
}

/// A library that decompresses clusters.
@safe struct Qcow2Decompressor: Sendable {
  typealias Decompress =
    @Sendable (UnsafeRawBufferPointer, UnsafeMutableRawBufferPointer) -> Bool

  /// Fills all of the second buffer from the first, which may have more; false where that cannot
  /// be done.
  let decompress: Decompress

  init(_ kind: Qcow2Compression) throws(ImageError) {
    guard let library = SharedLibrary(kind.library) else { throw Self.missing(kind) }
    let found =
      switch kind {
      case .zlib:
        unsafe Zlib(library).map { zlib in { @Sendable in unsafe zlib.decompress($0, into: $1) } }
      case .zstd:
        unsafe Zstandard(library).map { zstd in
          { @Sendable in unsafe zstd.decompress($0, into: $1) }
        }
      }
    guard let found = unsafe found else { throw Self.missing(kind) }
    unsafe decompress = unsafe found
    // Stays loaded: the functions are needed as long as the program runs.
    library.keep()
  }

  private static func missing(_ kind: Qcow2Compression) -> ImageError {
    .unusable("\(kind.library) is missing; apt-get install \(kind.package)")
  }
}

/// Raw deflate data.
@safe private struct Zlib: Sendable {
  /// `z_stream` on 64-bit systems.
  private enum Stream {
    static let size = 112
    static let nextIn = 0
    static let availableIn = 8
    static let nextOut = 24
    static let availableOut = 32
  }
  typealias Initialize =
    @convention(c) @Sendable (UnsafeMutableRawPointer, Int32, UnsafePointer<CChar>, Int32) -> Int32
  typealias Inflate = @convention(c) @Sendable (UnsafeMutableRawPointer, Int32) -> Int32
  typealias End = @convention(c) @Sendable (UnsafeMutableRawPointer) -> Int32

  /// No header, and any window.
  private static let rawWindow: Int32 = -15
  private static let finish: Int32 = 4
  private static let streamEnd: Int32 = 1
  private static let bufferError: Int32 = -5

  private let initialize: Initialize
  private let inflate: Inflate
  private let end: End

  init?(_ library: borrowing SharedLibrary) {
    guard let initialize = unsafe library.function("inflateInit2_", as: Initialize.self),
      let inflate = unsafe library.function("inflate", as: Inflate.self),
      let end = unsafe library.function("inflateEnd", as: End.self)
    else { return nil }
    unsafe (self.initialize, self.inflate, self.end) = unsafe (initialize, inflate, end)
  }

  func decompress(
    _ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer
  ) -> Bool {
    unsafe withUnsafeTemporaryAllocation(byteCount: Stream.size, alignment: 8) { stream in
      unsafe stream.initializeMemory(as: UInt8.self, repeating: 0)
      unsafe stream.storeBytes(
        of: input.baseAddress, toByteOffset: Stream.nextIn, as: UnsafeRawPointer?.self)
      unsafe stream.storeBytes(
        of: UInt32(clamping: input.count), toByteOffset: Stream.availableIn, as: UInt32.self)
      unsafe stream.storeBytes(
        of: output.baseAddress, toByteOffset: Stream.nextOut, as: UnsafeMutableRawPointer?.self)
      unsafe stream.storeBytes(
        of: UInt32(clamping: output.count), toByteOffset: Stream.availableOut, as: UInt32.self)
      guard let state = stream.baseAddress,
        unsafe initialize(state, Self.rawWindow, "1.2.0", Int32(Stream.size)) == 0
      else { return false }
      let result = unsafe inflate(state, Self.finish)
      let left = unsafe stream.load(fromByteOffset: Stream.availableOut, as: UInt32.self)
      _ = unsafe end(state)
      return (result == Self.streamEnd || result == Self.bufferError) && left == 0
    }
  }
}

@safe private struct Zstandard: Sendable {
  typealias Create = @convention(c) @Sendable () -> OpaquePointer?
  typealias Free = @convention(c) @Sendable (OpaquePointer) -> Int
  /// (context, output, input) -> what is left to do, or an error, which `IsError` tells.
  typealias Decompress =
    @convention(c) @Sendable (
      OpaquePointer, UnsafeMutableRawPointer, UnsafeMutableRawPointer
    ) -> Int
  typealias IsError = @convention(c) @Sendable (Int) -> UInt32

  /// The library's buffers, of input and of output.
  @safe struct Buffer {
    var start: UnsafeRawPointer?
    var size: Int
    var position: Int
  }

  private let create: Create
  private let free: Free
  private let step: Decompress
  private let isError: IsError

  init?(_ library: borrowing SharedLibrary) {
    guard let create = unsafe library.function("ZSTD_createDCtx", as: Create.self),
      let free = unsafe library.function("ZSTD_freeDCtx", as: Free.self),
      let step = unsafe library.function("ZSTD_decompressStream", as: Decompress.self),
      let isError = library.function("ZSTD_isError", as: IsError.self)
    else { return nil }
    unsafe (self.create, self.free, self.step, self.isError) = unsafe (create, free, step, isError)
  }

  func decompress(
    _ source: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
  ) -> Bool {
    guard let context = unsafe create() else { return false }
    defer { _ = unsafe free(context) }
    var input = unsafe Buffer(start: source.baseAddress, size: source.count, position: 0)
    var output = unsafe Buffer(
      start: UnsafeRawPointer(target.baseAddress), size: target.count, position: 0)
    // A cluster may be several frames. Each step has to get on.
    while output.position < output.size {
      let before = (input.position, output.position)
      guard unsafe isError(step(context, &output, &input)) == 0 else { return false }
      if (input.position, output.position) == before { return false }
    }
    return true
  }
}
