// SPDX-License-Identifier: Apache-2.0
//
// Opens the image in a file, together with its backing files.

import SystemPackage

/// The format of a file.
package enum ImageFormat: String, Sendable, CaseIterable {
  case raw
  case qcow2

  /// Detects the format from the start of a file.
  init(start: [UInt8]) { self = start.starts(with: Qcow2Header.magic) ? .qcow2 : .raw }
}

/// How an image is opened.
package struct ImageOptions: Sendable, Hashable {
  /// nil: detect it.
  package var format: ImageFormat?
  package var isReadOnly = false
  /// Writes go to a temporary file in this folder instead.
  package var overlayFolder: String?
  /// An internal snapshot, by name or identifier.
  package var snapshot: String?

  package init() {}
}

package enum DiskImage {
  /// Maximum length of a chain of backing files.
  private static let depthLimit = 64

  /// Opens and locks an image and its backing files.
  ///
  /// - Parameter report: called with a line if the image turns out to be damaged.
  package static func open(
    path: String, _ options: ImageOptions, report: @escaping @Sendable (String) -> Void = { _ in }
  ) throws(ImageError) -> any BlockImage {
    let isReadOnly =
      options.isReadOnly || options.overlayFolder != nil || options.snapshot != nil
    let file = try DiskFile(path: path, isReadOnly: isReadOnly)
    var chain = Chain(report: report, snapshot: options.snapshot)
    chain.files.insert(file.identity)
    let image = try chain.image(in: file, path: path, options.format, isTop: true)
    guard let folder = options.overlayFolder else { return image }
    return try Qcow2Image.temporary(over: image, folder: folder, report: report)
  }

  /// The files of an image so far.
  private struct Chain {
    let report: @Sendable (String) -> Void
    let snapshot: String?
    var files: Set<DiskFile.Identity> = []

    mutating func image(
      in file: DiskFile, path: String, _ format: ImageFormat?, isTop: Bool
    ) throws(ImageError) -> any BlockImage & ImageLayer {
      let start = try Qcow2Image.start(of: file)
      switch format ?? ImageFormat(start: start) {
      case .raw:
        guard !isTop || snapshot == nil else {
          throw .unusable("a raw image has no snapshots; leave snapshot= out")
        }
        return try RawImage(file, isGuessed: format == nil, isLayer: !isTop)
      case .qcow2:
        let header = try Qcow2Header(start)
        let backing = try header.backingFile.map { (name) throws(ImageError) in
          try layer(name, header.backingFormat, of: path)
        }
        return try Qcow2Image(
          file, header, backing: backing, snapshot: isTop ? snapshot : nil, report: report)
      }
    }

    private mutating func layer(
      _ name: String, _ format: String?, of path: String
    ) throws(ImageError) -> any ImageLayer {
      let path = try DiskImage.resolve(name, path)
      do throws(ImageError) {
        guard files.count < depthLimit else {
          throw .unusable("more than \(depthLimit) backing files, one on the other")
        }
        let known = format.flatMap { ImageFormat(rawValue: $0) }
        if let format, known == nil {
          throw .unusable("format \(format) of the backing file; convert it with qemu-img convert")
        }
        if let identity = DiskFile.Identity(path: path), !files.insert(identity).inserted {
          throw .unusable("its own backing file; give it another with qemu-img rebase")
        }
        let file = try DiskFile(path: path, isReadOnly: true)
        return try image(in: file, path: path, known, isTop: false)
      } catch {
        if case .backing = error { throw error }
        throw .backing(path: path, error)
      }
    }
  }

  /// The path of a backing file, relative to the file that names it.
  private static func resolve(_ name: String, _ path: String) throws(ImageError) -> String {
    var name = name
    if name.hasPrefix("file:") { name.removeFirst("file:".count) }
    let first = name.split(separator: "/", omittingEmptySubsequences: false)[0]
    guard !first.contains(":") else {
      throw .backing(path: name, .unusable("not a local file; copy it with qemu-img convert"))
    }
    if name.hasPrefix("/") { return name }
    guard let slash = path.lastIndex(of: "/") else { return name }
    return path[...slash] + name
  }
}
