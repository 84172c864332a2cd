// SPDX-License-Identifier: Apache-2.0
//
// Decompression of clusters by the host's libraries zlib and libzstd. They are loaded when an image
// is opened, because nothing can be loaded while a guest runs.

import Host

/// The compression type of an image's clusters, by the header's number.
enum Qcow2Compression: UInt8, Sendable {
  case zlib = 0
  case zstd = 1

  var library: String { self == .zlib ? ZlibLibrary.file : ZstandardLibrary.file }
  var package: String { self == .zlib ? "zlib1g" : "libzstd1" }
}

/// A library that decompresses clusters.
@safe struct Qcow2Decompressor: Sendable {
  typealias Decompress =
    @Sendable (UnsafeRawBufferPointer, UnsafeMutableRawBufferPointer) -> Bool

  /// Decompresses from the first buffer, which may have excess bytes, until the second is full;
  /// false on failure.
  let decompress: Decompress

  init(_ kind: Qcow2Compression) throws(ImageError) {
    switch kind {
    case .zlib:
      guard let zlib = ZlibLibrary() else { throw Self.missing(kind) }
      // Clusters end by their size, not by an end mark.
      unsafe decompress = { unsafe zlib.inflate($0, into: $1, .raw)?.written == $1.count }
    case .zstd:
      guard let zstd = ZstandardLibrary() else { throw Self.missing(kind) }
      unsafe decompress = { unsafe zstd.decompress($0, into: $1)?.written == $1.count }
    }
  }

  private static func missing(_ kind: Qcow2Compression) -> ImageError {
    .unusable("\(kind.library) is missing; apt-get install \(kind.package)")
  }
}
