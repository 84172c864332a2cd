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
struct Qcow2Decompressor: Sendable {
  typealias Decompress = @Sendable (RawSpan, inout MutableRawSpan) -> Bool

  /// Fills all of the second span from the first, which may have more; false where that cannot be
  /// done.
  let decompress: Decompress

  init(_ kind: Qcow2Compression) throws(ImageError) {
    switch kind {
    case .zlib:
      guard let zlib = ZlibLibrary() else { throw Self.missing(kind) }
      // Clusters end by their size, not by an end mark.
      decompress = { zlib.inflate($0, into: &$1, .raw)?.written == $1.byteCount }
    case .zstd:
      guard let zstd = ZstandardLibrary() else { throw Self.missing(kind) }
      decompress = { zstd.decompress($0, into: &$1)?.written == $1.byteCount }
    }
  }

  private static func missing(_ kind: Qcow2Compression) -> ImageError {
    .unusable("\(kind.library) is missing; apt-get install \(kind.package)")
  }
}
